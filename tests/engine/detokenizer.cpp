// TextStream against plain definitions: random bytes cut into random tokens give the text that a
// whole-string decoder (table 3-7 of the Unicode standard, written anew here) gives, every released
// piece is valid UTF-8, and stop strings cut where a search of the whole text at every length cuts.
// Tables give the cases that a reader wants to see.
#include "engine/detokenizer.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

#include "model/unicode.hpp"
#include "tests/engine/fake_tokenizer.hpp"

using namespace sluice;
using namespace sluice::engine;
using test::fake_tokenizer;

namespace {

// Length of the longest valid prefix of `s` as one character, and whether it is a whole one.
std::pair<std::size_t, bool> subpart(std::string_view s) {
  const auto at = [&](std::size_t i) {
    return i < s.size() ? static_cast<unsigned char>(s[i]) : 0;
  };
  const auto in = [&](std::size_t i, int low, int high) { return at(i) >= low && at(i) <= high; };
  if (in(0, 0x00, 0x7F)) return {1, true};
  struct Row {
    int lead_low, lead_high, second_low, second_high;
    std::size_t size;
  };
  static constexpr Row rows[] = {
      {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
      {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
      {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4}};
  for (const Row& row : rows) {
    if (!in(0, row.lead_low, row.lead_high)) continue;
    std::size_t n = 1;
    if (in(1, row.second_low, row.second_high)) ++n;
    while (n >= 2 && n < row.size && in(n, 0x80, 0xBF)) ++n;
    return {n, n == row.size};
  }
  return {1, false};
}

std::string decode_whole(std::string_view s) {
  std::string out;
  while (!s.empty()) {
    const auto [size, whole] = subpart(s);
    out += whole ? s.substr(0, size) : "\xEF\xBF\xBD";
    s.remove_prefix(size);
  }
  return out;
}

bool valid(std::string_view s) {
  while (!s.empty()) {
    const auto [size, whole] = subpart(s);
    if (!whole) return false;
    s.remove_prefix(size);
  }
  return true;
}

// The definition: the shortest prefix that ends in a stop string, less the longest such string.
std::optional<std::size_t> naive_stop(std::string_view text,
                                      const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return end - longest;
  }
  return {};
}

std::string run(TextStream& stream, std::span<const Token> tokens) {
  std::string text;
  for (const Token token : tokens) {
    const std::string piece = stream.push(token);
    BOOST_REQUIRE(valid(piece));
    text += piece;
    BOOST_REQUIRE_EQUAL(stream.released_bytes(), text.size());
  }
  text += stream.finish();
  BOOST_REQUIRE_EQUAL(stream.released_bytes(), text.size());
  return text;
}

// Cuts `bytes` into random pieces; each becomes a token of its own.
std::pair<std::shared_ptr<const model::Tokenizer>, std::vector<Token>> cut(
    const std::string& bytes, std::mt19937_64& random) {
  std::vector<std::string> pieces;
  std::vector<Token> tokens;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t size = random() % 6;
    pieces.push_back(bytes.substr(at, size));
    tokens.push_back(static_cast<Token>(255 + pieces.size()));
    at += size;
  }
  return {fake_tokenizer(pieces), tokens};
}

std::vector<Token> ids(std::string_view text) { return fake_tokenizer()->encode(text, false); }

}  // namespace

BOOST_AUTO_TEST_SUITE(detokenizer)

BOOST_AUTO_TEST_CASE(maximal_subparts_become_one_replacement_each) {
  struct Case {
    std::string bytes, text;
  };
  const std::string r = "\xEF\xBF\xBD";
  const Case cases[] = {
      {"caf\xC3\xA9", "caf\xC3\xA9"},
      {"\xF0\x9F\x98\x80!", "\xF0\x9F\x98\x80!"},
      {"a\xC3", "a" + r},                        // begun and never ended
      {"\xE2\x82" "a", r + "a"},                 // one for the two bytes of a broken-off character
      {"\x80\x80", r + r},                       // bytes that start nothing
      {"\xC0\xAF\xE0\x80\xBF", r + r + r + r + r},  // overlong forms: Unicode 15, table 3-8
      {"\xED\xA0\x80", r + r + r},               // a surrogate: table 3-9
      {"\xF4\x91\x92\x93\xFF" "A\x80\xBF" "B", r + r + r + r + r + "A" + r + r + "B"},  // 3-10
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF" "A", r + r + r + r + "A"},                    // 3-11
  };
  for (const Case& c : cases) {
    TextStream stream(fake_tokenizer(), std::vector<std::string>{});
    BOOST_TEST(run(stream, ids(c.bytes)) == c.text);
  }
}

BOOST_AUTO_TEST_CASE(random_bytes_in_random_tokens_read_as_the_whole) {
  std::mt19937_64 random(1);
  const std::string_view common[] = {"\xF0\x9F\x98\x80", "\xC3\xA9", "\xE2\x82\xAC", "a",
                                     "\xED\xA0\x80", "\xF4\x90", "\xE0\xA0"};
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    while (bytes.size() < random() % 60) {
      if (random() % 2) {
        bytes += common[random() % std::size(common)];
      } else {
        bytes += static_cast<char>(random());
      }
    }
    const auto [tokenizer, tokens] = cut(bytes, random);
    TextStream stream(tokenizer, std::vector<std::string>{});
    BOOST_REQUIRE_EQUAL(run(stream, tokens), decode_whole(bytes));
    BOOST_REQUIRE_EQUAL(model::is_valid_utf8(bytes), valid(bytes));
  }
}

