// A node under everything that clients do to it, for as long as is asked: streams of one or several
// choices, with and without a constraint, cancelled, dropped with their connection and taken up by
// another, watched by subscribers, beside frames that are malformed, oversized or cut short. The
// device answers at once with a hash of what came before, so every token is known in advance.
//
//   sluice-soak --model FILE [--seconds 30] [--seed N]
//
// Shows that no stream is lost or wrong, that nothing is left open, that the process ends well (a
// sanitized build then looks for leaks), and that its memory does not grow after a third of the
// time, but for what the session remembers of ended streams until that is full.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "bench/instant_node.hpp"
#include "transport/client.hpp"

#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;  // its allocator keeps what is freed for a while
#else
constexpr bool sanitized = false;
#endif

namespace {

using namespace sluice;
using Clock = std::chrono::steady_clock;

constexpr std::size_t owners_max = 8;
constexpr std::size_t watchers_max = 6;
constexpr std::size_t streams_max = 96;
constexpr double tombstones = 65'536, tombstone_kb = 0.75;

struct Broken {
  std::string what;
};

struct Counts {
  std::uint64_t submitted = 0, done = 0, cancelled = 0, refused = 0, dropped = 0, watched = 0;
  std::uint64_t garbage = 0, tokens = 0;
};

/// A stream as one client sees it.
struct Stream {
  transport::Submit submit;
  std::vector<std::vector<Token>> seen{};  // of each choice
  bool cancelled = false;
  bool inherited = false;  ///< from a client that was dropped
  bool watched = false;    ///< by one who is not its owner

  void blame(const std::string& what) const {
    throw Broken{"stream " + transport::to_hex(submit.stream) + " " + what};
  }

  /// Tokens are those of the definition; of constrained ones the mask decides too.
  void take(const transport::ClientEvent& event, Counts& counts) {
    seen.resize(submit.n);
    auto& known = seen.at(event.choice);
    std::vector<Token> all = std::get<std::vector<Token>>(submit.prompt);
    all.insert(all.end(), known.begin(), known.end());
    for (const Token token : event.tokens) {
      if (!submit.constraint &&
          token != bench::next_token(all, submit.sampling.seed + event.choice))
        blame("has a token that is not what it must be");
      all.push_back(token);
      known.push_back(token);
      ++counts.tokens;
    }
    if (!event.done) return;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      const auto finish = event.done->finish.at(i);
      const std::size_t counted = event.done->tokens.at(i);
      // A watcher may hold more than a run that took the stream's place came to before its cancel.
      const bool replaced = finish == engine::FinishReason::cancelled && watched;
      if (seen[i].size() < counted || (seen[i].size() > counted && !replaced))
        blame(fmt::format("({}) ended as {} with {} tokens of {}", watched ? "watched" : "owned",
                          transport::to_string(finish), seen[i].size(), counted));
      if (finish == engine::FinishReason::length && seen[i].size() != submit.max_tokens)
        blame("ended too early");
      if (finish == engine::FinishReason::stop && !submit.constraint) blame("stopped for nothing");
    }
  }
};

class Soak {
 public:
  Soak(std::string address, std::uint64_t seed) : address_(std::move(address)), random_(seed) {
    garbage_.set(zmq::sockopt::linger, 0);
    garbage_.set(zmq::sockopt::rcvhwm, 0);
    garbage_.connect(address_);
  }

  /// One thing that somebody does, unless all is to end; then what the node has said meanwhile.
  void turn(bool calm) {
    const std::uint64_t what = calm ? 100 : below(100);
    if (owners_.empty() || (what < 2 && owners_.size() < owners_max)) owners_.push_back(connect());
    for (std::uint64_t more = what >= 2 && what < 60 ? 1 + below(8) : 0; more > 0; --more) submit();
    if (what >= 60 && what < 66) cancel();
    if (what == 66) drop();
    if (what == 67) watch();
    if (what >= 68 && what < 78) send_garbage();
    const std::size_t awaited = below(owners_.size());
    for (std::size_t i = 0; i < owners_.size(); ++i)
      listen(owners_[i], std::chrono::milliseconds(i == awaited ? 1 : 0));
    std::erase_if(watchers_, [&](Watcher& watcher) { return over(watcher); });
    for (zmq::message_t ignored; garbage_.recv(ignored, zmq::recv_flags::dontwait);) {
    }
  }

  bool quiet() const { return open() == 0 && watchers_.empty(); }
  const Counts& counts() const { return counts_; }

  /// A value of the node's stats.
  double stat(const std::string& name) {
    const auto stats = owners_.at(0).client->stats(std::chrono::seconds(20));
    if (!stats) throw Broken{"no stats: " + stats.error().message};
    for (const auto& [key, value] : stats->values)
      if (key == name) return value;
    throw Broken{"no stat named " + name};
  }

 private:
  struct Owner {
    std::unique_ptr<transport::Client> client;
    std::map<transport::StreamId, Stream> streams{};
  };
  struct Watcher {
    std::unique_ptr<transport::Client> client;
    Stream stream;
  };

