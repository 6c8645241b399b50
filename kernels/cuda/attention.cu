// Attention of many rows: a block takes 128 queries of one key head, a warp sixteen of them, and
// walks their positions. The arithmetic is attention_tile.cuh's.
//
// Tiles of keys and of values take turns in three buffers: while one is multiplied, the next two
// are on their way. A tile of 128 elements is 32 KiB, read from the second-level cache for 2.1
// million multiply-adds: 128 operations a byte, so that 400 TFLOP/s would read 3.1 TB/s. Each
// product of a warp reads 256 bytes of shared memory for its 16 queries, two cycles of a
// multiprocessor's 128 bytes, for which an H100's tensor cores need some 1.6 and an A100's 2:
// shared memory is the expected limit, at about half of an H100's dense peak. A query keeps two
// outputs, of its split and of all before it, which at 128 elements are 128 registers of a lane:
// eight warps a multiprocessor. Of wider heads a block makes half the output's columns, and the
// other half's block makes the scores again. Seen on an H200: 283 us for a layer's 2,048 queries of
// 32 heads of 128 elements, 121 TFLOP/s of what they see.

#include "kernels/cuda/attention_tile.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_warps = 8;
constexpr std::uint32_t block_threads = block_warps * warp_lanes;
constexpr std::uint32_t block_queries = block_warps * warp_queries;
constexpr std::uint32_t buffers = 3;

/// Columns of the output that a block makes.
template <std::uint32_t width>
constexpr std::uint32_t columns_of = least(width, 128U);

/// Brings tiles to shared memory, eight threads to a position's row.
template <std::uint32_t width>
class Loader {
 public:
  __device__ Loader(const AttentionArgs& args, std::uint32_t slot, std::uint32_t kv_head,
                    std::uint32_t end)
      : pages_(args, slot, kv_head), end_(end) {}

  /// Notes where the next tile's positions lie.
  __device__ void look_up(std::uint32_t tile) {
    tile_ = tile;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < passes; ++i) {
      if (position(i) < end_) blocks_[i] = pages_.block_of(position(i));
    }
  }

  /// Starts the copies of that tile's keys or values, elements [first, first + columns); zeros
  /// behind the end and behind head_dim.
  template <std::uint32_t columns>
  __device__ void load(std::uint16_t* to, bool values, std::uint32_t first) const {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < passes; ++i) {
      const bool valid = position(i) < end_;
      const std::uint16_t* from =
          valid ? pages_.at(blocks_[i], position(i), values) + first : pages_.first;
      std::uint16_t* row = to + (position(i) - tile_) * row_halves<width>;
      SLUICE_UNROLL
      for (std::uint32_t d = threadIdx.x % 8 * 8; d < columns; d += 64) {
        const bool inside = valid && first + d < pages_.kv.head_stride;
        copy_async(row + d, inside ? from + d : pages_.first, inside);
      }
    }
  }

 private:
  static constexpr std::uint32_t pass_tokens = block_threads / 8;
  static constexpr std::uint32_t passes = tile_tokens / pass_tokens;

  __device__ std::uint32_t position(std::uint32_t pass) const {
    return tile_ + threadIdx.x / 8 + pass * pass_tokens;
  }

  Pages pages_;
  std::uint32_t end_, tile_ = 0;
  std::uint32_t blocks_[passes] = {};
};

/// Sixteen queries' running softmax: a lane's part, of rows lane / 4 and lane / 4 + 8.
template <std::uint32_t columns>
struct Running {
  TileSums out[columns / 8];
  float peak[2], sum[2];

  __device__ void clear() {
    SLUICE_UNROLL
    for (TileSums& some : out) some = {};
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      peak[i] = minus_infinity();
      sum[i] = 0.0F;
    }
  }
};

__host__ __device__ inline std::uint32_t query_parts(const Heads& heads) {
  return divide_up(group_rows * (heads.heads / heads.kv_heads), block_queries);
}

/// Where queries' peaks and sums wait for the next fold, for registers are short: in the padding of
/// the first buffer's rows, a row for the two queries that four lanes have together.
template <std::uint32_t width>
class Shelf {
 public:
  __device__ explicit Shelf(std::uint16_t* tiles)
      : place_(reinterpret_cast<float4*>(tiles + threadIdx.x / 4 * row_halves<width> + width)) {
    static_assert(row_halves<width> == width + 8 && block_threads / 4 <= tile_tokens);
  }

  template <std::uint32_t columns>
  __device__ void put(const Running<columns>& whole) const {
    if (lane_index() % 4 == 0) *place_ = {whole.peak[0], whole.peak[1], whole.sum[0], whole.sum[1]};
    __syncwarp();
  }

