// What CURVE costs, and what a flood of bad keys does. Two nodes whose device answers at once, one
// with keys and one without, take turns: a token's latency and 64 streams' throughput. Then a node
// with a real model runs 8 streams while a process of its own attempts connections with a key that
// is not allowed; rounds without that process, with it attacking another node on the same machine
// (what its arithmetic and that node's take from these cores), and with it attacking this one take
// turns.
//
//   sluice-bench-curve --model FILE [--rounds N] [--attempts N] [--tokens N] [--json]

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "bench/instant_node.hpp"
#include "bench/quantile.hpp"
#include "transport/client.hpp"
#include "transport/curve.hpp"

namespace {

using namespace sluice;
using sluice::bench::quantile;
using bench::NodeProcess;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  int rounds = 5;
  int attempts = 10'000;
  std::uint32_t tokens = 128;
  bool json = false;
};

double median(const std::vector<double>& values) { return quantile(values, 0.5); }

struct Run {
  double seconds = 0;
  std::uint64_t tokens = 0;
  std::vector<double> gaps_ms;  ///< between a stream's tokens
};

/// So many streams at once, to their ends.
Result<Run> run_streams(transport::Client& client, std::uint32_t streams, std::uint32_t tokens) {
  Run run;
  std::map<transport::StreamId, Clock::time_point> last;
  const auto began = Clock::now();
  for (std::uint32_t i = 0; i < streams; ++i) {
    auto submit = transport::Client::new_submit();
    submit.prompt = std::vector<Token>(16, 100 + i);
    submit.max_tokens = tokens;
    submit.ignore_eos = true;
    submit.sampling.temperature = 0;
    auto id = client.submit(std::move(submit));
    if (!id) return tl::unexpected(id.error());
  }
  for (std::uint32_t done = 0; done < streams;) {
    const auto next = client.next(std::chrono::seconds(60));
    if (!next) return fail(ErrorCode::unavailable, "nothing came for a minute");
    const auto& event = next->event;
    if (event.failed) return tl::unexpected(event.failed->error);
    if (!event.tokens.empty()) {
      const auto now = Clock::now();
      const auto found = last.find(next->stream);
      if (found != last.end())
        run.gaps_ms.push_back(
            std::chrono::duration<double, std::milli>(now - found->second).count());
      last.insert_or_assign(next->stream, now);
      run.tokens += event.tokens.size();
    }
    done += event.done.has_value();
  }
  run.seconds = std::chrono::duration<double>(Clock::now() - began).count();
  return run;
}

/// Connects with a key that is refused, 50 at a time, until `attempts` were; then 'd' on `answers`.
[[noreturn]] void attack(const std::string& address, const transport::CurveClient& keys,
                         int attempts, int answers) {
  constexpr int together = 50;
  (void)!::nice(19);  // its own arithmetic is another machine's in life: it is to take what is left
  for (int made = 0; made < attempts; made += together) {
    zmq::context_t context;  // its end waits until every socket is gone, descriptors and all
    std::vector<zmq::socket_t> dealers, monitors;
    for (int i = 0; i < together; ++i) {
      auto& dealer = dealers.emplace_back(context, zmq::socket_type::dealer);
      auto& monitor = monitors.emplace_back(context, zmq::socket_type::pair);
      dealer.set(zmq::sockopt::linger, 0);
      transport::secure_client(dealer, keys);
      const std::string events = "inproc://attempt-" + std::to_string(made + i);
      zmq_socket_monitor(dealer.handle(), events.c_str(), ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
      monitor.connect(events);
      dealer.connect(address);
    }
    zmq::message_t event;
    for (auto& monitor : monitors) (void)monitor.recv(event);
  }
  (void)!::write(answers, "d", 1);
  ::_exit(0);
}

/// A process that attacks as long as it lives; forked when it is needed, by a parent whose threads
/// do not matter to it: it uses nothing of theirs but the heap, which glibc makes whole after fork.
class Attack {
 public:
  Attack(const std::string& address, const transport::CurveClient& keys, int attempts) {
    int ends[2];
    if (::pipe(ends) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) attack(address, keys, attempts, ends[1]);
    ::close(ends[1]);
    done_ = ends[0];
  }
  ~Attack() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
    if (done_ >= 0) ::close(done_);
  }
  Attack(const Attack&) = delete;
  Attack& operator=(const Attack&) = delete;

  /// Whether all its attempts were made.
  bool over() const {
    zmq::pollitem_t item{nullptr, done_, ZMQ_POLLIN, 0};
    return zmq::poll(&item, 1, std::chrono::milliseconds(0)) > 0;
  }

 private:
  pid_t pid_ = -1;
  int done_ = -1;
};

