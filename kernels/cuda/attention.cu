// Attention over paged keys and values. A query's softmax is made in two levels of one fixed shape:
//   tile of 32 positions: scores, one chain of multiply-adds over the head's elements, a position a
//     lane, capped; added to its split's running maximum, sum and output (one chain an element, in
//     position order)
//   split of `split_tokens` positions: folded, in their order, into the query's own
// Tiles and splits start at multiples of their size, so a row's bits depend neither on its
// neighbours nor on whether its splits ran in one block or in many.

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/step.cuh"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_warps = 4;
constexpr std::uint32_t block_threads = block_warps * warp_lanes;

/// Queries that a warp takes through a tile together: they share its reads.
constexpr std::uint32_t warp_queries = 4;

__device__ float minus_infinity() { return float_from_bits(0xFF800000U); }

__host__ __device__ inline std::uint32_t whole_eights(std::uint32_t n) { return (n + 7) / 8 * 8; }

/// Heads of one key head that a block takes: its queries and outputs must fit shared memory beside
/// two tiles, also on an A100 (163 KiB).
__host__ __device__ inline std::uint32_t block_heads(const Heads& heads) {
  const std::uint32_t shared = heads.heads / heads.kv_heads;
  const std::uint32_t fit = 1024 / whole_eights(heads.head_dim);
  return least(shared, fit < 1 ? 1U : least(fit, 8U));
}

__host__ __device__ inline std::uint32_t head_parts(const Heads& heads) {
  return divide_up(heads.heads / heads.kv_heads, block_heads(heads));
}

/// Positions [begin, end).
struct Range {
  std::uint32_t begin = 0, end = 0;
};

__device__ Range seen(const AttentionArgs& args, std::uint32_t position) {
  const std::uint32_t end = position + 1;
  return {args.window != 0 && end > args.window ? end - args.window : 0, end};
}

/// What a block works on: rows of a group times heads of a key head, and its shared memory.
struct Work {
  std::uint32_t row, rows, slot, position;  ///< of the group's first row
  std::uint32_t kv_head, head, heads;
  std::uint32_t queries;  ///< rows * heads; query q is row q / heads, head q % heads
  std::uint32_t width;    ///< elements of a query in shared memory
  float* q;               ///< [queries, width]
  float* split_out;       ///< [queries, width]
  float* split_max;       ///< [queries]
  float* split_sum;
  float* weights;         ///< [block_warps, warp_queries, tile_tokens]
  std::uint16_t* keys;    ///< [tile_tokens, width + 8]: the eight keep lanes off each other's banks
  std::uint16_t* values;  ///< [tile_tokens, width]
};

constexpr std::uint32_t key_padding = 8;

__device__ Work place_work(const AttentionArgs& args, std::uint32_t group_index,
                           std::uint32_t part_index, SharedPieces& shared) {
  const RowGroup group = part<RowGroup>(args.step, header(args.step).group_offset)[group_index];
  const StepRow first = step_row(args.step, group.row);
  const std::uint32_t parts = head_parts(args.heads);
  const std::uint32_t of_kv = args.heads.heads / args.heads.kv_heads;
  const std::uint32_t per_block = block_heads(args.heads);
  Work w;
  w.row = group.row;
  w.rows = group.rows;
  w.slot = first.slot;
  w.position = first.position;
  w.kv_head = part_index / parts;
  const std::uint32_t offset = part_index % parts * per_block;
  w.head = w.kv_head * of_kv + offset;
  w.heads = least(per_block, of_kv - offset);
  w.queries = w.rows * w.heads;
  w.width = whole_eights(args.heads.head_dim);
  const std::uint32_t room = group_rows * per_block;
  w.q = shared.take<float>(room * w.width);
  w.split_out = shared.take<float>(room * w.width);
  w.split_max = shared.take<float>(room);
  w.split_sum = shared.take<float>(room);
  w.weights = shared.take<float>(block_warps * warp_queries * tile_tokens);
  w.keys = shared.take<std::uint16_t>(tile_tokens * (w.width + key_padding));
  w.values = shared.take<std::uint16_t>(tile_tokens * w.width);
  return w;
}

std::size_t work_bytes(const Heads& heads) {
  const std::size_t width = whole_eights(heads.head_dim);
  const std::size_t room = std::size_t{group_rows} * block_heads(heads);
  return 2 * SharedPieces::bytes<float>(room * width) + 2 * SharedPieces::bytes<float>(room) +
         SharedPieces::bytes<float>(block_warps * warp_queries * tile_tokens) +
         SharedPieces::bytes<std::uint16_t>(tile_tokens * (width + key_padding)) +
         SharedPieces::bytes<std::uint16_t>(tile_tokens * width);
}

