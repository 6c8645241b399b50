#pragma once
// What can be set about a node's side towards other nodes: apart from the endpoint, which few may
// include.

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::transport {

struct PeerConfig {
  std::string name;               ///< of this node, unique in the fleet; empty: drawn at random
  std::string listen;             ///< where other nodes connect: tcp or ipc; empty: nowhere
  std::vector<std::string> join;  ///< nodes that this one connects to, and again when lost
  std::uint32_t lost_ms = 1000;   ///< a peer silent for so long is lost
  std::uint64_t message_bytes_max = 64U << 20;
};

}  // namespace sluice::transport