struct Keys {
  transport::CurveKeyPair node = transport::generate_curve_keys();
  transport::CurveKeyPair client = transport::generate_curve_keys();
  transport::CurveKeyPair stranger = transport::generate_curve_keys();
};

actors::NodeConfig node_config(const std::string& model, const Keys* keys) {
  actors::NodeConfig config;
  actors::EngineConfig engine;
  engine.model = model;
  engine.context_tokens = 1024;
  config.engines = {engine};
  config.log_level = "off";
  if (keys == nullptr) return config;
  config.security.keys = keys->node;
  config.security.clients = {{keys->client.public_key, {"bench", "bench"}}};
  return config;
}

using ClientPtr = std::unique_ptr<transport::Client>;

Result<ClientPtr> connect(const NodeProcess& node, const Keys* keys) {
  transport::ClientConfig config{.connect = node.address()};
  if (keys != nullptr) config.curve = {keys->node.public_key, keys->client};
  return transport::Client::connect(config);
}

struct Cost {
  std::vector<double> first_token_us, tokens_per_s, p99_us;
};

Result<void> take_round(transport::Client& client, Cost& cost) {
  std::vector<double> us;
  for (int i = 0; i < 500; ++i) {
    const auto one = run_streams(client, 1, 1);
    if (!one) return tl::unexpected(one.error());
    us.push_back(1e6 * one->seconds);
  }
  cost.first_token_us.push_back(quantile(us, 0.5));
  cost.p99_us.push_back(quantile(us, 0.99));
  Run all;
  for (int i = 0; i < 20; ++i) {
    const auto one = run_streams(client, 64, 64);
    if (!one) return tl::unexpected(one.error());
    all.seconds += one->seconds;
    all.tokens += one->tokens;
  }
  cost.tokens_per_s.push_back(static_cast<double>(all.tokens) / all.seconds);
  return {};
}

Json to_json(const Cost& cost) {
  return {{"stream_of_one_token_us_p50", median(cost.first_token_us)},
          {"stream_of_one_token_us_p99", median(cost.p99_us)},
          {"tokens_per_s_64_streams", median(cost.tokens_per_s)}};
}

/// Rounds of 8 streams: left alone, beside an attack on `other`, under one on `node`.
Result<Json> measure_flood(const Options& options, const NodeProcess& node,
                           const NodeProcess& other, const Keys& keys) {
  auto client = connect(node, &keys);
  if (!client) return tl::unexpected(client.error());
  if (auto warm = run_streams(**client, 8, options.tokens); !warm)
    return tl::unexpected(warm.error());
  const transport::CurveClient stranger{keys.node.public_key, keys.stranger};
  std::vector<double> quiet_p50, quiet_p99, beside_p99, flood_p50, flood_p99, attempts_per_s;
  std::vector<double> cpu_us;  // of the other node, an attempt
  const auto under_attack = [&](const std::string& address) -> Result<Run> {
    Run all;
    const Attack attack(address, stranger, options.attempts);
    const auto began = Clock::now();
    while (!attack.over()) {
      const auto run = run_streams(**client, 8, options.tokens);
      if (!run) return tl::unexpected(run.error());
      all.gaps_ms.insert(all.gaps_ms.end(), run->gaps_ms.begin(), run->gaps_ms.end());
    }
    all.seconds = std::chrono::duration<double>(Clock::now() - began).count();
    return all;
  };
  for (int round = 0; round < options.rounds; ++round) {
    std::vector<double> quiet;
    for (int i = 0; i < 3; ++i) {
      const auto run = run_streams(**client, 8, options.tokens);
      if (!run) return tl::unexpected(run.error());
      quiet.insert(quiet.end(), run->gaps_ms.begin(), run->gaps_ms.end());
    }
    const double before_s = other.cpu_seconds();
    const auto beside = under_attack(other.address());
    cpu_us.push_back(1e6 * (other.cpu_seconds() - before_s) / options.attempts);
    if (!beside) return tl::unexpected(beside.error());
    const auto flood = under_attack(node.address());
    if (!flood) return tl::unexpected(flood.error());
    attempts_per_s.push_back(options.attempts / flood->seconds);
    beside_p99.push_back(quantile(beside->gaps_ms, 0.99));
    quiet_p50.push_back(quantile(quiet, 0.5));
    quiet_p99.push_back(quantile(quiet, 0.99));
    flood_p50.push_back(quantile(flood->gaps_ms, 0.5));
    flood_p99.push_back(quantile(flood->gaps_ms, 0.99));
  }
  const auto stats = (*client)->stats(std::chrono::seconds(20));
  if (!stats) return tl::unexpected(stats.error());
  double refused = 0;
  for (const auto& [name, value] : stats->values)
    if (name == "security.keys_refused") refused = value;
  return Json{{"attempts", options.attempts * options.rounds},
              {"refused", refused},
              {"attempts_per_s", median(attempts_per_s)},
              {"node_cpu_us_an_attempt", median(cpu_us)},
              {"quiet_itl_p50_ms", median(quiet_p50)},
              {"quiet_itl_p99_ms", median(quiet_p99)},
              {"attack_on_another_node_itl_p99_ms", median(beside_p99)},
              {"flood_itl_p50_ms", median(flood_p50)},
              {"flood_itl_p99_ms", median(flood_p99)},
              {"p99_ratio", median(flood_p99) / median(quiet_p99)}};
}

