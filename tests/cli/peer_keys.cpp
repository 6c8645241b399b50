// Shows nodes with keys as those who run them meet them: two that know each other make one service,
// one that is taken off the list is cut off until it is on it again, and what would be open to
// others does not start. Runs the binary.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

/// Keys and lists of two nodes.
struct Fleet {
  ScratchFolder folder;
  std::string a = make("a"), b = make("b");

  Fleet() { list({"a", "b"}); }

  std::string make(const std::string& name) const {
    const Exit exit = run({"keygen", "--out", folder.file(name), "--json"});
    BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
    return nlohmann::json::parse(exit.out).at("public_key");
  }
  /// What both know from now on, or from SIGHUP on.
  void list(const std::vector<std::string>& names) const {
    std::ofstream file(folder.file("nodes"));
    for (const auto& name : names)
      file << "[[node]]\nname = \"" << name << "\"\npublic_key = \"" << (name == "a" ? a : b)
           << "\"\n";
  }
  std::string security(const std::string& who) const {
    return "[security]\nnode_keys = \"" + folder.file(who + ".key_secret") + "\"\nnodes = \"" +
           folder.file("nodes") + "\"\n";
  }
  /// The options of a node with this configuration.
  std::vector<std::string> with(const std::string& text) const {
    std::ofstream(folder.file("node.toml")) << text;
    return {"--config", folder.file("node.toml")};
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(peer_keys)

BOOST_AUTO_TEST_CASE(two_nodes_that_know_each_other_serve_until_one_is_removed) {
  const Fleet fleet;
  NodeProcess b(
      fleet.with("[node]\nroles = [\"engine\", \"executor\"]\n[peers]\nname = \"b\"\n"
                 "listen = \"tcp://0.0.0.0:0\"\n" +
                 fleet.security("b")));
  const std::string port = b.endpoint().substr(b.endpoint().rfind(':'));
  NodeProcess a(
      fleet.with("[node]\nroles = [\"front\", \"tokenizer\"]\n[peers]\nname = \"a\"\n"
                 "join = [\"tcp://127.0.0.1" +
                 port + " b\"]\n" + fleet.security("a")));
  const std::vector<std::string> ask = {"complete", "--connect",    a.endpoint(), "--prompt",
                                        "Water is", "--max-tokens", "4"};
  check_clean(run(ask));
  fleet.list({"b"});
  b.process().send_signal(SIGHUP);
  b.process().read_error_until("no such key of node a any more");
  fleet.list({"a", "b"});
  b.process().send_signal(SIGHUP);
  b.process().read_error_until("peer_up");
  check_clean(a.stop());
  check_clean(b.stop());
}

BOOST_AUTO_TEST_CASE(a_node_that_cannot_join_says_so_until_it_can) {
  const Fleet fleet;
  NodeProcess a(
      fleet.with("[node]\nroles = [\"engine\", \"executor\"]\n[peers]\nname = \"a\"\n"
                 "listen = \"tcp://127.0.0.1:0\"\n" +
                 fleet.security("a")));
  fleet.list({"a"});
  a.process().send_signal(SIGHUP);
  a.process().read_error_until("allowed");
  fleet.list({"a", "b"});
  NodeProcess b(fleet.with("[node]\nroles = [\"executor\"]\n[peers]\nname = \"b\"\njoin = [\"" +
                           a.endpoint() + " a\"]\n" + fleet.security("b")));
  b.process().read_error_until("peer_not_joined");
  b.process().read_error_until("nobody answered within 1000 ms");
  a.process().send_signal(SIGHUP);
  b.process().read_error_until("peer_up");
  check_clean(b.stop());
  check_clean(a.stop());
}

BOOST_AUTO_TEST_CASE(what_would_be_open_to_other_nodes_does_not_start) {
  const Fleet fleet;
  const auto refused = [&](const std::string& text, const std::string& part) {
    auto command = fleet.with(text);
    command.insert(command.begin(), {"node", "--model", model});
    const Exit exit = run(std::move(command));
    BOOST_TEST_CONTEXT(exit.err) {
      BOOST_TEST(exit.code == 1);
      BOOST_TEST(contains(exit.err, part));
    }
  };
  const std::string named = "[peers]\nname = \"a\"\n", security = fleet.security("a");
  refused("[peers]\nlisten = \"tcp://0.0.0.0:0\"\n", "plain text");
  refused("[peers]\njoin = [\"tcp://10.0.0.1:5\"]\n", "security.nodes has for it");
  refused(named + "join = [\"tcp://10.0.0.1:5\"]\n" + security, "security.nodes has for it");
  refused(named + "join = [\"tcp://10.0.0.1:5 b\"]\n", "no key to show");
  refused(named + "join = [\"tcp://10.0.0.1:5 c\"]\n" + security, "has no key");
  refused("[peers]\njoin = [\"tcp://10.0.0.1:5 b\"]\n" + security, "peers.name is missing");
  refused("[peers]\nlocal_listen = \"tcp://127.0.0.1:0\"\n", "ipc://PATH");
  refused("[security]\nnode_keys = \"" + fleet.folder.file("a.key_secret") + "\"\n",
          "security.nodes is missing");
  fleet.list({});
  refused(named + "listen = \"tcp://127.0.0.1:0\"\n" + security, "no node could join");
  fleet.list({"a", "a"});
  refused(named + "listen = \"tcp://127.0.0.1:0\"\n" + security, "nodes:4: a has a key already");
}

BOOST_AUTO_TEST_SUITE_END()
