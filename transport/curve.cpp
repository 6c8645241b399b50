#include "transport/curve.hpp"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "transport/handover.hpp"
#include "transport/signals.hpp"

namespace sluice::transport {
namespace {

constexpr std::size_t key_bytes = 32;

/// ZMQ_ZAP_ENFORCE_DOMAIN: a draft's name in 4.3's header, but in force in every build. Without it
/// a context that has no guard lets everybody in.
constexpr int enforce_domain = 93;

constexpr std::uint64_t line_interval_ns = 5'000'000'000;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                    std::chrono::nanoseconds(1));
}

std::string_view text_of(const zmq::message_t& message) {
  return {static_cast<const char*>(message.data()), message.size()};
}

CurveKey to_text(const zmq::message_t& raw) {
  std::array<char, 41> text{};
  zmq_z85_encode(text.data(), static_cast<const std::uint8_t*>(raw.data()), raw.size());
  return text.data();
}

/// Why a handshake ended, of a monitor's event.
std::string reason_of(std::uint16_t event, std::uint32_t value) {
  if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) {
    if (value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH) return "it does not speak CURVE";
    if (value == ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
      return "its bytes do not fit the node's key: a wrong server key, or a replay";
    return "it broke the protocol";
  }
  return "it was broken off, or not finished in time";
}

}  // namespace

void secure_server(zmq::socket_t& socket, const CurveKeyPair& keys, const std::string& domain) {
  SLUICE_ASSERT(!domain.empty(), "an empty domain asks nobody");
  const int one = 1;
  if (zmq_setsockopt(socket.handle(), enforce_domain, &one, sizeof one) != 0) throw zmq::error_t();
  socket.set(zmq::sockopt::zap_domain, domain);
  socket.set(zmq::sockopt::curve_server, true);
  socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
}

void secure_client(zmq::socket_t& socket, const CurveClient& client) {
  socket.set(zmq::sockopt::curve_serverkey, client.server_key);
  socket.set(zmq::sockopt::curve_publickey, client.keys.public_key);
  socket.set(zmq::sockopt::curve_secretkey, client.keys.secret_key);
}

CurveKey sender_of(zmq::message_t& message) {
  const char* const key = zmq_msg_gets(message.handle(), "User-Id");
  return key == nullptr ? "" : key;
}

std::uint64_t LineLimit::due(std::uint64_t now_ns, std::uint64_t more) {
  kept_ += more;
  if (kept_ == 0) return 0;
  if (said_ && now_ns - said_ns_ < interval_ns_) return 0;
  said_ = true;
  said_ns_ = now_ns;
  return std::exchange(kept_, 0);
}

struct Guard::State {
  explicit State(zmq::context_t& in, Log to) : context(in), log(std::move(to)) {}

  zmq::context_t& context;
  Log log;
  zmq::socket_t questions;
  std::list<zmq::socket_t> monitors;  // of the guard's thread
  LineLimit keys_limit{line_interval_ns};
  LineLimit handshakes_limit{line_interval_ns};

  mutable std::mutex mutex;
  std::map<std::string, std::map<CurveKey, std::string>> allowed;  // by domain: whose each key is
  std::vector<zmq::socket_t> arriving;  // monitors that the thread is to take over

  std::atomic<std::uint64_t> admitted = 0;
  std::atomic<std::uint64_t> keys_refused = 0;
  std::atomic<std::uint64_t> handshakes_failed = 0;
  std::atomic<std::uint64_t> watched = 0;
  std::atomic<bool> stopping = false;
  int wake_fd = -1;
  std::thread thread;

  ~State() {
    if (thread.joinable()) {
      stopping = true;
      wake();
      thread.join();
    }
    if (wake_fd >= 0) close(wake_fd);
  }

