#include "transport/client.hpp"

#include <poll.h>
#include <sodium.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <utility>
#include <zmq.hpp>

#include "transport/curve.hpp"
#include "transport/handover.hpp"
#include "transport/sockets.hpp"

namespace sluice::transport {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// A node silent for three of these is taken for lost, and connected to again.
constexpr int heartbeat_ms = 2000;

/// With several fronts to choose from: silence from the one at hand, while something is due, after
/// which the next is tried. Longer than a node lets a follower wait for a sign of life.
constexpr milliseconds front_silence{4000};

/// The same for one that has not answered at all.
constexpr milliseconds front_greeting{1500};

/// How long a closed client still tries to get rid of its last acks.
constexpr milliseconds linger{500};

constexpr milliseconds tick_interval{500};

/// So often a node may close a new connection, as one that is being stopped does, before that is
/// taken for its answer.
constexpr int closed_handshakes_max = 3;

/// Ended streams whose terminal may still come again and is acknowledged then.
constexpr std::size_t ended_streams_max = 1024;

/// More streams than are submitted before libzmq's thread has taken the first: what finds the queue
/// full is only said again when the node was silent for long.
constexpr int send_queue_messages = 65'536;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(Clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

/// A node that listens on every address names none; it is reached where its requests were sent.
std::string reachable(const std::string& publish, const std::string& connected) {
  constexpr std::string_view tcp = "tcp://";
  if (!publish.starts_with(tcp) || !connected.starts_with(tcp)) return publish;
  const auto host = [tcp](const std::string& address) {
    return address.substr(tcp.size(), address.rfind(':') - tcp.size());
  };
  const std::string said = host(publish);
  if (said != "*" && said != "0.0.0.0" && said != "[::]" && said != "::") return publish;
  return std::string(tcp) + host(connected) + publish.substr(publish.rfind(':'));
}

std::optional<StreamId> stream_named(const Message& message) {
  return std::visit(
      []<class M>(const M& m) -> std::optional<StreamId> {
        if constexpr (requires { m.stream; })
          return m.stream;
        else
          return std::nullopt;
      },
      message);
}

}  // namespace

struct Client::State {
  struct Stream {
    std::unique_ptr<ClientStream> state;
    bool subscribed = false;
  };

  ClientConfig config;
  std::vector<std::string> fronts;
  std::size_t front = 0;      ///< the one at hand
  bool greeted = false;       ///< by the one at hand
  bool disconnected = false;  ///< so the socket said
  Clock::time_point heard = Clock::now();
  std::unique_ptr<zmq::context_t> own_context;
  zmq::context_t* context = nullptr;
  zmq::socket_t dealer;
  zmq::socket_t subscriber;
  zmq::socket_t monitor;
  std::string subscribed_to;
  Limits limits;
  bool connected_before = false;
  bool dealer_news = true;  ///< the socket may have something
  bool subscriber_news = true;
  bool monitor_news = true;
  int closed_handshakes = 0;
  std::optional<Error> unwelcome;  // the handshake said so: the node will not have this client

  std::optional<Welcome> welcome;
  std::optional<Stats> stats;
  std::optional<Health> health;
  std::optional<Error> stray;  // an error that named no stream

  std::map<StreamId, Stream> streams;
  std::deque<StreamId> ended;  // oldest first
  std::deque<Event> events;
  Clock::time_point ticked = Clock::now();

  ~State() { leave_sockets(); }

  std::uint64_t patience_ns() const {
    return static_cast<std::uint64_t>(std::chrono::nanoseconds(config.lost_timeout).count());
  }

  Result<void> open(zmq::context_t* given) {
    const CurveClient& curve = config.curve;
    for (const CurveKey& key : {curve.server_key, curve.keys.public_key, curve.keys.secret_key})
      if (is_curve_key(key) == key.empty() || key.empty() != curve.server_key.empty())
        return fail(ErrorCode::bad_request,
                    "CURVE needs three keys of 40 characters: the node's public one and both of "
                    "the client");
    if (given == nullptr) own_context = std::make_unique<zmq::context_t>(1);
    context = given != nullptr ? given : own_context.get();
    for (std::size_t at = 0; at <= config.connect.size();) {
      const std::size_t end = std::min(config.connect.find(',', at), config.connect.size());
      fronts.push_back(config.connect.substr(at, end - at));
      at = end + 1;
    }
    for (front = fronts.size(); front-- > 0;)  // a typing error in any of them is told at once
      if (auto opened = open_sockets(); !opened) return opened;
    front = 0;
    return {};
  }

