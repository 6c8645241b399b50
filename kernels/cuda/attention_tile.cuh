#pragma once
// Attention on tensor cores: what a warp does with sixteen queries and a tile of 64 positions. All
// kernels that attend are made of these steps, attention_wide.cu's with wide.cuh's products instead
// of those here, so that a query's bits are the same in each.
//
// Queries are the rows of every product: those of one key head, row by row and head by head, so
// that heads of a group share each read of keys and values. A query's result takes these steps:
//   query    times scale and log2(e) (or scale / cap), rounded to f16
//   stored   key and value, rounded to f16, or to e4m3, which f16 has exactly
//   score    query . key, float32 sums over the head's elements, sixteen at a time in their order
//   weight   2^(score - peak), peak the split's greatest score so far, rounded to f16
//   tile     sum of the rounded weights, and of weight . value, sixteen positions at a time
//   split    each tile added in its turn to what the tiles before it came to, scaled to its peak
//   whole    splits of `split_tokens` positions folded, in their order, into the query's own
// Tiles and splits start at multiples of their size. A tile that a query does not see leaves its
// state untouched, so that not even the sign of a zero depends on what others of the block see;
// within a tile that it sees, other positions weigh 0 and sums start at +0. A row of a product
// depends on its own row of the operand alone, and a factor of zero changes nothing: that is what
// this takes from the tensor cores, whatever they round within; an H200's do so (probe_zeros, and
// the tests of invariance there).

#include <cmath>
#include <type_traits>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/step.cuh"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t warp_queries = 16;
inline constexpr std::uint32_t score_tiles = tile_tokens / 8;
inline constexpr std::uint32_t weight_tiles = tile_tokens / 16;

/// Halves from one position to the next in shared memory: an odd number of sixteen bytes, so that
/// the eight rows of a matrix lie in different banks. `width` is a multiple of 16.
template <std::uint32_t width>
inline constexpr std::uint32_t row_halves = (width / 8 | 1) * 8;

__device__ inline float minus_infinity() { return float_from_bits(0xFF800000U); }

/// Positions [begin, end).
struct Range {
  std::uint32_t begin = 0, end = 0;

  __device__ bool meets(std::uint32_t first, std::uint32_t count) const {
    return first < end && first + count > begin;
  }
};

__device__ inline Range seen(const AttentionArgs& args, std::uint32_t position) {
  const std::uint32_t end = position + 1;
  return {args.window != 0 && end > args.window ? end - args.window : 0, end};
}

__device__ inline const RowGroup& row_group(const AttentionArgs& args, std::uint32_t index) {
  return part<RowGroup>(args.step, header(args.step).group_offset)[index];
}

/// The greater; of a number and none, the number.
__device__ inline float higher(float a, float b) { return fmaxf(a, b); }

/// 2^x, within 2^-22 of itself, 1 for 0, 0 for none: a device's own, for what is rounded to f16. A
/// polynomial of float32 takes eleven instructions, and attention to prompts was bound by them.
__device__ inline float power_of_two(float x) {
#ifdef __CUDACC__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}

/// Two halves of a word, rounded to nearest, the first in the low half.
__device__ inline std::uint32_t pack_halves(float low, float high) {
#ifdef __CUDACC__
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return narrow_f16(low) | std::uint32_t{narrow_f16(high)} << 16;
#endif
}

/// What queries are multiplied with before they are rounded: scores come out as powers of two, or
/// ready for their cap's tanh.
__device__ inline float query_scale(const AttentionArgs& args) {
  return args.soft_cap == 0.0F ? args.scale * ExpSteps::log2_e : args.scale / args.soft_cap;
}

/// Bytes from one position to the next in shared memory, of 8-bit keys or values: as row_halves.
template <std::uint32_t width>
inline constexpr std::uint32_t row_bytes = (width / 16 | 1) * 16;

template <class Element>
inline constexpr bool is_e4m3 = std::is_same_v<Element, std::uint8_t>;

/// The part of a query's elements 16 k .. 16 k + 15 that a lane holds for it: two pairs, eight
/// elements apart; for 8-bit keys, side by side, as one word of these has them. Zeros behind
/// head_dim, which is even.
template <class Element = std::uint16_t>
__device__ void read_query(const AttentionArgs& args, const float* query, std::uint32_t k,
                           float2 (&pairs)[2]) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t t = lane_index() % 4;
    const std::uint32_t d = 16 * k + (is_e4m3<Element> ? 4 * t + 2 * i : 2 * t + 8 * i);
    pairs[i] = {0.0F, 0.0F};
    if (d < args.heads.head_dim) pairs[i] = *reinterpret_cast<const float2*>(query + d);
  }
}

