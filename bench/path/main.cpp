// What the path through a node costs: client -> node -> client with a device that answers at once,
// beside a raw ZeroMQ ping-pong of frames of the same sizes, in alternating rounds of one run.
//
//   sluice-bench-path --model FILE [--rounds N] [--awake] [--json]
//
// A path sample is the time from `submit` (16 prompt tokens, one token wanted) to its first chunk;
// it crosses the I/O thread, session, tokenizer, batcher, executor, batcher, streamer and the I/O
// thread. The same again with the executor on another node, joined over tcp: the difference is what
// a plan's way there and its result's way back add. The way there alone is the difference in when
// the plan reaches the device, which runs in this process on either node; beside it how long a
// frame takes from one ZeroMQ socket to another, and a thread to wake another on another processor,
// likewise after a rest. With --awake no processor goes to sleep in a rest: a thread each, which
// anything else displaces, keeps them busy.

#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "actors/node.hpp"
#include "bench/instant_backend.hpp"
#include "bench/quantile.hpp"
#include "transport/client.hpp"

namespace {

using namespace sluice;
using Clock = std::chrono::steady_clock;

constexpr int samples_per_round = 500;

/// Of the way there alone, with a rest after each: the plan that closes a request's slot is over
/// by then, and delays none.
constexpr int plans_per_round = 100;
constexpr std::chrono::milliseconds rest{1};

struct Quantiles {
  double p50 = 0, p99 = 0, p999 = 0;
};

Quantiles quantiles(const std::vector<double>& us) {
  return {bench::quantile(us, 0.5), bench::quantile(us, 0.99), bench::quantile(us, 0.999)};
}

nlohmann::ordered_json json_of(const Quantiles& q) {
  return {{"p50", q.p50}, {"p99", q.p99}, {"p99.9", q.p999}};
}

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// When the last plan reached a device.
std::atomic<Clock::time_point> planned;

class StampedBackend final : public bench::InstantBackend {
 public:
  using InstantBackend::InstantBackend;
  void submit(kernels::ProgramId program, kernels::Ticket ticket, kernels::Batch batch) override {
    planned = Clock::now();
    InstantBackend::submit(program, ticket, std::move(batch));
  }
};

transport::Submit request() {
  transport::Submit submit;
  std::vector<Token> prompt;
  for (Token id = 100; id < 116; ++id) prompt.push_back(id);
  submit.prompt = std::move(prompt);
  submit.max_tokens = 1;
  submit.ignore_eos = true;
  submit.sampling.temperature = 0;
  return submit;
}

/// Microseconds from a request until it is on the device, and until its first chunk is here.
struct Way {
  double plan = 0, chunk = 0;
};

Result<Way> through_node(transport::Client& client) {
  const auto start = Clock::now();
  auto stream = client.submit(request());
  if (!stream) return tl::unexpected(stream.error());
  Way way;
  for (;;) {
    auto next = client.next(std::chrono::seconds(10));
    if (!next) return fail(ErrorCode::unavailable, "no answer within 10 s");
    if (next->stream != *stream) continue;
    if (next->event.failed) return tl::unexpected(next->event.failed->error);
    if (way.chunk == 0 && !next->event.tokens.empty()) {
      way.chunk = us_since(start);
      way.plan = std::chrono::duration<double, std::micro>(planned.load() - start).count();
    }
    if (next->event.done) return way;
  }
}

/// When the last frame reached echo's ROUTER.
std::atomic<Clock::time_point> echoed;

/// A ROUTER that answers every frame with one of `reply_bytes`, until told to stop by an empty one.
void echo(zmq::context_t& context, const std::string& address, std::size_t reply_bytes) {
  zmq::socket_t router(context, zmq::socket_type::router);
  router.connect(address);
  const std::string reply(reply_bytes, 'r');
  for (;;) {
    zmq::message_t peer, frame;
    if (!router.recv(peer) || !router.recv(frame) || frame.size() == 0) return;
    echoed = Clock::now();
    router.send(peer, zmq::send_flags::sndmore);
    router.send(zmq::buffer(reply), zmq::send_flags::none);
  }
}

/// The processors that this process may use.
std::vector<int> processors() {
  cpu_set_t all;
  CPU_ZERO(&all);
  sched_getaffinity(0, sizeof all, &all);
  std::vector<int> found;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &all)) found.push_back(i);
  return found;
}

void stay_on(int processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  sched_setaffinity(0, sizeof one, &one);
}

