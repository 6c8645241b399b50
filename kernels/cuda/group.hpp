#pragma once
// How a group's ranks come to speak to each other's devices: over NCCL where every rank has it and
// a device of its own, else through host memory and the communicator that they met with.

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/collectives.hpp"

namespace sluice::kernels::cuda {

struct DeviceGroupOptions {
  int device = 0;                   ///< current on the calling thread
  std::string library;              ///< NCCL's file; empty: without NCCL
  bool graphs = true;               ///< of steps, where every rank wants them
  /// Longest that the first graph may take, before the ranks go on without: less than they wait for
  /// each other, which is 10 s.
  std::uint32_t first_graph_ms = 5'000;
  std::uint32_t start_ms = 60'000;  ///< longest that NCCL's start may take
  bool share_device = false;        ///< ranks with one together go over NCCL too, if that lets them
};

/// What the ranks have to agree on goes over `group`: every rank calls this at the same time. Waits
/// for all. `deadline` where NCCL's start takes longer, `internal` with NCCL's own words.
Result<std::unique_ptr<DeviceGroup>> make_device_group(std::shared_ptr<Communicator> group,
                                                       const DeviceGroupOptions& options);

}  // namespace sluice::kernels::cuda
