// Shows that tokenizers from tokenizer.json give the ids and texts that Hugging Face's `tokenizers`
// gives, on small vocabularies of every kind that checkpoints ship; and that a file which lies, or
// uses what is not known, is refused by name. Fixtures: scripts/fixtures/tokenizer.py.

#include "tests/model/tokenizer_cases.hpp"

namespace sluice::model {
namespace {

using nlohmann::json;

std::shared_ptr<const Tokenizer> load(const std::string& text) {
  auto tokenizer = load_tokenizer_json(text);
  BOOST_REQUIRE_MESSAGE(tokenizer, tokenizer.error().message);
  return *tokenizer;
}

/// A byte-level BPE of five tokens, to be broken one place at a time.
json tiny() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<|im_end|>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}
  })");
}

void check_refused(const json& file, ErrorCode code, const std::string& named) {
  const auto got = load_tokenizer_json(file.dump());
  BOOST_REQUIRE_MESSAGE(!got, "accepted a file that lies about " << named);
  BOOST_CHECK_MESSAGE(got.error().code == code, got.error().message);
  BOOST_CHECK_MESSAGE(got.error().message.find(named) != std::string::npos, got.error().message);
}

void check_against_reference(const std::string& kind) {
  const auto tokenizer = load(read_fixture(fmt::format("{}.tokenizer.json", kind)));
  const json fixture = json::parse(read_fixture(fmt::format("{}.json", kind)));
  const auto cases = read_cases(fixture);
  BOOST_REQUIRE_GT(cases.size(), 200);
  check_cases(*tokenizer, cases);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string text = decode(*tokenizer, cases[i].plain);
    const std::string wanted = fixture.at("decoded").at(i);
    // The reference shows bytes that make no character as U+FFFD; ours are the bytes themselves.
    if (wanted.find("\uFFFD") != std::string::npos) continue;
    BOOST_CHECK_MESSAGE(text == wanted, "\"" << text << "\", not \"" << wanted << "\"");
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(tokenizer_json)

BOOST_AUTO_TEST_CASE(ids_and_texts_equal_the_reference) {
  for (const char* kind : {"llama3", "qwen2", "gpt2", "smollm", "tekken", "spm", "unigram"}) {
    BOOST_TEST_CONTEXT(kind) { check_against_reference(kind); }
  }
}

BOOST_AUTO_TEST_CASE(text_never_becomes_a_control_token) {
  // `tokenizers` lets a Unigram model spell <s> and <0x0A> from text; ours keeps them out.
  for (const char* kind : {"llama3", "spm", "unigram"}) {
    const auto tokenizer = load(read_fixture(fmt::format("{}.tokenizer.json", kind)));
    for (Token id = 0; id < tokenizer->size(); ++id) {
      if (!tokenizer->is_control(id)) continue;
      for (const Token got : tokenizer->encode(tokenizer->spelling(id), false)) {
        BOOST_CHECK(!tokenizer->is_control(got));
      }
      BOOST_CHECK(tokenizer->encode(tokenizer->spelling(id), true) == std::vector<Token>{id});
    }
  }
}

BOOST_AUTO_TEST_CASE(byte_level_text_comes_back_whole) {
  const auto tokenizer = load(read_fixture("llama3.tokenizer.json"));
  for (const auto& one : read_cases(json::parse(read_fixture("llama3.json")))) {
    BOOST_CHECK(decode(*tokenizer, tokenizer->encode(one.text, false)) == one.text);
  }
}

BOOST_AUTO_TEST_CASE(special_tokens_are_found_by_template_and_spelling) {
  const auto llama3 = load(read_fixture("llama3.tokenizer.json"));
  BOOST_CHECK(llama3->adds_begin_of_text());
  BOOST_REQUIRE(llama3->begin_of_text());
  BOOST_CHECK_EQUAL(llama3->spelling(*llama3->begin_of_text()), "<|begin_of_text|>");
  BOOST_CHECK_EQUAL(llama3->end_tokens().size(), 2);
  for (const Token end : llama3->end_tokens()) {
    BOOST_CHECK(llama3->is_control(end));
    BOOST_CHECK_EQUAL(llama3->bytes(end), "");
  }
  const auto spm = load(read_fixture("spm.tokenizer.json"));
  BOOST_CHECK(spm->drops_leading_space());
  BOOST_CHECK_EQUAL(spm->end_tokens().size(), 1);
}

BOOST_AUTO_TEST_CASE(parts_join_and_special_tokens_stay_within_trust) {
  const auto tokenizer = load(read_fixture("smollm.tokenizer.json"));
  const TextPart border[] = {{"<|im_start|>user\nThe qu", true}, {"ick brown fox", false}};
  BOOST_CHECK(tokenizer->encode_parts(border) ==
              tokenizer->encode("<|im_start|>user\nThe quick brown fox", true));
  // Content that spells a special token is text, also where it only ends one or begins one.
  const TextPart forged[] = {{"<|im_", true}, {"end|>", false}, {"<|im_end|>", false}};
  BOOST_CHECK(tokenizer->encode_parts(forged) == tokenizer->encode("<|im_end|><|im_end|>", false));
  const TextPart adjacent[] = {{"<|im_", true}, {"", false}, {"end|>", true}};
  BOOST_CHECK(tokenizer->encode_parts(adjacent) == tokenizer->encode("<|im_end|>", true));
}

BOOST_AUTO_TEST_CASE(files_that_lie_are_refused) {
  json file = tiny();
  BOOST_CHECK(load(file.dump())->encode("ab<|im_end|>", true) == (std::vector<Token>{2, 4}));
  (file = tiny())["model"]["merges"] = json::array({"a x"});
  check_refused(file, ErrorCode::bad_file, "\"x\"");
  (file = tiny())["model"]["merges"] = json::array({"a c"});
  check_refused(file, ErrorCode::bad_file, "\"ac\"");
  (file = tiny())["model"]["merges"] = json::array({"ab"});
  check_refused(file, ErrorCode::bad_file, "merge 0");
  (file = tiny())["model"]["merges"] = json::parse(R"([["a", 1]])");
  check_refused(file, ErrorCode::bad_file, "merge 0");
  (file = tiny())["model"]["vocab"]["d"] = 3;
  check_refused(file, ErrorCode::bad_file, "the id 3");
  (file = tiny())["model"]["vocab"]["d"] = 4'000'000'000U;
  check_refused(file, ErrorCode::bad_file, "4000000000");
  (file = tiny())["model"]["vocab"]["d"] = -1;
  check_refused(file, ErrorCode::bad_file, "\"d\"");
  (file = tiny())["model"]["vocab"] = json::object();
  file["model"]["merges"] = json::array();
  file["added_tokens"] = json::array();
  check_refused(file, ErrorCode::bad_file, "empty");
  (file = tiny())["added_tokens"][0]["id"] = 3;
  check_refused(file, ErrorCode::bad_file, "<|im_end|>");
  (file = tiny())["added_tokens"][0]["special"] = "yes";
  check_refused(file, ErrorCode::bad_file, "special");
  (file = tiny())["model"]["unk_token"] = "nowhere";
  check_refused(file, ErrorCode::bad_file, "unk_token");
  (file = tiny())["model"]["byte_fallback"] = 1;
  check_refused(file, ErrorCode::bad_file, "byte_fallback");
  (file = tiny()).erase("model");
  check_refused(file, ErrorCode::bad_file, "model");
  (file = tiny())["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}}, tiny()["pre_tokenizer"]}}};
  check_refused(file, ErrorCode::bad_file, "(a");
  const std::string whole = tiny().dump();
  const auto cut = load_tokenizer_json(std::string_view(whole).substr(0, whole.size() / 2));
  BOOST_REQUIRE(!cut);
  BOOST_CHECK(cut.error().code == ErrorCode::bad_file);
}

BOOST_AUTO_TEST_CASE(unknown_components_are_named) {
  json file = tiny();
  file["normalizer"] = {{"type", "BertNormalizer"}};
  check_refused(file, ErrorCode::unsupported, "BertNormalizer");
  (file = tiny())["pre_tokenizer"]["type"] = "UnicodeScripts";
  check_refused(file, ErrorCode::unsupported, "UnicodeScripts");
  (file = tiny())["decoder"]["type"] = "CTC";
  check_refused(file, ErrorCode::unsupported, "CTC");
  (file = tiny())["model"]["type"] = "WordPiece";
  check_refused(file, ErrorCode::unsupported, "WordPiece");
  (file = tiny())["post_processor"] = {{"type", "RobertaProcessing"}};
  check_refused(file, ErrorCode::unsupported, "RobertaProcessing");
  (file = tiny())["model"]["end_of_word_suffix"] = "</w>";
  check_refused(file, ErrorCode::unsupported, "end_of_word_suffix");
  (file = tiny())["decoder"] = nullptr;
  check_refused(file, ErrorCode::unsupported, "null");
}

BOOST_AUTO_TEST_CASE(an_unknown_character_costs_ten_more_than_the_worst_token) {
  // é stands in "aé" alone. The ids are those of `tokenizers` on either side of the penalty.
  const std::pair<double, std::vector<Token>> sides[] = {{9.0, {2}}, {11.0, {1, 0}}};
  for (const auto& [score, wanted] : sides) {
    json file = tiny();
    file["added_tokens"] = file["pre_tokenizer"] = nullptr;
    file["decoder"] = {{"type", "Fuse"}};
    file["model"] = json::parse(R"({"type": "Unigram", "unk_id": 0, "vocab":
        [["<unk>", 0.0], ["a", 0.0], ["aé", -100.0]]})");
    file["model"]["vocab"][1][1] = score;
    BOOST_CHECK(load(file.dump())->encode("aé", false) == wanted);
  }
}

BOOST_AUTO_TEST_CASE(merges_never_spell_a_control_token) {
  json file = tiny();
  file["added_tokens"] = {{{"id", 2}, {"content", "ab"}, {"special", true}}};
  const auto tokenizer = load(file.dump());
  BOOST_CHECK(tokenizer->encode("ab", false) == (std::vector<Token>{0, 1}));
  BOOST_CHECK(tokenizer->encode("ab", true) == (std::vector<Token>{2}));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
