#pragma once
// Decode steps as graphs: one launch in place of hundreds, whose kernels follow each other without
// the host. A graph serves every step of its size, for the kernels read all else on the device; it
// is captured when a size comes for the second time, so that a start waits for none.

#include <cstdint>
#include <map>
#include <tuple>

#include "kernels/cuda/program.hpp"

namespace sluice::kernels::cuda {

/// The smallest size of graph that serves a step of single rows: more rows by half at most,
/// splits in powers of two, neither beyond what the pool can ask for.
StepCounts graph_size(const StepCounts& counts, const PoolShape& pool, const DeviceState& state);

/// Of one program, on one stream. The backend's caller's own.
class StepGraphs {
 public:
  /// False: not put on the stream, for it has rows of a prompt, or its size is new, or graphs do
  /// not work here; then it goes kernel by kernel. An error is the device's.
  Result<bool> launch(const Program& program, const StepCounts& counts, const PoolShape& pool,
                      const DeviceState& state, LaunchChain& chain);

 private:
  using Key = std::tuple<std::uint32_t, std::uint32_t, bool>;  ///< rows, splits, sample_now

  static Result<GraphExec> capture(const Program& program, const StepCounts& size,
                                   LaunchChain& chain);

  std::map<Key, GraphExec> graphs_;  ///< empty ones: seen once
  bool unusable_ = false;
};

}  // namespace sluice::kernels::cuda
