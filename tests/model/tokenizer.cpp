// Shows that tokenizers from GGUF metadata give the ids that llama.cpp gives: SmolLM2's own
// vocabulary on more than 800 texts, raw bytes among them, and small vocabularies of the other
// kinds; and that a vocabulary which lies is refused. Fixtures: scripts/fixtures/tokenizer.py.
#include "model/tokenizer.hpp"

#include <algorithm>
#include <limits>

#include "model/gguf.hpp"
#include "tests/model/gguf_builder.hpp"
#include "tests/model/tokenizer_cases.hpp"
#include "tests/places.hpp"

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
      load_file(tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf"));
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

/// Keeps the bytes that a parsed file points into.
struct Built {
  std::vector<std::byte> bytes;
  Result<std::shared_ptr<const Tokenizer>> tokenizer;
};

Built load_built(const GgufBuilder& builder) {
  Built built{builder.build(), {}};
  const auto file = GgufFile::parse(built.bytes, "made.gguf");
  BOOST_REQUIRE_MESSAGE(file, file.error().message);
  built.tokenizer = load_tokenizer(**file);
  return built;
}

/// What a file says of a small byte-level vocabulary; tests change one thing each.
struct Tiny {
  std::string model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens = {"a", "b", "ab", "<|im_end|>"};
  std::vector<std::int32_t> types = {1, 1, 1, 3};
  std::vector<float> scores;
  std::vector<std::string> merges = {"a b"};
  std::uint32_t end = 3;

  GgufBuilder build() const {
    GgufBuilder file;
    file.text("tokenizer.ggml.model", model).text("tokenizer.ggml.pre", pre);
    file.texts("tokenizer.ggml.tokens", tokens).texts("tokenizer.ggml.merges", merges);
    file.numbers("tokenizer.ggml.token_type", testing::type_i32, types);
    if (!scores.empty()) file.numbers("tokenizer.ggml.scores", testing::type_f32, scores);
    return std::move(file.u32("tokenizer.ggml.eos_token_id", end));
  }
};

void check_refused(const GgufBuilder& file, ErrorCode code, std::string_view named) {
  const Built built = load_built(file);
  BOOST_REQUIRE_MESSAGE(!built.tokenizer, "accepted a file that lies about " << named);
  const Error& error = built.tokenizer.error();
  BOOST_CHECK_MESSAGE(error.code == code, error.message);
  BOOST_CHECK_MESSAGE(error.message.find(named) != std::string::npos, error.message);
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
      const auto tokenizer = load_file(tests::fixtures_folder() + "/tokenizer/" + name);
      const json fixture = json::parse(read_fixture(fmt::format("{}.json", name)));
      check_cases(*tokenizer, read_cases(fixture));
      check_facts(*tokenizer, fixture.at("facts"));
      BOOST_CHECK(tokenizer->drops_leading_space());
    }
  }
}

BOOST_AUTO_TEST_CASE(named_pretokenizers_cut_as_the_reference) {
  const json model = json::parse(read_fixture("llama3.tokenizer.json")).at("model");
  std::vector<std::string> tokens(model.at("vocab").size()), merges;
  for (const auto& [spelling, id] : model.at("vocab").items()) tokens.at(id) = spelling;
  for (const auto& pair : model.at("merges")) {
    merges.push_back(
        fmt::format("{} {}", pair.at(0).get<std::string>(), pair.at(1).get<std::string>()));
  }
  const json fixture = json::parse(read_fixture("named.json"));
  BOOST_REQUIRE_EQUAL(fixture.at("ids").size(), 10);
  for (const auto& [name, wanted] : fixture.at("ids").items()) {
    Tiny file;
    file.pre = name;
    file.tokens = tokens;
    file.types.assign(tokens.size(), 1);
    file.merges = merges;
    file.end = 1;
    const Built built = load_built(file.build());
    BOOST_REQUIRE_MESSAGE(built.tokenizer, built.tokenizer.error().message);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const std::string text = from_base64(fixture.at("texts").at(i));
      const auto got = (*built.tokenizer)->encode(text, false);
      BOOST_CHECK_MESSAGE(
          got == wanted[i].get<std::vector<Token>>(),
          name << " \"" << text << "\"\n got " << join(got) << "\nwant " << join(wanted[i]));
    }
  }
}