  const std::string& address() const { return fronts[front]; }

  /// To the front at hand; what the sockets before them still held is gone.
  Result<void> open_sockets() {
    leave_sockets();
    try {
      dealer = zmq::socket_t(*context, zmq::socket_type::dealer);
      subscriber = zmq::socket_t(*context, zmq::socket_type::sub);
      for (zmq::socket_t* socket : {&dealer, &subscriber}) {
        socket->set(zmq::sockopt::linger, 0);
        // Unlimited, because libzmq 4.3 aborts the process when a connection with a full queue is
        // lost and made anew (libzmq issue 3937). The window bounds what a node sends.
        socket->set(zmq::sockopt::rcvhwm, 0);
        socket->set(zmq::sockopt::sndhwm, send_queue_messages);
        socket->set(zmq::sockopt::heartbeat_ivl, heartbeat_ms);
        socket->set(zmq::sockopt::heartbeat_timeout, 3 * heartbeat_ms);
        socket->set(zmq::sockopt::ipv6, address().find('[') != std::string::npos ? 1 : 0);
        if (!config.curve.server_key.empty()) secure_client(*socket, config.curve);
      }
      watch();
      dealer.connect(address());
    } catch (const zmq::error_t& error) {
      return fail(ErrorCode::bad_request,
                  "cannot connect to {}: {}; write tcp://HOST:PORT, ipc://PATH or inproc://NAME",
                  address(), error.what());
    }
    dealer_news = subscriber_news = monitor_news = true;
    return {};
  }

  bool something_is_due() const { return !welcome || streams.size() > ended.size(); }

  /// Streams go on at the next front: it does not know them, and is given the tokens held.
  void turn_to_next_front() {
    front = (front + 1) % fronts.size();
    heard = Clock::now();
    greeted = disconnected = false;
    closed_handshakes = 0;
    connected_before = true;  // so that the handshake is followed by what is due
    subscribed_to.clear();
    if (auto opened = open_sockets(); !opened) return;  // the silence will tell
    dealer.set(zmq::sockopt::linger, static_cast<int>(linger.count()));
    for (const auto& [id, stream] : streams)
      if (stream.subscribed && !stream.state->ended())
        subscriber.set(zmq::sockopt::subscribe,
                       std::string_view(reinterpret_cast<const char*>(id.data()), id.size()));
  }

  bool front_is_lost() const {
    if (fronts.size() < 2 || !something_is_due()) return false;
    return disconnected || Clock::now() - heard > (greeted ? front_silence : front_greeting);
  }

  /// Has libzmq tell when a connection was made, so that a new one after a loss is noticed: the
  /// node then knows this client by another name. And when none could be, and why.
  void watch() {
    std::array<std::uint8_t, 8> name;
    randombytes_buf(name.data(), name.size());
    const std::string address = "inproc://sluice-client-" + to_hex(name);
    constexpr int told = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                         ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                         ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (zmq_socket_monitor(dealer.handle(), address.c_str(), told) != 0) throw zmq::error_t();
    monitor = zmq::socket_t(*context, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::linger, 0);
    monitor.connect(address);
  }

  /// A connection that is made while its socket closes would be told to a monitor that is gone, and
  /// libzmq's own thread waits for one without end.
  void leave_sockets() {
    if (dealer) zmq_socket_monitor(dealer.handle(), nullptr, 0);
  }

  /// Says hello until somebody answers.
  Result<void> greet() {
    const auto deadline = Clock::now() + config.connect_timeout;
    send(Hello{protocol_version, protocol_version, config.name});
    while (!welcome) {
      const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
      if (left.count() <= 0)
        return fail(ErrorCode::unavailable,
                    "no answer from {} within {} ms: is a node running there? "
                    "`sluice node --listen {}` starts one",
                    config.connect, config.connect_timeout.count(), address());
      pump(left);
      if (unwelcome) return tl::unexpected(*unwelcome);
      if (!stray) continue;
      const Error error = *std::exchange(stray, std::nullopt);
      const milliseconds retry(error.retry_after_ms);
      if (retry.count() == 0 || retry >= left) return tl::unexpected(error);
      // Still loading: as it asks, later again.
      const auto again = Clock::now() + retry;
      while (!welcome && Clock::now() < again)
        pump(std::chrono::ceil<milliseconds>(again - Clock::now()));
      if (!welcome) send(Hello{protocol_version, protocol_version, config.name});
    }
    dealer.set(zmq::sockopt::linger, static_cast<int>(linger.count()));
    return {};
  }