  template <std::uint32_t columns>
  __device__ void take(Running<columns>& whole) const {
    const float4 kept = *place_;
    __syncwarp();  // before the next put
    whole.peak[0] = kept.x;
    whole.peak[1] = kept.y;
    whole.sum[0] = kept.z;
    whole.sum[1] = kept.w;
  }

 private:
  float4* place_;
};

/// The queries of a block, and which of them are the lane's.
struct Queries {
  std::uint32_t of_kv;  ///< heads of a key head
  std::uint32_t kv_head;
  std::uint32_t first, last;    ///< within the group: query q is row q / of_kv, head q % of_kv
  std::uint32_t row, position;  ///< of the group's first

  __device__ Queries(const AttentionArgs& args, const RowGroup& group)
      : of_kv(args.heads.heads / args.heads.kv_heads),
        kv_head(blockIdx.y / query_parts(args.heads)),
        first(blockIdx.y % query_parts(args.heads) * block_queries),
        last(least(first + block_queries, group.rows * of_kv) - 1),
        row(group.row),
        position(group.position) {}

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
};

/// Adds a split to the whole, for the queries that see something of it, and clears it.
template <std::uint32_t columns>
__device__ void fold_split(const AttentionArgs& args, const Sight& sight, std::uint32_t begin,
                           Running<columns>& whole, Running<columns>& split) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (!sight.meets(args, i, begin, args.split_tokens)) continue;
    const Fold fold(whole.peak[i], whole.sum[i], split.peak[i], split.sum[i]);
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < columns / 8; ++n) {
      SLUICE_UNROLL
      for (std::uint32_t j = 2 * i; j < 2 * i + 2; ++j) {
        whole.out[n].at[j] = fold(whole.out[n].at[j], split.out[n].at[j]);
      }
    }
  }
  split.clear();
}

template <std::uint32_t columns>
__device__ void write_out(const AttentionArgs& args, const Queries& q, std::uint32_t first,
                          const Running<columns>& whole) {
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t query = q.of_lane(i);
    if (query > q.last) continue;
    const float norm = 1.0F / whole.sum[i];
    const std::uint32_t row = q.row_of(query), head = q.head_of(query) * args.heads.head_dim;
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < columns / 8; ++n) {
      const std::uint32_t d = first + 8 * n + lane_index() % 4 * 2;
      if (d >= args.heads.head_dim) continue;
      const TileSums& out = whole.out[n];
      put_pair(args.out, row, head + d, {out.at[2 * i] * norm, out.at[2 * i + 1] * norm});
    }
  }
}

