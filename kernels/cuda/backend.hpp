#pragma once
// The CUDA backend: own kernels on one device, a step one copy of metadata and one row of launches
// on one stream. Tokens stay on the device: the next step reads them where the sampler left them,
// and the host learns them later, on a thread that waits for each step's end.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.hpp"

namespace sluice::kernels {

struct CudaOptions {
  int device = 0;
  /// Left free for the driver, graphs and others: `allocate` and `load` stop short of it.
  std::size_t reserve_bytes = std::size_t{512} << 20;
  /// Positions of a sequence that one block attends to in a decode step: 64, 128, 192 or 256, and
  /// part of the arithmetic. 256 positions are 128 KiB of keys and values of 128 elements: enough
  /// to hide a block's start, and 32 blocks a key head at 8,192 positions.
  std::uint32_t split_tokens = 256;
  bool graphs = true;  ///< of decode steps; without, each kernel is launched by itself
  /// Kernels start while those before them end, where device and driver can (chain.hpp); without,
  /// each starts when the one before has ended.
  bool early_launches = true;
  /// A gate is part of the products before it, and what lies between is not kept.
  bool fuse_gates = true;
  /// A single row's norm is part of the products behind it.
  bool fuse_norms = true;
  /// Many rows attend by Hopper's own products, where the device has them: the same bits.
  bool wide_attention = true;
  /// Longest that a group's first graph may take (cuda/group.hpp).
  std::uint32_t first_graph_ms = 5'000;
  /// NCCL's library, for ranks of a group; where a rank has none, or shares its device, their
  /// collectives go through host memory. Empty: always so.
  std::string nccl = "libnccl.so.2";
};

/// `completion` is called on a thread of the backend's. `unavailable` without a usable device,
/// `bad_request` for an option out of range, `unsupported` for a build whose rounding is not the
/// project's.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options,
                                                   Completion completion);

/// Names of the devices that these kernels run on: "NVIDIA H200 (sm_90)". `unavailable` when there
/// is none, with the reason.
Result<std::vector<std::string>> cuda_devices();

}  // namespace sluice::kernels
