#pragma once
// Who may connect: CURVE on a node's sockets, and the thread that decides about keys (ZAP, RFC 27).

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "transport/curve_keys.hpp"

namespace zmq {
class context_t;
class message_t;
class socket_t;
}  // namespace zmq

namespace sluice::transport {

/// Before a socket binds: only clients whose key the guard of its context allows in `domain` may
/// connect. Without a guard in the context nobody can. `zmq::error_t`.
void secure_server(zmq::socket_t& socket, const CurveKeyPair& keys, const std::string& domain);

/// Before a socket connects: it speaks with the holder of `server_key` alone. `zmq::error_t`.
void secure_client(zmq::socket_t& socket, const CurveClient& client);

/// The key of who sent this, as the guard admitted it; empty without CURVE.
CurveKey sender_of(zmq::message_t& message);

/// Since its start.
struct GuardStats {
  std::uint64_t admitted = 0;           ///< connections whose key is allowed
  std::uint64_t keys_refused = 0;       ///< connections whose key is not
  std::uint64_t handshakes_failed = 0;  ///< plain, garbled, replayed, or not finished in time
};

/// Lets one line through an interval and counts what it kept back.
class LineLimit {
 public:
  explicit LineLimit(std::uint64_t interval_ns) : interval_ns_(interval_ns) {}

  /// So many more happened. How many a line said now stands for; 0: say nothing.
  std::uint64_t due(std::uint64_t now_ns, std::uint64_t more = 1);

 private:
  std::uint64_t interval_ns_;
  std::uint64_t kept_ = 0;
  std::uint64_t said_ns_ = 0;
  bool said_ = false;
};

/// One a context: a thread that answers libzmq's questions about keys, by domain ("clients",
/// "nodes"), each with its own allow list; and that counts failed handshakes of watched sockets.
class Guard {
 public:
  /// Called on the guard's thread, a line at most every five seconds for each kind of refusal.
  using Log = std::function<void(const std::string&)>;

  /// Before any server socket binds. `conflict` when the context has such a handler already.
  static Result<std::shared_ptr<Guard>> start(zmq::context_t& context, Log log);
  ~Guard();  ///< after the sockets that it watches were left

  /// Replaces a domain's allow list: whose each key is. Any thread; holds for connections from now
  /// on.
  void allow(const std::string& domain, std::map<CurveKey, std::string> names);

  /// Any thread.
  bool allows(const std::string& domain, const CurveKey& key) const;
  std::optional<std::string> name_of(const std::string& domain, const CurveKey& key) const;

  /// A key listed under this name. Any thread.
  std::optional<CurveKey> key_of(const std::string& domain, std::string_view name) const;

  /// Counts failed handshakes of a socket that is to bind. By the socket's own thread, and `leave`
  /// before it is closed.
  void watch(zmq::socket_t& socket);
  static void leave(zmq::socket_t& socket);

  GuardStats stats() const;  ///< any thread

 private:
  struct State;
  explicit Guard(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// How an endpoint's sockets are secured.
struct CurveServer {
  CurveKeyPair keys;
  std::string domain;
  std::shared_ptr<Guard> guard;
};

}  // namespace sluice::transport
