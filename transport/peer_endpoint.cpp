#include "transport/peer_endpoint.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>
#include <utility>
#include <variant>
#include <zmq.hpp>

#include "transport/bind.hpp"
#include "transport/handover.hpp"
#include "transport/wake_queue.hpp"

namespace sluice::transport {
namespace {

/// Frames taken from a socket before the other work gets its turn.
constexpr int batch = 64;

/// How long a goodbye may take to leave when the node stops.
constexpr int linger_ms = 200;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::steady_clock::now().time_since_epoch().count());
}

std::string_view bytes_of(const zmq::message_t& message) {
  return {static_cast<const char*>(message.data()), message.size()};
}

LinkConfig link_config(const PeerConfig& config) {
  LinkConfig link;
  link.lost_ns = std::uint64_t{config.lost_ms} * 1'000'000;
  link.beat_ns = link.lost_ns / 5;
  link.bytes_max = std::max(link.bytes_max, config.message_bytes_max * 4);
  return link;
}

struct Outgoing {
  LinkId link = 0;
  std::variant<std::string, Error> what;  ///< a message, or why the link ends
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
  zmq::socket_t router;
  struct Dial {
    std::string address;
    zmq::socket_t socket;
    Route route;
  };
  std::vector<Dial> dials;
  std::vector<Outgoing> leaving;
  LinkOutput out;

  WakeQueue<Outgoing> queue;
  std::atomic<bool> stopping = false;
  std::thread thread;

  struct Counters {
    std::atomic<std::uint64_t> messages_in = 0;
    std::atomic<std::uint64_t> messages_out = 0;
    std::atomic<std::uint64_t> malformed = 0;
    std::atomic<std::uint64_t> links_up = 0;
    std::atomic<std::uint64_t> links_lost = 0;
  } counters;

