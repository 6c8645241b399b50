#include "transport/endpoint.hpp"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <thread>
#include <utility>
#include <variant>
#include <vector>
#include <zmq.hpp>

#include "transport/bind.hpp"
#include "transport/connections.hpp"
#include "transport/handover.hpp"
#include "transport/signals.hpp"
#include "transport/sockets.hpp"
#include "transport/wake_queue.hpp"

namespace sluice::transport {
namespace {

using Frame = std::shared_ptr<const std::string>;

/// Frames taken from a socket before the other work gets its turn.
constexpr int batch = 64;

/// Frames that whoever posts them sends itself while the I/O thread sleeps: what these take, a few
/// microseconds each, is less than a wake. The frames of a larger step leave beside the next one.
constexpr std::size_t few = 8;

/// Frames of one connection that wait to be taken.
constexpr int receive_queue_messages = 8192;

/// A subscription is a byte and a topic; the publisher reads nothing longer. Of CURVE's handshake
/// the longest command has 257 bytes and the metadata's.
constexpr std::int64_t subscription_bytes_max = 512;

constexpr std::uint64_t line_interval_ns = 5'000'000'000;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

/// Where the publisher listens when nothing is said: beside the requests.
std::string publisher_beside(const std::string& listen) {
  if (!listen.starts_with("tcp://")) return listen + ".pub";
  return listen.substr(0, listen.rfind(':')) + ":*";
}

}  // namespace

struct Endpoint::State {
  State(zmq::context_t& in, EndpointConfig with, Handler to)
      : context(in), config(std::move(with)), handler(std::move(to)) {}

  zmq::context_t& context;
  EndpointConfig config;
  Handler handler;
  std::string listen_address;
  std::string publish_address;

  // Of the I/O thread once it runs.
  zmq::socket_t router;
  zmq::socket_t publisher;
  std::vector<Outgoing> leaving;
  /// Who subscribed to what, by descriptor, -1 where there is none: a connection that subscribes
  /// twice counts once. The end of a connection comes without its descriptor, as one cancellation
  /// for each of its topics; which entry of a topic it removes does not matter.
  std::map<StreamId, std::vector<int>> subscribers;
  std::size_t subscriptions = 0;
  bool router_news = true;  ///< the socket may have something
  bool publisher_news = true;
  Connections clients;
  Connections readers;  // subscribers, with CURVE
  std::uint64_t next_look_ns = 0;
  bool looking = false;  ///< a round over the clients is not over
  Connections::Stalled last_stalled;
  LineLimit stalled_limit{line_interval_ns};

  // Shared with the producers.
  WakeQueue<Outgoing> queue;
  std::atomic<bool> stopping = false;
  std::atomic<bool> cutting = false;
  std::atomic<int> linger_ms = 0;
  std::thread thread;

  struct Counters {
    std::atomic<std::uint64_t> frames_in = 0;
    std::atomic<std::uint64_t> frames_out = 0;
    std::atomic<std::uint64_t> frames_malformed = 0;
    std::atomic<std::uint64_t> frames_dropped = 0;
    std::atomic<std::uint64_t> peers_lost = 0;
    std::atomic<std::uint64_t> subscriptions = 0;
    std::atomic<std::uint64_t> frames_refused = 0;
    std::atomic<std::uint64_t> connections_cut = 0;
    std::atomic<std::uint64_t> clients_stalled = 0;
  } counters;

