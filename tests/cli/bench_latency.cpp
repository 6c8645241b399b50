// Shows that `bench latency` measures what it is asked for and counts a token's bytes as its header
// says: one read of the weights shared by the streams, and each stream's own keys and values. The
// speeds themselves are not looked at. Runs the binary on tiny checkpoints.

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;
using nlohmann::json;

namespace {

Exit latency(std::vector<std::string> more) {
  std::vector<std::string> all = {
      "bench",         "latency", "--model",   SLUICE_FIXTURES "/checkpoints/grouped_heads.gguf",
      "--repetitions", "1",       "--threads", "1",
      "--json"};
  all.insert(all.end(), more.begin(), more.end());
  return run(all);
}

double bytes_per_token(std::vector<std::string> more) {
  more.insert(more.end(), {"--prompt-tokens", "0", "--tokens", "3"});
  const Exit exit = latency(more);
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  const auto out = json::parse(exit.out);
  BOOST_TEST(out.at("tg3_tok_s").get<double>() > 0.0);
  BOOST_TEST(out.at("ratio_to_limit").get<double>() ==
                 out.at("tg3_tok_s").get<double>() / out.at("limit_tok_s").get<double>(),
             boost::test_tools::tolerance(1e-9));
  const double busy = out.at("device_busy"), idle_us = out.at("idle_step_us");
  const double streams = out.at("streams");
  BOOST_TEST(busy > 0.0);
  BOOST_TEST(idle_us == (1 - busy) * streams / out.at("tg3_tok_s").get<double>() * 1e6,
             boost::test_tools::tolerance(1e-6));
  BOOST_TEST(out.at("step_p50_ms").get<double>() > 0.0);
  BOOST_TEST(out.at("step_p99_ms").get<double>() >= out.at("step_p50_ms").get<double>());
  BOOST_TEST(out.at("first_token_s").get<double>() > 0.0);
  return out.at("bytes_per_token");
}

}  // namespace

BOOST_AUTO_TEST_SUITE(bench_latency)

BOOST_AUTO_TEST_CASE(streams_share_the_weights_and_depth_adds_keys_and_values) {
  const double one = bytes_per_token({}), four = bytes_per_token({"--streams", "4"});
  const double weights = (one - four) * 4 / 3, kv = one - weights;
  BOOST_TEST(weights > 0.0);
  BOOST_TEST(kv > 0.0);
  // The mean of 1, 2 and 3 positions; 5 more with so many before them.
  const double deep = bytes_per_token({"--streams", "2", "--depth", "5"});
  BOOST_TEST(deep == weights / 2 + kv / 2 * (2 + 5), boost::test_tools::tolerance(1e-9));
}

BOOST_AUTO_TEST_CASE(what_is_not_measured_is_left_out) {
  const Exit exit = latency({"--prompt-tokens", "7", "--tokens", "0"});
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  const auto out = json::parse(exit.out);
  BOOST_TEST(out.contains("pp7_tok_s"));
  BOOST_TEST(!out.contains("tg0_tok_s"));
  BOOST_TEST(!out.contains("ratio_to_limit"));
}

BOOST_AUTO_TEST_CASE(nothing_to_measure_is_refused) {
  for (const std::vector<std::string>& options :
       {std::vector<std::string>{"--prompt-tokens", "0", "--tokens", "0"}, {"--streams", "0"}}) {
    const Exit exit = latency(options);
    BOOST_TEST(exit.code == 1);
    BOOST_TEST(exit.out == "");
    BOOST_TEST(contains(exit.err, "at least 1"), exit.err);
  }
}

BOOST_AUTO_TEST_SUITE_END()