BOOST_AUTO_TEST_CASE(vocabularies_that_lie_are_refused) {
  const Built good = load_built(Tiny{}.build());
  BOOST_REQUIRE_MESSAGE(good.tokenizer, good.tokenizer.error().message);
  BOOST_CHECK((*good.tokenizer)->encode("ab<|im_end|>", true) == (std::vector<Token>{2, 3}));
  const auto refused = [](std::string_view named, auto change) {
    Tiny file;
    change(file);
    check_refused(file.build(), ErrorCode::bad_file, named);
  };
  refused("\"x\"", [](Tiny& file) { file.merges = {"a x"}; });
  refused("\"ba\"", [](Tiny& file) { file.merges = {"b a"}; });
  refused("not two parts", [](Tiny& file) { file.merges = {"ab"}; });
  refused("not two parts", [](Tiny& file) { file.merges = {""}; });
  refused("eos_token_id is 4", [](Tiny& file) { file.end = 4; });
  refused("3 entries for 4 tokens", [](Tiny& file) { file.types.pop_back(); });
  refused("1 entries for 4 tokens", [](Tiny& file) { file.scores = {1.0F}; });
  refused("type 9", [](Tiny& file) { file.types[1] = 9; });
  refused("token 1", [](Tiny& file) { file.types[1] = 6; });
  refused("both spelled \"a\"", [](Tiny& file) { file.tokens[1] = "a"; });
  refused("no vocabulary", [](Tiny& file) {
    file.tokens.clear();
    file.types.clear();
  });
  refused("scores", [](Tiny& file) { file.model = "llama"; });
  refused("not a number",
          [](Tiny& file) { file.scores = {0, 0, 0, std::numeric_limits<float>::quiet_NaN()}; });
}

BOOST_AUTO_TEST_CASE(wrong_types_and_unknown_kinds_are_refused) {
  GgufBuilder file;
  check_refused(file, ErrorCode::bad_file, "tokenizer.ggml.model");
  file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.tokens", "a b c");
  check_refused(file, ErrorCode::bad_file, "tokenizer.ggml.tokens");
  GgufBuilder numbers;
  numbers.text("tokenizer.ggml.model", "gpt2");
  numbers.numbers("tokenizer.ggml.tokens", testing::type_i32, std::vector<std::int32_t>{1, 2});
  check_refused(numbers, ErrorCode::bad_file, "array of strings");
  GgufBuilder flag = Tiny{}.build();
  flag.u32("tokenizer.ggml.add_bos_token", 1);
  check_refused(flag, ErrorCode::bad_file, "add_bos_token");
  GgufBuilder text = Tiny{}.build();
  text.text("tokenizer.ggml.bos_token_id", "0");
  check_refused(text, ErrorCode::bad_file, "bos_token_id");
  Tiny tiny;
  tiny.pre = "nobody-knows";
  check_refused(tiny.build(), ErrorCode::unsupported, "nobody-knows");
  tiny.model = "rwkv";
  check_refused(tiny.build(), ErrorCode::unsupported, "rwkv");
}

BOOST_AUTO_TEST_CASE(fingerprint_names_the_vocabulary) {
  const auto spm = load_file(tests::fixtures_folder() + "/tokenizer/spm.gguf");
  const auto again = load_file(tests::fixtures_folder() + "/tokenizer/spm.gguf");
  BOOST_CHECK_EQUAL(spm->fingerprint().size(), 64);
  BOOST_CHECK_EQUAL(spm->fingerprint(), again->fingerprint());
  BOOST_CHECK_NE(spm->fingerprint(), smollm2().fingerprint());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
