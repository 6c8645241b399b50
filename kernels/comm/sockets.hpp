#pragma once
// TCP connections between ranks, each known to lead to the rank it should.

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/comm/seal.hpp"
#include "kernels/communicator.hpp"
#include "kernels/descriptor.hpp"

namespace sluice::kernels::comm {

using Clock = std::chrono::steady_clock;

/// A connection that leads to a known rank.
struct Connection {
  struct Seals {
    Seal out, in;
  };
  Descriptor socket;
  std::optional<Seals> seals;  ///< none: within this host, and plain
};

/// Milliseconds from now for poll(2), rounded up.
int remaining_ms(Clock::time_point until);

/// A group over connections: one a rank, this one's own empty; `wake` is an eventfd.
std::shared_ptr<Communicator> make_tcp_communicator(const Shard& shard,
                                                    std::chrono::milliseconds deadline,
                                                    std::vector<Connection> connections,
                                                    Descriptor wake);

}  // namespace sluice::kernels::comm
