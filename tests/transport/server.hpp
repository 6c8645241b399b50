#pragma once
// A node without a model: Endpoint, Session and StreamState around a thread that says made-up
// tokens.

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <zmq.hpp>

#include "transport/endpoint.hpp"
#include "transport/session.hpp"
#include "transport/stream.hpp"

namespace sluice::transport::testing {

/// Waits for what another thread does; generous, and over at once when it is done.
inline bool eventually(const std::function<bool()>& happened) {
  for (int i = 0; i < 30'000; ++i) {
    if (happened()) return true;
    poll(nullptr, 0, 1);
  }
  return false;
}

/// The token a stream with this seed says at this index.
inline Token token_at(std::uint64_t seed, std::uint32_t index) {
  return static_cast<Token>((seed * 31 + index * 7919ULL) % 50021);
}
inline std::string text_of(Token token) { return std::to_string(token).append(" "); }

class Server {
 public:
  Server(zmq::context_t& context, EndpointConfig config, StreamConfig stream_config = {},
         ClientGrants clients = {})
      : context_(context), config_(std::move(config)), stream_config_(stream_config) {
    open();
    SessionConfig session;
    session.clients = std::move(clients);
    session.welcome.server = "test";
    session.welcome.publish = endpoint_->publish_address();
    session.welcome.frame_bytes_max = static_cast<std::uint32_t>(config_.limits.frame_bytes_max);
    session.welcome.window_tokens = stream_config_.window_tokens;
    session.welcome.models = {{"made-up", "00", "none", "", 4096, 50021}};
    session_ = std::make_unique<Session>(session);
    thread_ = std::thread([this] { run(); });
  }

  ~Server() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
    endpoint_.reset();  // its thread calls post()
  }

  Endpoint& endpoint() { return *endpoint_; }

  /// At most so many tokens a stream until it is raised; by default all.
  void allow(std::uint32_t tokens) {
    allowed_ = tokens;
    wake_.notify_one();
  }

  /// The last line about clients that were let go.
  std::string stalled() {
    const std::lock_guard lock(mutex_);
    return stalled_;
  }

  /// Closes every socket and opens them again at the same addresses.
  void restart() {
    const std::lock_guard lock(endpoint_mutex_);
    config_.listen = endpoint_->listen_address();
    config_.publish = endpoint_->publish_address();
    endpoint_.reset();
    // libzmq gives the port back a moment after the socket closed.
    if (!eventually([&] { return open(); })) throw std::runtime_error("no port");
  }

  std::atomic<int> starts = 0;
  std::atomic<int> stops = 0;
  std::atomic<int> lost = 0;
  std::atomic<int> settled = 0;
  std::atomic<std::uint32_t> said = 0;  ///< tokens of all streams

 private:
  struct Running {
    StreamState state;
    std::uint64_t seed;
    std::uint32_t tokens;
    std::uint32_t said = 0;
    bool finished = false;
    std::uint64_t epoch = 0;
    bool settled = false;
  };

  bool open() {
    auto endpoint = std::make_unique<Endpoint>(
        context_, config_,
        Endpoint::Handler{[this](Peer&& peer, Message&& message, CurveKey&& client) {
                            post({std::move(peer), std::move(message), std::move(client)});
                          },
                          [this](Peer&& peer) {
                            post({std::move(peer), std::nullopt, {}});
                          },
                          [this](const std::string& line) {
                            const std::lock_guard lock(mutex_);
                            stalled_ = line;
                          }});
    if (!endpoint->start()) return false;
    endpoint_ = std::move(endpoint);
    return true;
  }

  struct News {
    Peer peer;
    std::optional<Message> message;  // none: the peer is lost
    CurveKey client;
  };

  void post(News news) {
    {
      const std::lock_guard lock(mutex_);
      inbox_.push_back(std::move(news));
    }
    wake_.notify_one();
  }

  static std::uint64_t now_ns() {
    return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  }

  void run() {
    bool busy = false;
    for (;;) {
      std::deque<News> news;
      {
        std::unique_lock lock(mutex_);
        if (!busy) wake_.wait_for(lock, std::chrono::milliseconds(20));
        if (stopping_) return;
        news.swap(inbox_);
      }
      const std::lock_guard lock(endpoint_mutex_);
      for (News& one : news) {
        if (one.message) {
          act(session_->on_message(one.peer, std::move(*one.message), now_ns(), one.client));
        } else {
          ++lost;
          for (auto& [id, stream] : streams_) stream.state.on_lost(one.peer, now_ns());
        }
      }
      busy = step();
    }
  }

