#include "transport/peer_endpoint.hpp"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>
#include <utility>
#include <zmq.hpp>

#include "transport/bind.hpp"
#include "transport/connections.hpp"
#include "transport/handover.hpp"
#include "transport/signals.hpp"
#include "transport/sockets.hpp"
#include "transport/wake_queue.hpp"

namespace sluice::transport {
namespace {

/// Frames taken from a socket before the other work gets its turn.
constexpr int batch = 64;

/// A connection that has not said by then who it is, is closed.
constexpr int handshake_ms = 10'000;

/// How long a goodbye may take to leave when the node stops.
constexpr int linger_ms = 200;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

LinkConfig link_config(const PeerConfig& config) {
  LinkConfig link;
  link.lost_ns = std::uint64_t{config.lost_ms} * 1'000'000;
  link.beat_ns = link.lost_ns / 5;
  link.bytes_max = std::max(link.bytes_max, config.message_bytes_max * 4);
  return link;
}

/// How the routes of accepted connections begin. With CURVE the key follows: a connection that
/// takes over another's ZeroMQ identity is then another route, unless the key is the same.
constexpr std::string_view plain_prefix = "in ";
constexpr std::string_view local_prefix = "local ";
constexpr std::string_view secured_prefix = "key ";
constexpr std::size_t key_chars = 40;

/// The ZeroMQ identity in the route of an accepted connection; none: it was dialed.
std::optional<std::string_view> accepted_peer(std::string_view route) {
  if (route.starts_with(secured_prefix)) return route.substr(secured_prefix.size() + key_chars + 1);
  for (const auto prefix : {plain_prefix, local_prefix})
    if (route.starts_with(prefix)) return route.substr(prefix.size());
  return std::nullopt;
}

struct Outgoing {
  LinkId link = 0;
  std::string message;
};

}  // namespace

struct PeerEndpoint::State {
  State(zmq::context_t& in, PeerConfig with, NodeIdentity self, Handler to)
      : context(in),
        config(std::move(with)),
        handler(std::move(to)),
        links(link_config(config), std::move(self)) {}

  zmq::context_t& context;
  PeerConfig config;
  Handler handler;
  std::string listen_address;

  // Of the I/O thread once it runs.
  Links links;
  struct Line {
    zmq::socket_t socket;
    bool news = false;  ///< the socket may have something
  };
  Line router;  ///< of `listen`
  Line local;   ///< of `local_listen`: one socket speaks either CURVE or not
  Connections connections;
  struct Dial {
    PeerAddress address;
    Line line;
    Route route;
    std::optional<CurveKey> key;  ///< that the node must have; none: it speaks plain
    bool fresh = false;           ///< the socket awaits its first attempt
  };
  std::vector<Dial> dials;
  std::vector<Outgoing> leaving;
  std::vector<Line*> asked;   ///< in a sleep
  std::vector<pollfd> items;  ///< the queue's, then theirs
  LinkOutput out;
  bool changed = false;  ///< what there is to poll, or until when, since the last sleep

  WakeQueue<Outgoing> queue;
  std::atomic<bool> stopping = false;
  std::atomic<bool> cutting = false;
  std::thread thread;

  struct Counters {
    std::atomic<std::uint64_t> messages_in = 0;
    std::atomic<std::uint64_t> messages_out = 0;
    std::atomic<std::uint64_t> malformed = 0;
    std::atomic<std::uint64_t> links_up = 0;
    std::atomic<std::uint64_t> links_lost = 0;
    std::atomic<std::uint64_t> refused = 0;
    std::atomic<std::uint64_t> connections_cut = 0;
  } counters;

  /// Queues have no mark of their own: the links bound what is not acknowledged.
  void prepare(zmq::socket_t& socket) const {
    socket.set(zmq::sockopt::sndhwm, 0);
    socket.set(zmq::sockopt::rcvhwm, 0);
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(config.message_bytes_max));
  }

