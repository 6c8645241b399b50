#pragma once
// Collectives of a group's rank in the order of its device's stream. NCCL carries them where every
// rank has it and a device of its own; else they go through host memory and the communicator that
// the group was made with. Either way sums are taken in rank order (kernels/communicator.hpp), so
// that both give the same bits.

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "kernels/communicator.hpp"

namespace sluice::kernels::cuda {

/// Most floats that one collective moves: 4 MiB of each rank. Longer ones are cut.
inline constexpr std::size_t piece_floats = std::size_t{1} << 20;

/// Calls come from one thread, the backend's caller; `failure` and `give_up` from any.
class DeviceGroup {
 public:
  virtual ~DeviceGroup() = default;

  /// For people: "NCCL 2.28.9, 2 ranks".
  virtual std::string name() const = 0;

  /// values[i] becomes the sum of all ranks' values[i], in rank order. `floats` is a multiple of 4.
  Result<void> all_reduce(float* values, std::size_t floats, cudaStream_t stream);

  /// all[rank * floats + i] becomes each rank's own[i]; at most `piece_floats`.
  virtual Result<void> all_gather(const float* own, float* all, std::size_t floats,
                                  cudaStream_t stream) = 0;

  /// Why nothing is valid that the stream computed since some collective failed. Asked when a
  /// step's end is reached, and now and then before.
  virtual std::optional<Error> failure() const = 0;

  /// Ends what waits on the device for other ranks, after a failure.
  virtual void give_up() = 0;

 protected:
  /// At most `piece_floats`.
  virtual Result<void> reduce_piece(float* values, std::size_t floats, cudaStream_t stream) = 0;
};

struct DeviceGroupOptions {
  int device = 0;                   ///< current on the calling thread
  std::string library;              ///< NCCL's file; empty: without NCCL
  std::uint32_t start_ms = 60'000;  ///< longest that NCCL's start may take
};

/// What the ranks have to agree on goes over `group`: every rank calls this at the same time. Waits
/// for all. `deadline` where NCCL's start takes longer, `internal` with NCCL's own words.
Result<std::unique_ptr<DeviceGroup>> make_device_group(std::shared_ptr<Communicator> group,
                                                       const DeviceGroupOptions& options);

}  // namespace sluice::kernels::cuda