  void wake() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = write(wake_fd, &one, sizeof one);
  }

  void run() {
    pthread_setname_np(pthread_self(), "sluice-guard");
    const SignalsBlocked always;
    std::vector<zmq::pollitem_t> items;
    while (!stopping) {
      items.assign({{nullptr, wake_fd, ZMQ_POLLIN, 0}, {questions.handle(), 0, ZMQ_POLLIN, 0}});
      for (auto& monitor : monitors) items.push_back({monitor.handle(), 0, ZMQ_POLLIN, 0});
      zmq::poll(items.data(), items.size(), std::chrono::milliseconds(-1));
      if (items[0].revents != 0) take_over();
      while (answer()) {
      }
      for (auto at = monitors.begin(); at != monitors.end();)
        at = take_events(*at) ? std::next(at) : monitors.erase(at);
    }
    questions.close();
    monitors.clear();
  }

  void take_over() {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto taken = read(wake_fd, &count, sizeof count);
    const std::lock_guard lock(mutex);
    for (auto& monitor : arriving) monitors.push_back(std::move(monitor));
    arriving.clear();
  }

  /// Answers one question about a key, if there is one.
  bool answer() {
    // version, request, domain, address, identity, mechanism, credentials
    std::array<zmq::message_t, 7> frames;
    std::size_t count = 0;
    for (bool more = true; more;) {
      zmq::message_t frame;
      if (!questions.recv(frame, zmq::recv_flags::dontwait)) return false;
      more = frame.more();
      if (count < frames.size()) frames[count] = std::move(frame);
      ++count;
    }
    after_receive();
    CurveKey key;
    const bool whole = count == frames.size() && text_of(frames[0]) == "1.0" &&
                       text_of(frames[5]) == "CURVE" && frames[6].size() == key_bytes;
    if (whole) key = to_text(frames[6]);
    const std::string domain(text_of(frames[2]));
    const bool good = whole && name_of(domain, key);
    if (good)
      admitted += 1;
    else
      refuse(domain, std::string(text_of(frames[3])), key);
    before_send();
    const auto more = zmq::send_flags::sndmore;
    questions.send(zmq::str_buffer("1.0"), more);
    questions.send(frames[1], more);
    questions.send(good ? zmq::str_buffer("200") : zmq::str_buffer("400"), more);
    questions.send(
        good ? zmq::buffer(std::string("OK")) : zmq::buffer(std::string("not in the allow list")),
        more);
    questions.send(zmq::buffer(good ? key : CurveKey()), more);
    questions.send(zmq::message_t(), zmq::send_flags::none);
    return true;
  }

  void refuse(const std::string& domain, const std::string& address, const CurveKey& key) {
    keys_refused += 1;
    if (const auto count = keys_limit.due(now_ns()); count != 0)
      log(
          fmt::format("refused {} since the last such line; the last from {}: key {} is not in the "
                      "allow list of {}",
                      count, address, key.empty() ? "(none)" : key, domain));
  }

  std::optional<std::string> name_of(const std::string& domain, const CurveKey& key) const {
    const std::lock_guard lock(mutex);
    const auto list = allowed.find(domain);
    if (list == allowed.end()) return std::nullopt;
    const auto found = list->second.find(key);
    return found == list->second.end() ? std::nullopt : std::optional(found->second);
  }

  /// Takes what a watched socket's monitor says; false when that socket was left.
  bool take_events(zmq::socket_t& monitor) {
    zmq::message_t head, address;
    while (monitor.recv(head, zmq::recv_flags::dontwait)) {
      after_receive();
      if (head.more() && !monitor.recv(address, zmq::recv_flags::dontwait)) return true;
      std::uint16_t event = 0;
      std::uint32_t value = 0;
      if (head.size() != sizeof event + sizeof value) continue;
      std::memcpy(&event, head.data(), sizeof event);
      std::memcpy(&value, static_cast<const char*>(head.data()) + sizeof event, sizeof value);
      if (event == ZMQ_EVENT_MONITOR_STOPPED) return false;
      handshakes_failed += 1;
      if (const auto count = handshakes_limit.due(now_ns()); count != 0)
        log(fmt::format("{} handshakes failed since the last such line; the last at {}: {}", count,
                        text_of(address), reason_of(event, value)));
    }
    return true;
  }
};

Guard::Guard(std::unique_ptr<State> state) : state_(std::move(state)) {}
Guard::~Guard() = default;

Result<std::shared_ptr<Guard>> Guard::start(zmq::context_t& context, Log log) {
  auto state = std::make_unique<State>(context, std::move(log));
  state->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (state->wake_fd < 0)
    return fail(ErrorCode::io, "cannot make an eventfd: {}", std::strerror(errno));
  try {
    state->questions = zmq::socket_t(context, zmq::socket_type::rep);
    state->questions.set(zmq::sockopt::linger, 0);
    state->questions.bind("inproc://zeromq.zap.01");
  } catch (const zmq::error_t& error) {
    if (error.num() == EADDRINUSE)
      return fail(ErrorCode::conflict,
                  "this ZeroMQ context decides about keys already: give each node its own context");
    return fail(ErrorCode::io, "cannot decide about keys: {}", error.what());
  }
  state->thread = std::thread([raw = state.get()] { raw->run(); });
  return std::shared_ptr<Guard>(new Guard(std::move(state)));
}

void Guard::allow(const std::string& domain, std::map<CurveKey, std::string> names) {
  const std::lock_guard lock(state_->mutex);
  state_->allowed[domain] = std::move(names);
}

bool Guard::allows(const std::string& domain, const CurveKey& key) const {
  return name_of(domain, key).has_value();
}

std::optional<std::string> Guard::name_of(const std::string& domain, const CurveKey& key) const {
  return state_->name_of(domain, key);
}

std::optional<CurveKey> Guard::key_of(const std::string& domain, std::string_view name) const {
  const std::lock_guard lock(state_->mutex);
  const auto list = state_->allowed.find(domain);
  if (list == state_->allowed.end()) return std::nullopt;
  for (const auto& [key, of] : list->second)
    if (of == name) return key;
  return std::nullopt;
}

void Guard::watch(zmq::socket_t& socket) {
  const std::string address = fmt::format("inproc://sluice-guard-{}", state_->watched++);
  // Who fails for its key is counted where the key is refused.
  constexpr int events = ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                         ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_MONITOR_STOPPED;
  // Made here and not on the guard's thread: libzmq's own thread waits while nobody is connected.
  zmq::socket_t monitor(state_->context, zmq::socket_type::pair);
  monitor.set(zmq::sockopt::linger, 0);
  monitor.set(zmq::sockopt::rcvhwm, 0);  // and while the queue is full
  if (zmq_socket_monitor(socket.handle(), address.c_str(), events) != 0) throw zmq::error_t();
  monitor.connect(address);
  before_send();
  {
    const std::lock_guard lock(state_->mutex);
    state_->arriving.push_back(std::move(monitor));
  }
  state_->wake();
}

void Guard::leave(zmq::socket_t& socket) {
  if (socket) zmq_socket_monitor(socket.handle(), nullptr, 0);
}

GuardStats Guard::stats() const {
  return {state_->admitted, state_->keys_refused, state_->handshakes_failed};
}

}  // namespace sluice::transport
