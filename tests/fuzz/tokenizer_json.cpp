// Feeds arbitrary bytes to the tokenizer.json reader. Whatever is accepted must encode and decode
// any text without leaving its vocabulary. Run: build/fuzz/fuzz_tokenizer_json
// tests/fuzz/corpus/tokenizer_json
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using sluice::Token;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = sluice::model::load_tokenizer_json(bytes);
  if (!tokenizer) return 0;
  // Text of every kind, and the file itself: it spells its own tokens.
  const std::string_view texts[] = {"",
                                    "  Hello, it's 1234 w\u00f6rlds\r\n\t<s></s> \u4e16\U0001F44D",
                                    "\xff\xc3(\xe2\x82 \xed\xa0\x80", bytes.substr(0, 512)};
  for (const std::string_view text : texts) {
    for (const bool special : {false, true}) {
      for (const Token id : (*tokenizer)->encode(text, special)) {
        SLUICE_ASSERT(id < (*tokenizer)->size(), "an id outside the vocabulary");
        SLUICE_ASSERT(special || !(*tokenizer)->is_control(id), "text became a control token");
        SLUICE_ASSERT((*tokenizer)->bytes(id).size() <= 1'000'000, "a token of endless text");
      }
    }
  }
  return 0;
}
