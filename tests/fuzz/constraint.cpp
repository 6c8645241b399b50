// Feeds the pattern and schema compilers arbitrary text. What they accept is walked as a sampler
// would, over a vocabulary of bytes: no state gets stuck, and a text made so is one of the grammar.

#include <cstdint>
#include <cstdlib>

#include "engine/constraint.hpp"
#include "tests/fakes/byte_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice;
  using namespace sluice::engine;
  if (size < 2 || size > 4096) return 0;
  Constraint constraint;
  constraint.kind = data[0] % 2 == 0 ? Constraint::Kind::regex : Constraint::Kind::json_schema;
  constraint.text.assign(reinterpret_cast<const char*>(data) + 2, size - 2);

  static const auto tokenizer = std::make_shared<const fakes::ByteTokenizer>();
  ConstraintCache cache(tokenizer);
  const auto compiled = cache.get(constraint);
  if (!compiled) {
    if (compiled.error().message.empty()) std::abort();
    return 0;
  }
  ConstrainedText text(*compiled, tokenizer, false);
  SamplingParams sampling;
  sampling.stop_tokens = {fakes::ByteTokenizer::end_token};
  std::uint32_t draw = data[1];
  for (std::uint32_t index = 0; index < 100 && !text.complete(); ++index) {
    const TokenBits bits = text.allowed(sampling, index);
    std::vector<Token> choices;
    for (Token token = 0; token < tokenizer->size(); ++token)
      if ((bits[token / 64] >> (token % 64) & 1) != 0) choices.push_back(token);
    if (choices.empty() && !text.too_wide()) std::abort();
    if (choices.empty()) return 0;
    draw = draw * 1664525 + 1013904223;
    const Token token = choices[(draw >> 8) % choices.size()];
    if (token == fakes::ByteTokenizer::end_token) {
      if (!text.may_end()) std::abort();
      return 0;
    }
    text.push(token);
    if (text.failed()) std::abort();
  }
  return 0;
}
