#pragma once
// Decode steps as graphs: one launch in place of hundreds, whose kernels follow each other without
// the host. A graph serves every step of its size, for the kernels read all else on the device; it
// is captured when a size comes for the second time, so that a start waits for none.
//
// With a group's collectives in it, a graph is every rank's or nobody's: NCCL waits for ranks that
// capture another way, or not. All ranks are given the same steps, so that they meet each size at
// the same one, and agree on the graph before its first launch. What fails there, or does not end,
// ends graphs for the backend's life, so that the group after it does not fail the same way.

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
  /// not work here; then it goes kernel by kernel. An error is the device's, or the group's.
  Result<bool> launch(const Program& program, const StepCounts& counts, const PoolShape& pool,
                      const DeviceState& state, DeviceGroup* group, LaunchChain& chain);

  /// Before the group ends, or another begins; nothing may be under way. Every size is new then.
  void forget() { graphs_.clear(); }

  bool unusable() const { return unusable_; }

 private:
  using Key = std::tuple<std::uint32_t, std::uint32_t, Draw>;  ///< rows, splits, draw

  std::map<Key, GraphExec> graphs_;  ///< empty ones: seen once
  bool unusable_ = false;
};

}  // namespace sluice::kernels::cuda
