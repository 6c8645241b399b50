// Attention of many rows: a block takes 128 queries of one key head, a warp sixteen of them, and
// walks their positions. The arithmetic is attention_tile.cuh's. Where a device has wide.cuh's
// products, attention_wide.cu has heads of 128 elements, of 64, and of somewhat fewer.
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
//
// 8-bit keys and values come as they are to the third buffer, and threads widen what they brought
// into the other two: once for all eight warps, and with keys' elements where the products of
// single rows have them.

#include "kernels/cuda/attention_rows.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_warps = 8;
constexpr std::uint32_t block_threads = block_warps * warp_lanes;
static_assert(block_queries == block_warps * warp_queries);
constexpr std::uint32_t buffers = 3;

/// Columns of the output that a block makes.
template <std::uint32_t width>
constexpr std::uint32_t columns_of = least(width, 128U);

/// Brings tiles to shared memory, eight threads to a position's row.
template <std::uint32_t width, class Element>
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
  /// behind the end and behind head_dim. 8-bit rows lie one behind the other.
  template <std::uint32_t columns>
  __device__ void load(Element* to, bool values, std::uint32_t first) const {
    constexpr std::uint32_t row_size = is_e4m3<Element> ? columns : row_halves<width>;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < passes; ++i) {
      const bool valid = position(i) < end_;
      const Element* from =
          valid ? pages_.at(blocks_[i], position(i), values) + first : pages_.first;
      Element* row = to + (position(i) - tile_) * row_size;
      const auto copy = [&](std::uint32_t d) {
        const bool inside = valid && first + d < pages_.kv.head_stride;
        copy_async(row + d, inside ? from + d : pages_.first, inside);
      };
      if constexpr (is_e4m3<Element>) {
        SLUICE_KEEP_LOOP
        for (std::uint32_t d = threadIdx.x % 8 * 16; d < columns; d += 128) copy(d);
      } else {
        SLUICE_UNROLL
        for (std::uint32_t d = threadIdx.x % 8 * 8; d < columns; d += 64) copy(d);
      }
    }
  }

  /// Makes halves of what this thread copied, once that is there. Of four elements of a key the
  /// last two come eight behind the first.
  template <std::uint32_t columns, bool values>
  __device__ static void widen(const Element* from, std::uint16_t* to) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < passes; ++i) {
      const std::uint32_t token = threadIdx.x / 8 + i * pass_tokens;
      SLUICE_UNROLL
      for (std::uint32_t d = threadIdx.x % 8 * 16; d < columns; d += 128) {
        std::uint16_t* out = to + token * row_halves<width> + d;
        SLUICE_UNROLL
        for (std::uint32_t n = 0; n < 2; ++n) {
          const auto raw = *reinterpret_cast<const uint2*>(from + token * columns + d + 8 * n);
          const uint2 low{widen_e4m3<false>(raw.x), widen_e4m3<false>(raw.y)};
          const uint2 high{widen_e4m3<true>(raw.x), widen_e4m3<true>(raw.y)};
          if (values) {
            *reinterpret_cast<uint4*>(out + 8 * n) = {low.x, high.x, low.y, high.y};
          } else {
            *reinterpret_cast<uint2*>(out + 4 * n) = low;
            *reinterpret_cast<uint2*>(out + 8 + 4 * n) = high;
          }
        }
      }
    }
  }

 private:
  static constexpr std::uint32_t pass_tokens = block_threads / 8;
  static constexpr std::uint32_t passes = tile_tokens / pass_tokens;

  __device__ std::uint32_t position(std::uint32_t pass) const {
    return tile_ + threadIdx.x / 8 + pass * pass_tokens;
  }

  PagesOf<Element> pages_;
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