/// How long one thread takes to wake another by an eventfd after a rest, each on a processor of its
/// own where there are two.
std::vector<double> bare_wakes(int count) {
  const auto where = processors();
  const int bell = eventfd(0, 0);
  std::atomic<Clock::time_point> rung, woken;
  std::vector<double> us;
  std::thread sleeper([&] {
    stay_on(where.back());
    for (int i = 0; i < count; ++i) {
      std::uint64_t rings = 0;
      if (read(bell, &rings, sizeof rings) != sizeof rings) break;
      us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - rung.load()).count());
      woken = rung.load();
    }
  });
  std::thread ringer([&] {
    stay_on(where.front());
    const std::uint64_t one = 1;
    for (int i = 0; i < count; ++i) {
      std::this_thread::sleep_for(rest);
      const auto now = Clock::now();
      rung = now;
      if (write(bell, &one, sizeof one) != sizeof one) break;
      while (woken.load() != now) std::this_thread::sleep_for(rest);
    }
  });
  ringer.join();
  sleeper.join();
  close(bell);
  return us;
}

/// A thread for every processor that keeps it from sleeping and gives way to anything else.
class Awake {
 public:
  Awake() {
    for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
      threads_.emplace_back([](std::stop_token stop) {
        const sched_param none{};
        if (sched_setscheduler(0, SCHED_IDLE, &none) != 0) {
          std::perror("sluice-bench-path: --awake: sched_setscheduler");
          std::_Exit(1);
        }
        while (!stop.stop_requested()) {
        }
      });
    }
  }

 private:
  std::vector<std::jthread> threads_;
};

struct Ways {
  std::vector<double> plan_us, chunk_us;
};

struct Samples {
  Ways local, remote;
  std::vector<double> raw_us, raw_there_us;
  std::size_t submit_bytes = 0, chunk_bytes = 0;
};

Result<Samples> measure(transport::Client& client, transport::Client& remote, int rounds) {
  Samples samples;
  auto submit = request();
  submit.stream.fill(1);
  submit.owner.fill(1);
  samples.submit_bytes = transport::encode(submit).size();
  transport::Chunk chunk;
  chunk.part.tokens = {100};
  chunk.part.text = "token";
  samples.chunk_bytes = transport::encode(chunk).size();

  zmq::context_t context;
  zmq::socket_t dealer(context, zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::linger, 0);
  dealer.bind("tcp://127.0.0.1:*");
  const auto address = dealer.get(zmq::sockopt::last_endpoint);
  std::thread echoer([&] { echo(context, address, samples.chunk_bytes); });
  const std::string ping(samples.submit_bytes, 'p');
  zmq::message_t pong;
  for (int i = 0; i < 200; ++i) {  // warm-up of both
    for (transport::Client* each : {&client, &remote})
      if (auto warm = through_node(*each); !warm) return tl::unexpected(warm.error());
    dealer.send(zmq::buffer(ping), zmq::send_flags::none);
    (void)dealer.recv(pong);
  }
  for (int round = 0; round < rounds; ++round) {
    for (const auto& [through, ways] :
         {std::pair{&client, &samples.local}, std::pair{&remote, &samples.remote}}) {
      for (int i = 0; i < samples_per_round; ++i) {
        const auto took = through_node(*through);
        if (!took) return tl::unexpected(took.error());
        ways->chunk_us.push_back(took->chunk);
      }
      for (int i = 0; i < plans_per_round; ++i) {
        std::this_thread::sleep_for(rest);
        const auto took = through_node(*through);
        if (!took) return tl::unexpected(took.error());
        ways->plan_us.push_back(took->plan);
      }
    }
    for (int i = 0; i < samples_per_round; ++i) {
      const auto start = Clock::now();
      dealer.send(zmq::buffer(ping), zmq::send_flags::none);
      (void)dealer.recv(pong);
      samples.raw_us.push_back(us_since(start));
    }
    for (int i = 0; i < plans_per_round; ++i) {
      std::this_thread::sleep_for(rest);
      const auto start = Clock::now();
      dealer.send(zmq::buffer(ping), zmq::send_flags::none);
      (void)dealer.recv(pong);
      samples.raw_there_us.push_back(
          std::chrono::duration<double, std::micro>(echoed.load() - start).count());
    }
  }
  dealer.send(zmq::message_t(), zmq::send_flags::none);
  echoer.join();
  return samples;
}

