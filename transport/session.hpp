#pragma once
// What a front knows of its streams: who owns which, and what was answered. Pure. Of connections it
// knows nothing: they come and go. With CURVE the owner of a stream is the key that submitted it,
// without it whoever holds the owner's secret.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "transport/curve_keys.hpp"
#include "transport/protocol.hpp"

namespace sluice::transport {

/// A connection as the ROUTER socket names it: opaque bytes, valid until the connection is lost.
using Peer = std::string;

/// A frame on its way to a connection, or to all who subscribed to a stream.
struct Outgoing {
  std::variant<Peer, StreamId> to;
  std::shared_ptr<const std::string> frame;
};

/// What a client that proved its key may do.
struct ClientGrant {
  std::string name;           ///< for people
  std::string tenant;         ///< whose share its requests take, whatever they say
  double requests_per_s = 0;  ///< submits that start a run; as many at once. 0: no limit
  std::uint32_t streams = 0;  ///< unfinished at once; 0: no limit

  bool operator==(const ClientGrant&) const = default;
};
using ClientGrants = std::map<CurveKey, ClientGrant>;

struct SessionConfig {
  Welcome welcome;                          ///< what a hello is answered with
  std::uint32_t streams_max = 4096;         ///< unfinished ones; beyond: `overloaded`
  std::uint32_t overloaded_retry_ms = 250;  ///< the hint given with it
  std::uint32_t tombstones_max = 65536;     ///< finished ones still answered for
  std::uint64_t tombstone_ns = 24ULL * 3600 * 1'000'000'000;
  ClientGrants clients;  ///< with CURVE: the allow list
};

// What a session asks of the actor around it, in order.

struct Reply {
  Peer peer;
  Message message;
};
/// A valid, new stream: tokenize, admit, then `accepted` or `refused`.
struct Start {
  Peer peer;
  Submit submit;
};
/// Its owner said so, or resubmitted it under a higher epoch.
struct Stop {
  StreamId stream{};
  std::uint64_t epoch = 0;
};
/// For the stream's keeper: replay, follow or acknowledge. When the keeper has dropped the stream,
/// an attach is answered `gone` and an ack is not answered.
struct Follow {
  Peer peer;
  std::variant<Attach, Ack> message;
  bool owner = false;  ///< the peer proved that it owns the stream
};
struct AskStats {
  Peer peer;
};
struct AskHealth {
  Peer peer;
};

using SessionAction = std::variant<Reply, Start, Stop, Follow, AskStats, AskHealth>;

/// Decides what a client's message means. One thread; time is an argument.
class Session {
 public:
  explicit Session(SessionConfig config);
  ~Session();

  /// `client` is the key that the connection proved; empty without CURVE.
  std::vector<SessionAction> on_message(const Peer& peer, Message message, std::uint64_t now_ns,
                                        const CurveKey& client = {});

  /// Replaces the allow list. Streams of clients that are no longer in it are stopped.
  std::vector<SessionAction> set_clients(ClientGrants clients);

  /// The engine took the stream. Its keeper tells the owner (so that `accepted` precedes the first
  /// chunk); the session answers whoever submits the same again, also while it was undecided, and
  /// hands on who wanted to attach meanwhile.
  std::vector<SessionAction> on_accepted(const Accepted& accepted, std::uint64_t now_ns);

  /// The engine or tokenizer refused: the stream id is free again.
  std::vector<SessionAction> on_refused(const StreamId& stream, std::uint64_t epoch, Error why,
                                        std::uint64_t now_ns);

  /// The stream's terminal went out; from here on it is a tombstone.
  void on_finished(const StreamId& stream, std::uint64_t epoch, std::uint64_t now_ns);

  /// Node stops taking work: new submits get `unavailable`.
  void drain();

  std::uint32_t open_streams() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