/// Later groups of a prompt see more: they start first.
template <std::uint32_t width>
__global__ void __launch_bounds__(block_threads, 1) attention_kernel(AttentionArgs args) {
  take_turn();
  constexpr std::uint32_t steps = width / 16, columns = columns_of<width>;
  const std::uint32_t index = args.first_group + (gridDim.x - 1 - blockIdx.x);
  if (index >= header(args.step).groups) return;
  const RowGroup group = row_group(args, index);
  const Queries q(args, group);
  if (q.first > q.last) return;
  const std::uint32_t column = blockIdx.z * columns;
  const std::uint32_t end = q.position_of(q.last) + 1;
  const std::uint32_t begin = seen(args, q.position_of(q.first)).begin / tile_tokens * tile_tokens;

  SharedPieces shared;
  constexpr std::uint32_t buffer_halves = tile_tokens * row_halves<width>;
  auto* tiles = shared.take<std::uint16_t>(buffers * buffer_halves);
  // Each lane's own part of its queries: read back by nobody else.
  auto* own =
      shared.take<TileA>(block_threads * steps) + warp_index() * steps * warp_lanes + lane_index();
  const Shelf<width> shelf(tiles);
  Loader<width> loader(args, group.slot, q.kv_head, end);
  loader.look_up(begin);
  loader.template load<width>(tiles, false, 0);
  commit_copies();
  loader.template load<columns>(tiles + buffer_halves, true, column);
  commit_copies();
  loader.look_up(begin + tile_tokens);

  const Sight sight(q);
  for (std::uint32_t k = 0; k < steps; ++k) {
    std::uint32_t words[2][2];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t query = least(q.of_lane(i), q.last);
      const float* row = row_of(args.qkv, q.row_of(query));
      load_query(args, row + q.head_of(query) * args.heads.head_dim, k, words[i]);
    }
    own[k * warp_lanes] = {{words[0][0], words[1][0], words[0][1], words[1][1]}};
  }
  Running<columns> whole, split;
  whole.clear();
  shelf.put(whole);
  split.clear();
  std::uint32_t at = 0;  // the buffer of this tile's keys; its values are in the next
  for (std::uint32_t tile = begin; tile < end; tile += tile_tokens) {
    const bool more = tile + tile_tokens < end;
    const bool works = sight.any(args, tile);
    const std::uint32_t values_at = (at + 1) % buffers, next_at = (at + 2) % buffers;
    wait_copies<1>();
    __syncthreads();  // the keys are there, and the values before them done with
    if (more) loader.template load<width>(tiles + next_at * buffer_halves, false, 0);
    commit_copies();
    Weights weights;
    float rescale[2];
    if (works) {
      Scores scores{};
      const std::uint16_t* keys = tiles + at * buffer_halves;
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < steps; ++k) {
        const TileA queries = own[k * warp_lanes];
        SLUICE_UNROLL
        for (std::uint32_t n = 0; n < score_tiles; n += 2) {
          multiply_keys<width>(scores + n, queries, keys + 8 * n * row_halves<width>, k);
        }
      }
      cap_scores(args, scores);
      if (!sight.all(args, tile)) {
        mask_scores(scores, tile, {seen(args, sight.own[0]), seen(args, sight.own[1])});
      }
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) {
        const float before = split.peak[i];
        split.peak[i] = higher(before, tile_peak(scores, i));  // unseen tiles leave it as it is
        rescale[i] = power_of_two(before - split.peak[i]);
      }
      weigh(scores, split.peak, weights);
    }
    wait_copies<1>();
    __syncthreads();  // the values are there, and the keys done with
    if (more) loader.template load<columns>(tiles + at * buffer_halves, true, column);
    commit_copies();
    loader.look_up(tile + 2 * tile_tokens);
    if (works) {
      const std::uint16_t* values = tiles + values_at * buffer_halves;
      const bool sees[2] = {sight.meets(args, 0, tile, tile_tokens),
                            sight.meets(args, 1, tile, tile_tokens)};
      const TileSums sums = sum_weights(weights);
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) {
        if (sees[i]) split.sum[i] = fma_f32(split.sum[i], rescale[i], sums.at[2 * i]);
      }
      SLUICE_UNROLL
      for (std::uint32_t d = 0; d < columns / 16; ++d) {
        TileSums out[2] = {};
        SLUICE_UNROLL
        for (std::uint32_t j = 0; j < weight_tiles; ++j) {
          multiply_values<width>(out, weights[j], values + 16 * j * row_halves<width>, d);
        }
        SLUICE_UNROLL
        for (std::uint32_t i = 0; i < 8; ++i) {
          float& sum = split.out[2 * d + i / 4].at[i % 4];
          const std::uint32_t row = i % 4 / 2;
          if (sees[row]) sum = fma_f32(sum, rescale[row], out[i / 4].at[i % 4]);
        }
      }
    }
    const std::uint32_t split_begin = tile / args.split_tokens * args.split_tokens;
    if (!more || tile + tile_tokens == split_begin + args.split_tokens) {
      shelf.take(whole);
      fold_split(args, sight, split_begin, whole, split);
      shelf.put(whole);
    }
    at = next_at;
  }
  // Read again: kept through the loop, it would take what registers there are beyond 255.
  write_out(args, Queries(args, row_group(args, index)), column, whole);
}

template <std::uint32_t width>
constexpr std::size_t shared_bytes =
    SharedPieces::bytes<std::uint16_t>(buffers * tile_tokens * row_halves<width>) +
    SharedPieces::bytes<TileA>(block_threads * width / 16);

// An A100's block has 163 KiB.
static_assert(shared_bytes<attention_width_max> <= std::size_t{163} << 10);

}  // namespace

cudaError_t prepare_attention(const Heads& heads) {
  const cudaError_t status = with_width(heads.head_dim, [](auto width) {
    return allow_shared(attention_kernel<width>, shared_bytes<width>);
  });
  return status != cudaSuccess ? status : prepare_splits(heads);
}

cudaError_t attention(const AttentionArgs& args, std::uint32_t groups, LaunchChain& chain) {
  return with_width(args.heads.head_dim, [&](auto width) {
    const dim3 grid(groups, args.heads.kv_heads * query_parts(args.heads),
                    width / columns_of<width>);
    return launch(attention_kernel<width>, grid, block_threads, shared_bytes<width>, chain, args);
  });
}

}  // namespace sluice::kernels::cuda
