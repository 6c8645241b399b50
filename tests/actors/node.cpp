// Shows a whole node through its sockets: the real threads, the real client, and the real model
// where tokens matter. Waits are for events, each bounded by a time far beyond what it takes.

#include "actors/node.hpp"

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <zmq.hpp>

#include "bench/instant_backend.hpp"
#include "tests/places.hpp"
#include "tests/transport/rude.hpp"
#include "transport/client.hpp"

namespace {

using namespace sluice;
using namespace std::chrono_literals;

const std::string model_path = SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf";

// A token of SmolLM2 takes a quarter of a second under ThreadSanitizer.
#if defined(__SANITIZE_THREAD__)
constexpr std::uint32_t answer_tokens = 4;
#else
constexpr std::uint32_t answer_tokens = 32;
#endif

actors::NodeConfig config_for(const std::string& listen, bool instant) {
  actors::NodeConfig config;
  config.endpoint.listen = listen;
  config.log_level = "off";
  actors::EngineConfig engine;
  engine.name = "smol";
  engine.model = model_path;
  engine.threads = 2;
  engine.slots = 8;
  engine.context_tokens = 512;
  config.engines = {engine};
  if (instant)
    config.make_backend = [](const actors::EngineConfig&, kernels::Completion completion) {
      return Result<std::unique_ptr<kernels::Backend>>(
          std::make_unique<bench::InstantBackend>(std::move(completion), false));
    };
  return config;
}

struct Answer {
  std::vector<Token> tokens;
  std::string text;
  std::optional<transport::Done> done;
  std::optional<transport::Failed> failed;
};

/// Follows every stream on this client until `count` of them have ended.
std::map<transport::StreamId, Answer> collect(transport::Client& client, std::size_t count) {
  std::map<transport::StreamId, Answer> answers;
  for (std::size_t ended = 0; ended < count;) {
    auto next = client.next(60s);
    BOOST_REQUIRE_MESSAGE(next, "a minute passed without an event");
    auto& answer = answers[next->stream];
    auto& event = next->event;
    answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
    answer.text += event.text;
    if (event.done) answer.done = event.done;
    if (event.failed) answer.failed = event.failed;
    ended += event.done || event.failed ? 1 : 0;
  }
  return answers;
}

double stat(transport::Client& client, const std::string& name) {
  const auto stats = client.stats(10s);
  BOOST_REQUIRE(stats);
  for (const auto& [key, value] : stats->values)
    if (key == name) return value;
  BOOST_FAIL("no such stat: " + name);
  return 0;
}

void eventually(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + 60s;
  while (!done()) {
    BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
}

/// No stream runs or is kept, and every block is free.
void wait_until_idle(transport::Client& client) {
  eventually([&] {
    return stat(client, "session.open") == 0 && stat(client, "engine.smol.running") == 0 &&
           stat(client, "engine.smol.blocks_free") == stat(client, "engine.smol.blocks_total");
  });
}

std::ptrdiff_t open_descriptors() {
  return std::ranges::distance(std::filesystem::directory_iterator("/proc/self/fd"));
}

transport::Submit request(const std::string& prompt, std::uint32_t max_tokens, std::uint64_t seed) {
  transport::Submit submit;
  submit.prompt = prompt;
  submit.max_tokens = max_tokens;
  submit.sampling.seed = seed;
  return submit;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(node)

BOOST_AUTO_TEST_CASE(eight_streams_together_give_what_each_gives_alone) {
  zmq::context_t context;
  auto node = actors::Node::start(config_for("inproc://eight", false), context);
  BOOST_REQUIRE_MESSAGE(node, (node ? "" : node.error().message));
  auto client = transport::Client::connect({.connect = (*node)->address()}, &context);
  BOOST_REQUIRE(client);
  const std::vector<std::string> prompts = {"The capital of France is",
                                            "Once upon a time",
                                            "def fibonacci(n):",
                                            "Water boils at",
                                            "Die Hauptstadt von Deutschland",
                                            "1, 2, 3, 4,",
                                            "The quick brown fox",
                                            "In a hole there"};
  std::vector<Answer> alone;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto submit = request(prompts[i], answer_tokens, 100 + i);
    submit.sampling.temperature = i % 2 == 0 ? 0.8F : 1.0F;
    auto stream = (*client)->submit(submit);
    BOOST_REQUIRE(stream);
    alone.push_back(collect(**client, 1).at(*stream));
    BOOST_TEST(alone.back().done.has_value());
  }
  std::vector<transport::StreamId> streams;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto submit = request(prompts[i], answer_tokens, 100 + i);
    submit.sampling.temperature = i % 2 == 0 ? 0.8F : 1.0F;
    streams.push_back(*(*client)->submit(submit));
  }
  auto together = collect(**client, prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    BOOST_TEST(together.at(streams[i]).tokens == alone[i].tokens, boost::test_tools::per_element());
    BOOST_TEST(together.at(streams[i]).text == alone[i].text);
  }
}

namespace {

/// The CPU's, but its 3rd and its 7th step, counted over all of them, are the last of their device.
class MortalBackend : public kernels::Backend {
 public:
  MortalBackend(std::unique_ptr<kernels::Backend> inner, std::shared_ptr<std::atomic<int>> steps)
      : inner_(std::move(inner)), steps_(std::move(steps)) {}