  bool send(const Message& message) { return send_frame(encode(message)); }
  bool send_frame(const std::string& frame) {
    // Full only when nothing was taken for long: what it said is asked for again later.
    before_send();
    dealer_news = true;
    return dealer.send(zmq::buffer(frame), zmq::send_flags::dontwait).has_value();
  }
  void send_all(const std::vector<Message>& messages) {
    for (const Message& message : messages) send(message);
  }

  /// Waits for something to come and takes it.
  void pump(milliseconds wait) {
    // The descriptors, and only sockets that may have something: see endpoint.cpp.
    pollfd items[] = {{dealer.get(zmq::sockopt::fd), POLLIN, 0},
                      {subscriber.get(zmq::sockopt::fd), POLLIN, 0},
                      {monitor.get(zmq::sockopt::fd), POLLIN, 0}};
    const bool any_news = dealer_news || subscriber_news || monitor_news;
    wait = any_news ? milliseconds(0) : std::clamp(wait, milliseconds(0), tick_interval);
    // A signal ends it with an error: the caller looks whether it was meant.
    if (::poll(items, std::size(items), static_cast<int>(wait.count())) < 0) return;
    dealer_news |= items[0].revents != 0;
    subscriber_news |= items[1].revents != 0;
    monitor_news |= items[2].revents != 0;
    if (monitor_news) take_connections();
    if (dealer_news) take_frames(dealer, dealer_news);
    if (subscriber_news) take_frames(subscriber, subscriber_news);
    if (front_is_lost()) turn_to_next_front();
    if (Clock::now() - ticked < tick_interval) return;
    ticked = Clock::now();
    for (auto& [id, stream] : streams) tick(id, stream);
    forget_oldest();
  }

  void take_connections() {
    bool again = false;
    zmq::message_t part;
    while (monitor.recv(part, zmq::recv_flags::dontwait)) {
      std::uint16_t event = 0;  // then its value, in 32 bits; the address follows
      if (!part.more() || part.size() < sizeof event) continue;
      std::memcpy(&event, part.data(), sizeof event);
      if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
        again = std::exchange(connected_before, true);
      else if (event == ZMQ_EVENT_DISCONNECTED)
        disconnected = true;
      else
        take_failed_handshake(event);
    }
    monitor_news = false;
    if (!again) return;
    send(Hello{protocol_version, protocol_version, config.name});  // it may publish elsewhere now
    std::vector<Message> sends;
    for (auto& [id, stream] : streams) stream.state->on_connected(now_ns(), sends);
    send_all(sends);
  }

  /// libzmq connects again after some of these and not after others. Once this client was let in,
  /// only a refused key is final: a node that stops closes connections too.
  void take_failed_handshake(std::uint16_t event) {
    const auto refused = [&](std::string why) {
      unwelcome = Error{ErrorCode::unauthorized, std::move(why), 0};
      if (welcome) give_up(*unwelcome);
    };
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
      return refused(
          fmt::format("{} refused the key {}: it is not in the node's allow list; give "
                      "it to whoever runs the node",
                      address(), config.curve.keys.public_key));
    if (connected_before || unwelcome) return;
    const bool closed = event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (closed && ++closed_handshakes < closed_handshakes_max) return;
    if (config.curve.server_key.empty())
      return refused(
          fmt::format("{} does not take plain connections: give the node's public key "
                      "and your own (--server-key and --key)",
                      address()));
    const std::string& key = config.curve.server_key;
    if (closed)
      return refused(fmt::format("{} broke off the handshake: {} is not its key, or it has none",
                                 address(), key));
    refused(
        fmt::format("{} does not speak CURVE, so it is not the holder of {}: leave out "
                    "--server-key only if plain text will do",
                    address(), key));
  }

