// Shows that the configuration file is checked to the last key, and that what is printed as being
// in force can be read back. Runs `sluice node --print-config`, which starts nothing.

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

/// What `node --print-config` makes of a file with this text.
Exit print(const std::string& text, std::vector<std::string> more = {}) {
  const ScratchFolder folder;
  const std::string path = folder.file("node.toml");
  std::ofstream(path) << text;
  more.insert(more.begin(), {"node", "--print-config", "--config", path});
  return run(std::move(more));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(config)

BOOST_AUTO_TEST_CASE(what_is_printed_is_read_back_the_same) {
  const Exit first = print(
      "[endpoint]\nlisten = \"tcp://127.0.0.1:7001\"\n"
      "[site]\nname = \"a \\\"b\\\" \\\\ \\u00e9\"\nprice_per_million_tokens = 0.25\n"
      "[stream]\nretention_ms = 1500\n"
      "[[engine]]\nmodel = \"one.gguf\"\nkv_bytes = 5000000000\n"
      "[[engine]]\nmodel = \"two.gguf\"\nname = \"second\"\nchat_format = \"llama3\"\n"
      "kv_cache_dtype = \"fp8\"\n");
  BOOST_TEST(first.code == 0, first.err);
  for (const char* const said :
       {"listen = \"tcp://127.0.0.1:7001\"", "name = \"a \\\"b\\\" \\\\ \u00e9\"",
        "price_per_million_tokens = 0.25", "retention_ms = 1500", "kv_bytes = 5000000000",
        "name = \"second\"", "kv_cache_dtype = \"fp8\"", "chat_format = \"llama3\"",
        "drain_ms = 30000"}) {
    BOOST_TEST(contains(first.out, said), said);
  }
  const Exit second = print(first.out);
  BOOST_TEST(second.code == 0, second.err);
  BOOST_TEST(second.out == first.out);
}

BOOST_AUTO_TEST_CASE(every_key_that_is_printed_is_documented) {
  const Exit exit = print("[[engine]]\nmodel = \"one.gguf\"\n");
  std::size_t keys = 0;
  std::string before;
  std::istringstream lines(exit.out);
  for (std::string line; std::getline(lines, line); before = line) {
    if (line.empty() || line[0] == '#' || line[0] == '[') continue;
    ++keys;
    BOOST_TEST(before.rfind("# ", 0) == 0, line);
  }
  BOOST_TEST(keys >= 35U);
}

BOOST_AUTO_TEST_CASE(the_command_line_goes_first) {
  const Exit exit = print("[endpoint]\nlisten = \"tcp://127.0.0.1:1\"\n[[engine]]\nmodel = \"a\"\n",
                          {"--listen", "ipc:///tmp/x", "--model", "b", "--threads", "3",
                           "--device", "2", "--collectives", "10.0.0.1", "--weight-cache", "/w"});
  BOOST_TEST(exit.code == 0, exit.err);
  BOOST_TEST(contains(exit.out, "listen = \"ipc:///tmp/x\""));
  BOOST_TEST(contains(exit.out, "model = \"b\""));
  BOOST_TEST(contains(exit.out, "threads = 3"));
  BOOST_TEST(contains(exit.out, "device = 2"));
  BOOST_TEST(contains(exit.out, "collectives = \"10.0.0.1\""));
  BOOST_TEST(contains(exit.out, "weight_cache = \"/w\""));
}

BOOST_AUTO_TEST_CASE(every_profile_in_the_tree_is_valid) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_FIXTURES "/../../configs")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    const Exit exit = run({"node", "--print-config", "--config", entry.path()});
    BOOST_TEST(exit.code == 0, exit.err);
    BOOST_TEST(contains(exit.out, "\n[[engine]]\n"), entry.path());
    BOOST_TEST(!contains(exit.out, "\nmodel = \"\"\n"), entry.path());
  }
  BOOST_TEST(count >= 8U);
}

BOOST_AUTO_TEST_CASE(every_variable_in_the_tree_says_why) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_FIXTURES "/../../configs")) {
    if (entry.path().extension() != ".env") continue;
    std::ifstream file(entry.path());
    std::string before;
    for (std::string line; std::getline(file, line); before = line) {
      if (line.empty() || line.starts_with("#")) continue;
      ++count;
      BOOST_TEST(before.starts_with("# "), entry.path() << ": " << line);
      // As systemd's EnvironmentFile and a shell both read it.
      const auto name = line.substr(0, line.find('='));
      BOOST_TEST(name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == name.npos, line);
      BOOST_TEST(line.find_first_of(" \"'$`;&|") == line.npos, line);
    }
  }
  BOOST_TEST(count >= 8U);
}

BOOST_AUTO_TEST_CASE(a_wrong_key_is_refused_with_its_line_and_the_remedy) {
  const std::string engine = "[[engine]]\nmodel = \"a\"\n";
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"[endpoint]\nlisen = \"x\"\n", {"node.toml:2", "'lisen'", "'listen'"}},
      {"[endpiont]\nlisten = \"x\"\n", {"node.toml:1", "'endpiont'", "'endpoint'"}},
      {engine + "threds = 2\n", {"node.toml:3", "'threds'", "'threads'"}},
      {"[endpoint]\nlisten = 5\n", {"node.toml:2", "endpoint.listen", "integer", "string"}},
      {"[node]\ninsecure = \"yes\"\n", {"node.toml:2", "node.insecure", "boolean"}},
      {engine + "threads = 2.5\n", {"node.toml:3", "engine.threads", "whole number"}},
      {engine + "slots = 0\n", {"node.toml:3", "engine.slots", "from 1 to 65536"}},
      {engine + "threads = -1\n", {"node.toml:3", "engine.threads", "-1"}},
      {engine + "backend = \"gpu\"\n", {"node.toml:3", "engine.backend", "\"cuda\""}},
      {engine + "kv_cache_dtype = \"fp4\"\n", {"node.toml:3", "engine.kv_cache_dtype", "\"fp8\""}},
      {"[site]\nprice_per_million_tokens = nan\n", {"node.toml:2", "price", "nan"}},
      {"node = 3\n", {"node.toml:1", "[node]"}},
      {"engine = 3\n", {"node.toml:1", "[[engine]]"}},
      {"[endpoint\n", {"node.toml:1"}},
  };
  for (const auto& [text, named] : cases) {
    const Exit exit = print(text, {"--model", "a"});
    BOOST_TEST_CONTEXT(exit.err) {
      BOOST_TEST(exit.code == 1);
      BOOST_TEST(exit.out == "");
      BOOST_TEST(exit.err.rfind("sluice: bad_request: ", 0) == 0);
      for (const std::string& part : named) BOOST_TEST(contains(exit.err, part), part);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_missing_file_is_an_io_error) {
  const Exit exit = run({"node", "--config", "/nowhere/node.toml"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(exit.err ==
             "sluice: io: cannot read the configuration /nowhere/node.toml: "
             "No such file or directory\n");
}

BOOST_AUTO_TEST_SUITE_END()