  const kernels::DeviceInfo& device() const override { return inner_->device(); }
  Result<kernels::Weight> load(const kernels::HostTensor& tensor) override {
    return inner_->load(tensor);
  }
  Result<void> allocate(const kernels::PoolShape& shape) override {
    return inner_->allocate(shape);
  }
  Result<kernels::ProgramId> record(const kernels::StepProgram& program) override {
    return inner_->record(program);
  }
  void submit(kernels::ProgramId program, kernels::Ticket ticket, kernels::Batch batch) override {
    const int step = ++*steps_;
    if (step == 3 || step == 7) throw std::runtime_error("the device was lost on purpose");
    inner_->submit(program, ticket, std::move(batch));
  }
  void sample(kernels::Ticket ticket, std::vector<kernels::Mask> masks) override {
    inner_->sample(ticket, std::move(masks));
  }
  Result<double> read_bandwidth(std::size_t bytes) override {
    return inner_->read_bandwidth(bytes);
  }
  Result<void> read(kernels::ProgramId program, kernels::Buffer buffer,
                    std::span<float> out) override {
    return inner_->read(program, buffer, out);
  }

 private:
  std::unique_ptr<kernels::Backend> inner_;
  std::shared_ptr<std::atomic<int>> steps_;
};

}  // namespace

BOOST_AUTO_TEST_CASE(streams_outlive_the_devices_of_their_engine) {
  const auto answers_of = [](actors::NodeConfig config, double losses) {
    zmq::context_t context;
    auto node = actors::Node::start(std::move(config), context);
    BOOST_REQUIRE(node);
    auto client = transport::Client::connect({.connect = (*node)->address()}, &context);
    BOOST_REQUIRE(client);
    std::vector<transport::StreamId> streams;
    for (std::uint64_t seed = 1; seed <= 3; ++seed)
      streams.push_back(*(*client)->submit(request("Once upon a time", answer_tokens, seed)));
    auto answers = collect(**client, streams.size());
    BOOST_TEST(stat(**client, "engine.smol.devices_lost") == losses);
    BOOST_TEST((*node)->health().has_value());
    std::vector<Answer> out;
    for (const auto& stream : streams) out.push_back(answers.at(stream));
    return out;
  };
  const auto undisturbed = answers_of(config_for("inproc://steady", false), 0);
  auto config = config_for("inproc://mortal", false);
  config.make_backend = [steps = std::make_shared<std::atomic<int>>(0)](
                            const actors::EngineConfig& engine, kernels::Completion completion)
      -> Result<std::unique_ptr<kernels::Backend>> {
    auto inner =
        kernels::make_backend("cpu", {.threads = engine.threads}, std::move(completion));
    if (!inner) return tl::unexpected(inner.error());
    return std::make_unique<MortalBackend>(std::move(*inner), steps);
  };
  const auto disturbed = answers_of(std::move(config), 2);
  for (std::size_t i = 0; i < disturbed.size(); ++i) {
    BOOST_TEST(disturbed[i].done.has_value());
    BOOST_TEST(disturbed[i].tokens == undisturbed[i].tokens, boost::test_tools::per_element());
    BOOST_TEST(disturbed[i].text == undisturbed[i].text);
  }
}

BOOST_AUTO_TEST_CASE(a_prompt_seen_before_gives_the_same_tokens_from_the_cache) {
  zmq::context_t context;
  auto node = actors::Node::start(config_for("inproc://cached", false), context);
  BOOST_REQUIRE(node);
  auto client = transport::Client::connect({.connect = (*node)->address()}, &context);
  BOOST_REQUIRE(client);
  std::string prompt = "The numbers:";
  for (int i = 0; i < 20; ++i) prompt += " " + std::to_string(i);
  const auto ask = [&](const std::string& text, std::uint64_t seed) {
    const auto stream = *(*client)->submit(request(text, answer_tokens, seed));
    return collect(**client, 1).at(stream);
  };
  const Answer first = ask(prompt, 7);
  const Answer again = ask(prompt, 7);
  BOOST_REQUIRE(first.done && again.done);
  BOOST_TEST(first.done->receipt.cached_tokens == 0U);
  BOOST_TEST(again.done->receipt.cached_tokens >= 32U);
  BOOST_TEST(again.done->receipt.cached_tokens % 16 == 0U);
  BOOST_TEST(again.tokens == first.tokens, boost::test_tools::per_element());
  // What follows an answer begins with all of it.
  const Answer next = ask(prompt + first.text + " and so on", 8);
  BOOST_REQUIRE(next.done);
  BOOST_TEST(next.done->receipt.cached_tokens >= again.done->receipt.cached_tokens);
  BOOST_TEST(stat(**client, "engine.smol.cached_tokens") > 0);
}

BOOST_AUTO_TEST_CASE(a_client_that_goes_away_frees_its_blocks) {
  zmq::context_t context;
  auto config = config_for("tcp://127.0.0.1:0", false);
  config.stream.grace_ns = 1'000'000;
  config.stream.probe_ns = 1'000'000;
  auto node = actors::Node::start(config, context);
  BOOST_REQUIRE(node);
  auto watcher = transport::Client::connect({.connect = (*node)->address()});
  BOOST_REQUIRE(watcher);
  {
    auto doomed = transport::Client::connect({.connect = (*node)->address()});
    BOOST_REQUIRE(doomed);
    for (int i = 0; i < 4; ++i) {
      auto submit = request("Once upon a time", 500, 1);
      submit.ignore_eos = true;
      BOOST_REQUIRE((*doomed)->submit(submit));
    }
    BOOST_REQUIRE((*doomed)->next(30s));
  }
  wait_until_idle(**watcher);
  BOOST_TEST(stat(**watcher, "engine.smol.tokens") < 4 * 500);  // they did not just end
}

BOOST_AUTO_TEST_CASE(a_hundred_rude_peers_harm_nobody_and_leave_nothing) {
  zmq::context_t context;
  auto config = config_for("tcp://127.0.0.1:0", false);
  config.stream.grace_ns = 1'000'000;
  config.stream.probe_ns = 1'000'000;
  config.stream.retention_ns = 1'000'000;
  auto node = actors::Node::start(config, context);
  BOOST_REQUIRE(node);
  const std::string address = (*node)->address();
  auto client = transport::Client::connect({.connect = address});
  BOOST_REQUIRE(client);
  auto submit = request("Once upon a time", 3 * answer_tokens, 5);
  submit.ignore_eos = true;
  const auto first = *(*client)->submit(submit);
  const auto alone = collect(**client, 1).at(first);
  wait_until_idle(**client);
  const auto descriptors = open_descriptors();

  const auto stream = *(*client)->submit(submit);
  {
    zmq::context_t theirs;
    std::mt19937_64 random(11);
    for (int i = 0; i < 100; ++i) {
      fakes::visit_as_stranger(address, random);
      fakes::visit_with_nonsense(theirs, address, 10, random);
      if (i % 10 != 0) continue;
      // One that asks for something and leaves without a word.
      auto leaver = transport::Client::connect({.connect = address});
      BOOST_REQUIRE(leaver);
      BOOST_REQUIRE((*leaver)->submit(request("Going", 400, 1)));
    }
  }
  const auto answer = collect(**client, 1).at(stream);
  BOOST_TEST(answer.text == alone.text);
  BOOST_TEST(answer.tokens == alone.tokens, boost::test_tools::per_element());
  wait_until_idle(**client);
  BOOST_TEST(stat(**client, "io.frames_malformed") >= 1000);
  eventually([&] { return open_descriptors() == descriptors; });
  BOOST_TEST((*client)->health(10s).value().ready);
}

BOOST_AUTO_TEST_CASE(a_drained_node_finishes_its_streams) {
  zmq::context_t context;
  auto node = actors::Node::start(config_for("tcp://127.0.0.1:0", true), context);
  BOOST_REQUIRE(node);
  auto client = transport::Client::connect({.connect = (*node)->address()});
  BOOST_REQUIRE(client);
  const auto stream = *(*client)->submit(request("hello", 100, 1));
  BOOST_REQUIRE((*client)->next(30s));
  auto drained = std::async(std::launch::async, [&] { return (*node)->drain(60'000); });
  const auto answer = collect(**client, 1).at(stream);
  BOOST_TEST(drained.get());
  BOOST_REQUIRE(answer.done);
  BOOST_TEST(answer.done->tokens.at(0) == 100U);
}

BOOST_AUTO_TEST_CASE(a_port_in_use_is_named) {
  zmq::context_t context;
  auto node = actors::Node::start(config_for("tcp://127.0.0.1:0", true), context);
  BOOST_REQUIRE(node);
  auto second = actors::Node::start(config_for((*node)->address(), true), context);
  BOOST_REQUIRE(!second);
  BOOST_TEST(to_string(second.error().code) == "io");
  BOOST_TEST(second.error().message.find((*node)->address()) != std::string::npos);
  BOOST_TEST((*node)->health().has_value());
}

BOOST_AUTO_TEST_CASE(a_plain_address_for_other_hosts_is_refused) {
  zmq::context_t context;
  for (const char* address : {"tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.168.1.1:5555"}) {
    auto node = actors::Node::start(config_for(address, true), context);
    BOOST_REQUIRE(!node);
    BOOST_TEST(to_string(node.error().code) == "bad_request");
  }
}

BOOST_AUTO_TEST_CASE(a_gpu_that_cannot_be_used_is_said_once_and_the_cpu_serves) {
  const std::string plugins = tests::plugins_folder();
  const std::string log = plugins + "/node.log";
  std::filesystem::remove(log);
  zmq::context_t context;
  auto config = config_for("tcp://127.0.0.1:0", false);
  config.backends = {plugins + "/libdriver_ok.so", {plugins + "/other_abi"}};
  config.log_level = "warn";
  config.log_file = log;
  {
    auto node = actors::Node::start(config, context);
    BOOST_REQUIRE_MESSAGE(node, (node ? "" : node.error().message));
    auto client = transport::Client::connect({.connect = (*node)->address()});
    BOOST_REQUIRE(client);
    BOOST_TEST((*client)->welcome().models.at(0).backend == "cpu");
  }
  std::ifstream file(log);
  const std::string said{std::istreambuf_iterator<char>(file), {}};
  BOOST_TEST(std::ranges::count(said, '\n') == 1, said);
  BOOST_TEST(said.find("running on the cpu, cuda cannot be used: ") != std::string::npos, said);
  BOOST_TEST(said.find("version 999 of the plugin interface") != std::string::npos, said);

  config.engines[0].backend = "cuda";
  auto refused = actors::Node::start(config, context);
  BOOST_REQUIRE(!refused);
  BOOST_TEST(to_string(refused.error().code) == "unsupported");
  BOOST_TEST(refused.error().message.find("version 999") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_model_that_is_not_there_is_named) {
  zmq::context_t context;
  auto config = config_for("tcp://127.0.0.1:0", false);
  config.engines[0].model = "/nowhere/model.gguf";
  auto node = actors::Node::start(config, context);
  BOOST_REQUIRE(!node);
  BOOST_TEST(to_string(node.error().code) == "io");
  BOOST_TEST(node.error().message.find("/nowhere/model.gguf") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