  Result<void> open() {
    try {
      router = zmq::socket_t(context, zmq::socket_type::router);
      publisher = zmq::socket_t(context, zmq::socket_type::xpub);
      for (zmq::socket_t* socket : {&router, &publisher}) {
        socket->set(zmq::sockopt::rcvhwm, receive_queue_messages);
        socket->set(zmq::sockopt::linger, 0);
        socket->set(zmq::sockopt::backlog, 1024);
        socket->set(zmq::sockopt::handshake_ivl, static_cast<int>(config.handshake_ms));
        if (config.curve) {
          secure_server(*socket, config.curve->keys, config.curve->domain);
          config.curve->guard->watch(*socket);
        }
      }
      router.set(zmq::sockopt::sndhwm, static_cast<int>(config.client_queue_messages));
      publisher.set(zmq::sockopt::sndhwm, static_cast<int>(config.subscriber_queue_messages));
      router.set(zmq::sockopt::heartbeat_ivl, static_cast<int>(config.heartbeat_ms));
      router.set(zmq::sockopt::heartbeat_timeout, static_cast<int>(config.heartbeat_ms * 3));
      router.set(zmq::sockopt::heartbeat_ttl, static_cast<int>(config.heartbeat_ms * 3));
      // A client that took over the name of a lost one is sent to before it says anything, and not
      // looked at till then. The kernel ends it, uncounted, also when it shows a closed window.
      router.set(zmq::sockopt::tcp_maxrt,
                 static_cast<int>(std::max(2 * config.stalled_ms, config.stalled_kernel_ms)));
      // No heartbeats here: a subscriber whose queue is full does not answer them, and libzmq 4.3
      // aborts the subscriber's process when it reconnects after such a stall (libzmq issue 3937).
      publisher.set(zmq::sockopt::tcp_keepalive, 1);
      publisher.set(zmq::sockopt::tcp_keepalive_idle, 30);
      router.set(zmq::sockopt::router_mandatory, 1);
      // Twice the limit: up to there the sender gets a typed answer, beyond it is disconnected.
      router.set(zmq::sockopt::maxmsgsize,
                 static_cast<std::int64_t>(config.limits.frame_bytes_max * 2));
      publisher.set(zmq::sockopt::maxmsgsize, subscription_bytes_max);
      publisher.set(zmq::sockopt::xpub_manual, 1);
      publisher.set(zmq::sockopt::xpub_nodrop, 1);
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::io, "cannot make a socket: {}; raise the limits of open files",
                  error.what());
    }
    auto bound = bind_to(router, config.listen);
    if (!bound) return tl::unexpected(bound.error());
    listen_address = *bound;
    bound = bind_to(publisher,
                    config.publish.empty() ? publisher_beside(config.listen) : config.publish);
    if (!bound) return tl::unexpected(bound.error());
    publish_address = *bound;
    return queue.open();
  }

  void shut() {
    leave_guard();
    router.close();
    publisher.close();
  }

  void leave_guard() {
    if (!config.curve) return;
    Guard::leave(router);
    Guard::leave(publisher);
  }

  // The I/O thread, or who stands in for it.

  void run() {
    pthread_setname_np(pthread_self(), "sluice-io");
    const SignalsBlocked always;
    // The descriptors themselves, and a socket is asked only when it may have something: each time
    // that one has nothing costs a system call, and zmq::poll asks all of them before and after.
    // A descriptor becomes readable with what is new since a receive that found nothing, provided
    // that nothing was sent since then.
    pollfd items[] = {{router.get(zmq::sockopt::fd), POLLIN, 0},
                      {publisher.get(zmq::sockopt::fd), POLLIN, 0},
                      {queue.descriptor(), POLLIN, 0}};
    queue.begin([this] { return stand_in(); });
    while (!stopping) {
      for (int i = 0; i < batch && router_news; ++i) router_news = receive();
      for (int i = 0; i < batch && publisher_news; ++i) publisher_news = subscribe();
      if (cutting.exchange(false)) cut();
      const bool more = look();
      if (drain() || more || router_news || publisher_news) continue;
      for (auto& item : items) item.revents = 0;
      const int until_look =
          clients.empty() ? -1 : static_cast<int>(look_interval_ns() / 1'000'000);
      queue.sleep([&] { return !stopping && !cutting; },
                  [&] { ::poll(items, std::size(items), until_look); });
      router_news |= items[0].revents != 0;
      publisher_news |= items[1].revents != 0;
    }
    drain();
    leave_guard();
    router.set(zmq::sockopt::linger, linger_ms.load());
    publisher.set(zmq::sockopt::linger, linger_ms.load());
    router.close();
    publisher.close();
    queue.end();
  }

  /// A turn of another thread, while the I/O thread sleeps: what was posted. False when a socket
  /// has something for the I/O thread, whose poll will not tell of it any more.
  bool stand_in() {
    drain();
    router_news = router_news && has_input(router);
    publisher_news = publisher_news && has_input(publisher);
    return !router_news && !publisher_news;
  }

