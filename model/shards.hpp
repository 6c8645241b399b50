#pragma once
// How a model is cut for the ranks of a tensor-parallel group (Megatron's way): heads and the
// feed-forward by the rows that make them and the columns that read them, the vocabulary by rows.
// Norms are everyone's.

#include <cstdint>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/communicator.hpp"
#include "model/config.hpp"
#include "model/weights.hpp"

namespace sluice::model {

using kernels::Shard;

/// Numbers of ranks that can share the model, by its heads: every rank has as many query heads as
/// the others, and either whole key heads of its own or, together with others, one. Ascending,
/// from 1.
std::vector<std::uint32_t> shard_counts(const ModelConfig& config);

/// A rank's heads. Where ranks outnumber key heads, several ranks have the same one.
kernels::HeadShape shard_heads(const kernels::HeadShape& heads, const Shard& shard);

/// Where a rank's parts begin and end.
struct ShardCut {
  Shard shard;
  kernels::HeadShape heads;
  std::uint32_t q_row = 0;   ///< first row of its query heads, and column of what they give
  std::uint32_t kv_row = 0;  ///< first row of its key heads
  std::uint32_t feed_forward_row = 0;
  std::uint32_t feed_forward = 0;
  std::uint32_t token = 0;  ///< first of its rows of the vocabulary
  std::uint32_t tokens = 0;
};

/// Cuts the model of `config`, whose tensors in `file` are `tensors`. `unsupported` where the
/// heads, the feed-forward or a tensor's quantization blocks do not allow so many ranks, with the
/// counts that they all allow.
Result<ShardCut> cut_model(const Checkpoint& file, const ModelConfig& config,
                           const ModelTensors& tensors, const Shard& shard);

/// Some rows of a tensor's matrix.
kernels::HostTensor rows_of(const Tensor& tensor, std::uint32_t first, std::uint32_t count);

/// Some columns of it: whole blocks.
kernels::HostTensor columns_of(const Tensor& tensor, std::uint32_t first, std::uint32_t count);

}  // namespace sluice::model
