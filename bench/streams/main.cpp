// What many streams at once cost a node, with a device that answers at once: whatever a token takes
// here is the service's own. The node is a child process; its memory and processor time are read
// from /proc, so the client's are not in them.
//
//   sluice-bench-streams --model FILE [--streams 1,64,1024,4096] [--tokens 64] [--watchers 1000]
//                        [--json]

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "bench/instant_node.hpp"
#include "bench/quantile.hpp"
#include "transport/client.hpp"

namespace {

using namespace sluice;
using sluice::bench::quantile;
using bench::NodeProcess;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::uint32_t prompt_tokens = 16;

struct Options {
  std::string model;
  std::vector<std::uint32_t> streams{1, 64, 1024, 4096};
  std::uint32_t tokens = 64;
  std::uint32_t watchers = 1000;
  bool json = false;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

transport::Submit request(std::uint32_t tokens) {
  transport::Submit submit = transport::Client::new_submit();
  std::vector<Token> prompt;
  for (Token id = 100; id < 100 + prompt_tokens; ++id) prompt.push_back(id);
  submit.prompt = std::move(prompt);
  submit.max_tokens = tokens;
  submit.ignore_eos = true;
  return submit;
}

struct Seen {
  std::uint32_t tokens = 0;
  Clock::time_point last;
};

/// A batch of streams of one client, followed to the end.
class Batch {
 public:
  Batch(transport::Client& client, std::uint32_t count, std::uint32_t tokens)
      : client_(client), count_(count), tokens_each_(tokens) {}

  Result<void> submit() {
    for (std::uint32_t i = 0; i < count_; ++i) {
      auto stream = client_.submit(request(tokens_each_));
      if (!stream) return tl::unexpected(stream.error());
      streams_.emplace(*stream, Seen{});
    }
    return {};
  }

  /// Until all are accepted, or all are done, or so many tokens came.
  Result<void> follow(std::uint32_t accepted, std::uint32_t done, std::uint64_t tokens) {
    while (accepted_ < accepted || done_ < done || tokens_ < tokens) {
      auto next = client_.next(std::chrono::seconds(20));
      if (!next)
        return fail(ErrorCode::unavailable, "{} of {} streams done, then nothing for 20 s", done_,
                    count_);
      if (next->event.failed) return tl::unexpected(next->event.failed->error);
      take(streams_.at(next->stream), next->event);
    }
    return {};
  }

  std::uint64_t tokens() const { return tokens_; }
  std::vector<double> gaps_ms;  ///< between a stream's tokens

 private:
  void take(Seen& seen, const transport::ClientEvent& event) {
    accepted_ += event.accepted.has_value();
    done_ += event.done.has_value();
    if (event.tokens.empty()) return;
    const auto now = Clock::now();
    if (seen.tokens > 0)
      gaps_ms.push_back(std::chrono::duration<double, std::milli>(now - seen.last).count());
    seen.last = now;
    seen.tokens += static_cast<std::uint32_t>(event.tokens.size());
    tokens_ += event.tokens.size();
  }

