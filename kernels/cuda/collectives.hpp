#pragma once
// Collectives of a group's rank in the order of its device's stream. Whatever carries them, sums
// are taken in rank order (kernels/communicator.hpp), so that all give the same bits.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>

#include "kernels/communicator.hpp"
#include "kernels/cuda/chain.hpp"

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
  Result<void> all_reduce(float* values, std::size_t floats, LaunchChain& chain) {
    for (std::size_t done = 0; done < floats; done += piece_floats) {
      auto piece = reduce_piece(values + done, std::min(piece_floats, floats - done), chain);
      if (!piece) return piece;
    }
    return {};
  }

  /// Every rank's values beside each other, [ranks, floats], for a kernel that adds them up in rank
  /// order on its way: at most `piece_floats`, and until the next collective. Null: sums are taken
  /// elsewhere, and nothing was done.
  virtual Result<const float*> gather_terms(const float* /*values*/, std::size_t /*floats*/,
                                            cudaStream_t /*stream*/) {
    return nullptr;
  }

  /// all[rank * floats + i] becomes each rank's own[i]; at most `piece_floats`.
  virtual Result<void> all_gather(const float* own, float* all, std::size_t floats,
                                  cudaStream_t stream) = 0;

  /// The library's own sum, in an order that depends on size and topology: what the one above is
  /// measured beside. `unsupported` where there is no library.
  virtual Result<void> all_reduce_in_any_order(float* /*values*/, std::size_t /*floats*/,
                                               cudaStream_t /*stream*/) {
    return fail(ErrorCode::unsupported, "{} has no sum of its own", name());
  }

  /// Why nothing is valid that the stream computed since some collective failed. Asked when a
  /// step's end is reached, and now and then before.
  virtual std::optional<Error> failure() const = 0;

  /// Whether a step's collectives may be captured into graphs; the same on every rank. A collective
  /// is in a graph on all ranks or on none, and the graphs go before the group.
  virtual bool captures() const { return false; }

  /// Whether all ranks say yes. Waits for them; an error is the group's end.
  virtual Result<bool> all_agree(bool own) { return own; }

  /// Ends what waits on the device for other ranks, after a failure.
  virtual void give_up() = 0;

 protected:
  /// At most `piece_floats`.
  virtual Result<void> reduce_piece(float* values, std::size_t floats, LaunchChain& chain) = 0;
};

}  // namespace sluice::kernels::cuda