/// Later groups of a prompt see more, and later queries of a group: they start first, those of all
/// key heads together, so that what starts last is short.
template <std::uint32_t width, class Element>
__global__ void __launch_bounds__(block_threads, 1) attention_kernel(AttentionArgs args) {
  take_turn();
  constexpr std::uint32_t steps = width / 16, columns = columns_of<width>;
  const std::uint32_t index = args.first_group + (gridDim.z - 1 - blockIdx.z);
  if (index >= header(args.step).groups) return;
  const RowGroup group = row_group(args, index);
  const Queries q(args, group, blockIdx.x);
  if (q.none()) return;
  const std::uint32_t column = blockIdx.y * columns;
  const auto [begin, end] = q.tiles_of(args, q.first, block_queries);

  SharedPieces shared;
  constexpr std::uint32_t buffer_halves = tile_tokens * row_halves<width>;
  auto* tiles = shared.take<std::uint16_t>(buffers * buffer_halves);
  // Each lane's own part of its queries: read back by nobody else.
  auto* own =
      shared.take<TileA>(block_threads * steps) + warp_index() * steps * warp_lanes + lane_index();
  const Shelf<width> shelf(tiles);
  Loader<width, Element> loader(args, group.slot, q.kv_head, end);
  // Where keys and values come to that products take from these buffers.
  const auto keys_to = [&](std::uint32_t buffer) {
    if constexpr (is_e4m3<Element>) {
      return reinterpret_cast<Element*>(tiles + 2 * buffer_halves);
    } else {
      return tiles + buffer * buffer_halves;
    }
  };
  const auto values_to = [&](std::uint32_t buffer) {
    return keys_to(buffer) + (is_e4m3<Element> ? tile_tokens * width : 0);
  };
  static_assert(tile_tokens * (width + columns) <= buffer_halves * sizeof(std::uint16_t));
  loader.look_up(begin);
  loader.template load<width>(keys_to(0), false, 0);
  commit_copies();
  loader.template load<columns>(values_to(1), true, column);
  commit_copies();
  loader.look_up(begin + tile_tokens);

  const Sight sight(q);
  for (std::uint32_t k = 0; k < steps; ++k) {
    std::uint32_t words[2][2];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t query = least(q.of_lane(i), q.last);
      const float* row = row_of(args.qkv, q.row_of(query));
      load_query<Element>(args, row + q.head_of(query) * args.heads.head_dim, k, words[i]);
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
    const std::uint32_t values_at = is_e4m3<Element> ? 1 : (at + 1) % buffers;
    const std::uint32_t next_at = is_e4m3<Element> ? 0 : (at + 2) % buffers;
    wait_copies<1>();
    if constexpr (is_e4m3<Element>) loader.template widen<width, false>(keys_to(at), tiles);
    __syncthreads();  // the keys are there, and the values before them done with
    if (more) loader.template load<width>(keys_to(next_at), false, 0);
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
      if (!sight.all(args, tile)) sight.mask(args, tile, scores);
      raise_peaks(scores, split.peak, rescale);
      weigh(scores, split.peak, weights);
    }
    wait_copies<1>();
    if constexpr (is_e4m3<Element>) {
      loader.template widen<columns, true>(values_to(at), tiles + buffer_halves);
    }
    __syncthreads();  // the values are there, and the keys done with
    if (more) loader.template load<columns>(values_to(at), true, column);
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
  const Queries again(args, row_group(args, index), blockIdx.x);
  write_out<columns>(args, again, column, whole.sum, [&](std::uint32_t n, std::uint32_t i) {
    return float2{whole.out[n].at[2 * i], whole.out[n].at[2 * i + 1]};
  });
}

template <std::uint32_t width>
constexpr std::size_t shared_bytes =
    SharedPieces::bytes<std::uint16_t>(buffers* tile_tokens* row_halves<width>) +
    SharedPieces::bytes<TileA>(block_threads* width / 16);

// An A100's block has 163 KiB.
static_assert(shared_bytes<attention_width_max> <= std::size_t{163} << 10);

}  // namespace

cudaError_t prepare_attention(const AttentionArgs& args) {
  cudaError_t status = with_width(args.heads.head_dim, [&](auto width) {
    return with_element(args.kv.format, [&]<class Element>(Element) {
      return allow_shared(attention_kernel<width, Element>, shared_bytes<width>);
    });
  });
  if (status == cudaSuccess) status = prepare_splits(args.heads, args.kv.format);
  return status == cudaSuccess && takes_wide(args) ? prepare_attention_wide(args) : status;
}

cudaError_t attention(const AttentionArgs& args, std::uint32_t groups, LaunchChain& chain) {
  if (takes_wide(args)) return attention_wide(args, groups, chain);
  return with_width(args.heads.head_dim, [&](auto width) {
    const dim3 grid(blocks_of_group(args.heads), width / columns_of<width>, groups);
    return with_element(args.kv.format, [&]<class Element>(Element) {
      return launch(attention_kernel<width, Element>, grid, block_threads, shared_bytes<width>,
                    chain, args);
    });
  });
}

}  // namespace sluice::kernels::cuda