__device__ void load_queries(const AttentionArgs& args, const Work& w) {
  for (std::uint32_t i = threadIdx.x; i < w.queries * w.width; i += block_threads) {
    const std::uint32_t query = i / w.width, d = i % w.width;
    const float* row = row_of(args.qkv, w.row + query / w.heads);
    const std::uint32_t head = w.head + query % w.heads;
    w.q[i] = d < args.heads.head_dim ? row[head * args.heads.head_dim + d] : 0.0F;
  }
}

/// Keys and values of positions tile .. tile + 31 below `end`, zeros behind.
__device__ void load_tile(const AttentionArgs& args, const Work& w, std::uint32_t tile,
                          std::uint32_t end) {
  const std::uint32_t chunks = w.width / 8;
  const std::uint32_t* table = args.slots.blocks + std::size_t{w.slot} * args.slots.block_capacity;
  const std::uint32_t block_tokens = args.kv.block_tokens;
  for (std::uint32_t i = threadIdx.x; i < tile_tokens * chunks; i += block_threads) {
    const std::uint32_t t = i / chunks, d = i % chunks * 8;
    const std::uint32_t position = tile + t;
    uint4 key{0, 0, 0, 0}, value{0, 0, 0, 0};
    if (position < end) {
      const std::uint16_t* from =
          keys_of(args.kv, args.layer, table[position / block_tokens], w.kv_head) +
          position % block_tokens * args.kv.head_stride + d;
      key = *reinterpret_cast<const uint4*>(from);
      value =
          *reinterpret_cast<const uint4*>(from + std::size_t{block_tokens} * args.kv.head_stride);
    }
    *reinterpret_cast<uint4*>(w.keys + t * (w.width + key_padding) + d) = key;
    *reinterpret_cast<uint4*>(w.values + t * w.width + d) = value;
  }
}

__device__ void clear_split(const Work& w) {
  for (std::uint32_t i = threadIdx.x; i < w.queries * w.width; i += block_threads) {
    w.split_out[i] = 0.0F;
  }
  for (std::uint32_t i = threadIdx.x; i < w.queries; i += block_threads) {
    w.split_max[i] = minus_infinity();
    w.split_sum[i] = 0.0F;
  }
}

__device__ float capped(const AttentionArgs& args, float score) {
  if (args.soft_cap == 0.0F) return score;
  return tanh_f32(score * (1.0F / args.soft_cap)) * args.soft_cap;
}

/// Takes the warp's queries first, first + block_warps, ... (N of them) through the tile.
template <std::uint32_t N>
__device__ void attend_tile(const AttentionArgs& args, const Work& w, std::uint32_t tile,
                            std::uint32_t first) {
  const float* q[N];
  float scores[N];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < N; ++n) {
    q[n] = w.q + (first + n * block_warps) * w.width;
    scores[n] = 0.0F;
  }
  const std::uint32_t lane = lane_index();
  const std::uint16_t* key = w.keys + lane * (w.width + key_padding);
  for (std::uint32_t d = 0; d < w.width; d += 8) {
    float k[8];
    widen_eight_f16(*reinterpret_cast<const uint4*>(key + d), k);
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < N; ++n) {
      const float4 a = *reinterpret_cast<const float4*>(q[n] + d);
      const float4 b = *reinterpret_cast<const float4*>(q[n] + d + 4);
      const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 8; ++i) scores[n] = fma_f32(x[i], k[i], scores[n]);
    }
  }
  float* weights = w.weights + warp_index() * warp_queries * tile_tokens;
  float rescale[N];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < N; ++n) {
    const std::uint32_t query = first + n * block_warps;
    const Range range = seen(args, w.position + query / w.heads);
    const bool visible = tile + lane >= range.begin && tile + lane < range.end;
    const float score = visible ? capped(args, scores[n] * args.scale) : minus_infinity();
    const float before = w.split_max[query];
    const float top = warp_max(score);
    const float peak = before > top ? before : top;
    // A tile that the query does not see leaves its state as it is.
    const float weight = visible ? exp_f32(score - peak) : 0.0F;
    rescale[n] = before == peak ? 1.0F : exp_f32(before - peak);
    const float sum = fma_f32(w.split_sum[query], rescale[n], warp_sum(weight));
    weights[n * tile_tokens + lane] = weight;
    __syncwarp();  // every lane has read the state, and sees the weights
    if (lane == 0) {
      w.split_max[query] = peak;
      w.split_sum[query] = sum;
    }
  }
  for (std::uint32_t d = 2 * lane; d < w.width; d += 2 * warp_lanes) {
    float out[N][2];
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < N; ++n) {
      const float* from = w.split_out + (first + n * block_warps) * w.width + d;
      out[n][0] = from[0] * rescale[n];
      out[n][1] = from[1] * rescale[n];
    }
    for (std::uint32_t t = 0; t < tile_tokens; ++t) {
      const std::uint32_t both =
          *reinterpret_cast<const std::uint32_t*>(w.values + t * w.width + d);
      const float v0 = widen_f16(both & 0xFFFFU), v1 = widen_f16(both >> 16);
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < N; ++n) {
        const float weight = weights[n * tile_tokens + t];
        if (weight == 0.0F) continue;  // what a query does not see must not even turn a zero's sign
        out[n][0] = fma_f32(weight, v0, out[n][0]);
        out[n][1] = fma_f32(weight, v1, out[n][1]);
      }
    }
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < N; ++n) {
      float* to = w.split_out + (first + n * block_warps) * w.width + d;
      to[0] = out[n][0];
      to[1] = out[n][1];
    }
  }
  __syncwarp();  // before the warp's next queries write their weights
}

