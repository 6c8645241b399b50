// The chain against hashes that Python's hashlib gave for the documented bytes, and the log against
// a model that keeps every append: any cut at token borders gives the same tokens, text and chain.
#include "engine/stream_log.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

using namespace sluice;
using namespace sluice::engine;

namespace {

std::string hex(const ChainHash& link) {
  std::string out;
  for (const std::uint8_t byte : link) out += fmt::format("{:02x}", byte);
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(stream_log)

// python3: from hashlib import sha256; from struct import pack
// ids = lambda x: pack("<%dI" % (len(x) + 1), len(x), *x)
// start = b"sluice-chain-1" + pack("<I", 4) + b"cafe" + ids([1, 2, 70000]) + pack("<fIfffff", 0.7,
//   40, 0.95, 0.05, 1.1, 0.25, -0.5) + pack("<IIfIf", 2, 3, -1.5, 9, 100.0) + pack("<QI",
//   0x123456789ABCDEF0, 5) + ids([2, 7])
// a = sha256(start).digest()[:16]; b = sha256(a + pack("<I", 123456)).digest()[:16]
BOOST_AUTO_TEST_CASE(chain_is_the_documented_bytes) {
  SamplingParams sampling;
  sampling.temperature = 0.7F;
  sampling.top_k = 40;
  sampling.top_p = 0.95F;
  sampling.min_p = 0.05F;
  sampling.repetition_penalty = 1.1F;
  sampling.presence_penalty = 0.25F;
  sampling.frequency_penalty = -0.5F;
  sampling.logit_bias = {{3, -1.5F}, {9, 100.0F}};
  sampling.seed = 0x123456789ABCDEF0ULL;
  sampling.min_tokens = 5;
  sampling.stop_tokens = {7, 2, 7};
  sampling.logprobs = 3;
  const std::vector<Token> prompt = {1, 2, 70000};
  const ChainHash start = chain_start("cafe", prompt, sampling);
  BOOST_TEST(hex(start) == "b82ced06429000b2611138a9f7c2415c");
  BOOST_TEST(hex(chain_next(start, 123456)) == "28f27cd5b50d7190369adfb86775344d");

  sampling.logprobs = -1;  // shown beside, decides nothing
  BOOST_TEST(hex(chain_start("cafe", prompt, sampling)) == hex(start));
}

BOOST_AUTO_TEST_CASE(chain_binds_whatever_decides_a_token) {
  const std::vector<Token> prompt = {1, 2};
  std::vector<ChainHash> links = {chain_start("n", prompt, {}), chain_start("m", prompt, {}),
                                  chain_start("n", {}, {})};
  const auto with = [&](auto change) {
    SamplingParams sampling;
    change(sampling);
    links.push_back(chain_start("n", prompt, sampling));
  };
  with([](SamplingParams& s) { s.temperature = 0.5F; });
  with([](SamplingParams& s) { s.top_k = 1; });
  with([](SamplingParams& s) { s.top_p = 0.5F; });
  with([](SamplingParams& s) { s.min_p = 0.5F; });
  with([](SamplingParams& s) { s.repetition_penalty = 0.5F; });
  with([](SamplingParams& s) { s.presence_penalty = 0.5F; });
  with([](SamplingParams& s) { s.frequency_penalty = 0.5F; });
  with([](SamplingParams& s) { s.logit_bias = {{1, 0.5F}}; });
  with([](SamplingParams& s) { s.logit_bias = {{2, 0.5F}}; });
  with([](SamplingParams& s) { s.seed = 1; });
  with([](SamplingParams& s) { s.seed = 1ULL << 63; });
  with([](SamplingParams& s) { s.min_tokens = 1; });
  with([](SamplingParams& s) { s.stop_tokens = {1}; });
  for (std::size_t i = 0; i < links.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) BOOST_TEST(hex(links[i]) != hex(links[j]));
  }
}

BOOST_AUTO_TEST_CASE(any_cut_gives_the_same_stream) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 60; ++round) {
    const ChainHash start = chain_start("n", {}, {});
    StreamLog log(start);
    std::vector<Token> tokens;
    std::string text;
    std::vector<ChainHash> chain = {start};
    std::vector<std::size_t> ends = {0};  // text released before each token
    const bool logprobs = round % 2;
    for (std::size_t n = random() % 300; n > 0; --n) {
      std::vector<Token> more(random() % 3 + 1);
      for (Token& token : more) token = static_cast<Token>(random() % 1000);
      const std::string piece(random() % 5, static_cast<char>('a' + n % 26));
      std::vector<std::vector<TokenLogprob>> lists;
      if (logprobs) {
        for (const Token token : more) lists.push_back({{token, -1.0F}});
      }
      const StreamPart part = log.append(more, piece, lists);
      BOOST_REQUIRE_EQUAL(part.first_index, tokens.size());
      BOOST_REQUIRE_EQUAL(part.text_offset, text.size());
      for (const Token token : more) {
        tokens.push_back(token);
        chain.push_back(chain_next(chain.back(), token));
        ends.push_back(text.size());
      }
      text += piece;
      ends.back() = text.size();
      BOOST_REQUIRE(part.chain == chain.back() && part.tokens == more && part.text == piece);
    }
    if (random() % 2) text += log.append_text("tail").text;
    BOOST_REQUIRE_EQUAL(log.text_bytes(), text.size());
    if (random() % 2) log.trim(static_cast<std::uint32_t>(random() % (tokens.size() + 100)));
    BOOST_REQUIRE_EQUAL(log.size(), tokens.size());

    for (int cut = 0; cut < 40; ++cut) {
      const auto from = static_cast<std::uint32_t>(random() % (tokens.size() + 1));
      const auto most = static_cast<std::uint32_t>(random() % 100);
      const auto part = log.read(from, most);
      if (from < log.floor()) {
        BOOST_REQUIRE(!part && part.error().code == ErrorCode::gone);
        continue;
      }
      const std::size_t to = std::min<std::size_t>(tokens.size(), from + most);
      const std::size_t text_to = to == tokens.size() ? text.size() : ends[to];
      BOOST_REQUIRE_EQUAL(part->first_index, from);
      BOOST_REQUIRE(std::ranges::equal(part->tokens, std::span(tokens).subspan(from, to - from)));
      BOOST_REQUIRE_EQUAL(part->text_offset, ends[from]);
      BOOST_REQUIRE_EQUAL(part->text, text.substr(ends[from], text_to - ends[from]));
      BOOST_REQUIRE(part->chain == chain[to]);
      BOOST_REQUIRE_EQUAL(part->logprobs.size(), logprobs ? to - from : 0);
      for (std::size_t i = 0; i < part->logprobs.size(); ++i) {
        BOOST_REQUIRE_EQUAL(part->logprobs[i].at(0).token, part->tokens[i]);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(beyond_the_end_and_below_the_floor) {
  StreamLog log(ChainHash{});
  const std::vector<Token> tokens(130, 7);
  log.append(tokens, "text", {});
  BOOST_TEST(log.read(130, 5)->tokens.empty());
  BOOST_TEST(log.read(130, 5)->text == "");
  log.append_text("tail");
  BOOST_TEST(log.read(130, 5)->text == "tail");
  BOOST_TEST(log.read(130, 5)->text_offset == 4U);
  BOOST_TEST((log.read(131, 5).error().code == ErrorCode::bad_request));
  log.trim(127);
  BOOST_TEST(log.floor() == 64U);
  BOOST_TEST((log.read(63, 5).error().code == ErrorCode::gone));
  BOOST_TEST(log.read(64, 66)->text == "texttail");
  log.trim(4000);
  BOOST_TEST(log.floor() == 128U);
  BOOST_TEST(log.size() == 130U);
}

BOOST_AUTO_TEST_CASE(memory_follows_the_docstring) {
  StreamLog log(ChainHash{});
  const std::vector<Token> tokens(1 << 16, 7);
  for (std::size_t i = 0; i < tokens.size(); ++i) log.append(std::span(&tokens[i], 1), "", {});
  BOOST_TEST(log.memory_bytes() <= sizeof log + (1 << 16) * 33 / 4 + 16);
  log.trim(1 << 16);
  BOOST_TEST(log.memory_bytes() <= sizeof log + 16);
}

BOOST_AUTO_TEST_SUITE_END()
