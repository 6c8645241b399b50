#pragma once
// What can be set about a node's side towards other nodes: apart from the endpoint, which few may
// include.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "transport/curve.hpp"

namespace sluice::transport {

/// A node to connect to, as configured: "ENDPOINT", or "ENDPOINT NAME" for one that has a key,
/// which the allow list of nodes has under that name.
struct PeerAddress {
  std::string endpoint;
  std::string name;  ///< empty: it speaks in plain text and may be anybody

  explicit PeerAddress(const std::string& text) : endpoint(text) {
    const auto space = text.rfind(' ');
    if (space == std::string::npos || text.find('/', space) != std::string::npos)
      return;  // none, or in the path of a socket
    endpoint = text.substr(0, text.find_last_not_of(' ', space) + 1);
    name = text.substr(space + 1);
  }
};

struct PeerConfig {
  std::string name;               ///< of this node, unique in the fleet; empty: drawn at random
  std::string listen;             ///< where other nodes connect: tcp or ipc; empty: nowhere
  std::string local_listen;       ///< a second one, for processes of this host: ipc, always plain
  std::vector<std::string> join;  ///< nodes that this one connects to, and again when lost: a
                                  ///< `PeerAddress` each
  std::optional<CurveServer> curve;  ///< of `listen`, and of those joined by name; none: plain
  std::uint32_t lost_ms = 1000;      ///< a peer silent for so long is lost
  std::uint64_t message_bytes_max = 64U << 20;
  /// This host's address for the collectives of tensor-parallel groups. What passes there is
  /// encrypted, unless both ranks are on loopback.
  std::string collectives = "127.0.0.1";
  /// A rank not there by then is named, and a new start made.
  std::uint32_t group_start_ms = 60'000;
  std::uint32_t step_ms = 10'000;  ///< longest that a rank waits for the others in a step
};

}  // namespace sluice::transport
