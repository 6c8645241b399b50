// Shows that `bench serve` loads a node as told and reports every request, in figures that scripts
// read; what it cannot do is refused with a remedy. Runs the binary against a node.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;
using nlohmann::json;

namespace {

std::vector<std::string> serve(const NodeProcess& node, std::vector<std::string> more) {
  std::vector<std::string> all = {"bench", "serve", "--connect", node.endpoint()};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(bench_serve)

BOOST_AUTO_TEST_CASE(load_on_a_node) {
  ScratchFolder folder;
  NodeProcess node;
  const Exit exit = run(serve(node, {"--num-prompts", "12", "--random-input-len", "8",
                                     "--random-output-len", "5", "--max-concurrency", "4",
                                     "--num-warmups", "2", "--goodput", "ttft:1e9", "--json"}));
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  BOOST_TEST(exit.err == "");
  const auto out = json::parse(exit.out);
  BOOST_TEST(out.at("completed") == 12);
  BOOST_TEST(out.at("failed") == 0);
  BOOST_TEST(out.at("total_input_tokens") == 12 * 8);
  BOOST_TEST(out.at("total_output_tokens") == 12 * 5);
  BOOST_TEST(out.at("request_rate") == "inf");
  BOOST_TEST(out.at("request_goodput") == out.at("request_throughput"));
  BOOST_TEST(out.at("p99_ttft_ms").get<double>() > 0.0);
  BOOST_TEST(out.at("mean_e2el_ms").get<double>() > out.at("mean_ttft_ms").get<double>());
  // With the warm-up's two, these are all that the node ever saw.
  const auto stats =
      json::parse(run({"health", "--connect", node.endpoint(), "--json"}).out).at("stats");
  BOOST_TEST(stats.at("engine.prompt_tokens") == 14 * 8);

  const std::string prompts = folder.file("prompts.txt"), plot = folder.file("load.svg");
  std::ofstream(prompts) << "Once upon a time\nWater is\n";
  const Exit sweep = run(serve(node, {"--num-prompts", "3", "--dataset-path", prompts, "--sweep",
                                      "50,100", "--output-len", "3", "--ignore-eos", "--plot",
                                      plot, "--json"}));
  BOOST_REQUIRE_MESSAGE(sweep.code == 0, sweep.err);
  const auto runs = json::parse(sweep.out).at("sweep");
  BOOST_REQUIRE(runs.size() == 2U);
  BOOST_TEST(runs[0].at("request_rate") == 50);
  BOOST_TEST(runs[1].at("request_rate") == 100);
  BOOST_TEST(runs[1].at("total_output_tokens") == 9);
  std::ifstream file(plot);
  const std::string svg((std::istreambuf_iterator<char>(file)), {});
  BOOST_TEST(contains(svg, "requests a second"));

  // At a terminal: the bar, then the table.
  Process person(serve(node, {"--num-prompts", "4", "--random-input-len", "8",
                              "--random-output-len", "40"}),
                 Process::Input::terminal);
  BOOST_TEST(contains(person.read_until("running,"), "running ["));
  const Exit table = person.finish();
  BOOST_TEST(table.code == 0, table.out);
  BOOST_TEST(contains(table.out, "completed 4, failed 0"), table.out);
  BOOST_TEST(contains(table.out, "TPOT"), table.out);

  // Refused requests are counted; a run without any success is a failure.
  const Exit refused = run(serve(node, {"--num-prompts", "2", "--random-input-len", "9000"}));
  BOOST_TEST(refused.code == 1);
  BOOST_TEST(contains(refused.out, "too_long 2"), refused.out);
  BOOST_TEST(contains(refused.err, "no request was completed"));
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(ctrl_c_ends_the_run_and_its_streams) {
  NodeProcess node;
  Process client(serve(node, {"--num-prompts", "4", "--random-input-len", "8",
                              "--random-output-len", "8000"}),
                 Process::Input::terminal);
  client.read_until("4 running");
  client.send_signal(SIGINT);
  const Exit exit = client.finish();
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(contains(exit.out, "cancelled: stopped after 0 of 4 requests"), exit.out);
  const auto running = [&] {
    return json::parse(run({"health", "--connect", node.endpoint(), "--json"}).out)
        .at("stats").at("engine.running").get<double>();
  };
  while (running() != 0) {  // 8,000 tokens would take minutes; ctest's limit makes a miss fail
  }
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(wrong_usage_exits_with_2) {
  for (const auto& [more, named] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--goodput", "itl:3"}, "itl:3"},
           {{"--goodput", "ttft:soon"}, "soon"},
           {{"--request-rate", "0"}, "--request-rate"},
           {{"--sweep", "1,x"}, "--sweep"},
           {{"--sweep", "1", "--request-rate", "1"}, "--request-rate"},
           {{"--num-prompts", "0"}, "--num-prompts"}}) {
    std::vector<std::string> arguments = {"bench", "serve", "--connect", "ipc:///nowhere"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Exit exit = run(arguments);
    BOOST_TEST(exit.code == 2, exit.err);
    BOOST_TEST(contains(exit.err, named), exit.err);
  }
  BOOST_TEST(run({"bench", "serve"}).code == 2);
  const Exit missing = run({"bench", "serve", "--connect", "x", "--dataset-path", "/nowhere"});
  BOOST_TEST(missing.code == 1);
  BOOST_TEST(contains(missing.err, "/nowhere"));
}

BOOST_AUTO_TEST_SUITE_END()
