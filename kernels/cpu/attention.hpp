#pragma once
// Attention over paged keys and values, exact softmax. For each query, in this order:
//   score[p] = scale * q . k[p], one chain of multiply-adds over the head's elements; then capped
//   weight[p] = exp(score[p] - highest score), summed in sixteen lanes, p in lane p mod 16
//   out = sum of weight[p] * v[p], one chain per element in position order, times 1 / sum; 0 for -0
// Of keys and values in pairs (state.hpp), scale * q and the weights are rounded to bfloat16, the
// scale with a factor of log2(e) so that weights are powers of two, within 2^-18; and chains are
// those of products of bfloat16 (matmul.hpp): 32 elements at a time, or positions from a multiple
// of 32 on, make two chains of sixteen that begin at zero, which take of each pair the odd one
// first; the sum of both is added to the result. Denormals are taken for zeros.
// Tiles of sixteen positions start at multiples of sixteen, so a row's result does not depend on
// how the sequence was cut into segments.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/state.hpp"

namespace sluice::kernels::cpu {

struct AttentionWork {
  RowView qkv;
  HeadShape shape;
  std::uint32_t layer = 0;
  float scale = 0.0F;
  std::uint32_t window = 0;
  RowView out;
  float soft_cap = 0.0F;  ///< 0: none
};

/// Consecutive rows of one sequence and consecutive heads that share a key head.
struct QueryGroup {
  const Slot* slot = nullptr;
  std::uint32_t row = 0;       ///< first row of the batch
  std::uint32_t position = 0;  ///< its position
  std::uint32_t rows = 0;
  std::uint32_t head = 0;      ///< first head
  std::uint32_t heads = 0;
};

/// Largest group: sixteen queries share a tile of widened keys, which then costs little of the
/// whole.
inline constexpr std::uint32_t group_rows = 4;
inline constexpr std::uint32_t group_heads = 4;

/// The same where the processor multiplies tiles, of keys and values in pairs. Twice as many made
/// prompts of 512 and 2,048 1.02 and 1.04 times as fast with two threads, of half as many tasks.
inline constexpr std::uint32_t tiled_group_rows = 16;

/// Tiles of keys that are copied at once, where blocks are smaller than a tile.
inline constexpr std::uint32_t key_copies = 4;

/// First chains of a register tile, which wait while a block has its second.
inline constexpr std::size_t firsts_floats = 24 * 16;

/// Where in attend()'s scratch scores begin: before, copies of keys, or first chains and a group's
/// rounded queries.
constexpr std::size_t scores_at(std::size_t head_dim) {
  static_assert(group_rows * group_heads <= 16 * key_copies);
  return firsts_floats + key_copies * 8 * head_dim;
}

/// Scratch of attend(), in floats.
std::size_t attention_floats(const HeadShape& shape, std::uint32_t context_tokens);

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group, float* scratch);

/// The same, of keys and values in pairs.
void attend_in_pairs(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch);

/// The same by tiles, of more than group_rows rows.
void attend_in_tiles(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch);
std::size_t tiled_attention_floats(const HeadShape& shape, std::uint32_t context_tokens);

}  // namespace sluice::kernels::cpu