  /// libzmq does not come back to a node that refused the key: every stream ends here.
  void give_up(const Error& why) {
    if (streams.size() == ended.size()) stray = why;
    for (const auto& [id, stream] : streams) {
      if (stream.state->ended()) continue;
      ClientEvent event;
      event.failed = Failed{id, 0, why};
      events.push_back({id, std::move(event)});
    }
    streams.clear();
    ended.clear();
  }

  /// `news` is false once nothing was found.
  void take_frames(zmq::socket_t& socket, bool& news) {
    zmq::message_t part;
    for (int i = 0; i < 64; ++i) {
      if (!socket.recv(part, zmq::recv_flags::dontwait)) {
        news = false;
        return;
      }
      after_receive();
      while (part.more())
        if (!socket.recv(part, zmq::recv_flags::dontwait)) break;
      // What a later version says and this one cannot read is passed over.
      if (const auto message = decode(bytes_of(part), limits)) take(*message);
    }
  }

  void take(const Message& message) {
    heard = Clock::now();
    if (const auto* answer = std::get_if<Welcome>(&message)) {
      welcome = *answer;
      greeted = true;
      disconnected = false;
      for (const auto& [id, stream] : streams)
        if (stream.subscribed) follow_publisher();
    } else if (const auto* values = std::get_if<Stats>(&message)) {
      stats = *values;
    } else if (const auto* state = std::get_if<Health>(&message)) {
      health = *state;
    } else if (const auto id = stream_named(message)) {
      const auto found = streams.find(*id);
      if (found == streams.end()) return;
      take(*id, found->second, message);
      forget_oldest();
    } else if (const auto* failed = std::get_if<Failed>(&message)) {
      const bool later = failed->error.code == ErrorCode::unavailable &&
                         failed->error.retry_after_ms > 0 && streams.size() > ended.size();
      if (!later) {
        stray = failed->error;
        return;
      }
      // A node that was started anew and loads: what is under way goes on after it.
      for (auto& [name, stream] : streams)
        stream.state->on_unavailable(now_ns(), failed->error.retry_after_ms * 1'000'000ULL);
    }
  }

  void take(const StreamId& id, Stream& stream, const Message& message) {
    step(id, stream, [&](auto& sends, auto& news) {
      stream.state->on_message(message, now_ns(), sends, news);
    });
  }

  void tick(const StreamId& id, Stream& stream) {
    step(id, stream, [&](auto& sends, auto& news) { stream.state->tick(now_ns(), sends, news); });
  }

  /// Lets the stream do something, sends what it says and hands on what it has.
  template <class Does>
  void step(const StreamId& id, Stream& stream, Does does) {
    std::vector<Message> sends;
    std::vector<ClientEvent> news;
    const bool was_over = stream.state->ended();
    does(sends, news);
    send_all(sends);
    for (ClientEvent& event : news) events.push_back({id, std::move(event)});
    if (was_over || !stream.state->ended()) return;
    if (stream.subscribed)
      zmq_setsockopt(subscriber.handle(), ZMQ_UNSUBSCRIBE, id.data(), id.size());
    subscriber_news |= stream.subscribed;
    ended.push_back(id);
  }

  /// Keeps only so many of the streams that ended.
  void forget_oldest() {
    for (; ended.size() > ended_streams_max; ended.pop_front()) streams.erase(ended.front());
  }

  void add(const StreamId& id, Stream stream) {
    std::vector<Message> sends;
    stream.state->on_connected(now_ns(), sends);
    std::erase(ended, id);  // it may come again under a higher epoch
    streams.insert_or_assign(id, std::move(stream));
    send_all(sends);
  }

  void follow_publisher() {
    const std::string publisher = reachable(welcome->publish, address());
    if (publisher == subscribed_to) return;
    if (!subscribed_to.empty()) subscriber.disconnect(subscribed_to);
    subscribed_to.clear();
    subscriber.connect(publisher);
    subscriber_news = true;
    subscribed_to = publisher;
  }

  /// Waits until `answer` is filled.
  template <class Answer>
  Result<Answer> ask(const Message& question, std::optional<Answer>& answer, milliseconds timeout) {
    const auto deadline = Clock::now() + timeout;
    answer.reset();
    stray.reset();
    send(question);
    while (!answer) {
      const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
      if (left.count() <= 0)
        return fail(ErrorCode::unavailable, "{} did not answer within {} ms", config.connect,
                    timeout.count());
      pump(left);
      if (!answer && stray) return tl::unexpected(*std::exchange(stray, std::nullopt));
    }
    return *std::move(answer);
  }
};

