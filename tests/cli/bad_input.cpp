// Shows that each kind of bad input gets a typed error and a non-zero exit, and harms nothing else:
// a node that was given all of it completes a prompt afterwards. Runs the binary on a real model.

#include <netinet/in.h>
#include <sys/socket.h>

#include <boost/test/unit_test.hpp>
#include <fstream>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

void check_failed(const Exit& exit, const std::string& code, const std::string& named) {
  BOOST_TEST_CONTEXT(exit.err) {
    BOOST_TEST(exit.code == 1);
    BOOST_TEST(contains(exit.err, "sluice: " + code + ": "));
    BOOST_TEST(contains(exit.err, named));
  }
}

Exit complete(std::vector<std::string> more) {
  more.insert(more.begin(), {"complete", "--max-tokens", "4"});
  return run(std::move(more));
}

std::string long_prompt() {
  std::string prompt;
  for (int i = 0; i < 9000; ++i) prompt += " one";
  return prompt;
}

/// A port of loopback that somebody listens on.
class TakenPort {
 public:
  TakenPort() : file_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    BOOST_REQUIRE(bind(file_, any, size) == 0 && listen(file_, 1) == 0);
    BOOST_REQUIRE(getsockname(file_, any, &size) == 0);
    port_ = ntohs(address.sin_port);
  }
  ~TakenPort() { close(file_); }

  std::string endpoint() const { return "tcp://127.0.0.1:" + std::to_string(port_); }

 private:
  int file_;
  int port_ = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(bad_input)

BOOST_AUTO_TEST_CASE(a_model_file_that_is_not_there) {
  check_failed(complete({"--prompt", "x", "--model", "/nowhere/m.gguf"}), "io", "/nowhere/m.gguf");
  check_failed(run({"node", "--model", "/nowhere/m.gguf"}), "io", "/nowhere/m.gguf");
}

BOOST_AUTO_TEST_CASE(a_model_file_that_cannot_be_read) {
  // A folder: root may read every file, so permissions would prove nothing.
  check_failed(complete({"--prompt", "x", "--model", "/tmp"}), "io", "/tmp");
}

BOOST_AUTO_TEST_CASE(a_truncated_model_file) {
  const ScratchFolder folder;
  const std::string path = folder.file("short.gguf");
  std::ifstream whole(model, std::ios::binary);
  std::string bytes(3'000'000, '\0');
  BOOST_REQUIRE(whole.read(bytes.data(), static_cast<std::streamsize>(bytes.size())));
  std::ofstream(path, std::ios::binary) << bytes;
  check_failed(complete({"--prompt", "x", "--model", path}), "bad_file", "short.gguf");
}

BOOST_AUTO_TEST_CASE(a_file_that_is_no_model) {
  const ScratchFolder folder;
  const std::string path = folder.file("note.txt");
  std::ofstream(path) << "this is no model, only a note that is long enough to be looked at";
  check_failed(complete({"--prompt", "x", "--model", path}), "bad_file", "note.txt");
}

BOOST_AUTO_TEST_CASE(a_folder_that_lacks_weights_or_holds_too_few) {
  const ScratchFolder folder;
  const std::string from = SLUICE_FIXTURES "/safetensors/with_tokenizer/";
  std::ofstream(folder.file("config.json")) << std::ifstream(from + "config.json").rdbuf();
  check_failed(complete({"--prompt", "x", "--model", folder.file("")}), "io",
               "neither model.safetensors nor");
  std::ifstream whole(from + "model.safetensors", std::ios::binary);
  std::string bytes(50'000, '\0');
  BOOST_REQUIRE(whole.read(bytes.data(), static_cast<std::streamsize>(bytes.size())));
  std::ofstream(folder.file("model.safetensors"), std::ios::binary) << bytes;
  check_failed(complete({"--prompt", "x", "--model", folder.file("")}), "bad_file", "truncated");
}

BOOST_AUTO_TEST_CASE(a_port_in_use) {
  const TakenPort taken;
  const std::string endpoint = taken.endpoint();
  check_failed(run({"node", "--model", model, "--listen", endpoint}), "io", endpoint);
}

BOOST_AUTO_TEST_CASE(plain_tcp_beyond_loopback) {
  const Exit exit = run({"node", "--model", model, "--listen", "tcp://0.0.0.0:0"});
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(exit.out == "");
  BOOST_TEST(contains(exit.err, "insecure"), exit.err);
}

BOOST_AUTO_TEST_CASE(a_number_of_ranks_that_the_heads_do_not_allow) {
  check_failed(run({"node", "--model", model, "--tp", "2"}), "unsupported", "use 1, 3, 9");
}

BOOST_AUTO_TEST_CASE(further_ranks_that_no_engine_would_find) {
  const std::vector<std::string> ranks{"node",    "--model", model, "--roles", "executor",
                                       "--ranks", "2",       "--tp", "3"};
  auto unjoined = ranks;
  unjoined.insert(unjoined.end(), {"--peers-listen", "tcp://127.0.0.1:0"});
  check_failed(run(unjoined), "bad_request", "peers.join");
}

BOOST_AUTO_TEST_CASE(nobody_at_the_endpoint) {
  check_failed(run({"health", "--connect", "tcp://127.0.0.1:9", "--timeout-ms", "200"}),
               "unavailable", "tcp://127.0.0.1:9");
}

BOOST_AUTO_TEST_CASE(a_prompt_file_that_is_not_there) {
  check_failed(complete({"--file", "/nowhere/p.txt", "--model", model}), "io", "/nowhere/p.txt");
}

BOOST_AUTO_TEST_CASE(requests_that_a_node_refuses_and_survives) {
  NodeProcess node;
  const auto ask = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"--connect", node.endpoint()});
    return complete(std::move(more));
  };
  check_failed(ask({"--prompt", "x", "--model", "gpt-9"}), "not_found", "gpt-9");
  check_failed(ask({"--prompt", "caf\xE9"}), "bad_request", "UTF-8");
  check_failed(ask({"--prompt", "x", "--temperature", "-1"}), "bad_request", "temperature");
  check_failed(ask({"--prompt", "x", "--temperature", "nan"}), "bad_request", "temperature");
  check_failed(ask({"--prompt", "x", "--top-p", "1.5"}), "bad_request", "top_p");
  check_failed(ask({"--prompt", "x", "--min-p", "-0.1"}), "bad_request", "min_p");
  check_failed(ask({"--prompt", "x", "--repetition-penalty", "0"}), "bad_request", "repetition");
  check_failed(ask({"--prompt", "x", "--logit-bias", "99999999=1"}), "bad_request", "logit");
  check_failed(ask({"--prompt", ""}), "bad_request", "prompt");
  check_failed(run({"complete", "--connect", node.endpoint()}, long_prompt()), "too_long", "8192");
  check_failed(run({"subscribe", "--connect", node.endpoint(), std::string(32, 'a')}), "not_found",
               "stream");

  const Exit good = ask({"--prompt", "The capital of France is", "--temperature", "0"});
  BOOST_TEST(good.code == 0, good.err);
  BOOST_TEST(contains(good.out, "Paris"), good.out);
  BOOST_TEST(run({"health", "--connect", node.endpoint()}).code == 0);
  check_clean(node.stop());
}

BOOST_AUTO_TEST_SUITE_END()
