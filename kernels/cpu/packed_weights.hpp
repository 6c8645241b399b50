#pragma once
// The weights of products in packed form, and the memory in which they are.

#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "kernels/core.hpp"
#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/memory.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/cpu/weight_cache.hpp"

namespace sluice::kernels::cpu {

class PackedWeights {
 public:
  explicit PackedWeights(WeightCache cache) : cache_(std::move(cache)) {}

  /// Gives each weight its packed form, one behind the other: what the cache kept of them, or made
  /// with all threads of an idle pool. `io`: their file cannot be read; they are as before then.
  Result<void> add(std::span<CpuWeight* const> weights, ThreadPool& pool);

 private:
  WeightCache cache_;
  std::deque<PackedWeight> packed_;  ///< never moves
  std::vector<Mapping> pages_;       ///< one an add()
};

}  // namespace sluice::kernels::cpu