  /// Queues have no mark of their own: the links bound what is not acknowledged.
  void prepare(zmq::socket_t& socket) const {
    socket.set(zmq::sockopt::sndhwm, 0);
    socket.set(zmq::sockopt::rcvhwm, 0);
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(config.message_bytes_max));
  }

  Result<void> open() {
    if (!config.listen.empty() || !config.local_listen.empty()) {
      try {
        router = zmq::socket_t(context, zmq::socket_type::router);
        prepare(router);
        router.set(zmq::sockopt::router_mandatory, 1);
        router.set(zmq::sockopt::backlog, 256);
      } catch (const zmq::error_t& error) {
        return fail(ErrorCode::io, "cannot make a socket: {}; raise the limits of open files",
                    error.what());
      }
      if (!config.local_listen.empty())
        if (auto bound = bind_to(router, config.local_listen); !bound)
          return tl::unexpected(bound.error());
      if (!config.listen.empty()) {
        auto bound = bind_to(router, config.listen);
        if (!bound) return tl::unexpected(bound.error());
        listen_address = *bound;
      }
    }
    for (const auto& address : config.join) {
      dials.push_back({address, {}, {}});
      if (auto made = connect(dials.back()); !made) return made;
    }
    return queue.open();
  }

  /// A new socket: what an old one still holds, in either direction, is gone with it.
  Result<void> connect(Dial& dial) {
    try {
      dial.socket = zmq::socket_t(context, zmq::socket_type::dealer);
      prepare(dial.socket);
      dial.socket.set(zmq::sockopt::ipv6, dial.address.find('[') != std::string::npos ? 1 : 0);
      dial.socket.connect(dial.address);
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::bad_request,
                  "cannot dial node {}: {}; write tcp://HOST:PORT or ipc://PATH", dial.address,
                  error.what());
    }
    return {};
  }

  void run() {
    pthread_setname_np(pthread_self(), "sluice-peers");
    sigset_t all;  // signals are the other threads' business: nothing here is ever interrupted
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (std::uint32_t i = 0; i < dials.size(); ++i) links.dial(i, now_ns(), out);
    settle();
    while (!stopping) {
      bool worked = false;
      if (router)
        for (int i = 0; i < batch && receive_accepted(); ++i) worked = true;
      for (auto& dial : dials)
        for (int i = 0; i < batch && receive_dialed(dial); ++i) worked = true;
      worked |= drain();
      const auto next = links.tick(now_ns(), out);  // after what came: it may be a sign of life
      settle();
      if (!worked) sleep(next);
    }
    drain();
    links.end_all({ErrorCode::cancelled, "the node stops", 0}, now_ns(), out);
    settle();
    if (router) router.set(zmq::sockopt::linger, linger_ms);
    for (auto& dial : dials) dial.socket.set(zmq::sockopt::linger, linger_ms);
    router.close();
    dials.clear();
  }

  void sleep(std::uint64_t next) {
    std::vector<zmq::pollitem_t> items{{nullptr, queue.descriptor(), ZMQ_POLLIN, 0}};
    if (router) items.push_back({router.handle(), 0, ZMQ_POLLIN, 0});
    for (auto& dial : dials) items.push_back({dial.socket.handle(), 0, ZMQ_POLLIN, 0});
    const auto now = now_ns();
    const auto wait_ms =
        next == UINT64_MAX ? -1 : next <= now ? 0 : static_cast<long>((next - now) / 1'000'000 + 1);
    queue.sleep([&] { return !stopping; },
                [&] { zmq::poll(items, std::chrono::milliseconds(wait_ms)); });
  }

  /// The parts of one message that follow what was taken already; the last one is kept.
  static int take_parts(zmq::socket_t& socket, bool more, zmq::message_t& header,
                        zmq::message_t& payload) {
    int parts = 0;
    while (more) {
      zmq::message_t part;
      if (!socket.recv(part, zmq::recv_flags::dontwait)) break;
      more = part.more();
      if (parts == 0) header = std::move(part);
      else payload = std::move(part);
      ++parts;
    }
    return parts;
  }

  bool receive_accepted() {
    zmq::message_t peer, header, payload;
    if (!router.recv(peer, zmq::recv_flags::dontwait)) return false;
    after_receive();
    const int parts = take_parts(router, peer.more(), header, payload);
    take(accepted_route(bytes_of(peer)), parts, header, payload);
    return true;
  }

  bool receive_dialed(Dial& dial) {
    zmq::message_t header, payload, further;
    if (!dial.socket.recv(header, zmq::recv_flags::dontwait)) return false;
    after_receive();
    const int parts = 1 + take_parts(dial.socket, header.more(), payload, further);
    take(dial.route, parts, header, payload);
    settle();  // a new attempt changes the socket
    return true;
  }

  void take(const Route& route, int parts, const zmq::message_t& header_part,
            const zmq::message_t& payload) {
    const auto header = decode_link_header(parts == 2 ? bytes_of(header_part) : "");
    if (!header) {
      counters.malformed += 1;
      return;
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

  bool drain() {
    queue.take(leaving);
    for (auto& outgoing : leaving) {
      if (auto* message = std::get_if<std::string>(&outgoing.what)) {
        if (links.send(outgoing.link, std::move(*message), now_ns(), out))
          counters.messages_out += 1;
      } else {
        links.end(outgoing.link, std::get<Error>(outgoing.what), now_ns(), out);
      }
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
      for (const auto& connect_to : now.connects) {
        auto& dial = dials[connect_to.dial];
        dial.route = connect_to.route;
        if (auto made = connect(dial); !made) links.on_unreachable(dial.route, now_ns(), out);
      }
      for (const auto& frame : now.frames) send(frame);
      for (const auto& up : now.ups) handler.up(up);
      for (const auto& down : now.downs) handler.down(down);
      for (const auto& failure : now.failures) handler.failed(failure);
      counters.links_lost += now.downs.size();
      counters.links_up = links.up_count();
    }
  }

  static Route accepted_route(std::string_view peer) { return "in " + std::string(peer); }

  void send(const LinkFrame& frame) {
    before_send();
    if (frame.route.starts_with("in ")) {
      const std::string_view peer = std::string_view(frame.route).substr(3);
      try {
        if (router.send(zmq::buffer(peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait)) {
          router.send(zmq::buffer(frame.header), zmq::send_flags::sndmore);
          router.send(zmq::buffer(frame.payload), zmq::send_flags::dontwait);
          return;
        }
      } catch (const zmq::error_t& error) {
        SLUICE_ASSERT(error.num() == EHOSTUNREACH, error.what());
      }
      return links.on_unreachable(frame.route, now_ns(), out);
    }
    for (auto& dial : dials) {
      if (dial.route != frame.route) continue;
      dial.socket.send(zmq::buffer(frame.header),
                       zmq::send_flags::sndmore | zmq::send_flags::dontwait);
      dial.socket.send(zmq::buffer(frame.payload), zmq::send_flags::dontwait);
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
    state_->router.close();
    state_->dials.clear();
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

void PeerEndpoint::end(LinkId link, Error why) { state_->queue.post({link, std::move(why)}); }

const std::string& PeerEndpoint::listen_address() const { return state_->listen_address; }

PeerStats PeerEndpoint::stats() const {
  const auto& counters = state_->counters;
  return {counters.messages_in, counters.messages_out, counters.malformed, counters.links_up,
          counters.links_lost};
}

}  // namespace sluice::transport
