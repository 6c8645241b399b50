// Shows that tokenizers from GGUF metadata give the ids that llama.cpp gives: SmolLM2's own
// vocabulary on more than 800 texts, raw bytes among them, and small vocabularies of the other
// kinds; and that a vocabulary which lies is refused. Fixtures: scripts/fixtures/tokenizer.py.
#include "model/tokenizer.hpp"

#include "model/gguf.hpp"
#include "tests/model/gguf_builder.hpp"
#include "tests/model/tokenizer_cases.hpp"

namespace sluice::model {
namespace {

using nlohmann::json;
using testing::GgufBuilder;

std::shared_ptr<const Tokenizer> load_file(const std::string& path) {
  const auto file = GgufFile::open(path);
  BOOST_REQUIRE_MESSAGE(file, file.error().message);
  auto tokenizer = load_tokenizer(**file);
  BOOST_REQUIRE_MESSAGE(tokenizer, tokenizer.error().message);
  return *tokenizer;  // The file is closed here: a tokenizer keeps nothing of it.
}

const Tokenizer& smollm2() {
  static const auto tokenizer =
      load_file(fmt::format("{}/SmolLM2-135M-Instruct-Q4_1.gguf", SLUICE_MODELS));
  return *tokenizer;
}

const json& smollm2_fixture() {
  static const json fixture = json::parse(read_fixture("smollm2.json"));
  return fixture;
}

/// Size, begin-of-text, end tokens and control tokens, as llama.cpp reads them off the file.
void check_facts(const Tokenizer& tokenizer, const json& facts) {
  BOOST_CHECK_EQUAL(tokenizer.size(), facts.at("size").get<std::uint32_t>());
  BOOST_REQUIRE(tokenizer.begin_of_text());
  BOOST_CHECK_EQUAL(*tokenizer.begin_of_text(), facts.at("bos").get<Token>());
  BOOST_CHECK_EQUAL(tokenizer.adds_begin_of_text(), facts.at("adds_bos").get<bool>());
  std::vector<Token> ends(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end());
  std::sort(ends.begin(), ends.end());
  BOOST_CHECK(ends == facts.at("eog").get<std::vector<Token>>());
  std::vector<Token> control;
  for (Token id = 0; id < tokenizer.size(); ++id) {
    if (tokenizer.is_control(id)) control.push_back(id);
  }
  BOOST_CHECK(control == facts.at("control").get<std::vector<Token>>());
}

}  // namespace

BOOST_AUTO_TEST_SUITE(tokenizer)

BOOST_AUTO_TEST_CASE(smollm2_ids_equal_the_reference) {
  const auto cases = read_cases(smollm2_fixture());
  BOOST_REQUIRE_GT(cases.size(), 800);
  check_cases(smollm2(), cases);
}

BOOST_AUTO_TEST_CASE(smollm2_special_tokens_and_bytes_equal_the_reference) {
  const json& facts = smollm2_fixture().at("facts");
  check_facts(smollm2(), facts);
  BOOST_CHECK_EQUAL(smollm2().spelling(smollm2().end_tokens()[0]), "<|im_end|>");
  const std::string blob = from_base64(facts.at("every_7th_token"));
  std::size_t at = 0;
  for (Token id = 0; id < smollm2().size(); id += 7) {
    const auto bytes = static_cast<unsigned char>(blob.at(at));
    BOOST_CHECK_EQUAL(smollm2().bytes(id), blob.substr(at + 1, bytes));
    at += 1 + bytes;
  }
  BOOST_CHECK_EQUAL(at, blob.size());
}

BOOST_AUTO_TEST_CASE(valid_text_comes_back_whole) {
  for (const TokenizerCase& one : read_cases(smollm2_fixture())) {
    const std::string text = decode(smollm2(), one.plain);
    // The vocabulary lacks bytes that occur in few characters: those texts the reference loses too.
    std::string joined;
    for (const Token id : smollm2().encode(one.text, false)) joined += smollm2().bytes(id);
    BOOST_CHECK(joined == text);
  }
  const std::string_view texts[] = {"The capital of France is",
                                    "naïve café\n\t世界 👨‍👩‍👧‍👦 \r\n",
                                    "   <|im_end|>   ", "1234567890"};
  for (const std::string_view text : texts) {
    BOOST_CHECK_EQUAL(decode(smollm2(), smollm2().encode(text, false)), text);
  }
}

BOOST_AUTO_TEST_CASE(small_vocabularies_equal_the_reference) {
  for (const char* name : {"spm.gguf", "unigram.gguf"}) {
    BOOST_TEST_CONTEXT(name) {
      const auto tokenizer = load_file(fmt::format("{}/tokenizer/{}", SLUICE_FIXTURES, name));
      const json fixture = json::parse(read_fixture(fmt::format("{}.json", name)));
      check_cases(*tokenizer, read_cases(fixture));
      check_facts(*tokenizer, fixture.at("facts"));
      BOOST_CHECK(tokenizer->drops_leading_space());
    }
  }
}

BOOST_AUTO_TEST_CASE(fingerprint_names_the_vocabulary) {
  const auto spm = load_file(fmt::format("{}/tokenizer/spm.gguf", SLUICE_FIXTURES));
  const auto again = load_file(fmt::format("{}/tokenizer/spm.gguf", SLUICE_FIXTURES));
  BOOST_CHECK_EQUAL(spm->fingerprint().size(), 64);
  BOOST_CHECK_EQUAL(spm->fingerprint(), again->fingerprint());
  BOOST_CHECK_NE(spm->fingerprint(), smollm2().fingerprint());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