/// A pair as products take it.
__device__ inline std::uint32_t pack_query(float2 pair, float scale) {
  return pack_halves(pair.x * scale, pair.y * scale);
}

/// Both, as words.
template <class Element = std::uint16_t>
__device__ void load_query(const AttentionArgs& args, const float* query, std::uint32_t k,
                           std::uint32_t (&words)[2]) {
  const float scale = query_scale(args);
  float2 pairs[2];
  read_query<Element>(args, query, k, pairs);
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) words[i] = pack_query(pairs[i], scale);
}

/// scores += elements 16 k .. 16 k + 15 of queries . keys of sixteen positions.
template <std::uint32_t width>
__device__ void multiply_keys(TileSums* scores, const TileA& queries, const std::uint16_t* keys,
                              std::uint32_t k) {
  const std::uint32_t lane = lane_index();
  const std::uint32_t token = lane / 16 * 8 + lane % 8, eight = 2 * k + lane / 8 % 2;
  std::uint32_t words[4];
  load_matrices<false>(words, keys + token * row_halves<width> + eight * 8);
  multiply_f16(scores[0], queries, {{words[0], words[1]}});
  multiply_f16(scores[1], queries, {{words[2], words[3]}});
}

/// out += weights of sixteen positions . elements 16 d .. 16 d + 15 of their values.
template <std::uint32_t width>
__device__ void multiply_values(TileSums* out, const TileA& weights, const std::uint16_t* values,
                                std::uint32_t d) {
  const std::uint32_t lane = lane_index();
  const std::uint32_t token = lane % 16, eight = 2 * d + lane / 16;
  std::uint32_t words[4];
  load_matrices<true>(words, values + token * row_halves<width> + eight * 8);
  multiply_f16(out[0], weights, {{words[0], words[1]}});
  multiply_f16(out[1], weights, {{words[2], words[3]}});
}

/// scores += elements 16 k .. 16 k + 15 of queries . 8-bit keys of 32 positions. A lane's word has
/// four elements in a row, where halves would have two pairs eight apart: the query's lie likewise.
template <std::uint32_t width>
__device__ void multiply_keys(TileSums* scores, const TileA& queries, const std::uint8_t* keys,
                              std::uint32_t k) {
  std::uint32_t words[4];
  load_matrices<false>(words, keys + lane_index() * row_bytes<width> + k * 16);
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < 4; ++n) {
    multiply_f16(scores[n], queries, {{widen_e4m3<false>(words[n]), widen_e4m3<true>(words[n])}});
  }
}

/// out += weights of 32 positions . elements 16 d .. 16 d + 15 of their 8-bit values: the even ones
/// in the first of two tiles, the odd ones in the second, so that element 4 t + n of the sixteen is
/// element n / 2 of tile n % 2 in a lane's rows.
template <std::uint32_t width>
__device__ void multiply_values(TileSums* out, const TileA* weights, const std::uint8_t* values,
                                std::uint32_t d) {
  std::uint32_t words[4];
  load_matrices<true>(words, values + lane_index() * row_bytes<width> + d * 16);
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t low = swap_middle(words[2 * i]), high = swap_middle(words[2 * i + 1]);
    multiply_f16(out[0], weights[i], {{widen_e4m3<false>(low), widen_e4m3<false>(high)}});
    multiply_f16(out[1], weights[i], {{widen_e4m3<true>(low), widen_e4m3<true>(high)}});
  }
}

/// Scores of a tile; a lane has two positions of each eight, of rows lane / 4 and lane / 4 + 8.
using Scores = TileSums[score_tiles];

/// Soft caps, as powers of two.
__device__ inline void cap_scores(const AttentionArgs& args, Scores& scores) {
  if (args.soft_cap == 0.0F) return;
  const float cap = args.soft_cap * ExpSteps::log2_e;
  SLUICE_UNROLL
  for (TileSums& tile : scores) {
    SLUICE_UNROLL
    for (float& score : tile.at) score = tanh_f32(score) * cap;
  }
}

/// What the lane's two queries do not see of the tile becomes minus infinity.
__device__ inline void mask_scores(Scores& scores, std::uint32_t tile, const Range (&range)[2]) {
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < score_tiles; ++n) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t position = tile + 8 * n + lane_index() % 4 * 2 + i % 2;
      if (!range[i / 2].meets(position, 1)) scores[n].at[i] = minus_infinity();
    }
  }
}