  /// Takes one frame from a client, if there is one.
  bool receive() {
    zmq::message_t peer;
    if (!router.recv(peer, zmq::recv_flags::dontwait)) return false;
    after_receive();
    counters.frames_in += 1;
    zmq::message_t frame;
    int parts = 0;
    bool more = peer.more();
    while (more) {
      zmq::message_t part;
      if (!router.recv(part, zmq::recv_flags::dontwait)) break;
      more = part.more();
      if (parts++ == 0) frame = std::move(part);
    }
    Peer name(bytes_of(peer));
    CurveKey key;
    // Of the frame: libzmq 4.3 leaves the peer's own unmarked.
    if (!recognize(frame, key, clients)) return true;
    if (parts != 1) {
      refuse(
          name, {},
          {ErrorCode::bad_request, fmt::format("the message has {} frames; send one", parts), 0});
      return true;
    }
    auto message = decode(bytes_of(frame), config.limits);
    if (message)
      handler.message(std::move(name), std::move(*message), std::move(key));
    else
      refuse(name, subject_of(bytes_of(frame), config.limits), std::move(message.error()));
    return true;
  }

  /// Whose message this is, with CURVE. False when it is nobody's that is allowed (any longer).
  bool recognize(zmq::message_t& message, CurveKey& key, Connections& among) {
    if (config.curve) {
      key = sender_of(message);
      if (!config.curve->guard->allows(config.curve->domain, key)) {
        counters.frames_refused += 1;
        return false;
      }
    }
    among.note(message, key);
    return true;
  }

  void cut() {
    for (Connections* each : {&clients, &readers})
      counters.connections_cut += each->cut([this](const CurveKey& key) {
        return config.curve->guard->allows(config.curve->domain, key);
      });
  }

  std::uint64_t look_interval_ns() const {
    return std::uint64_t{config.stalled_ms} * 1'000'000 / Stall::looks;
  }

  /// Lets clients go that take nothing, when it is time to look at them; whether more are to be
  /// looked at. libzmq's heartbeats do not find them: they wait behind what is not taken. The next
  /// frame to one that was let go finds it lost.
  bool look() {
    const std::uint64_t now = now_ns();
    if (!looking && now < next_look_ns) return false;
    if (!looking) next_look_ns = now + look_interval_ns();
    std::vector<Connections::Stalled> ended;
    looking = clients.end_stalled(now, std::uint64_t{config.stalled_ms} * 1'000'000, ended);
    if (!ended.empty()) last_stalled = ended.back();
    if (const auto count = stalled_limit.due(now, ended.size()); count > 0) tell(count);
    counters.clients_stalled += ended.size();  // who sees it finds the line
    return looking;
  }

  /// A line that stands for so many clients.
  void tell(std::uint64_t count) {
    if (!handler.stalled) return;
    std::string who = last_stalled.address;
    if (config.curve)
      if (const auto name = config.curve->guard->name_of(config.curve->domain, last_stalled.key))
        who = *name + " at " + who;
    handler.stalled(
        fmt::format("clients let go since the last such line: {}; the last, {}, took nothing for "
                    "{} ms (endpoint.stalled_ms)",
                    count, who, config.stalled_ms));
  }

  void refuse(const Peer& peer, const Subject& subject, Error error) {
    counters.frames_malformed += 1;
    send(peer, encode(Failed{subject.stream, subject.epoch, std::move(error)}));
  }

  /// Takes one subscription or cancellation, if there is one. Only whole stream ids are granted.
  bool subscribe() {
    zmq::message_t message;
    if (!publisher.recv(message, zmq::recv_flags::dontwait)) return false;
    after_receive();
    // The end of a connection comes as a cancellation of nobody's.
    CurveKey key;
    const std::string_view bytes = bytes_of(message);
    if (config.curve && !bytes.empty() && bytes[0] == 1 && !recognize(message, key, readers))
      return true;
    StreamId topic;
    if (bytes.size() != 1 + topic.size() || (bytes[0] != 0 && bytes[0] != 1)) {
      counters.frames_malformed += 1;
      return true;
    }
    std::copy_n(bytes.data() + 1, topic.size(), reinterpret_cast<char*>(topic.data()));
    const int fd = zmq_msg_get(message.handle(), ZMQ_SRCFD);
    if (bytes[0] == 1)
      grant(topic, fd);
    else
      revoke(topic, fd);
    counters.subscriptions = subscriptions;
    return true;
  }

  void grant(const StreamId& topic, int fd) {
    const auto found = subscribers.find(topic);
    const bool again =
        fd >= 0 && found != subscribers.end() &&
        std::find(found->second.begin(), found->second.end(), fd) != found->second.end();
    if (!again) {
      if (subscriptions >= config.subscriptions_max) return;
      ++subscriptions;
      subscribers[topic].push_back(fd);
    }
    zmq_setsockopt(publisher.handle(), ZMQ_SUBSCRIBE, topic.data(), topic.size());
  }

