// Shows that every command explains itself, that wrong usage is told from failure by its exit code,
// and that shell completion offers what the commands really take. Runs the binary.

#include <boost/test/unit_test.hpp>
#include <set>
#include <sstream>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

const std::vector<std::string> commands = {"node",   "complete", "chat",       "subscribe",
                                           "health", "top",      "completion", "keygen"};

/// The long options that a command's help lists.
std::set<std::string> options_in_help(const std::string& help) {
  std::set<std::string> names;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t at = line.find("--");
    if (line.rfind("  ", 0) != 0 || at == std::string::npos || at > 6) continue;
    names.insert(line.substr(at, line.find_first_of(" =", at) - at));
  }
  return names;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(usage)

BOOST_AUTO_TEST_CASE(every_command_has_help_with_examples) {
  for (const std::string& command : commands) {
    const Exit exit = run({command, "--help"});
    BOOST_TEST(exit.code == 0);
    BOOST_TEST(contains(exit.out, "Examples:\n"), command);
    BOOST_TEST(contains(exit.out, "sluice " + command), command);
  }
}

BOOST_AUTO_TEST_CASE(help_lists_every_command) {
  const Exit exit = run({"--help"});
  BOOST_TEST(exit.code == 0);
  for (const std::string& command : commands) {
    BOOST_TEST(contains(exit.out, "\n  " + command + " "), command);
  }
}

BOOST_AUTO_TEST_CASE(version_names_version_commit_and_backends) {
  const Exit exit = run({"--version"});
  BOOST_TEST(exit.code == 0);
  BOOST_TEST(exit.out.rfind("sluice 0.", 0) == 0, exit.out);
  BOOST_TEST(contains(exit.out, "commit"));
  BOOST_TEST(contains(exit.out, "\n  cpu   usable: "), exit.out);
  BOOST_TEST(contains(exit.out, "\n  cuda  "), exit.out);
}

BOOST_AUTO_TEST_CASE(a_backend_that_cannot_be_used_is_refused_with_the_reason_that_version_gives) {
  const std::string version = run({"--version"}).out;
  const std::string_view unusable = "cuda  unusable: ";
  const std::size_t at = version.find(unusable);
  if (at == std::string::npos) return;  // a GPU host, where asking for it is right
  const std::size_t reason = at + unusable.size();
  const Exit exit = run({"complete", "--model", model, "--prompt", "x", "--backend", "cuda"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(exit.out == "");
  BOOST_TEST(contains(exit.err, "sluice: unsupported: the cuda backend cannot be used: " +
                                    version.substr(reason, version.find('\n', reason) - reason)),
             exit.err);
}

BOOST_AUTO_TEST_CASE(keys_and_values_in_8_bits_are_refused_by_a_backend_without_them) {
  const Exit exit = run({"complete", "--model", model, "--prompt", "x", "--backend", "cpu",
                         "--kv-cache-dtype", "fp8"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(exit.out == "");
  BOOST_TEST(contains(exit.err, "sluice: unsupported: the cpu backend keeps keys and values"),
             exit.err);
  BOOST_TEST(contains(exit.err, "use the cuda backend"), exit.err);
}

BOOST_AUTO_TEST_CASE(wrong_usage_exits_with_2_and_says_what_is_wrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "subcommand"},
      {{"compleat"}, "'compleat'"},
      {{"complete", "--temprature", "1"}, "--temprature"},
      {{"complete", "--prompt", "x", "--temperature", "hot"}, "--temperature"},
      {{"complete", "--prompt", "x", "--max-tokens", "-1"}, "--max-tokens"},
      {{"complete", "--prompt", "x", "--file", "y"}, "--file"},
      {{"complete", "--prompt", "x"}, "--model"},
      {{"complete", "--prompt", "x", "--connect", "x", "--logit-bias", "7:1"}, "--logit-bias"},
      {{"chat"}, "--model"},
      {{"node"}, "--model"},
      {{"node", "--model", "x", "--backend", "gpu"}, "--backend"},
      {{"node", "--model", "x", "--kv-cache-dtype", "fp4"}, "--kv-cache-dtype"},
      {{"complete", "--prompt", "x", "--kv-cache-dtype", "f16"}, "--kv-cache-dtype"},
      {{"health"}, "--connect"},
      {{"subscribe", "--connect", "x", "beef"}, "beef"},
      {{"completion", "tcsh"}, "tcsh"},
  };
  for (const auto& [arguments, named] : cases) {
    const Exit exit = run(arguments);
    BOOST_TEST_CONTEXT(exit.err) {
      BOOST_TEST(exit.code == 2);
      BOOST_TEST(exit.out == "");
      BOOST_TEST(exit.err.rfind("sluice: bad_request: ", 0) == 0);
      BOOST_TEST(contains(exit.err, named));
    }
  }
}

BOOST_AUTO_TEST_CASE(completion_offers_every_option_of_every_command) {
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const Exit script = run({"completion", shell});
    BOOST_TEST(script.code == 0);
    for (const std::string& command : commands) {
      BOOST_TEST(contains(script.out, command));
      const auto options = options_in_help(run({command, "--help"}).out);
      BOOST_TEST(options.size() >= (command == "completion" ? 0U : 3U));
      for (const std::string& option : options) {
        BOOST_TEST(contains(script.out, shell == "fish" ? "-l " + option.substr(2) : option),
                   shell << " " << command << " " << option);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(bash_completion_completes) {
  const auto offered = [](const std::string& words) {
    const std::string script =
        "source <(" SLUICE_BINARY " completion bash); COMP_WORDS=(" + words +
        "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _sluice; echo \"${COMPREPLY[*]}\"";
    FILE* const shell = popen(("bash -c '" + script + "'").c_str(), "r");
    BOOST_REQUIRE(shell != nullptr);
    std::string out(4096, '\0');
    out.resize(fread(out.data(), 1, out.size(), shell));
    BOOST_TEST(pclose(shell) == 0);
    return out;
  };
  BOOST_TEST(offered("sluice comp") == "complete completion\n");
  BOOST_TEST(offered("sluice complete --temp") == "--temperature\n");
  BOOST_TEST(offered("sluice node --tem") == "\n");
  BOOST_TEST(offered("sluice bench ser") == "serve\n");
  BOOST_TEST(offered("sluice bench serve --num-p") == "--num-prompts\n");
  BOOST_TEST(offered("sluice node --model /etc/host") != "\n");
}

BOOST_AUTO_TEST_SUITE_END()