  Result<std::string> listen(Line& line, const std::string& address, bool secured) {
    zmq::socket_t& socket = line.socket;
    try {
      socket = zmq::socket_t(context, zmq::socket_type::router);
      prepare(socket);
      socket.set(zmq::sockopt::router_mandatory, 1);
      socket.set(zmq::sockopt::backlog, 256);
      socket.set(zmq::sockopt::handshake_ivl, handshake_ms);
      if (secured) {
        secure_server(socket, config.curve->keys, config.curve->domain);
        config.curve->guard->watch(socket);
      }
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::io, "cannot make a socket: {}; raise the limits of open files",
                  error.what());
    }
    line.news = true;
    return bind_to(socket, address);
  }

  Result<void> open() {
    if (!config.local_listen.empty())
      if (auto bound = listen(local, config.local_listen, false); !bound)
        return tl::unexpected(bound.error());
    if (!config.listen.empty()) {
      auto bound = listen(router, config.listen, config.curve.has_value());
      if (!bound) return tl::unexpected(bound.error());
      listen_address = *bound;
    }
    for (const auto& address : config.join) {
      dials.push_back({PeerAddress(address), {}, {}, {}, false});
      const auto made = connect(dials.back());
      if (!made && made.error().code == ErrorCode::bad_request) return made;
      dials.back().fresh = made.has_value();
    }
    return queue.open();
  }

  void shut() {
    if (config.curve) Guard::leave(router.socket);
    router.socket.close();
    local.socket.close();
    dials.clear();
  }

  /// A new socket: what an old one still holds, in either direction, is gone with it.
  /// `unauthorized` when the node's key is not listed (now).
  Result<void> connect(Dial& dial) {
    const auto& [endpoint, name] = dial.address;
    zmq::socket_t& socket = dial.line.socket;
    socket.close();
    dial.line.news = false;
    dial.key.reset();
    if (!name.empty()) {
      if (!config.curve)
        return fail(ErrorCode::bad_request,
                    "cannot dial {} as node {}: this node has no key of its own", endpoint, name);
      dial.key = config.curve->guard->key_of(config.curve->domain, name);
      if (!dial.key)
        return fail(ErrorCode::unauthorized,
                    "cannot dial {}: the list of nodes has no key of node {}", endpoint, name);
    }
    try {
      socket = zmq::socket_t(context, zmq::socket_type::dealer);
      prepare(socket);
      socket.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos ? 1 : 0);
      if (dial.key) secure_client(socket, {*dial.key, config.curve->keys});
      socket.connect(endpoint);
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::bad_request,
                  "cannot dial node {}: {}; write tcp://HOST:PORT or ipc://PATH", endpoint,
                  error.what());
    }
    dial.line.news = true;
    return {};
  }

  void run() {
    pthread_setname_np(pthread_self(), "sluice-peers");
    const SignalsBlocked always;
    for (std::uint32_t i = 0; i < dials.size(); ++i) links.dial(i, now_ns(), out);
    settle();
    queue.begin([this] { return stand_in(); });
    while (!stopping) {
      for (auto* line : {&router, &local})
        for (int i = 0; i < batch && line->news; ++i) line->news = receive_accepted(*line);
      for (auto& dial : dials)
        for (int i = 0; i < batch && dial.line.news; ++i) dial.line.news = receive_dialed(dial);
      const bool sent = drain();
      if (cutting.exchange(false)) cut();
      changed = false;
      const auto next = links.tick(now_ns(), out);  // after what came: it may be a sign of life
      settle();
      if (!sent && !news() && !changed) sleep(next);
    }
    drain();
    links.end_all({ErrorCode::cancelled, "the node stops", 0}, now_ns(), out);
    settle();
    for (auto* line : {&router, &local})
      if (line->socket) line->socket.set(zmq::sockopt::linger, linger_ms);
    for (auto& dial : dials)
      if (dial.line.socket) dial.line.socket.set(zmq::sockopt::linger, linger_ms);
    shut();
    queue.end();
  }

  /// Asks descriptors, as `Endpoint` does and for its reasons.
  void sleep(std::uint64_t next) {
    asked.clear();
    for (auto* line : {&router, &local})
      if (line->socket) asked.push_back(line);
    for (auto& dial : dials)
      if (dial.line.socket) asked.push_back(&dial.line);
    items.assign(1, {queue.descriptor(), POLLIN, 0});
    for (const auto* line : asked) items.push_back({line->socket.get(zmq::sockopt::fd), POLLIN, 0});
    const auto now = now_ns();
    constexpr std::uint64_t longest_ms = 60'000;
    const auto wait_ms = next <= now ? 0 : std::min((next - now) / 1'000'000 + 1, longest_ms);
    queue.sleep([&] { return !stopping && !cutting; },
                [&] { ::poll(items.data(), items.size(), static_cast<int>(wait_ms)); });
    for (std::size_t i = 0; i < asked.size(); ++i) asked[i]->news |= items[i + 1].revents != 0;
  }

  bool news() const {
    return router.news || local.news ||
           std::ranges::any_of(dials, [](const Dial& dial) { return dial.line.news; });
  }

  /// A turn of another thread, while the I/O thread sleeps: what was posted. False when there is
  /// something for the I/O thread that its poll will not tell of.
  bool stand_in() {
    drain();
    const auto look = [](Line& line) { line.news = line.news && has_input(line.socket); };
    look(router);
    look(local);
    for (auto& dial : dials) look(dial.line);
    return !changed && !news();
  }

  /// The parts of one message that follow what was taken already; the last one is kept.
  static int take_parts(zmq::socket_t& socket, bool more, zmq::message_t& header,
                        zmq::message_t& payload) {
    int parts = 0;
    while (more) {
      zmq::message_t part;
      if (!socket.recv(part, zmq::recv_flags::dontwait)) break;
      more = part.more();
      if (parts == 0)
        header = std::move(part);
      else
        payload = std::move(part);
      ++parts;
    }
    return parts;
  }

  bool receive_accepted(Line& line) {
    zmq::socket_t& socket = line.socket;
    zmq::message_t peer, header, payload;
    if (!socket.recv(peer, zmq::recv_flags::dontwait)) return false;
    after_receive();
    const int parts = take_parts(socket, peer.more(), header, payload);
    if (!config.curve || &line != &router) {
      const auto prefix = &line == &router ? plain_prefix : local_prefix;
      take(std::string(prefix).append(bytes_of(peer)), parts, header, payload);
      return true;
    }
    // libzmq 4.3 leaves the peer's own frame unmarked
    const auto key = sender_of(header);
    const auto name = config.curve->guard->name_of(config.curve->domain, key);
    if (!name) {  // it was removed a moment ago
      counters.refused += 1;
      return true;
    }
    connections.note(header, key);
    const auto route = fmt::format("{}{} {}", secured_prefix, key, bytes_of(peer));
    take(route, parts, header, payload, LinkKind::hello, *name);
    return true;
  }

  bool receive_dialed(Dial& dial) {
    zmq::message_t header, payload, further;
    zmq::socket_t& socket = dial.line.socket;
    if (!socket || !socket.recv(header, zmq::recv_flags::dontwait)) return false;
    after_receive();
    const int parts = 1 + take_parts(socket, header.more(), payload, further);
    if (!dial.key || config.curve->guard->allows(config.curve->domain, *dial.key))
      take(dial.route, parts, header, payload, LinkKind::welcome, dial.address.name);
    else
      counters.refused += 1;
    settle();  // a new attempt changes the socket
    return true;
  }

  /// `named` is the kind of frame in which the peer says its name, which must be `name` where that
  /// is known.
  void take(const Route& route, int parts, const zmq::message_t& header_part,
            const zmq::message_t& payload, LinkKind named = LinkKind::beat,
            std::string_view name = {}) {
    const auto header = decode_link_header(parts == 2 ? bytes_of(header_part) : "");
    if (!header) {
      counters.malformed += 1;
      return;
    }
    if (!name.empty() && header->kind == named && bytes_of(payload) != name) {
      counters.refused += 1;
      links.reject(route, *header,
                   {ErrorCode::unauthorized,
                    fmt::format("the key that speaks as node {} is listed as node {}'s",
                                bytes_of(payload).substr(0, link_name_bytes_max), name),
                    0},
                   now_ns(), out);
      return settle();
    }
    const auto link = links.on_frame(route, *header, bytes_of(payload), now_ns(), out);
    settle();
    if (!link) return;
    counters.messages_in += 1;
    if (auto taken = handler.message(*link, bytes_of(payload)); !taken) {
      counters.malformed += 1;
      links.end(*link, taken.error(), now_ns(), out);
      settle();
    }
  }

  /// Ends what the list of nodes does not allow any more.
  void cut() {
    if (!config.curve) return;
    const auto& domain = config.curve->domain;  // clang before 16 lets no lambda have a binding
    const auto& guard = config.curve->guard;
    links.review(
        [&](const Route& route, const NodeIdentity& peer) -> std::optional<Error> {
          const auto dial = std::ranges::find(dials, route, &Dial::route);
          std::optional<CurveKey> key;
          if (route.starts_with(secured_prefix))
            key = route.substr(secured_prefix.size(), key_chars);
          else if (dial != dials.end())
            key = dial->key;
          if (!key || guard->name_of(domain, *key) == peer.name) return std::nullopt;
          return Error{
              ErrorCode::unauthorized,
              fmt::format("the list of nodes has no such key of node {} any more", peer.name), 0};
        },
        now_ns(), out);
    settle();
    counters.connections_cut +=
        connections.cut([&](const CurveKey& key) { return guard->allows(domain, key); });
  }

  bool drain() {
    queue.take(leaving);
    for (auto& outgoing : leaving) {
      if (links.send(outgoing.link, std::move(outgoing.message), now_ns(), out))
        counters.messages_out += 1;
      settle();
    }
    const bool any = !leaving.empty();
    leaving.clear();
    return any;
  }

  /// Does what the links asked for, until they ask for nothing more.
  void settle() {
    while (!out.connects.empty() || !out.frames.empty() || !out.ups.empty() || !out.downs.empty() ||
           !out.failures.empty()) {
      const LinkOutput now = std::exchange(out, {});
      changed |= !now.connects.empty() || !now.ups.empty() || !now.downs.empty();
      for (const auto& connect_to : now.connects) {
        auto& dial = dials[connect_to.dial];
        dial.route = connect_to.route;
        if (std::exchange(dial.fresh, false)) continue;
        if (auto made = connect(dial); !made)
          links.reject(dial.route, {}, made.error(), now_ns(), out);
      }
      for (const auto& frame : now.frames) send(frame);
      for (const auto& up : now.ups) handler.up(up);
      for (const auto& down : now.downs) handler.down(down);
      for (const auto& failure : now.failures) handler.failed(failure);
      counters.links_lost += now.downs.size();
      counters.links_up = links.up_count();
    }
  }

  void send(const LinkFrame& frame) {
    before_send();
    if (const auto peer = accepted_peer(frame.route)) {
      Line& line = frame.route.starts_with(local_prefix) ? local : router;
      zmq::socket_t& socket = line.socket;
      line.news = true;
      try {
        if (socket.send(zmq::buffer(*peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait)) {
          socket.send(zmq::buffer(frame.header), zmq::send_flags::sndmore);
          socket.send(zmq::buffer(frame.payload), zmq::send_flags::dontwait);
          return;
        }
      } catch (const zmq::error_t& error) {
        SLUICE_ASSERT(error.num() == EHOSTUNREACH, error.what());
      }
      changed = true;
      return links.on_unreachable(frame.route, now_ns(), out);
    }
    for (auto& dial : dials) {
      zmq::socket_t& socket = dial.line.socket;
      if (dial.route != frame.route || !socket) continue;
      dial.line.news = true;
      socket.send(zmq::buffer(frame.header), zmq::send_flags::sndmore | zmq::send_flags::dontwait);
      socket.send(zmq::buffer(frame.payload), zmq::send_flags::dontwait);
    }
  }
};

