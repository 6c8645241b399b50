// Shows a node's life as a process: ready, healthy, followed by strangers, and gone when it is told
// to go. Runs the binary; signals and pipes only, no waiting for time to pass.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;

BOOST_AUTO_TEST_SUITE(node)

BOOST_AUTO_TEST_CASE(it_is_ready_then_healthy_then_stops_with_0) {
  for (const int number : {SIGTERM, SIGINT}) {
    NodeProcess node;
    BOOST_TEST(node.endpoint().rfind("tcp://127.0.0.1:", 0) == 0);
    const Exit health = run({"health", "--connect", node.endpoint(), "--json"});
    BOOST_TEST(health.code == 0, health.err);
    const auto out = nlohmann::json::parse(health.out);
    BOOST_TEST(out.at("ready") == true);
    BOOST_TEST(out.at("site") == "local");
    BOOST_REQUIRE(out.at("models").size() == 1U);
    BOOST_TEST(out.at("models")[0].at("backend") == "cpu");
    BOOST_TEST(out.at("models")[0].at("chat_format") == "chatml");
    BOOST_TEST(out.at("models")[0].at("context_tokens") == 8192);
    BOOST_TEST(!out.at("stats").empty());
    node.process().send_signal(number);
    const Exit exit = node.process().finish();
    BOOST_TEST(exit.code == 0, exit.err);
    BOOST_TEST(exit.out == "ready " + node.endpoint() + "\n");
  }
}

BOOST_AUTO_TEST_CASE(a_running_stream_finishes_before_the_node_does) {
  NodeProcess node;
  Process client({"complete", "--connect", node.endpoint(), "--prompt", "Once upon a time",
                  "--max-tokens", "60", "--ignore-eos", "--temperature", "0", "--json"});
  // The stream runs as soon as its tokens are counted.
  while (nlohmann::json::parse(run({"health", "--connect", node.endpoint(), "--json"}).out)
             .at("stats")
             .value("engine.tokens", 0.0) == 0.0) {
  }
  check_clean(node.stop());
  const Exit exit = client.finish();
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  BOOST_TEST(nlohmann::json::parse(exit.out).at("tokens").size() == 60U);
}

BOOST_AUTO_TEST_CASE(a_killed_client_frees_its_blocks) {
  ScratchFolder folder;
  const std::string path = folder.file("node.toml");
  std::ofstream(path) << "[stream]\ngrace_ms = 1\n[[engine]]\nmodel = \"" << model << "\"\n";
  NodeProcess node({"--config", path});
  Process client({"complete", "--connect", node.endpoint(), "--prompt", "Once upon a time",
                  "--max-tokens", "8000", "--ignore-eos", "--temperature", "0"});
  client.read_until(" ");
  client.send_signal(SIGKILL);
  BOOST_TEST(client.finish().code == 128 + SIGKILL);
  const auto stats = [&] {
    return nlohmann::json::parse(run({"health", "--connect", node.endpoint(), "--json"}).out)
        .at("stats");
  };
  auto now = stats();
  // 8,000 tokens would take a minute; ctest's time limit is what makes a miss fail.
  while (now.at("engine.running") != 0.0) now = stats();
  BOOST_TEST(now.at("engine.blocks_free") == now.at("engine.blocks_total"));
  BOOST_TEST(now.at("engine.tokens").get<double>() < 8000.0);
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(a_second_signal_stops_at_once) {
  NodeProcess node;
  Process client({"complete", "--connect", node.endpoint(), "--prompt", "Once upon a time",
                  "--max-tokens", "8000", "--ignore-eos", "--temperature", "0"});
  client.read_until(" ");
  node.process().send_signal(SIGTERM);
  node.process().send_signal(SIGINT);
  BOOST_TEST(node.process().finish().code == 1);
}

BOOST_AUTO_TEST_CASE(a_finished_stream_can_be_read_again_from_anywhere) {
  NodeProcess node;
  const Exit made = run({"complete", "--connect", node.endpoint(), "--prompt", "Water is",
                         "--max-tokens", "10", "--ignore-eos", "--json"});
  BOOST_REQUIRE_MESSAGE(made.code == 0, made.err);
  const auto out = nlohmann::json::parse(made.out);
  const std::string stream = out.at("stream");
  const Exit whole = run({"subscribe", "--connect", node.endpoint(), stream});
  BOOST_TEST(whole.code == 0, whole.err);
  BOOST_TEST(whole.out == out.at("text").get<std::string>() + "\n");

  const Exit part =
      run({"subscribe", "--connect", node.endpoint(), stream, "--from", "4", "--json"});
  BOOST_TEST(part.code == 0, part.err);
  auto tokens = nlohmann::json::array();
  std::istringstream lines(part.out);
  nlohmann::json last;
  for (std::string line; std::getline(lines, line);) {
    last = nlohmann::json::parse(line);
    for (const auto& token : last.value("tokens", nlohmann::json::array())) tokens.push_back(token);
  }
  BOOST_TEST(last.at("type") == "done");
  const auto all = out.at("tokens").get<std::vector<int>>();
  BOOST_TEST(tokens == nlohmann::json(std::vector<int>(all.begin() + 4, all.end())));
}

BOOST_AUTO_TEST_SUITE_END()