  void revoke(const StreamId& topic, int fd) {
    zmq_setsockopt(publisher.handle(), ZMQ_UNSUBSCRIBE, topic.data(), topic.size());
    const auto found = subscribers.find(topic);
    if (found == subscribers.end()) return;  // was never granted
    auto& fds = found->second;
    auto one = std::find(fds.begin(), fds.end(), fd);
    if (one == fds.end()) one = std::prev(fds.end());
    fds.erase(one);
    --subscriptions;
    if (fds.empty()) subscribers.erase(found);
  }

  /// Sends what was posted.
  bool drain() {
    queue.take(leaving);
    for (const Outgoing& outgoing : leaving) {
      if (const Peer* peer = std::get_if<Peer>(&outgoing.to))
        send(*peer, *outgoing.frame);
      else
        publish(std::get<StreamId>(outgoing.to), *outgoing.frame);
    }
    const bool any = !leaving.empty();
    leaving.clear();
    return any;
  }

  void send(const Peer& peer, const std::string& frame) {
    try {
      before_send();
      router_news = true;
      if (router.send(zmq::buffer(peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait)) {
        router.send(zmq::buffer(frame), zmq::send_flags::dontwait);
        counters.frames_out += 1;
        return;
      }
    } catch (const zmq::error_t& error) {
      SLUICE_ASSERT(error.num() == EHOSTUNREACH, error.what());
    }
    // Gone, or too slow to empty its queue: either way its followers' place is forgotten.
    counters.frames_dropped += 1;
    counters.peers_lost += 1;
    handler.lost(Peer(peer));
  }

  /// With NODROP one full subscriber of a topic refuses the frame for all of that topic. The same
  /// frame sent without NODROP reaches everyone but the full ones, which libzmq then leaves out
  /// until they have emptied half of their queue: the cut-off subscriber sees a gap by the index.
  void publish(const StreamId& stream, const std::string& frame) {
    if (!subscribers.contains(stream)) return;
    publisher_news = true;
    const auto both = [&] {
      before_send();
      return publisher.send(zmq::buffer(stream),
                            zmq::send_flags::sndmore | zmq::send_flags::dontwait) &&
             publisher.send(zmq::buffer(frame), zmq::send_flags::dontwait);
    };
    if (!both()) {
      counters.frames_dropped += 1;
      publisher.set(zmq::sockopt::xpub_nodrop, 0);
      const bool sent = both();
      publisher.set(zmq::sockopt::xpub_nodrop, 1);
      SLUICE_ASSERT(sent, "a publisher that may drop always sends");
    }
    counters.frames_out += 1;
  }
};

Endpoint::Endpoint(zmq::context_t& context, EndpointConfig config, Handler handler)
    : state_(std::make_unique<State>(context, std::move(config), std::move(handler))) {}

Endpoint::~Endpoint() {
  stop();
  state_->shut();
}

Result<void> Endpoint::start() {
  SLUICE_ASSERT(!state_->thread.joinable(), "an endpoint starts once");
  auto opened = state_->open();
  if (!opened) {
    state_->shut();
    return opened;
  }
  state_->thread = std::thread([state = state_.get()] { state->run(); });
  return {};
}

void Endpoint::stop(int linger_ms) {
  if (!state_->thread.joinable()) return;
  state_->linger_ms = linger_ms;
  state_->stopping = true;
  state_->queue.wake();
  state_->thread.join();
}

void Endpoint::send(const Peer& peer, std::shared_ptr<const std::string> frame) {
  state_->queue.post({peer, std::move(frame)});
}

void Endpoint::publish(const StreamId& stream, std::shared_ptr<const std::string> frame) {
  state_->queue.post({stream, std::move(frame)});
}

void Endpoint::post(std::vector<Outgoing>&& frames) { state_->queue.post_all(frames, few); }

void Endpoint::cut_removed() {
  if (!state_->config.curve) return;
  state_->cutting = true;
  state_->queue.wake();
}

const std::string& Endpoint::listen_address() const { return state_->listen_address; }
const std::string& Endpoint::publish_address() const { return state_->publish_address; }

EndpointStats Endpoint::stats() const {
  const auto& counters = state_->counters;
  return {counters.frames_in,      counters.frames_out,      counters.frames_malformed,
          counters.frames_dropped, counters.peers_lost,      counters.subscriptions,
          counters.frames_refused, counters.connections_cut, counters.clients_stalled};
}

}  // namespace sluice::transport
