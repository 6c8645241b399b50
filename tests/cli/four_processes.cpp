// Shows the shape this service is built for: tokenizer, batcher, executor and streamer in four
// processes over ZeroMQ. A person chats at a terminal, a pyzmq client and `sluice subscribe` read
// the same stream, and one process alone gives the same text. Then the executor is killed in the
// middle of an answer: after a pause the answer goes on as if nothing had happened. So it does at
// another front when the client's own is killed, and with another engine when its node is.

#include <boost/test/unit_test.hpp>
#include <memory>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

/// What follows `word` on the line that begins with it.
std::string value_of(Process& process, const std::string& word) {
  process.read_until(word + " ");
  std::string line = process.read_until("\n");
  line.pop_back();
  return line;
}

std::vector<std::string> node(const std::string& roles, std::vector<std::string> more) {
  more.insert(more.begin(), {"node", "--model", model, "--roles", roles});
  return more;
}

/// The four nodes. The front knows no other; the others join it, or are joined.
struct FourNodes {
  ScratchFolder folder;
  Process front{node("front", {"--listen", "tcp://127.0.0.1:0", "--peers-listen",
                               "ipc://" + folder.file("front")})};
  Process tokenizer{node("tokenizer", {"--join", "ipc://" + folder.file("front")})};
  std::unique_ptr<Process> executor = make_executor();
  Process engine{node(
      "engine", {"--join", "ipc://" + folder.file("front") + ",ipc://" + folder.file("executor")})};
  std::string endpoint = value_of(front, "ready");

  std::unique_ptr<Process> make_executor() const {
    return std::make_unique<Process>(
        node("executor", {"--peers-listen", "ipc://" + folder.file("executor")}));
  }
};

const std::vector<std::string> question = {"--temperature", "0", "--max-tokens", "60"};

std::vector<std::string> long_question(std::vector<std::string> where) {
  where.insert(where.begin(), "complete");
  where.insert(where.end(), {"--prompt", "Once upon a time", "--max-tokens", "300", "--temperature",
                             "0", "--ignore-eos"});
  return where;
}

std::string long_answer(std::vector<std::string> where) {
  const Exit exit = run(long_question(std::move(where)));
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  return exit.out;
}

/// Text without the terminal's line ends.
std::string plain(std::string text) {
  std::erase(text, '\r');
  return text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(four_processes)

BOOST_AUTO_TEST_CASE(all_see_the_same_stream) {
  FourNodes nodes;
  std::vector<std::string> chat = {"chat", "--connect", nodes.endpoint, "--no-stats"};
  chat.insert(chat.end(), question.begin(), question.end());
  Process person(chat, Process::Input::terminal);
  person.read_until("> ");
  person.write("Name three rivers.\n");
  person.read_until("\n");  // the echo of the line
  std::string answer = plain(person.read_until("\n> "));
  answer.resize(answer.size() - 3);
  person.write("/stream\n");
  const std::string stream = plain(value_of(person, "stream"));
  BOOST_TEST(stream.size() == 32U);

  const std::string python = SLUICE_FIXTURES "/../../.venv/bin/python";
  const Exit subscriber =
      run_program(python, {SLUICE_FIXTURES "/../cli/subscriber.py", nodes.endpoint, stream});
  BOOST_TEST(subscriber.code == 0, subscriber.err);
  BOOST_TEST(subscriber.out == answer + "\n");

  const Exit follower = run({"subscribe", "--connect", nodes.endpoint, stream});
  BOOST_TEST(follower.code == 0, follower.err);
  BOOST_TEST(contains(follower.out, answer));

  std::vector<std::string> alone = {"chat", "--model", model, "--no-stats"};
  alone.insert(alone.end(), question.begin(), question.end());
  BOOST_TEST(contains(run(alone, "Name three rivers.\n").out, answer));
  person.write("/quit\n");
  BOOST_TEST(person.finish().code == 0);
}

BOOST_AUTO_TEST_CASE(an_answer_outlives_the_executors_process) {
  FourNodes nodes;
  const std::string undisturbed = long_answer({"--model", model});
  Process reader(long_question({"--connect", nodes.endpoint}));
  for (int i = 0; i < 20; ++i) reader.read_until(" ");
  nodes.executor.reset();  // SIGKILL
  nodes.executor = nodes.make_executor();
  const Exit answer = reader.finish();
  BOOST_TEST(answer.code == 0, answer.err);
  BOOST_TEST(answer.out == undisturbed);
}

BOOST_AUTO_TEST_CASE(an_isolated_executor_costs_a_pause) {
  const std::string undisturbed = long_answer({"--model", model});
  NodeProcess isolating({"--isolate", "on"});
  Process reader(long_question({"--connect", isolating.endpoint()}));
  for (int i = 0; i < 20; ++i) reader.read_until(" ");
  const auto children = isolating.process().children();
  BOOST_REQUIRE_EQUAL(children.size(), 1);
  kill(children.front(), SIGKILL);
  const Exit answer = reader.finish();
  BOOST_TEST(answer.code == 0, answer.err);
  BOOST_TEST(answer.out == undisturbed);
  const Exit exit = isolating.stop();
  BOOST_TEST(exit.code == 0, exit.err);
  BOOST_TEST(contains(exit.err, "is started again"));
}

BOOST_AUTO_TEST_CASE(isolated_ranks_cost_a_pause) {
  const std::string undisturbed = long_answer({"--model", model, "--tp", "3", "--threads", "1"});
  NodeProcess isolating({"--isolate", "on", "--tp", "3", "--threads", "1"});
  const auto all = isolating.process().children();
  BOOST_REQUIRE_EQUAL(all.size(), 3);
  for (std::size_t i = 0; i < 3; ++i) {  // whichever of them is rank 0
    Process reader(long_question({"--connect", isolating.endpoint()}));
    for (int k = 0; k < 20; ++k) reader.read_until(" ");
    kill(all[i], SIGKILL);
    const Exit answer = reader.finish();
    BOOST_TEST(answer.code == 0, answer.err);
    BOOST_TEST(answer.out == undisturbed);
  }
  BOOST_TEST(isolating.stop().code == 0);
}

BOOST_AUTO_TEST_CASE(an_answer_outlives_its_front_and_then_its_engine) {
  const std::string undisturbed = long_answer({"--model", model});
  ScratchFolder folder;
  const std::string one = "ipc://" + folder.file("one"), two = "ipc://" + folder.file("two");
  const auto front = [](const std::string& peers) {
    return std::make_unique<Process>(
        node("front,tokenizer", {"--listen", "tcp://127.0.0.1:0", "--peers-listen", peers}));
  };
  auto first = front(one), second = front(two);
  const auto engine = [&] {
    return std::make_unique<Process>(node("engine,executor", {"--join", one + "," + two}));
  };
  auto working = engine(), spare = engine();
  const std::string fronts = value_of(*first, "ready") + "," + value_of(*second, "ready");

  Process reader(long_question({"--connect", fronts}));
  for (int i = 0; i < 20; ++i) reader.read_until(" ");
  first.reset();  // SIGKILL
  for (int i = 0; i < 20; ++i) reader.read_until(" ");
  working.reset();
  const Exit answer = reader.finish();
  BOOST_TEST(answer.code == 0, answer.err);
  BOOST_TEST(answer.out == undisturbed);
}

BOOST_AUTO_TEST_SUITE_END()