/// The greatest score of the lane's row i, the same in the row's four lanes.
__device__ inline float tile_peak(const Scores& scores, std::uint32_t i) {
  float peak = higher(scores[0].at[2 * i], scores[0].at[2 * i + 1]);
  SLUICE_UNROLL
  for (std::uint32_t n = 1; n < score_tiles; ++n) {
    peak = higher(peak, higher(scores[n].at[2 * i], scores[n].at[2 * i + 1]));
  }
  peak = higher(peak, __shfl_xor_sync(all_lanes, peak, 1));
  return higher(peak, __shfl_xor_sync(all_lanes, peak, 2));
}

/// Weights of a tile, in the places of a product's first operand.
using Weights = TileA[weight_tiles];

/// Those of the lane's row i.
__device__ inline void weigh_row(const Scores& scores, std::uint32_t i, float peak,
                                 Weights& weights) {
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < score_tiles; ++n) {
    const float low = power_of_two(scores[n].at[2 * i] - peak);
    const float high = power_of_two(scores[n].at[2 * i + 1] - peak);
    weights[n / 2].pairs[n % 2 * 2 + i] = pack_halves(low, high);
  }
}

__device__ inline void weigh(const Scores& scores, const float (&peak)[2], Weights& weights) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) weigh_row(scores, i, peak[i], weights);
}

/// Sums of a tile's weights, as the tensor cores add their products with values: of row lane / 4 in
/// element 0 and of row lane / 4 + 8 in element 2.
__device__ inline TileSums sum_weights(const Weights& weights) {
  constexpr std::uint32_t ones = 0x3C003C00U;
  TileSums sums{};
  SLUICE_UNROLL
  for (const TileA& some : weights) multiply_f16(sums, some, {{ones, ones}});
  return sums;
}

/// Folds a split into a query's own softmax.
struct Fold {
  float old_scale, new_scale;

  __device__ Fold(float& peak, float& sum, float split_peak, float split_sum) {
    const float top = higher(peak, split_peak);
    old_scale = power_of_two(peak - top);
    new_scale = power_of_two(split_peak - top);
    sum = fma_f32(split_sum, new_scale, sum * old_scale);
    peak = top;
  }
  __device__ float operator()(float out, float split_out) const {
    return fma_f32(split_out, new_scale, out * old_scale);
  }
};

/// Where keys and values of a sequence lie, for one layer and key head.
template <class Element>
struct PagesOf {
  const KvArrays& kv;
  const std::uint32_t* table;  ///< the slot's blocks
  const Element* first;        ///< keys of block 0

  __device__ PagesOf(const AttentionArgs& args, std::uint32_t slot, std::uint32_t kv_head)
      : kv(args.kv),
        table(args.slots.blocks + std::size_t{slot} * args.slots.block_capacity),
        first(keys_of<Element>(args.kv, args.layer, 0, kv_head)) {}

  __device__ std::uint32_t block_of(std::uint32_t position) const {
    return table[position >> kv.block_shift];
  }

  /// Keys of a position of that block, or its values.
  __device__ const Element* at(std::uint32_t block, std::uint32_t position, bool values) const {
    const std::uint32_t token = (position & (kv.block_tokens - 1)) + (values ? kv.block_tokens : 0);
    return first + block * kv.block_stride + std::size_t{token} * kv.head_stride;
  }
};

using Pages = PagesOf<std::uint16_t>;

/// Calls kernels(width) with the narrowest width that kernels are made for and the head fits, as a
/// constant.
template <class Kernels>
cudaError_t with_width(std::uint32_t head_dim, Kernels kernels) {
  if (head_dim <= 32) return kernels(std::integral_constant<std::uint32_t, 32>());
  if (head_dim <= 64) return kernels(std::integral_constant<std::uint32_t, 64>());
  if (head_dim <= 80) return kernels(std::integral_constant<std::uint32_t, 80>());
  if (head_dim <= 96) return kernels(std::integral_constant<std::uint32_t, 96>());
  if (head_dim <= 128) return kernels(std::integral_constant<std::uint32_t, 128>());
  if (head_dim <= attention_width_max) {
    return kernels(std::integral_constant<std::uint32_t, attention_width_max>());
  }
  return cudaErrorInvalidValue;
}

/// The part of prepare_attention that is attention_splits' own.
cudaError_t prepare_splits(const Heads& heads, KvFormat format);

}  // namespace sluice::kernels::cuda