BOOST_AUTO_TEST_CASE(stops_cut_where_a_naive_search_cuts) {
  std::mt19937_64 random(2);
  const std::string_view letters[] = {"a", "b", "\xC3\xA9", "\xC3\xA8", "\xE2\x82\xAC"};
  const auto word = [&](std::size_t letters_max) {
    std::string text;
    for (std::size_t n = random() % letters_max + 1; n > 0; --n) text += letters[random() % 5];
    return text;
  };
  int found = 0;
  for (int round = 0; round < 6000; ++round) {
    const std::string text = word(40);
    std::vector<std::string> stops;
    for (std::size_t n = random() % 4; n > 0; --n) stops.push_back(word(5));
    const auto [tokenizer, tokens] = cut(text, random);
    TextStream stream(tokenizer, stops);
    const std::string seen = run(stream, tokens);
    const auto stop = naive_stop(text, stops);
    BOOST_REQUIRE(stream.stopped() == stop);
    BOOST_REQUIRE_EQUAL(seen, text.substr(0, stop.value_or(text.size())));
    found += stop.has_value();
  }
  BOOST_TEST(found > 1000);
  BOOST_TEST(found < 5000);
}

BOOST_AUTO_TEST_CASE(holds_back_only_what_may_become_a_stop) {
  TextStream stream(fake_tokenizer({"xEN", "D", "ENDx"}), {"END", "\n\n"});
  BOOST_TEST(stream.push(256) == "x");
  BOOST_TEST(stream.push('E') == "EN");   // "ENE": only the last E may begin a stop
  BOOST_TEST(stream.push('x') == "Ex");
  BOOST_TEST(stream.push('\n') == "");
  BOOST_TEST(stream.push('y') == "\ny");
  BOOST_TEST(!stream.stopped());
  BOOST_TEST(stream.push(256) == "x");
  BOOST_TEST(stream.push(257) == "");
  BOOST_TEST(*stream.stopped() == 8U);    // "xENEx\nyx"
  BOOST_TEST(stream.push('z') == "");
  BOOST_TEST(stream.finish() == "");
  BOOST_TEST(stream.released_bytes() == 8U);
}

BOOST_AUTO_TEST_CASE(first_end_wins_then_the_longest) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, seen;
  };
  const Case cases[] = {{{"bcd", "bc"}, "abcd", "a"},   // the shorter is complete first
                        {{"c", "abc"}, "xabc", "x"},    // both by the same byte
                        {{"cd", "b"}, "abcd", "a"},
                        {{"aab"}, "aaab", "a"},         // overlaps itself
                        {{""}, "ab", "ab"},
                        {{"abab"}, "aba", "aba"}};      // never completed: all text comes
  for (const Case& c : cases) {
    TextStream stream(fake_tokenizer(), c.stops);
    BOOST_TEST(run(stream, ids(c.text)) == c.seen);
  }
}

BOOST_AUTO_TEST_CASE(stop_token_adds_no_text_and_releases_what_was_held) {
  Request request;
  request.stops = {"abc"};
  request.sampling.stop_tokens = {'c'};
  TextStream stream(fake_tokenizer(), request);
  BOOST_TEST(run(stream, ids("xabc")) == "xab");
  BOOST_TEST(!stream.stopped());
}

BOOST_AUTO_TEST_CASE(nothing_ends_before_min_tokens) {
  Request request;
  request.stops = {"ab"};
  request.sampling.stop_tokens = {'z'};
  request.sampling.min_tokens = 4;
  TextStream early(fake_tokenizer(), request);
  BOOST_TEST(run(early, ids("abzabz")) == "abz");  // the second "ab" is completed by token 4
  BOOST_TEST(*early.stopped() == 3U);
  TextStream straddling(fake_tokenizer(), request);
  BOOST_TEST(run(straddling, ids("xxab")) == "xx");  // completed by the 4th token: counts
  Request overlapping = request;
  overlapping.stops = {"aba"};
  TextStream overlapped(fake_tokenizer(), overlapping);
  BOOST_TEST(run(overlapped, ids("ababa")) == "ab");  // the early one is the late one's beginning
  TextStream token(fake_tokenizer(), request);
  BOOST_TEST(run(token, ids("xzxxzx")) == "xzxx");
}

BOOST_AUTO_TEST_CASE(leading_space_of_a_dummy_prefix) {
  const auto spm = fake_tokenizer({"", " a", " "}, true);
  const std::vector<Token> tokens = {256, 257, 257};
  Request request;
  TextStream answer(spm, request);
  BOOST_TEST(run(answer, tokens) == "a a");
  request.continues_text = true;
  TextStream continued(spm, request);
  BOOST_TEST(run(continued, tokens) == " a a");
  TextStream other(fake_tokenizer({"", " a"}), Request{});
  BOOST_TEST(run(other, tokens) == " a a");
}

BOOST_AUTO_TEST_CASE(ids_beyond_the_vocabulary_have_no_bytes) {
  TextStream stream(fake_tokenizer(), std::vector<std::string>{});
  BOOST_TEST(run(stream, std::vector<Token>{'a', 256, 4'000'000'000U, 'b'}) == "ab");
}

BOOST_AUTO_TEST_SUITE_END()