  void act(std::vector<SessionAction> actions) {
    for (SessionAction& action : actions) {
      if (auto* reply = std::get_if<Reply>(&action)) {
        say(reply->peer, reply->message);
      } else if (auto* start = std::get_if<Start>(&action)) {
        begin(start->peer, start->submit);
      } else if (auto* stop = std::get_if<Stop>(&action)) {
        ++stops;
        finish(stop->stream, engine::FinishReason::cancelled);
      } else if (auto* follow = std::get_if<Follow>(&action)) {
        keep(*follow);
      } else if (auto* stats = std::get_if<AskStats>(&action)) {
        say(stats->peer, Stats{{{"streams", static_cast<double>(streams_.size() - settled)}}});
      } else if (auto* health = std::get_if<AskHealth>(&action)) {
        say(health->peer, Health{true, ""});
      }
    }
  }

  void say(const Peer& peer, const Message& message) {
    endpoint_->send(peer, std::make_shared<const std::string>(encode(message)));
  }

  void begin(const Peer& peer, const Submit& submit) {
    ++starts;
    const std::string& text = std::get<std::string>(submit.prompt);
    if (text == "refuse me")
      return act(session_->on_refused(submit.stream, submit.epoch,
                                      {ErrorCode::overloaded, "no room", 77}, now_ns()));
    const auto chain = engine::chain_start("00", {}, submit.sampling);
    const Accepted accepted{submit.stream, submit.epoch, "00", 1, chain};
    say(peer, accepted);
    StreamState state(submit.stream, submit.epoch, peer, {chain}, stream_config_, now_ns());
    streams_.insert_or_assign(submit.stream, Running{std::move(state), submit.sampling.seed,
                                                     submit.max_tokens, 0, false, submit.epoch});
    act(session_->on_accepted(accepted, now_ns()));
  }

  void keep(const Follow& follow) {
    std::vector<Delivery> out;
    const StreamId id = std::visit([](const auto& m) { return m.stream; }, follow.message);
    const auto found = streams_.find(id);
    const auto* attach = std::get_if<Attach>(&follow.message);
    if (found == streams_.end()) {
      if (attach != nullptr) say(follow.peer, Failed{id, 0, {ErrorCode::gone, "dropped", 0}});
      return;
    }
    StreamState& state = found->second.state;
    if (attach != nullptr)
      state.on_attach(follow.peer, *attach, follow.owner, now_ns(), out);
    else
      state.on_ack(follow.peer, std::get<Ack>(follow.message), follow.owner, now_ns(), out);
    deliver(id, out);
  }

  void finish(const StreamId& id, engine::FinishReason reason) {
    const auto found = streams_.find(id);
    if (found == streams_.end() || found->second.finished) return;
    std::vector<Delivery> out;
    found->second.finished = true;
    Done done;
    done.stream = id;
    done.epoch = found->second.epoch;
    done.finish = {reason};
    found->second.state.finish(done, now_ns(), out);
    session_->on_finished(id, found->second.epoch, now_ns());
    deliver(id, out);
  }

  void deliver(const StreamId& id, std::vector<Delivery>& out) {
    for (Delivery& delivery : out) {
      if (delivery.peer)
        endpoint_->send(*delivery.peer, std::move(delivery.frame));
      else
        endpoint_->publish(id, std::move(delivery.frame));
    }
  }

  /// One token for each stream that may; whether any was said.
  bool step() {
    bool busy = false;
    for (auto at = streams_.begin(); at != streams_.end();) {
      auto& [id, stream] = *at;
      std::vector<Delivery> out;
      if (!stream.finished && stream.said < std::min<std::uint32_t>(stream.tokens, allowed_)) {
        const Token token = token_at(stream.seed, stream.said++);
        stream.state.append(0, std::span(&token, 1), text_of(token), {}, now_ns(), out);
        ++said;
        busy = true;
      }
      const auto verdict = stream.state.tick(now_ns(), out);
      deliver(id, out);
      if (!stream.finished && stream.said == stream.tokens)
        finish(id, engine::FinishReason::length);
      if (verdict.abandoned) ++stops;
      if (stream.state.settled() && !std::exchange(stream.settled, true)) ++settled;
      at = verdict.expired || verdict.abandoned ? streams_.erase(at) : std::next(at);
    }
    return busy;
  }

  zmq::context_t& context_;
  EndpointConfig config_;
  StreamConfig stream_config_;
  std::mutex endpoint_mutex_;  // of the test, which restarts it, and of the thread
  std::unique_ptr<Endpoint> endpoint_;
  std::unique_ptr<Session> session_;
  std::map<StreamId, Running> streams_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<News> inbox_;
  std::string stalled_;
  std::atomic<std::uint32_t> allowed_ = 1U << 30;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sluice::transport::testing
