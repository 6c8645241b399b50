// Shows a node with keys as its users meet it: keys made by `sluice keygen`, who may connect and
// who may not, and an allow list that changes while it runs. Runs the binary.

#include <sys/stat.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

/// Files of a node and two clients, the first of them allowed.
struct Household {
  ScratchFolder folder;
  std::string node = make("node"), ann = make("ann"), bob = make("bob");

  Household() { allow("[[client]]\nname = \"ann\"\npublic_key = \"" + ann + "\"\n"); }

  std::string make(const std::string& name) const {
    const Exit exit = run({"keygen", "--out", folder.file(name), "--json"});
    BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
    return nlohmann::json::parse(exit.out).at("public_key");
  }
  std::string secret(const std::string& name) const { return folder.file(name + ".key_secret"); }
  void allow(const std::string& text) const { std::ofstream(folder.file("clients")) << text; }
  std::vector<std::string> options() const {
    return {"--keys", secret("node"), "--clients", folder.file("clients")};
  }
  /// A command against the node, as one of the clients.
  Exit as(const std::string& who, std::vector<std::string> command, const NodeProcess& at) const {
    command.insert(command.end(), {"--connect", at.endpoint(), "--server-key",
                                   folder.file("node.key"), "--key", secret(who)});
    return run(std::move(command));
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(keys)

BOOST_AUTO_TEST_CASE(keygen_makes_two_files_and_overwrites_none) {
  const ScratchFolder folder;
  const Exit exit = run({"keygen", "--out", folder.file("me")});
  BOOST_TEST(exit.code == 0, exit.err);
  BOOST_TEST(contains(exit.out, folder.file("me.key_secret")));
  std::ifstream file(folder.file("me.key_secret"));
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::size_t at = text.find("secret-key = \"") + 14;
  BOOST_TEST(!contains(exit.out, text.substr(at, 40)));  // never said
  struct stat facts {};
  BOOST_REQUIRE(stat(folder.file("me.key_secret").c_str(), &facts) == 0);
  BOOST_TEST((facts.st_mode & 07777) == 0600U);
  const Exit again = run({"keygen", "--out", folder.file("me")});
  BOOST_TEST(again.code == 1);
  BOOST_TEST(contains(again.err, "sluice: io: "), again.err);
  BOOST_TEST(contains(again.err, "there already"), again.err);
}

BOOST_AUTO_TEST_CASE(who_is_in_the_list_is_served_and_who_is_removed_is_not) {
  const Household house;
  auto options = house.options();
  NodeProcess node(options);
  const Exit served =
      house.as("ann", {"complete", "--prompt", "Water is", "--max-tokens", "8", "--json"}, node);
  BOOST_TEST(served.code == 0, served.err);
  const std::string stream = nlohmann::json::parse(served.out).at("stream");
  check_clean(house.as("ann", {"subscribe", stream}, node));
  check_clean(house.as("ann", {"top", "--once"}, node));
  check_clean(house.as(
      "ann",
      {"bench", "serve", "--num-prompts", "1", "--random-input-len", "4", "--output-len", "4"},
      node));
  const Exit refused = house.as("bob", {"health"}, node);
  BOOST_TEST(refused.code == 1);
  BOOST_TEST(contains(refused.err, "sluice: unauthorized: "), refused.err);
  BOOST_TEST(contains(refused.err, house.bob), refused.err);
  const Exit plain = run({"health", "--connect", node.endpoint()});
  BOOST_TEST(plain.code == 1);
  BOOST_TEST(contains(plain.err, "--server-key"), plain.err);
  node.process().read_error_until("handshakes failed");  // the node counts it in its own time
  const auto stats = nlohmann::json::parse(house.as("ann", {"health", "--json"}, node).out);
  BOOST_TEST(stats.at("stats").at("security.keys_refused") == 1);
  BOOST_TEST(stats.at("stats").at("security.handshakes_failed") >= 1);

  // Ann generates for long; then the list names bob alone.
  Process ann({"complete", "--connect", node.endpoint(), "--server-key",
               house.folder.file("node.key"), "--key", house.secret("ann"), "--prompt",
               "Once upon a time", "--max-tokens", "8000", "--ignore-eos"});
  ann.read_until(" ");
  house.allow("[[client]]\nname = \"bob\"\npublic_key = \"" + house.bob + "\"\n");
  node.process().send_signal(SIGHUP);
  const Exit cut = ann.finish();
  BOOST_TEST(cut.code == 1);
  BOOST_TEST(contains(cut.err, "unauthorized"), cut.err);
  check_clean(house.as("bob", {"health"}, node));

  // A list that cannot be read changes nothing, and the log says why.
  house.allow("[[client]]\nname = \"bob\"\npublic_key = \"short\"\n");
  node.process().send_signal(SIGHUP);
  node.process().read_error_until("allow lists kept");
  check_clean(house.as("bob", {"health"}, node));
  const Exit exit = node.stop();
  BOOST_TEST(exit.code == 0, exit.err);
  BOOST_TEST(contains(exit.err, "clients:1: the public_key of bob"), exit.err);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_secure_does_not_start) {
  const Household house;
  const auto start = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"node", "--model", model});
    return run(std::move(more));
  };
  const auto refused = [&](const Exit& exit, const std::string& part) {
    BOOST_TEST_CONTEXT(exit.err) {
      BOOST_TEST(exit.code == 1);
      BOOST_TEST(contains(exit.err, part));
    }
  };
  refused(start({"--keys", house.secret("node")}), "security.clients");
  refused(start({"--clients", house.folder.file("clients")}), "security.keys");
  refused(start({"--listen", "tcp://0.0.0.0:0"}), "plain text");
  chmod(house.secret("node").c_str(), 0640);
  refused(start(house.options()), "chmod 600");
  chmod(house.secret("node").c_str(), 0600);
  const std::string ann = "[[client]]\nname = \"ann\"\npublic_key = \"" + house.ann + "\"\n";
  const std::vector<std::pair<std::string, std::string>> lists = {
      {ann + "requests_per_sec = 2\n", "'requests_per_s'"},
      {ann + ann, "clients:4: ann has the key of another entry"},
      {"[[client]]\npublic_key = \"" + house.ann + "\"\n", "no name"},
      {"[[cilent]]\n", "'cilent'"},
      {"client = 3\n", "[[client]]"},
      {"[[client\n", "clients:1"},
  };
  for (const auto& [text, part] : lists) {
    house.allow(text);
    refused(start(house.options()), part);
  }
  // Nothing of it is needed to look at the configuration, and no secret is in it.
  const Exit shown = start({"--keys", house.secret("node"), "--print-config"});
  BOOST_TEST(shown.code == 0, shown.err);
  BOOST_TEST(contains(shown.out, "keys = \"" + house.secret("node") + "\""), shown.out);
}

BOOST_AUTO_TEST_CASE(with_keys_it_may_be_reached_from_elsewhere) {
  const Household house;
  auto options = house.options();
  options.insert(options.end(), {"--listen", "tcp://0.0.0.0:0"});
  NodeProcess node(options);
  const std::string port = node.endpoint().substr(node.endpoint().rfind(':'));
  check_clean(run({"health", "--connect", "tcp://127.0.0.1" + port, "--server-key", house.node,
                   "--key", house.secret("ann")}));
  check_clean(node.stop());
}

BOOST_AUTO_TEST_SUITE_END()
