// What a constraint lets through. Every document of the fixtures, whose verdicts are those of
// Python's `re` and `jsonschema`, goes through byte by byte: nothing that they refuse is let
// through, and what they accept in the spelling that the schema's grammar has, is. Masks are
// compared with trying each token alone; random walks under them must end, and never get stuck.
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/constraint.hpp"
#include "tests/engine/fake_tokenizer.hpp"

using namespace sluice;
using namespace sluice::engine;
using namespace sluice::engine::test;

namespace {

using Kind = Constraint::Kind;

bool fits(Automaton& automaton, std::string_view text) {
  Automaton::State state = automaton.start();
  for (const char c : text) state = automaton.next(state, static_cast<std::uint8_t>(c));
  return automaton.accepts(state);
}

bool fits(const Constraint& constraint, std::string_view text) {
  Automaton automaton(constraint_grammar(constraint).value());
  return fits(automaton, text);
}

const nlohmann::json& fixture() {
  static const auto verdicts = [] {
    std::ifstream file(SLUICE_FIXTURES "/constraint/verdicts.json");
    BOOST_REQUIRE(file);
    return nlohmann::json::parse(file);
  }();
  return verdicts;
}

ConstrainedText text_of(const Constraint& constraint,
                        std::shared_ptr<const model::Tokenizer> tokenizer,
                        bool drops_space = false) {
  ConstraintCache cache(tokenizer);
  return {cache.get(constraint).value(), tokenizer, drops_space};
}

bool has(const TokenBits& bits, Token token) { return (bits[token / 64] >> (token % 64) & 1) != 0; }

// Pieces as a vocabulary has them: they cross the borders of JSON's own tokens.
std::shared_ptr<const model::Tokenizer> pieces() {
  return fake_tokenizer({"{\"", "\":", "\": ", "\", \"", "\"}", "true", "false", "null", "name",
                         "age", " name", "12", "345", "}}", "]}", "[]", ", ", "\n  ", "é", "\\n",
                         "\\\"", "an", "Ann", "kind", " a", "a b"});
}

}  // namespace

BOOST_AUTO_TEST_SUITE(constraint)

BOOST_AUTO_TEST_CASE(patterns_agree_with_python) {
  int yes = 0, no = 0;
  for (const auto& entry : fixture().at("patterns")) {
    const auto pattern = entry["pattern"].get<std::string>();
    Automaton automaton(constraint_grammar({Kind::regex, pattern}).value());
    for (const auto& [text, verdict] : entry["texts"].items()) {
      BOOST_TEST(fits(automaton, text) == verdict.get<bool>(), pattern << " on " << text);
      ++(verdict.get<bool>() ? yes : no);
    }
  }
  BOOST_TEST(yes > 200);
  BOOST_TEST(no > 200);
}

