#pragma once
// The I/O thread between nodes: owns their ZeroMQ sockets, so that steps never queue behind chunks.
// Who posts a message while it sleeps sends it in its stead (wake_queue.hpp).
// What is said to whom and when a peer is lost, transport/link decides.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "transport/link.hpp"
#include "transport/peer_config.hpp"

namespace zmq {
class context_t;
}

namespace sluice::transport {

/// Counters of the I/O thread; readable from any thread.
struct PeerStats {
  std::uint64_t messages_in = 0;
  std::uint64_t messages_out = 0;
  std::uint64_t malformed = 0;  ///< frames that were no link's, and messages that were refused
  std::uint64_t links_up = 0;   ///< now
  std::uint64_t links_lost = 0;
  std::uint64_t refused = 0;          ///< frames of a key not allowed, names of another key
  std::uint64_t connections_cut = 0;  ///< of keys that are no longer allowed
};

class PeerEndpoint {
 public:
  /// Called one at a time, `message` and `up` on the I/O thread, the others also in `send`. All
  /// must only hand over. `message` gets what a node sent; its error ends the session.
  struct Handler {
    std::function<void(const LinkUp&)> up;
    std::function<void(const LinkDown&)> down;
    std::function<void(const LinkFailed&)> failed;
    std::function<Result<void>(LinkId, std::string_view)> message;
  };

  /// `context` outlives the endpoint.
  PeerEndpoint(zmq::context_t& context, PeerConfig config, NodeIdentity self, Handler handler);
  ~PeerEndpoint();  ///< stops

  /// Binds, begins to dial, and starts the thread. `io` names the endpoint that cannot be bound,
  /// `bad_request` one that cannot be dialed.
  Result<void> start();

  /// Says goodbye on every link (which is down with `cancelled`), closes the sockets, joins the
  /// thread.
  void stop();

  /// Any thread. Messages on one link arrive in the order they were posted, or the link is lost.
  void send(LinkId link, std::string message);

  /// After the guard's list of nodes changed: who is no longer in it under the same name is cut
  /// off. Any thread.
  void cut_removed();

  /// As bound, with the real port; empty when it listens nowhere. After `start`.
  const std::string& listen_address() const;

  PeerStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
