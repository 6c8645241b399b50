// Shows a conversation: at a terminal (a pty), where Ctrl-C stops an answer and keeps the session,
// and from a pipe, line by line. Runs the binary on SmolLM2.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

std::vector<std::string> talk(std::vector<std::string> more) {
  more.insert(more.begin(), {"chat", "--model", model, "--temperature", "0"});
  return more;
}

/// History and saved files go to a folder of the test's own.
struct OwnState {
  ScratchFolder folder;
  OwnState() { setenv("XDG_STATE_HOME", folder.file("state").c_str(), 1); }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(chat, OwnState)

BOOST_AUTO_TEST_CASE(ctrl_c_stops_the_answer_and_keeps_the_session) {
  Process process(talk({"--ignore-eos", "--max-tokens", "4000"}), Process::Input::terminal);
  process.read_until("> ");
  process.write("Tell me a long story.\n");
  process.read_until("\n");  // the echo of the line
  process.read_until(" ");   // a piece of the answer
  process.write("\x03");
  BOOST_TEST(contains(process.read_until("stopped]"), "tokens/s"));
  process.read_until("> ");
  process.write("/max-tokens 5\n");
  process.read_until("max-tokens is 5");
  process.write("And now?\n");
  BOOST_TEST(contains(process.read_until("]"), "[5 tokens"));
  process.write("/quit\n");
  const Exit exit = process.finish();
  BOOST_TEST(exit.code == 0, exit.out);
}

BOOST_AUTO_TEST_CASE(ctrl_c_at_the_prompt_drops_the_line) {
  Process process(talk({"--max-tokens", "3"}), Process::Input::terminal);
  process.read_until("> ");
  process.write("never mind");
  process.read_until("mind");
  process.write("\x03");
  process.read_until("> ");
  process.write("/history\n");
  BOOST_TEST(!contains(process.read_until("> "), "user: "));
  process.write("\x04");
  BOOST_TEST(process.finish().code == 0);
}

BOOST_AUTO_TEST_CASE(history_is_kept_from_run_to_run) {
  {
    Process process(talk({}), Process::Input::terminal);
    process.read_until("> ");
    process.write("/seed 1234\n");
    process.read_until("seed is 1234");
    process.write("/quit\n");
    BOOST_TEST(process.finish().code == 0);
  }
  Process process(talk({}), Process::Input::terminal);
  process.read_until("> ");
  process.write("\x1b[A\x1b[A\n");  // up, up, enter: the line before /quit
  BOOST_TEST(contains(process.read_until("seed is 1234"), "/seed 1234"));
  process.write("/quit\n");
  BOOST_TEST(process.finish().code == 0);
}

BOOST_AUTO_TEST_CASE(a_pipe_is_answered_line_by_line) {
  const Exit exit = run(talk({"--max-tokens", "12", "--no-stats"}),
                        "What is 2 + 2?\n/history\n");
  BOOST_TEST(exit.code == 0, exit.err);
  BOOST_TEST(contains(exit.out, " is 4."), exit.out);
  BOOST_TEST(contains(exit.out, "user: What is 2 + 2?\nassistant: "));
  BOOST_TEST(exit.err == "");
}

BOOST_AUTO_TEST_CASE(a_conversation_is_saved_and_gone_on_with) {
  const std::string path = folder.file("talk.json");
  const std::string system = "You answer in one word.";
  const Exit first = run(talk({"--max-tokens", "8", "--system", system}),
                         "My name is Ada.\n/save " + path + "\n");
  BOOST_TEST(first.code == 0, first.err);
  const auto saved = nlohmann::json::parse(std::ifstream(path));
  BOOST_TEST(saved.at("system") == system);
  BOOST_REQUIRE(saved.at("messages").size() == 2U);
  BOOST_TEST(saved.at("messages")[0].at("content") == "My name is Ada.");
  BOOST_TEST(saved.at("messages")[1].at("role") == "assistant");

  const Exit second = run(talk({"--max-tokens", "8"}), "/load " + path + "\n/history\n");
  BOOST_TEST(second.code == 0, second.err);
  BOOST_TEST(contains(second.out, "system: " + system + "\nuser: My name is Ada.\nassistant: "));
}

BOOST_AUTO_TEST_CASE(the_history_decides_the_answer) {
  // Greedy: the second answer can differ only because the first turn is part of its prompt.
  const auto last_answer = [](const std::string& before) {
    std::string out =
        run(talk({"--max-tokens", "12", "--no-stats"}), before + "Repeat my name.\n").out;
    out.pop_back();
    return out.substr(out.rfind('\n') + 1);
  };
  const std::string fresh = last_answer("");
  BOOST_TEST(!contains(fresh, "Ada"), fresh);
  BOOST_TEST(contains(last_answer("My name is Ada.\n"), "Ada"));
  BOOST_TEST(last_answer("My name is Ada.\n/clear\n") == fresh);
}

BOOST_AUTO_TEST_CASE(wrong_commands_are_refused_and_fail_a_script) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"/sistem x\n", "bad_request: there is no /sistem"},
      {"/seed x\n", "bad_request: 'x' is no value for seed"},
      {"/stats maybe\n", "bad_request: /stats takes on or off"},
      {"/load /nowhere/x\n", "io: cannot open /nowhere/x"},
      {"/load /etc/hostname\n", "bad_file: /etc/hostname"},
  };
  for (const auto& [line, said] : cases) {
    const Exit exit = run(talk({}), line);
    BOOST_TEST(exit.code == 1);
    BOOST_TEST(contains(exit.err, said), exit.err);
  }
}

BOOST_AUTO_TEST_SUITE_END()