BOOST_AUTO_TEST_CASE(schemas_agree_with_jsonschema) {
  int yes = 0, no = 0;
  for (const auto& entry : fixture().at("schemas")) {
    const auto schema = entry["schema"].get<std::string>();
    Automaton automaton(constraint_grammar({Kind::json_schema, schema}).value());
    for (const auto& [text, verdict] : entry["documents"].items()) {
      const bool spelled = verdict == "valid", refused = verdict == "invalid";
      if (spelled) BOOST_TEST(fits(automaton, text), schema << " on " << text);
      if (refused) BOOST_TEST(!fits(automaton, text), schema << " on " << text);
      yes += spelled;
      no += refused;
    }
  }
  BOOST_TEST(yes > 300);
  BOOST_TEST(no > 500);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_followed_is_refused_with_its_place) {
  const auto refusal = [](Kind kind, std::string text) {
    auto grammar = constraint_grammar({kind, std::move(text)});
    BOOST_REQUIRE(!grammar);
    return grammar.error();
  };
  const auto says = [](const Error& error, ErrorCode code, std::string_view what) {
    BOOST_TEST((error.code == code));
    BOOST_TEST(error.message.find(what) != std::string::npos, error.message);
  };
  using enum ErrorCode;
  says(refusal(Kind::regex, "a(b"), bad_request, "'(' without its ')' at character 3");
  says(refusal(Kind::regex, "a)b"), bad_request, "')' without its '('");
  says(refusal(Kind::regex, "[a"), bad_request, "'[' without its ']'");
  says(refusal(Kind::regex, "[z-a]"), bad_request, "wrong ends");
  says(refusal(Kind::regex, "*a"), bad_request, "count of nothing");
  says(refusal(Kind::regex, "a{3,2}"), bad_request, "wrong way round");
  says(refusal(Kind::regex, "a{99999}"), bad_request, "above 10000");
  says(refusal(Kind::regex, "\\q"), bad_request, "unknown escape");
  says(refusal(Kind::regex, "\xff"), bad_request, "UTF-8");
  says(refusal(Kind::regex, "(a)\\1"), unsupported, "back reference");
  says(refusal(Kind::regex, "a(?=b)"), unsupported, "look-ahead");
  says(refusal(Kind::regex, "a(?<!b)"), unsupported, "look-behind");
  says(refusal(Kind::regex, "a\\b"), unsupported, "assertion");
  says(refusal(Kind::regex, "(a^)"), unsupported, "anchor inside");
  says(refusal(Kind::regex, "((a{1000}){1000}){1000}"), too_large, "lower its counts");
  says(refusal(Kind::regex, std::string(200, '(')), bad_request, "nested groups");
  says(refusal(Kind::regex, "[^\\d\\D]"), bad_request, "no text fits");

  says(refusal(Kind::json_schema, "{"), bad_request, "no valid JSON");
  says(refusal(Kind::json_schema, "3"), bad_request, "# is no schema");
  says(refusal(Kind::json_schema, "false"), bad_request, "no text fits");
  says(refusal(Kind::json_schema, R"({"type": "text"})"), bad_request, "'text'");
  says(refusal(Kind::json_schema, R"({"properties": {"a": {"not": {}}}})"), unsupported,
       "#/properties/a has 'not'");
  says(refusal(Kind::json_schema, R"({"$ref": "#/$defs/x"})"), bad_request, "has not");
  says(refusal(Kind::json_schema, R"({"$ref": "http://a/b"})"), unsupported, "outside");
  says(refusal(Kind::json_schema, R"({"$ref": "#"})"), bad_request, "leads to itself");
  says(refusal(Kind::json_schema, R"({"anyOf": [{"type": "null"}, {"$ref": "#"}]})"), bad_request,
       "leads to itself");
  says(refusal(Kind::json_schema, R"({"type": "string", "pattern": "("})"), bad_request,
       "'(' without its ')'");
  says(refusal(Kind::json_schema, R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})"),
       unsupported, "might both fit");
  says(refusal(Kind::json_schema, R"({"type": "number", "minimum": 0.5})"), unsupported, "0.5");
  says(refusal(Kind::json_schema, R"({"type": "array", "minItems": -1})"), bad_request, "minItems");
  says(refusal(Kind::json_schema, R"({"properties": {"a": false}, "required": ["a"]})"),
       bad_request, "no text fits");
  std::string deep = "{}";
  for (int i = 0; i < 100; ++i) deep = R"({"items": )" + deep + "}";
  says(refusal(Kind::json_schema, deep), too_large, "deeper than");
  std::string wide = R"({"anyOf": [)";  // each merge doubles what is to be looked at
  for (int i = 0; i < 30; ++i) wide += R"({"anyOf": [{"type": "object", "properties": {"a":)";
  says(refusal(Kind::json_schema, wide), bad_request, "no valid JSON");
}

// A key that may not come is not begun: no text gets stuck.
BOOST_AUTO_TEST_CASE(dead_ends_are_not_entered) {
  const Constraint odd{Kind::json_schema,
                       R"({"properties": {"a": false, "b": {"type": "null"}}})"};
  BOOST_TEST(fits(odd, R"({"b":null})"));
  BOOST_TEST(fits(odd, "{}"));
  Automaton automaton(constraint_grammar(odd).value());
  Automaton::State state = automaton.start();
  for (const char c : std::string_view(R"({"a)"))
    state = automaton.next(state, static_cast<std::uint8_t>(c));
  BOOST_TEST(state == Automaton::dead);
}

BOOST_AUTO_TEST_CASE(masks_are_what_each_token_alone_says) {
  const auto tokenizer = pieces();
  const Constraint person{Kind::json_schema,
                          R"({"type": "object", "properties": {"name": {"type": "string"},
                             "age": {"type": "integer", "minimum": 0, "maximum": 130}},
                             "required": ["name"]})"};
  ConstraintCache cache(tokenizer);
  const auto compiled = cache.get(person).value();
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    std::mt19937_64 random(seed);
    ConstrainedText text(compiled, tokenizer, seed % 2 == 1);
    for (int i = 0; i < 40 && !text.complete(); ++i) {
      const TokenBits bits = text.allowed({}, 0);
      std::vector<Token> choices;
      for (Token token = 0; token < tokenizer->size(); ++token) {
        ConstrainedText after = text;
        after.push(token);
        // A space that the text drops is not allowed alone: it would say nothing.
        const bool says_nothing = i == 0 && seed % 2 == 1 && tokenizer->bytes(token) == " ";
        BOOST_REQUIRE_EQUAL(has(bits, token), !after.failed() && !says_nothing);
        if (has(bits, token)) choices.push_back(token);
      }
      BOOST_REQUIRE(!choices.empty());
      text.push(choices[random() % choices.size()]);
    }
  }
}

// Any walk under masks can be brought to an end, and what it wrote is JSON.
BOOST_AUTO_TEST_CASE(walks_end_in_whole_documents) {
  const auto tokenizer = pieces();
  ConstraintCache cache(tokenizer);
  int ended = 0;
  for (const auto& entry : fixture().at("schemas")) {
    const Constraint constraint{Kind::json_schema, entry["schema"].get<std::string>()};
    const auto compiled = cache.get(constraint).value();
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      std::mt19937_64 random(seed);
      ConstrainedText text(compiled, tokenizer, false);
      std::string written;
      for (int i = 0; i < 200 && !text.complete(); ++i) {
        if (text.may_end() && random() % 4 == 0) break;
        const TokenBits bits = text.allowed({}, 0);
        std::vector<Token> choices;
        for (Token token = 0; token < tokenizer->size(); ++token)
          if (has(bits, token)) choices.push_back(token);
        BOOST_REQUIRE_MESSAGE(!choices.empty(), constraint.text << " is stuck at " << written);
        // Closing what is open is preferred, so that most walks end.
        const Token last = choices.back();
        const Token token = random() % 3 == 0 ? last : choices[random() % choices.size()];
        text.push(token);
        written += tokenizer->bytes(token);
      }
      if (!text.may_end()) continue;
      ++ended;
      BOOST_TEST(nlohmann::json::accept(written), constraint.text << " wrote " << written);
    }
  }
  BOOST_TEST(ended > 100);
}

BOOST_AUTO_TEST_CASE(ends_are_allowed_only_where_the_text_may_end) {
  const auto tokenizer = pieces();
  auto text = text_of({Kind::regex, "ab?"}, tokenizer);
  const Token end = 'b';  // an end token's own bytes do not count: it adds no text
  SamplingParams ends;
  ends.stop_tokens = {end};
  ends.min_tokens = 2;
  BOOST_TEST(!has(text.allowed(ends, 2), end));
  BOOST_TEST(has(text.allowed({}, 0), 'a'));
  text.push('a');
  BOOST_TEST(text.may_end());
  BOOST_TEST(!text.complete());
  BOOST_TEST(has(text.allowed(ends, 2), end));
  BOOST_TEST(!has(text.allowed(ends, 1), end));
  text.push('b');
  BOOST_TEST(text.complete());
}

BOOST_AUTO_TEST_CASE(a_dropped_space_is_no_text) {
  const auto tokenizer = pieces();
  Token word = 0;  // " a"
  for (Token token = 256; token < tokenizer->size(); ++token)
    if (tokenizer->bytes(token) == " a") word = token;
  auto dropped = text_of({Kind::regex, "a a"}, tokenizer, true);
  BOOST_TEST(has(dropped.allowed({}, 0), word));
  dropped.push(word);
  BOOST_TEST(has(dropped.allowed({}, 0), word));
  dropped.push(word);
  BOOST_TEST(dropped.complete());
  auto kept = text_of({Kind::regex, "a a"}, tokenizer, false);
  BOOST_TEST(!has(kept.allowed({}, 0), word));
}

// What a compiled constraint keeps is bounded; a text goes on as if it had kept all.
BOOST_AUTO_TEST_CASE(forgetting_changes_nothing) {
  const auto tokenizer = pieces();
  ConstraintCache cache(tokenizer);
  const Constraint numbers{Kind::regex, "(x{1,5000}y){3}"};
  const auto compiled = cache.get(numbers).value();
  ConstrainedText old(compiled, tokenizer, false);
  old.push('x');
  ConstrainedText other(compiled, tokenizer, false);
  for (int part = 0; part < 3; ++part) {
    for (int i = 0; i < 4000; ++i) {
      BOOST_REQUIRE(has(other.allowed({}, 0), 'x'));
      other.push('x');
    }
    other.push('y');
  }
  BOOST_TEST(other.complete());
  BOOST_TEST(has(old.allowed({}, 0), 'x'));
  BOOST_TEST(has(old.allowed({}, 0), 'y'));
  BOOST_TEST(!has(old.allowed({}, 0), 'z'));
}

BOOST_AUTO_TEST_CASE(nesting_goes_as_deep_as_anyone_needs) {
  const Constraint any{Kind::json_schema, "{}"};
  const std::string open(100, '['), close(100, ']');
  BOOST_TEST(fits(any, open + close));
  BOOST_TEST(!fits(any, open + close + "]"));
}

BOOST_AUTO_TEST_SUITE_END()
