#pragma once
// What a decode step's sums take on GPUs, beside the library's own.

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/communicator.hpp"

namespace sluice::bench {

struct GpuSums {
  std::vector<std::uint32_t> rows = {1, 2, 4, 8, 16, 32, 64};
  std::vector<std::uint32_t> widths = {4096, 8192};
  std::uint32_t device = 0;   ///< rank 0's; the others' follow it
  bool share_device = false;  ///< all have this one
  bool json = false;          ///< an object a line
};

/// Every rank calls it; rank 0 prints. False: an error, which was said. That NCCL does not serve
/// ranks that share a device is a result, and printed as one.
bool measure_gpu_sums(const GpuSums& options, const std::shared_ptr<kernels::Communicator>& group);

}  // namespace sluice::bench