/// All positions of a split that any of the block's queries sees, into the split's state.
__device__ void attend_split(const AttentionArgs& args, const Work& w, std::uint32_t split) {
  const std::uint32_t end = w.position + w.rows;
  const std::uint32_t split_end = least(end, (split + 1) * args.split_tokens);
  const std::uint32_t begin = seen(args, w.position).begin / tile_tokens * tile_tokens;
  clear_split(w);
  for (std::uint32_t tile = most(split * args.split_tokens, begin); tile < split_end;
       tile += tile_tokens) {
    __syncthreads();  // the tile before is done with
    load_tile(args, w, tile, end);
    __syncthreads();
    std::uint32_t query = warp_index();
    for (; query + (warp_queries - 1) * block_warps < w.queries;
         query += warp_queries * block_warps) {
      attend_tile<warp_queries>(args, w, tile, query);
    }
    for (; query < w.queries; query += block_warps) attend_tile<1>(args, w, tile, query);
  }
  __syncthreads();
}

/// Folds a part into a running softmax.
struct Fold {
  float old_scale, new_scale;

  __device__ Fold(float& peak, float& sum, float part_peak, float part_sum) {
    const float top = peak > part_peak ? peak : part_peak;
    old_scale = exp_f32(peak - top);
    new_scale = exp_f32(part_peak - top);
    sum = fma_f32(part_sum, new_scale, sum * old_scale);
    peak = top;
  }
  __device__ float operator()(float out, float part_out) const {
    return fma_f32(part_out, new_scale, out * old_scale);
  }
};

/// Whether the query sees anything of the split.
__device__ bool sees(const Range& range, const AttentionArgs& args, std::uint32_t split) {
  return range.begin < (split + 1) * args.split_tokens && split * args.split_tokens < range.end;
}

/// A block a group of rows and part of its heads: every split, one after the other.
__global__ void __launch_bounds__(block_threads) attention_kernel(AttentionArgs args) {
  const std::uint32_t group = args.first_group + blockIdx.x;
  if (group >= header(args.step).groups) return;
  SharedPieces shared;
  const Work w = place_work(args, group, blockIdx.y, shared);
  const std::uint32_t room = group_rows * block_heads(args.heads);
  auto* out = shared.take<float>(room * w.width);
  auto* peak = shared.take<float>(room);
  auto* sum = shared.take<float>(room);
  load_queries(args, w);
  for (std::uint32_t i = threadIdx.x; i < w.queries * w.width; i += block_threads) out[i] = 0.0F;
  for (std::uint32_t i = threadIdx.x; i < w.queries; i += block_threads) {
    peak[i] = minus_infinity();
    sum[i] = 0.0F;
  }
  const std::uint32_t end = w.position + w.rows;
  const std::uint32_t first = seen(args, w.position).begin / args.split_tokens;
  for (std::uint32_t split = first; split * args.split_tokens < end; ++split) {
    attend_split(args, w, split);
    for (std::uint32_t query = warp_index(); query < w.queries; query += block_warps) {
      if (!sees(seen(args, w.position + query / w.heads), args, split)) continue;
      float top = peak[query], total = sum[query];
      const Fold fold(top, total, w.split_max[query], w.split_sum[query]);
      for (std::uint32_t d = lane_index(); d < w.width; d += warp_lanes) {
        const std::uint32_t i = query * w.width + d;
        out[i] = fold(out[i], w.split_out[i]);
      }
      __syncwarp();  // every lane has read the state
      if (lane_index() == 0) {
        peak[query] = top;
        sum[query] = total;
      }
      __syncwarp();
    }
    __syncthreads();
  }
  for (std::uint32_t query = warp_index(); query < w.queries; query += block_warps) {
    const float norm = 1.0F / sum[query];
    float* to = row_of(args.out, w.row + query / w.heads) +
                (w.head + query % w.heads) * args.heads.head_dim;
    for (std::uint32_t d = lane_index(); d < args.heads.head_dim; d += warp_lanes) {
      to[d] = out[query * w.width + d] * norm;
    }
  }
}