actors::NodeConfig instant_node(const std::string& model) {
  actors::NodeConfig config;
  actors::EngineConfig engine;
  engine.name = "instant";
  engine.model = model;
  config.engines = {engine};
  config.log_level = "off";
  config.make_backend = [](const actors::EngineConfig&, kernels::Completion completion) {
    return Result<std::unique_ptr<kernels::Backend>>(
        std::make_unique<StampedBackend>(std::move(completion), false));
  };
  return config;
}

Result<Samples> run(const std::string& model, int rounds) {
  zmq::context_t context, far_context, leader_context;
  auto node = actors::Node::start(instant_node(model), context);
  if (!node) return tl::unexpected(node.error());
  auto far_config = instant_node(model);
  far_config.roles = {"executor"};
  far_config.peers.listen = "tcp://127.0.0.1:0";
  auto far = actors::Node::start(std::move(far_config), far_context);
  if (!far) return tl::unexpected(far.error());
  auto leader_config = instant_node(model);
  leader_config.roles = {"front", "tokenizer", "engine"};
  leader_config.peers.join = {(*far)->peer_address()};
  auto leader = actors::Node::start(std::move(leader_config), leader_context);
  if (!leader) return tl::unexpected(leader.error());
  auto client = transport::Client::connect({.connect = (*node)->address()});
  if (!client) return tl::unexpected(client.error());
  auto remote = transport::Client::connect({.connect = (*leader)->address()});
  if (!remote) return tl::unexpected(remote.error());
  return measure(**client, **remote, rounds);
}

}  // namespace

int main(int argc, char** argv) {
  std::string model;
  int rounds = 20;
  bool json = false, keep_awake = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0)
      json = true;
    else if (std::strcmp(argv[i], "--awake") == 0)
      keep_awake = true;
    else if (std::strcmp(argv[i], "--model") == 0 && i + 1 < argc)
      model = argv[++i];
    else if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
      rounds = std::atoi(argv[++i]);
    else
      rounds = 0;
  }
  if (model.empty() || rounds < 1) {
    std::fprintf(stderr, "usage: sluice-bench-path --model FILE [--rounds N] [--awake] [--json]\n");
    return 2;
  }
  std::optional<Awake> awake;
  if (keep_awake) awake.emplace();
  const auto samples = run(model, rounds);
  if (!samples) {
    std::fprintf(stderr, "sluice-bench-path: %s\n", samples.error().message.c_str());
    return 1;
  }
  const auto path = quantiles(samples->local.chunk_us);
  const auto remote = quantiles(samples->remote.chunk_us);
  const auto plan = quantiles(samples->local.plan_us);
  const auto remote_plan = quantiles(samples->remote.plan_us);
  const auto raw = quantiles(samples->raw_us);
  const auto raw_there = quantiles(samples->raw_there_us);
  const auto wake = quantiles(bare_wakes(rounds * plans_per_round));
  if (json) {
    const nlohmann::ordered_json result{{"samples", samples->raw_us.size()},
                                        {"submit_bytes", samples->submit_bytes},
                                        {"chunk_bytes", samples->chunk_bytes},
                                        {"path_us", json_of(path)},
                                        {"plan_us", json_of(plan)},
                                        {"remote_executor_us", json_of(remote)},
                                        {"remote_plan_us", json_of(remote_plan)},
                                        {"raw_us", json_of(raw)},
                                        {"raw_there_us", json_of(raw_there)},
                                        {"wake_us", json_of(wake)}};
    std::printf("%s\n", result.dump().c_str());
    return 0;
  }
  std::printf("%zu samples each, %zu bytes there, %zu back, tcp loopback, microseconds\n",
              samples->raw_us.size(), samples->submit_bytes, samples->chunk_bytes);
  std::printf("%-28s %9s %9s %9s\n", "", "p50", "p99", "p99.9");
  const auto row = [](const char* name, const Quantiles& a, const Quantiles& b) {
    std::printf("%-28s %9.1f %9.1f %9.1f\n", name, a.p50 - b.p50, a.p99 - b.p99, a.p999 - b.p999);
  };
  row("client - node - client", path, {});
  row("executor on another node", remote, {});
  row("raw DEALER - ROUTER", raw, {});
  row("difference", path, raw);
  row("there and back", remote, path);
  row("there alone", remote_plan, plan);
  row("raw, there alone", raw_there, {});
  row("a bare wake", wake, {});
  return 0;
}