Client::Client(std::unique_ptr<State> state) : state_(std::move(state)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::connect(ClientConfig config, zmq::context_t* context) {
  if (sodium_init() < 0) return fail(ErrorCode::internal, "libsodium cannot be used here");
  auto state = std::make_unique<State>();
  state->config = std::move(config);
  if (auto opened = state->open(context); !opened) return tl::unexpected(opened.error());
  if (auto greeted = state->greet(); !greeted) return tl::unexpected(greeted.error());
  return std::unique_ptr<Client>(new Client(std::move(state)));
}

const Welcome& Client::welcome() const { return *state_->welcome; }

Submit Client::new_submit() {
  Submit submit;
  submit.stream = random_stream_id();
  submit.owner = random_stream_id();
  submit.sampling.seed = random_seed();
  return submit;
}

Result<StreamId> Client::submit(Submit submit) {
  if (state_->unwelcome) return tl::unexpected(*state_->unwelcome);
  if (submit.stream == StreamId{}) submit.stream = random_stream_id();
  if (submit.owner == OwnerSecret{}) submit.owner = random_stream_id();
  const auto found = state_->streams.find(submit.stream);
  if (found != state_->streams.end() && !found->second.state->ended())
    return fail(ErrorCode::conflict, "stream {} is followed already", to_hex(submit.stream));
  const std::size_t bytes = encode(submit).size();
  if (bytes > state_->welcome->frame_bytes_max && state_->welcome->frame_bytes_max != 0)
    return fail(ErrorCode::too_large, "the request has {} bytes; the node takes {}", bytes,
                state_->welcome->frame_bytes_max);
  State::Stream stream;
  stream.state =
      std::make_unique<ClientStream>(submit, state_->welcome->window_tokens, state_->patience_ns());
  state_->add(submit.stream, std::move(stream));
  return submit.stream;
}

Result<void> Client::subscribe(const StreamId& id, std::uint32_t from) {
  const auto found = state_->streams.find(id);
  if (found != state_->streams.end() && !found->second.state->ended())
    return fail(ErrorCode::conflict, "stream {} is followed already", to_hex(id));
  try {
    state_->follow_publisher();
    state_->subscriber_news = true;
    state_->subscriber.set(zmq::sockopt::subscribe,
                           std::string_view(reinterpret_cast<const char*>(id.data()), id.size()));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::io, "cannot subscribe at {}: {}", state_->welcome->publish,
                error.what());
  }
  State::Stream stream;
  stream.state = std::make_unique<ClientStream>(id, from, true, state_->welcome->window_tokens,
                                                state_->patience_ns());
  stream.subscribed = true;
  state_->add(id, std::move(stream));
  return {};
}

void Client::cancel(const StreamId& id) {
  const auto found = state_->streams.find(id);
  if (found == state_->streams.end()) return;
  std::vector<Message> sends;
  found->second.state->cancel(sends);
  state_->send_all(sends);
}

std::optional<Client::Event> Client::next(milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (!state_->events.empty()) {
      Event event = std::move(state_->events.front());
      state_->events.pop_front();
      return event;
    }
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    state_->pump(left);
    if (state_->stray) {  // belongs to no stream: the caller may know what it meant
      ClientEvent event;
      event.failed = Failed{std::nullopt, 0, *std::exchange(state_->stray, std::nullopt)};
      return Event{StreamId{}, std::move(event)};
    }
    if (state_->events.empty() && Clock::now() >= deadline) return std::nullopt;
  }
}

Result<Stats> Client::stats(milliseconds timeout) {
  return state_->ask(StatsRequest{}, state_->stats, timeout);
}

Result<Health> Client::health(milliseconds timeout) {
  return state_->ask(HealthRequest{}, state_->health, timeout);
}

StreamId Client::random_stream_id() {
  StreamId id;
  randombytes_buf(id.data(), id.size());
  return id;
}

std::uint64_t Client::random_seed() {
  std::uint64_t seed = 0;
  randombytes_buf(&seed, sizeof seed);
  return seed;
}

}  // namespace sluice::transport