  std::uint64_t below(std::uint64_t end) { return random_() % end; }

  std::size_t open() const {
    std::size_t sum = 0;
    for (const Owner& owner : owners_) sum += owner.streams.size();
    return sum;
  }

  Owner connect() {
    auto client = transport::Client::connect(
        {.connect = address_, .connect_timeout = std::chrono::seconds(20)});
    if (!client) throw Broken{"cannot connect: " + client.error().message};
    return {std::move(*client)};
  }

  void send(Owner& owner, Stream stream) {
    const auto sent = owner.client->submit(stream.submit);
    if (!sent) throw Broken{"cannot submit: " + sent.error().message};
    owner.streams.insert_or_assign(*sent, std::move(stream));
  }

  void submit() {
    if (open() >= streams_max) return;
    Stream stream{transport::Client::new_submit()};
    transport::Submit& submit = stream.submit;
    std::vector<Token> prompt(below(8) == 0 ? 1 + below(600) : 1 + below(40));
    for (Token& token : prompt) token = 'a' + static_cast<Token>(below(26));
    submit.prompt = prompt;
    submit.max_tokens = static_cast<std::uint32_t>(1 + below(below(10) == 0 ? 300 : 40));
    submit.ignore_eos = true;
    if (below(6) == 0) submit.n = static_cast<std::uint32_t>(2 + below(2));
    if (below(6) == 0)
      submit.constraint = {engine::Constraint::Kind::regex, "[a-z ]{1,400}[0-9]"};
    submit.priority = static_cast<std::int32_t>(below(3));
    send(owners_[below(owners_.size())], std::move(stream));
    ++counts_.submitted;
  }

  void cancel() {
    Owner& owner = owners_[below(owners_.size())];
    if (owner.streams.empty()) return;
    Stream& stream = owner.streams.begin()->second;
    stream.cancelled = true;
    owner.client->cancel(stream.submit.stream);
  }

  /// A client goes with its connection; another takes its streams up, and knows no more of them
  /// than what was submitted.
  void drop() {
    if (owners_.size() < 2) return;
    std::swap(owners_[below(owners_.size())], owners_.back());
    const auto orphans = std::exchange(owners_.back().streams, {});
    owners_.pop_back();
    ++counts_.dropped;
    for (const auto& [id, stream] : orphans) {
      Owner& heir = owners_[below(owners_.size())];
      Stream taken{stream.submit, {}, stream.cancelled, true};
      if (below(4) > 0) taken.submit.epoch += 1000;  // else it asks for what there is
      send(heir, std::move(taken));
      if (stream.cancelled) heir.client->cancel(id);
    }
  }

  void watch() {
    const Owner& owner = owners_[below(owners_.size())];
    if (owner.streams.empty() || watchers_.size() >= watchers_max) return;
    Watcher watcher{connect().client, {owner.streams.begin()->second.submit}};
    watcher.stream.watched = true;
    if (auto ok = watcher.client->subscribe(watcher.stream.submit.stream, 0); !ok)
      throw Broken{"cannot subscribe: " + ok.error().message};
    watchers_.push_back(std::move(watcher));
    ++counts_.watched;
  }

