#pragma once
// What can be set about a node's client side: apart from the endpoint, which few may include.

#include <cstdint>
#include <optional>
#include <string>

#include "transport/curve.hpp"
#include "transport/protocol.hpp"

namespace sluice::transport {

struct EndpointConfig {
  std::string listen = "tcp://127.0.0.1:0";  ///< ROUTER; tcp, ipc or inproc
  std::string publish;  ///< XPUB; empty: derived (tcp: a free port; else + ".pub")
  Limits limits;
  /// Frames that may wait for one client: it has all of its streams' on one connection, thousands a
  /// step, and asks for all streams again when one frame finds no room.
  std::uint32_t client_queue_messages = 65536;
  std::uint32_t subscriber_queue_messages = 8192;  ///< that may wait for one subscriber
  std::uint32_t subscriptions_max = 65536;         ///< of streams not there yet and there, together
  std::uint32_t heartbeat_ms = 2000;    ///< a silent connection is lost after three of these
  std::uint32_t handshake_ms = 10'000;  ///< a connection that has not said who it is by then
                                        ///< is closed
  std::uint32_t stalled_ms = 20'000;    ///< a client over TCP that takes nothing for so long, while
                                        ///< something waits for it, is disconnected
  /// The same by the kernel, which finds those too that have said nothing yet; at least twice
  /// `stalled_ms`, as it also counts time in which this process does not run.
  std::uint32_t stalled_kernel_ms = 60'000;
  std::optional<CurveServer> curve;     ///< none: plain
};

}  // namespace sluice::transport
