// Shows that `top` tells what a node did, once or live, and leaves a terminal as it was. Runs the
// binary, at a pseudo terminal where that matters.

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;
using nlohmann::json;

namespace {

const std::string enter = "\033[?1049h", leave = "\033[?25h\033[?1049l";

}  // namespace

BOOST_AUTO_TEST_SUITE(top)

BOOST_AUTO_TEST_CASE(it_tells_what_the_node_did) {
  NodeProcess node;
  const std::vector<std::string> once = {"top", "--connect", node.endpoint(), "--once"};
  for (int i = 0; i < 2; ++i)
    BOOST_REQUIRE(run({"complete", "--connect", node.endpoint(), "--prompt",
                       "Once upon a time there was a fox in the wood, and it said to the hare:",
                       "--max-tokens", "5", "--ignore-eos"})
                      .code == 0);
  BOOST_REQUIRE(run({"complete", "--connect", node.endpoint(), "--prompt", "x", "--max-tokens",
                     "9000"})
                    .code == 1);
  std::vector<std::string> as_json = once;
  as_json.push_back("--json");
  const Exit exit = run(as_json);
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  const auto out = json::parse(exit.out);
  BOOST_TEST(out.at("ready") == true);
  BOOST_TEST(out.at("ttft_ms").at("count") == 2);
  BOOST_TEST(out.at("itl_ms").at("count") == 8);
  BOOST_TEST(out.at("itl_ms").at("p99").get<double>() > 0.0);
  BOOST_TEST(out.at("finished").at("length") == 2);
  BOOST_TEST(out.at("refused").at("too_long") == 1);
  BOOST_TEST(out.at("prefix_hit_rate").get<double>() > 0.3);  // the second prompt was the first
  BOOST_REQUIRE(out.at("engines").size() == 1U);
  BOOST_TEST(out.at("engines")[0].at("backend") == "cpu");
  const Exit text = run(once);
  BOOST_TEST(text.code == 0, text.err);
  BOOST_TEST(contains(text.out, "finished  length 2\n"), text.out);
  BOOST_TEST(contains(text.out, "refused   too_long 1\n"), text.out);
  BOOST_TEST(text.out.find('\033') == std::string::npos);
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(a_screen_is_live_and_given_back) {
  NodeProcess node;
  for (const bool key : {true, false}) {
    Process screen({"top", "--connect", node.endpoint(), "--interval", "0.1"},
                   Process::Input::terminal);
    BOOST_TEST(contains(screen.read_until("q quits"), enter));
    if (key)
      BOOST_REQUIRE(run({"complete", "--connect", node.endpoint(), "--prompt", "Water is",
                         "--max-tokens", "3", "--ignore-eos"})
                        .code == 0);
    BOOST_TEST(contains(screen.read_until("finished  length 1"), "length 1"));  // drawn anew
    screen.write(key ? "q" : "\003");
    const Exit exit = screen.finish();
    BOOST_TEST(exit.code == 0);
    BOOST_TEST(exit.out.ends_with(leave));
  }
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(the_same_figures_for_prometheus) {
  NodeProcess node({"--metrics", "tcp://127.0.0.1:0"});
  const std::string line = node.process().read_until("\n");
  BOOST_REQUIRE_MESSAGE(line.starts_with("metrics tcp://127.0.0.1:"), line);
  const std::string port = line.substr(line.rfind(':') + 1, line.size() - line.rfind(':') - 2);
  BOOST_REQUIRE(run({"complete", "--connect", node.endpoint(), "--prompt", "Water is",
                     "--max-tokens", "3", "--ignore-eos"})
                    .code == 0);
  const std::string script = "exec 3<>/dev/tcp/127.0.0.1/" + port +
                             "; printf \"GET /metrics HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3";
  FILE* const shell = popen(("bash -c '" + script + "'").c_str(), "r");
  BOOST_REQUIRE(shell != nullptr);
  std::string page(1 << 16, '\0');
  page.resize(fread(page.data(), 1, page.size(), shell));
  BOOST_TEST(pclose(shell) == 0);
  BOOST_TEST(contains(page, "200 OK"), page);
  BOOST_TEST(contains(page, "\nsluice_generation_tokens_total{model_name="
                            "\"SmolLM2-135M-Instruct-Q4_1\"} 3\n"),
             page);
  BOOST_TEST(contains(page, "\nsluice_time_to_first_token_seconds_count 1\n"), page);
  check_clean(node.stop());

  const Exit exit = run({"node", "--model", model, "--metrics", "tcp://0.0.0.0:0"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(contains(exit.err, "tcp://0.0.0.0:0 can be reached from other hosts"), exit.err);
}

BOOST_AUTO_TEST_CASE(a_node_that_is_not_there_is_named) {
  const Exit exit =
      run({"top", "--connect", "ipc:///tmp/no-such-sluice", "--once", "--timeout-ms", "50"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(contains(exit.err, "ipc:///tmp/no-such-sluice"));
}

BOOST_AUTO_TEST_SUITE_END()