PeerEndpoint::PeerEndpoint(zmq::context_t& context, PeerConfig config, NodeIdentity self,
                           Handler handler)
    : state_(std::make_unique<State>(context, std::move(config), std::move(self),
                                     std::move(handler))) {}

PeerEndpoint::~PeerEndpoint() { stop(); }

Result<void> PeerEndpoint::start() {
  SLUICE_ASSERT(!state_->thread.joinable(), "an endpoint starts once");
  if (auto opened = state_->open(); !opened) {
    state_->shut();
    return opened;
  }
  state_->thread = std::thread([state = state_.get()] { state->run(); });
  return {};
}

void PeerEndpoint::stop() {
  if (!state_->thread.joinable()) return;
  state_->stopping = true;
  state_->queue.wake();
  state_->thread.join();
}

void PeerEndpoint::send(LinkId link, std::string message) {
  state_->queue.post({link, std::move(message)});
}

void PeerEndpoint::cut_removed() {
  state_->cutting = true;
  state_->queue.wake();
}

const std::string& PeerEndpoint::listen_address() const { return state_->listen_address; }

PeerStats PeerEndpoint::stats() const {
  const auto& counters = state_->counters;
  return {counters.messages_in, counters.messages_out, counters.malformed,      counters.links_up,
          counters.links_lost,  counters.refused,      counters.connections_cut};
}

}  // namespace sluice::transport
