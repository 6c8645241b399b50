#pragma once
// The I/O thread: owns every ZeroMQ socket of a node's client side. Nothing else touches one, but
// that a thread which posts a few frames while the I/O thread sleeps sends them in its stead, under
// a lock (wake_queue.hpp): ZeroMQ lets a socket go from thread to thread with a full fence.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/endpoint_config.hpp"
#include "transport/protocol.hpp"
#include "transport/session.hpp"

namespace zmq {
class context_t;
}

namespace sluice::transport {

/// Counters of the I/O thread; readable from any thread.
struct EndpointStats {
  std::uint64_t frames_in = 0;
  std::uint64_t frames_out = 0;
  std::uint64_t frames_malformed = 0;
  std::uint64_t frames_dropped = 0;  ///< to a lost or full peer
  std::uint64_t peers_lost = 0;
  std::uint64_t subscriptions = 0;
  std::uint64_t frames_refused = 0;   ///< of a key that was removed from the allow list
  std::uint64_t connections_cut = 0;  ///< their key was
  std::uint64_t clients_stalled = 0;  ///< let go, as they took nothing
};

class Endpoint {
 public:
  /// Called one at a time: `message` on the I/O thread, `lost` there or where a frame is posted.
  /// All must only hand over.
  struct Handler {
    std::function<void(Peer&&, Message&&, CurveKey&&)> message;  ///< the key is empty without CURVE
    std::function<void(Peer&&)> lost;  ///< a send found the connection closed, or its queue full
    /// On the I/O thread: clients were let go, in words; a line every five seconds at most.
    std::function<void(const std::string&)> stalled = {};
  };

  /// `context` outlives the endpoint; inproc clients share it.
  Endpoint(zmq::context_t& context, EndpointConfig config, Handler handler);
  ~Endpoint();  ///< stops

  /// Binds and starts the thread. `io` names the endpoint and why it cannot be bound.
  Result<void> start();

  /// Sends what is queued (for at most `linger_ms`), closes the sockets, joins the thread.
  void stop(int linger_ms = 500);

  /// Any thread. Frames to one peer, and to one topic, leave in the order they were posted.
  void send(const Peer& peer, std::shared_ptr<const std::string> frame);
  void publish(const StreamId& stream, std::shared_ptr<const std::string> frame);
  void post(std::vector<Outgoing>&& frames);  ///< the same for many, with one wake

  /// Any thread: closes the connections whose key the guard no longer allows.
  void cut_removed();

  /// As bound, with the real port; after `start`.
  const std::string& listen_address() const;
  const std::string& publish_address() const;

  EndpointStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
