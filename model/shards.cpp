#include "model/shards.hpp"

#include <algorithm>

namespace sluice::model {
namespace {

bool heads_allow(const kernels::HeadShape& heads, std::uint32_t size) {
  return heads.heads % size == 0 && (heads.kv_heads % size == 0 || size % heads.kv_heads == 0);
}

std::uint32_t block_of(const Tensor& tensor) { return info(tensor.format).block_elements; }

/// The feed-forward is cut between blocks of every layer's columns; blocks are 1, 32 or 256 long.
std::uint32_t feed_forward_unit(const ModelTensors& tensors) {
  std::uint32_t unit = 1;
  for (const LayerTensors& layer : tensors.layers) {
    unit = std::max(unit, block_of(*layer.down.weight));
  }
  return unit;
}

/// A layer whose heads' columns do not end with a block where ranks meet; nullptr: none.
const Tensor* heads_in_blocks(const ModelConfig& config, const ModelTensors& tensors,
                              std::uint32_t size) {
  const std::uint32_t columns = config.heads.heads / size * config.heads.head_dim;
  for (const LayerTensors& layer : tensors.layers) {
    const Tensor* output = layer.attention_output.weight;
    if (columns % block_of(*output) != 0) return output;
  }
  return nullptr;
}

bool all_allow(const ModelConfig& config, const ModelTensors& tensors, std::uint32_t size) {
  return heads_allow(config.heads, size) && heads_in_blocks(config, tensors, size) == nullptr &&
         config.feed_forward / feed_forward_unit(tensors) >= size && config.vocabulary >= size;
}

}  // namespace

std::vector<std::uint32_t> shard_counts(const ModelConfig& config) {
  std::vector<std::uint32_t> counts;
  for (std::uint32_t size = 1; size <= config.heads.heads; ++size) {
    if (heads_allow(config.heads, size)) counts.push_back(size);
  }
  return counts;
}

kernels::HeadShape shard_heads(const kernels::HeadShape& heads, const Shard& shard) {
  return {heads.heads / shard.size, std::max(1U, heads.kv_heads / shard.size), heads.head_dim};
}

Result<ShardCut> cut_model(const Checkpoint& file, const ModelConfig& config,
                           const ModelTensors& tensors, const Shard& shard) {
  SLUICE_ASSERT(shard.size >= 1 && shard.rank < shard.size, "a rank below the size");
  if (!all_allow(config, tensors, shard.size)) {
    std::vector<std::uint32_t> counts;
    for (const std::uint32_t size : shard_counts(config)) {
      if (all_allow(config, tensors, size)) counts.push_back(size);
    }
    std::string why;
    if (!heads_allow(config.heads, shard.size)) {
      why = fmt::format("{} heads over {} key heads cannot be shared evenly", config.heads.heads,
                        config.heads.kv_heads);
    } else if (const Tensor* whole = heads_in_blocks(config, tensors, shard.size)) {
      why = fmt::format("tensor '{}' is {}, whose blocks of {} columns the ranks' heads would cut",
                        file.spelled(whole->name), info(whole->format).name, block_of(*whole));
    } else {
      why = fmt::format("a feed-forward of {} in blocks of {} has too few of them",
                        config.feed_forward, feed_forward_unit(tensors));
    }
    return fail(ErrorCode::unsupported, "{}: {} ranks cannot share this model: {}; use {}",
                file.name(), shard.size, why, fmt::join(counts, ", "));
  }
  ShardCut cut;
  cut.shard = shard;
  cut.heads = shard_heads(config.heads, shard);
  cut.q_row = shard.rank * cut.heads.heads * config.heads.head_dim;
  cut.kv_row = kernels::shard_begin(config.heads.kv_heads, shard.rank, shard.size) *
               config.heads.head_dim;
  const std::uint32_t unit = feed_forward_unit(tensors);
  const std::uint32_t units = config.feed_forward / unit;
  cut.feed_forward_row = kernels::shard_begin(units, shard.rank, shard.size) * unit;
  // What is left beyond the last whole block is the last rank's.
  const std::uint32_t end = shard.rank + 1 == shard.size
                                ? config.feed_forward
                                : kernels::shard_begin(units, shard.rank + 1, shard.size) * unit;
  cut.feed_forward = end - cut.feed_forward_row;
  cut.token = kernels::shard_begin(config.vocabulary, shard.rank, shard.size);
  cut.tokens = kernels::shard_count(config.vocabulary, shard);
  return cut;
}

kernels::HostTensor rows_of(const Tensor& tensor, std::uint32_t first, std::uint32_t count) {
  kernels::HostTensor part = tensor.matrix();
  const std::size_t row = part.data.size() / part.rows;
  part.rows = count;
  part.data = part.data.subspan(first * row, count * row);
  return part;
}

kernels::HostTensor columns_of(const Tensor& tensor, std::uint32_t first, std::uint32_t count) {
  kernels::HostTensor part = tensor.matrix();
  if (count == part.cols) return part;
  const std::size_t row = part.data.size() / part.rows;
  const std::size_t begin = kernels::row_bytes(part.format, first);
  const std::size_t own = kernels::row_bytes(part.format, count);
  part.cols = count;
  part.data = part.data.subspan(begin, (part.rows - 1) * row + own);
  if (part.rows > 1) part.row_stride = row;
  return part;
}

}  // namespace sluice::model
