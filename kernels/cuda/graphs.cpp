#include "kernels/cuda/graphs.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace sluice::kernels::cuda {
namespace {

/// Some hundred kilobytes of device memory each.
constexpr std::size_t graphs_max = 384;

/// 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
std::uint32_t row_size(std::uint32_t rows) {
  const std::uint32_t whole = std::bit_ceil(rows);
  const std::uint32_t between = whole / 4 * 3;
  return rows <= between ? between : whole;
}

}  // namespace

StepCounts graph_size(const StepCounts& counts, const PoolShape& pool, const DeviceState& state) {
  StepCounts size = counts;
  size.rows = std::min(row_size(counts.rows), pool.rows_max);
  size.groups = size.single_groups = size.rows;
  size.sampled = std::min(size.rows, rows_max(pool, RowSpace::sampled));
  if (counts.splits > 0) {
    size.splits = std::min(std::bit_ceil(counts.splits),
                           split_count(pool.context_tokens, state.split_tokens));
  }
  return size;
}

Result<bool> StepGraphs::launch(const Program& program, const StepCounts& counts,
                                const PoolShape& pool, const DeviceState& state,
                                DeviceGroup* group, LaunchChain& chain) {
  if (group != nullptr && !group->captures()) return false;
  if (unusable_ || counts.rows == 0 || counts.groups != counts.single_groups) return false;
  StepCounts size = graph_size(counts, pool, state);
  size.draw = program.way(size.draw);
  const Key key{size.rows, size.splits, size.draw};
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    if (graphs_.size() == graphs_max) return false;
    graphs_.try_emplace(key);
    if (group == nullptr) return false;
    // At its graph's size, so that NCCL has the connections for it before they are captured.
    SLUICE_TRY(program.enqueue(size, group, chain));
    return true;
  }
  if (!found->second) {
    unusable_ = true;
    // What a graph begins with waits for no kernel, and what is in it is not on the stream.
    auto graph = capture_graph(chain.interrupted(), [&] {
      auto enqueued = program.enqueue(size, group, chain);
      chain.interrupted();
      return enqueued;
    });
    auto all = Result<bool>(graph.has_value());
    if (group != nullptr) all = group->all_agree(*all);
    if (!all) return tl::unexpected(all.error());
    if (!*all) return false;  // kernel by kernel is as right; a device that is lost says so then
    unusable_ = false;
    found->second = std::move(*graph);
  }
  SLUICE_CUDA(cudaGraphLaunch(found->second.get(), chain.interrupted()));
  return true;
}

}  // namespace sluice::kernels::cuda