/// A split's state in memory: maximum, sum, outputs.
__device__ float* partial_of(const AttentionArgs& args, std::uint32_t group, std::uint32_t head,
                             std::uint32_t split) {
  const std::size_t index =
      (std::size_t{group} * args.heads.heads + head) * args.splits_max + split;
  return args.partials + index * (2 + args.heads.head_dim);
}

/// A block a split, for groups of one row.
__global__ void __launch_bounds__(block_threads) split_kernel(AttentionArgs args) {
  const std::uint32_t group = blockIdx.z, split = blockIdx.x;
  if (group >= header(args.step).single_groups) return;
  SharedPieces shared;
  const Work w = place_work(args, group, blockIdx.y, shared);
  if (!sees(seen(args, w.position), args, split)) return;
  load_queries(args, w);
  attend_split(args, w, split);
  for (std::uint32_t query = warp_index(); query < w.queries; query += block_warps) {
    float* to = partial_of(args, group, w.head + query, split);
    for (std::uint32_t d = lane_index(); d < args.heads.head_dim; d += warp_lanes) {
      to[2 + d] = w.split_out[query * w.width + d];
    }
    if (lane_index() != 0) continue;
    to[0] = w.split_max[query];
    to[1] = w.split_sum[query];
  }
}

/// A block a row and head: its splits in their order.
__global__ void __launch_bounds__(block_threads) combine_kernel(AttentionArgs args) {
  const std::uint32_t group = blockIdx.x, head = blockIdx.y;
  if (group >= header(args.step).single_groups) return;
  const std::uint32_t row = part<RowGroup>(args.step, header(args.step).group_offset)[group].row;
  const Range range = seen(args, step_row(args.step, row).position);
  float* to = row_of(args.out, row) + head * args.heads.head_dim;
  for (std::uint32_t d = threadIdx.x; d < args.heads.head_dim; d += block_threads) {
    float peak = minus_infinity(), sum = 0.0F, out = 0.0F;
    for (std::uint32_t split = range.begin / args.split_tokens;
         split * args.split_tokens < range.end; ++split) {
      const float* from = partial_of(args, group, head, split);
      const Fold fold(peak, sum, from[0], from[1]);
      out = fold(out, from[2 + d]);
    }
    to[d] = out * (1.0F / sum);
  }
}

std::size_t whole_bytes(const Heads& heads) {
  const std::size_t room = std::size_t{group_rows} * block_heads(heads);
  return work_bytes(heads) + SharedPieces::bytes<float>(room * whole_eights(heads.head_dim)) +
         2 * SharedPieces::bytes<float>(room);
}

}  // namespace

cudaError_t prepare_attention(const Heads& heads) {
  if (const cudaError_t status = allow_shared(attention_kernel, whole_bytes(heads));
      status != cudaSuccess) {
    return status;
  }
  return allow_shared(split_kernel, work_bytes(heads));
}

cudaError_t attention(const AttentionArgs& args, std::uint32_t groups, cudaStream_t stream) {
  const dim3 grid(groups, args.heads.kv_heads * head_parts(args.heads));
  return launch(attention_kernel, grid, block_threads, whole_bytes(args.heads), stream, args);
}

cudaError_t attention_splits(const AttentionArgs& args, std::uint32_t groups, std::uint32_t splits,
                             cudaStream_t stream) {
  const dim3 grid(splits, args.heads.kv_heads * head_parts(args.heads), groups);
  if (const cudaError_t status =
          launch(split_kernel, grid, block_threads, work_bytes(args.heads), stream, args);
      status != cudaSuccess) {
    return status;
  }
  return launch(combine_kernel, dim3(groups, args.heads.heads), block_threads, 0, stream, args);
}

}  // namespace sluice::kernels::cuda
