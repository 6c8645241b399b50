#pragma once
// Attention of many rows: which queries a block has, what they see, and where their results go, as
// attention.cu and attention_wide.cu have them in common.

#include "kernels/cuda/attention_tile.cuh"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t block_queries = 128;

/// Blocks, one behind the other, that have all queries of a group and key head.
__host__ __device__ inline std::uint32_t query_parts(const Heads& heads) {
  return divide_up(group_rows * (heads.heads / heads.kv_heads), block_queries);
}

/// Blocks of a group.
__host__ __device__ inline std::uint32_t blocks_of_group(const Heads& heads) {
  return heads.kv_heads * query_parts(heads);
}

/// The queries of a block, and which of them are the lane's.
struct Queries {
  std::uint32_t of_kv;  ///< heads of a key head
  std::uint32_t kv_head;
  std::uint32_t first, last;    ///< within the group: query q is row q / of_kv, head q % of_kv
  std::uint32_t row, position;  ///< of the group's first

  /// Of a group's blocks the index-th; may have none. Later queries, which see more, come first,
  /// and of all key heads together.
  __device__ Queries(const AttentionArgs& args, const RowGroup& group, std::uint32_t index)
      : of_kv(args.heads.heads / args.heads.kv_heads),
        kv_head(index % args.heads.kv_heads),
        first((query_parts(args.heads) - 1 - index / args.heads.kv_heads) * block_queries),
        last(least(first + block_queries, group.rows * of_kv) - 1),
        row(group.row),
        position(group.position) {}

  __device__ bool none() const { return first > last; }

  __device__ std::uint32_t position_of(std::uint32_t query) const {
    return position + least(query, last) / of_kv;
  }
  __device__ std::uint32_t of_warp() const { return first + warp_index() * warp_queries; }

  /// i of 0 and 1; may lie behind the last.
  __device__ std::uint32_t of_lane(std::uint32_t i) const {
    return of_warp() + lane_index() / 4 + 8 * i;
  }
  __device__ std::uint32_t row_of(std::uint32_t query) const { return row + query / of_kv; }
  __device__ std::uint32_t head_of(std::uint32_t query) const {
    return kv_head * of_kv + query % of_kv;
  }

  /// What `count` queries from one on see, some of them each of it, from a tile's first position.
  __device__ Range tiles_of(const AttentionArgs& args, std::uint32_t query,
                            std::uint32_t count) const {
    const std::uint32_t begin = seen(args, position_of(query)).begin;
    return {begin / tile_tokens * tile_tokens, position_of(query + count - 1) + 1};
  }
};

/// What the queries of a warp see, kept as two positions a lane: registers are short.
struct Sight {
  std::uint32_t own[2];  ///< positions of the lane's queries; 2^32 - 1, which sees nothing, of none

  __device__ explicit Sight(const Queries& q) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      own[i] = q.of_warp() <= q.last ? q.position_of(q.of_lane(i)) : 0xFFFFFFFFU;
    }
  }

  __device__ bool meets(const AttentionArgs& args, std::uint32_t i, std::uint32_t first,
                        std::uint32_t count) const {
    return seen(args, own[i]).meets(first, count);
  }

  /// Whether some query of the warp sees something of the tile. All lanes together.
  __device__ bool any(const AttentionArgs& args, std::uint32_t tile) const {
    const bool sees = meets(args, 0, tile, tile_tokens) || meets(args, 1, tile, tile_tokens);
    return __ballot_sync(all_lanes, sees) != 0;
  }

  /// Whether every one sees all of it. All lanes together.
  __device__ bool all(const AttentionArgs& args, std::uint32_t tile) const {
    const Range low = seen(args, least(own[0], own[1])), high = seen(args, most(own[0], own[1]));
    const bool sees = high.begin <= tile && tile + tile_tokens <= low.end;
    return __ballot_sync(all_lanes, sees) == all_lanes;
  }

  __device__ void mask(const AttentionArgs& args, std::uint32_t tile, Scores& scores) const {
    mask_scores(scores, tile, {seen(args, own[0]), seen(args, own[1])});
  }
};

/// Takes a tile's scores into account: what the sum and outputs so far are to be scaled with. Tiles
/// that a query does not see leave its peak as it is.
__device__ inline void raise_peaks(const Scores& scores, float (&peak)[2], float (&rescale)[2]) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    const float before = peak[i];
    peak[i] = higher(before, tile_peak(scores, i));
    rescale[i] = power_of_two(before - peak[i]);
  }
}

/// Writes what the lane's two queries have of columns [first, first + columns): a pair of each
/// eight, out(n, i) of the n-th eight and query i.
template <std::uint32_t columns, class Out>
__device__ void write_out(const AttentionArgs& args, const Queries& q, std::uint32_t first,
                          const float (&sum)[2], Out out) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t query = q.of_lane(i);
    if (query > q.last) continue;
    const float norm = 1.0F / sum[i];
    const std::uint32_t row = q.row_of(query), head = q.head_of(query) * args.heads.head_dim;
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < columns / 8; ++n) {
      const std::uint32_t d = first + 8 * n + lane_index() % 4 * 2;
      if (d >= args.heads.head_dim) continue;
      const float2 pair = out(n, i);
      put_pair(args.out, row, head + d, {pair.x * norm, pair.y * norm});
    }
  }
}

/// attention() where args.wide, which has been prepared, and the head is of a width that it takes.
bool takes_wide(const AttentionArgs& args);
cudaError_t prepare_attention_wide(const AttentionArgs& args);
cudaError_t attention_wide(const AttentionArgs& args, std::uint32_t groups, LaunchChain& chain);

}  // namespace sluice::kernels::cuda