Result<Json> run(const Options& options) {
  const Keys keys;
  Json all{{"rounds", options.rounds}};
  auto real = node_config(options.model, &keys);
  real.engines.front().threads = 1;  // the other core is the attacker's and the client's
  // Before this process has threads.
  const NodeProcess plain(node_config(options.model, nullptr));
  const NodeProcess curve(node_config(options.model, &keys));
  const NodeProcess flooded(real, false);
  for (const auto* node : {&plain, &curve, &flooded})
    if (!node->address().starts_with("tcp"))
      return fail(ErrorCode::io, "a node did not start: {}", node->address());
  auto plain_client = connect(plain, nullptr);
  if (!plain_client) return tl::unexpected(plain_client.error());
  auto curve_client = connect(curve, &keys);
  if (!curve_client) return tl::unexpected(curve_client.error());
  Cost warm, off, on;
  for (auto* client : {plain_client->get(), curve_client->get()})
    if (auto ok = take_round(*client, warm); !ok) return tl::unexpected(ok.error());
  for (int round = 0; round < options.rounds; ++round) {
    if (auto ok = take_round(**plain_client, off); !ok) return tl::unexpected(ok.error());
    if (auto ok = take_round(**curve_client, on); !ok) return tl::unexpected(ok.error());
  }
  all["plain"] = to_json(off);
  all["curve"] = to_json(on);
  if (options.attempts == 0) return all;
  auto flood = measure_flood(options, flooded, curve, keys);
  if (!flood) return flood;
  all["flood"] = std::move(*flood);
  return all;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      options.json = true;
    } else if (i + 1 == argc) {
      return false;
    } else if (name == "--model") {
      options.model = argv[++i];
    } else if (name == "--rounds") {
      options.rounds = std::atoi(argv[++i]);
    } else if (name == "--attempts") {
      options.attempts = std::atoi(argv[++i]);
    } else if (name == "--tokens") {
      options.tokens = static_cast<std::uint32_t>(std::atoi(argv[++i]));
    } else {
      return false;
    }
  }
  return !options.model.empty() && options.rounds > 0 && options.attempts >= 0 &&
         options.tokens > 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: sluice-bench-curve --model FILE [--rounds N] [--attempts N] [--tokens N] "
                 "[--json]\n");
    return 2;
  }
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;  // libzmq closes those of an attempt a moment later
  ::setrlimit(RLIMIT_NOFILE, &files);
  std::signal(SIGPIPE, SIG_IGN);
  const auto result = run(options);
  if (!result) {
    std::fprintf(stderr, "sluice-bench-curve: %s\n", result.error().message.c_str());
    return 1;
  }
  std::printf("%s\n", result->dump(options.json ? -1 : 2).c_str());
  return 0;
}