  void send_garbage() {
    std::string frame;
    switch (below(5)) {
      case 0:
        frame.resize(below(200));
        for (char& c : frame) c = static_cast<char>(below(256));
        break;
      case 1: frame.assign(below(40) == 0 ? 9U << 20 : 70'000, '\x81'); break;  // oversized
      case 2: {
        transport::Submit submit = transport::Client::new_submit();
        submit.prompt = std::string("x");
        frame = transport::encode(submit);
        frame.resize(below(frame.size()));
        break;
      }
      case 3: {
        transport::Submit submit = transport::Client::new_submit();
        submit.prompt = std::string("x");
        submit.constraint = {engine::Constraint::Kind::json_schema, "{\"type\": 3}"};
        frame = transport::encode(submit);
        break;
      }
      default: {
        transport::Attach attach;
        attach.stream = transport::Client::random_stream_id();
        attach.index = static_cast<std::uint32_t>(below(1000));
        frame = transport::encode(attach);
      }
    }
    garbage_.send(zmq::buffer(frame), below(20) == 0 ? zmq::send_flags::sndmore
                                                     : zmq::send_flags::none);
    ++counts_.garbage;
  }

  /// Waits so long for the first event, and for no other.
  void listen(Owner& owner, std::chrono::milliseconds wait) {
    for (auto next = owner.client->next(wait); next;
         next = owner.client->next(std::chrono::milliseconds(0))) {
      const auto found = owner.streams.find(next->stream);
      if (found == owner.streams.end()) continue;
      Stream& stream = found->second;
      const transport::ClientEvent& event = next->event;
      stream.take(event, counts_);
      if (event.failed) {
        const ErrorCode code = event.failed->error.code;
        if (code == ErrorCode::conflict && stream.inherited) {
          // Who had it before had to submit it again meanwhile, under an epoch that nobody told.
          Stream again{stream.submit, {}, stream.cancelled, true};
          again.submit.epoch += 1000;
          send(owner, std::move(again));
          continue;
        }
        const bool fair = code == ErrorCode::overloaded ||
                          (stream.cancelled && code == ErrorCode::cancelled);
        if (!fair) stream.blame("failed: " + event.failed->error.message);
        ++counts_.refused;
      } else if (event.done) {
        using engine::FinishReason;
        const bool cut = std::ranges::count(event.done->finish, FinishReason::cancelled) > 0;
        if (cut && !stream.cancelled) stream.blame("was cancelled by nobody");
        ++(cut ? counts_.cancelled : counts_.done);
      } else {
        continue;
      }
      owner.streams.erase(found);
    }
  }

  /// Who watches may come too late; what it sees is right all the same.
  bool over(Watcher& watcher) {
    while (auto next = watcher.client->next(std::chrono::milliseconds(0))) {
      if (next->event.failed) return true;
      watcher.stream.take(next->event, counts_);
      if (next->event.done) return true;
    }
    return false;
  }

  std::string address_;
  std::mt19937_64 random_;
  std::vector<Owner> owners_;
  std::vector<Watcher> watchers_;
  zmq::context_t context_;
  zmq::socket_t garbage_{context_, zmq::socket_type::dealer};
  Counts counts_;
};

struct Options {
  std::string model;
  double seconds = 30;
  std::uint64_t seed = 1;
};

actors::NodeConfig node_config(const Options& options) {
  actors::NodeConfig config;
  actors::EngineConfig engine;
  engine.model = options.model;
  engine.slots = 32;
  engine.context_tokens = 1024;
  engine.kv_bytes = std::uint64_t{600} << 20;  // never written; small enough for preemption
  config.engines = {engine};
  config.log_level = "off";
  config.stream.retention_ns = 2'000'000'000;
  return config;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values.at(values.size() / 2);
}

void run(const Options& options) {
  bench::NodeProcess node(node_config(options));
  if (!node.address().starts_with("tcp")) throw Broken{"the node did not start: " + node.address()};
  Soak soak(node.address(), options.seed);
  const auto began = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
  std::vector<double> early_kb, late_kb;
  double ended_early = 0;
  for (double sampled = 0; elapsed() < options.seconds;) {
    soak.turn(false);
    if (elapsed() - sampled < 0.25) continue;
    sampled = elapsed();
    const double part = sampled / options.seconds;
    if (part > 0.33 && part < 0.5) {
      early_kb.push_back(node.memory_kb());
      ended_early = static_cast<double>(soak.counts().done);
    }
    if (part > 0.83) late_kb.push_back(node.memory_kb());
  }
  for (const auto end = Clock::now() + std::chrono::seconds(60); !soak.quiet();) {
    if (Clock::now() > end) throw Broken{"streams did not end within 60 s"};
    soak.turn(true);
  }
  const Counts& c = soak.counts();
  std::printf("%.0f s: %lu streams (%lu done, %lu cancelled, %lu refused), %lu tokens, %lu clients "
              "dropped, %lu watchers, %lu bad frames\n",
              elapsed(), c.submitted, c.done, c.cancelled, c.refused, c.tokens, c.dropped,
              c.watched, c.garbage);
  if (c.done == 0 || c.cancelled == 0 || c.dropped == 0 || c.watched == 0 || c.garbage == 0)
    throw Broken{"something never happened: run it longer"};
  if (soak.stat("session.open") != 0) throw Broken{"the session has open streams"};
  if (soak.stat("engine.blocks_free") != soak.stat("engine.blocks_total"))
    throw Broken{"blocks are not given back"};
  const double early = median(early_kb), late = median(late_kb);
  const double remembered = std::max(0.0, tombstones - ended_early) * tombstone_kb;
  const double grown_by = std::min(remembered,
                                   (static_cast<double>(c.done) - ended_early) * tombstone_kb);
  std::printf("memory of the node: %.1f MB after a third, %.1f MB at the end\n", early / 1024,
              late / 1024);
  // A short run is not warm after a third: buffers still grow to their size.
  const double slack_kb = std::max(2048.0, 16'384 * std::min(1.0, 60 / options.seconds));
  if (!sanitized && late > 1.02 * early + slack_kb + grown_by) throw Broken{"its memory grows"};
  if (const int status = node.stop(); status != 0)
    throw Broken{"the node ended with status " + std::to_string(status)};
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--model") == 0) options.model = argv[i + 1];
    else if (std::strcmp(argv[i], "--seconds") == 0) options.seconds = std::atof(argv[i + 1]);
    else if (std::strcmp(argv[i], "--seed") == 0) options.seed = std::stoull(argv[i + 1]);
    else options.model.clear();
  }
  if (options.model.empty() || options.seconds <= 0 || argc % 2 == 0) {
    std::fprintf(stderr, "usage: sluice-soak --model FILE [--seconds N] [--seed N]\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  try {
    run(options);
  } catch (const Broken& broken) {
    std::fprintf(stderr, "sluice-soak: %s (--seed %lu)\n", broken.what.c_str(), options.seed);
    return 1;
  }
  return 0;
}