  transport::Client& client_;
  std::uint32_t count_, tokens_each_;
  std::map<transport::StreamId, Seen> streams_;
  std::uint32_t accepted_ = 0, done_ = 0;
  std::uint64_t tokens_ = 0;
};

/// Memory of `count` streams that wait for their first token, and of the same half-way through.
Result<Json> memory_of(const NodeProcess& node, transport::Client& client, const Options& options,
                       std::uint32_t count) {
  Batch batch(client, count, options.tokens);
  const double before_kb = node.memory_kb();
  node.order('h');
  if (auto ok = batch.submit(); !ok) return tl::unexpected(ok.error());
  if (auto ok = batch.follow(count, 0, 0); !ok) return tl::unexpected(ok.error());
  const double idle_kb = node.memory_kb();
  node.order('g');
  const std::uint64_t half = std::uint64_t{count} * options.tokens / 2;
  if (auto ok = batch.follow(count, 0, half); !ok) return tl::unexpected(ok.error());
  const double half_kb = node.memory_kb();
  if (auto ok = batch.follow(count, count, 0); !ok) return tl::unexpected(ok.error());
  return Json{{"streams", count},
              {"kb_per_idle_stream", (idle_kb - before_kb) / count},
              {"kb_per_active_stream", (half_kb - before_kb) / count}};
}

/// A figure of the node's own.
Result<double> stat_of(transport::Client& client, std::string_view wanted) {
  const auto stats = client.stats(std::chrono::seconds(20));
  if (!stats) return tl::unexpected(stats.error());
  for (const auto& [name, value] : stats->values)
    if (name == wanted) return value;
  return fail(ErrorCode::internal, "the node does not tell {}", wanted);
}

/// `count` streams at once, as often as it takes for 200,000 tokens.
Result<Json> measure(const NodeProcess& node, transport::Client& client, const Options& options,
                     std::uint32_t count) {
  auto row = memory_of(node, client, options, count);
  if (!row) return row;
  const auto dropped_before = stat_of(client, "io.frames_dropped");
  if (!dropped_before) return tl::unexpected(dropped_before.error());
  const double cpu = node.cpu_seconds();
  const auto began = Clock::now();
  std::vector<double> gaps_ms;
  std::uint64_t streams = 0, tokens = 0;
  while (tokens < 200'000) {
    Batch batch(client, count, options.tokens);
    if (auto ok = batch.submit(); !ok) return tl::unexpected(ok.error());
    if (auto ok = batch.follow(count, count, 0); !ok) return tl::unexpected(ok.error());
    streams += count;
    tokens += batch.tokens();
    gaps_ms.insert(gaps_ms.end(), batch.gaps_ms.begin(), batch.gaps_ms.end());
  }
  const double seconds = seconds_since(began);
  (*row)["seconds"] = seconds;
  (*row)["streams_per_s"] = static_cast<double>(streams) / seconds;
  (*row)["tokens_per_s"] = static_cast<double>(tokens) / seconds;
  (*row)["itl_p50_ms"] = quantile(gaps_ms, 0.5);
  (*row)["itl_p99_ms"] = quantile(gaps_ms, 0.99);
  const auto dropped = stat_of(client, "io.frames_dropped");
  if (!dropped) return tl::unexpected(dropped.error());
  (*row)["frames_dropped"] = *dropped - *dropped_before;
  (*row)["node_cpu_us_per_token"] = 1e6 * (node.cpu_seconds() - cpu) / static_cast<double>(tokens);
  return row;
}

/// One stream, and many subscribers that count what comes.
Result<Json> watch(const NodeProcess& node, transport::Client& client, const Options& options) {
  zmq::context_t context(1);
  context.set(zmq::ctxopt::max_sockets, static_cast<int>(options.watchers) + 16);
  node.order('h');
  const auto submit = request(options.tokens);
  std::vector<zmq::socket_t> sockets;
  for (std::uint32_t i = 0; i < options.watchers; ++i) {
    auto& socket = sockets.emplace_back(context, zmq::socket_type::sub);
    socket.set(zmq::sockopt::rcvhwm, 0);
    socket.set(zmq::sockopt::linger, 0);
    socket.connect(client.welcome().publish);
    socket.set(zmq::sockopt::subscribe,
               std::string_view(reinterpret_cast<const char*>(submit.stream.data()), 16));
  }
  // They are subscribed when the node has counted them.
  for (double subscribed = 0; subscribed < options.watchers;) {
    const auto now = stat_of(client, "io.subscriptions");
    if (!now) return tl::unexpected(now.error());
    subscribed = *now;
  }
  if (auto sent = client.submit(submit); !sent) return tl::unexpected(sent.error());
  const double cpu = node.cpu_seconds();
  const auto began = Clock::now();
  node.order('g');
  std::uint64_t messages = 0, tokens = 0;
  for (auto& socket : sockets) {
    for (bool over = false; !over;) {
      zmq::message_t topic, frame;
      if (!socket.recv(topic) || !socket.recv(frame))
        return fail(ErrorCode::io, "a subscriber's socket failed");
      const auto message = transport::decode(frame.to_string_view(), transport::Limits{});
      if (!message) return tl::unexpected(message.error());
      if (const auto* chunk = std::get_if<transport::Chunk>(&*message))
        tokens += chunk->part.tokens.size();
      over = std::holds_alternative<transport::Done>(*message);
      ++messages;
    }
  }
  const double seconds = seconds_since(began);
  if (tokens != std::uint64_t{options.watchers} * options.tokens)
    return fail(ErrorCode::internal, "subscribers saw {} tokens of {}", tokens,
                std::uint64_t{options.watchers} * options.tokens);
  return Json{{"watchers", options.watchers},
              {"seconds", seconds},
              {"messages_per_s", static_cast<double>(messages) / seconds},
              {"tokens_delivered_per_s", static_cast<double>(tokens) / seconds},
              {"node_cpu_us_per_message",
               1e6 * (node.cpu_seconds() - cpu) / static_cast<double>(messages)}};
}

void print(const Json& all) {
  std::printf("%8s %10s %10s %9s %9s %11s %9s %9s %9s\n", "streams", "streams/s", "tokens/s",
              "ITL p50", "ITL p99", "CPU/token", "KB idle", "KB active", "dropped");
  for (const Json& row : all["streams"])
    std::printf("%8u %10.0f %10.0f %6.2f ms %6.2f ms %8.1f us %9.1f %9.1f %9.0f\n",
                row["streams"].get<unsigned>(), row["streams_per_s"].get<double>(),
                row["tokens_per_s"].get<double>(), row["itl_p50_ms"].get<double>(),
                row["itl_p99_ms"].get<double>(), row["node_cpu_us_per_token"].get<double>(),
                row["kb_per_idle_stream"].get<double>(), row["kb_per_active_stream"].get<double>(),
                row["frames_dropped"].get<double>());
  if (!all.contains("watched")) return;
  const Json& w = all["watched"];
  std::printf("one stream, %u subscribers: %.0f messages/s, %.1f us of the node's CPU each\n",
              w["watchers"].get<unsigned>(), w["messages_per_s"].get<double>(),
              w["node_cpu_us_per_message"].get<double>());
}

actors::NodeConfig node_config(const Options& options) {
  actors::NodeConfig config;
  actors::EngineConfig engine;
  engine.model = options.model;
  engine.slots = *std::ranges::max_element(options.streams);
  engine.queue = engine.slots;
  engine.step_rows = 2 * engine.slots;
  engine.context_tokens = prompt_tokens + options.tokens;
  engine.kv_bytes = std::uint64_t{64} << 30;  // never written: the device has no memory
  config.engines = {engine};
  config.log_level = "off";
  return config;
}

Result<Json> run(const Options& options) {
  const NodeProcess node(node_config(options));
  if (!node.address().starts_with("tcp"))
    return fail(ErrorCode::io, "the node did not start: {}", node.address());
  auto client = transport::Client::connect({.connect = node.address()});
  if (!client) return tl::unexpected(client.error());
  if (auto warm = measure(node, **client, options, 1); !warm) return warm;
  Json all{{"tokens", options.tokens}, {"streams", Json::array()}};
  for (const std::uint32_t count : options.streams) {
    auto row = measure(node, **client, options, count);
    if (!row) return row;
    all["streams"].push_back(std::move(*row));
  }
  if (options.watchers > 0) {
    auto watched = watch(node, **client, options);
    if (!watched) return watched;
    all["watched"] = std::move(*watched);
  }
  return all;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      options.json = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const std::string value = argv[++i];
    if (name == "--model") {
      options.model = value;
    } else if (name == "--streams") {
      options.streams.clear();
      std::istringstream list(value);
      for (std::string one; std::getline(list, one, ',');)
        options.streams.push_back(static_cast<std::uint32_t>(std::atoi(one.c_str())));
    } else if (name == "--tokens") {
      options.tokens = static_cast<std::uint32_t>(std::atoi(value.c_str()));
    } else if (name == "--watchers") {
      options.watchers = static_cast<std::uint32_t>(std::atoi(value.c_str()));
    } else {
      return false;
    }
  }
  return !options.model.empty() && options.tokens > 0 && !options.streams.empty() &&
         std::ranges::count(options.streams, 0U) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: sluice-bench-streams --model FILE [--streams N,N] [--tokens N] "
                 "[--watchers N] [--json]\n");
    return 2;
  }
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;  // a subscriber takes a few each
  ::setrlimit(RLIMIT_NOFILE, &files);
  std::signal(SIGPIPE, SIG_IGN);
  const auto result = run(options);
  if (!result) {
    std::fprintf(stderr, "sluice-bench-streams: %s\n", result.error().message.c_str());
    return 1;
  }
  if (options.json)
    std::printf("%s\n", result->dump().c_str());
  else
    print(*result);
  return 0;
}
