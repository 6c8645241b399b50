// Attention of single rows, a sequence's next token: a block takes a split of the positions of one
// key head, a warp a tile of it, and all heads of that key head share what is read. The arithmetic
// is attention_tile.cuh's: what a tile has to know of those before it is their greatest score, and
// the greatest of several is the same in any order.
//
// With 4 heads to a key head, a byte of keys and values is worth 4 multiply-adds, two hundredths of
// what fills an H100's tensor cores: memory is the limit. A warp asks for its tile's 16 KiB of keys
// at once (at 128 elements), and for sixteen values whenever sixteen keys are done with, so that 64
// KiB of a block are on their way; a Hopper multiprocessor has shared memory for three such blocks,
// an A100's for two. To read 4.8 TB/s at a latency of 0.8 us, an H200 must have 29 KiB on their way
// to each multiprocessor. Partial results are 2 KiB in memory for the 128 KiB that a split reads.
// Expected: some nine tenths of the memory's bandwidth where all multiprocessors have blocks, and a
// launch's latency where they have not. Nothing of this has been measured.

#include "kernels/cuda/attention_tile.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t slice_tokens = 16;
constexpr std::uint32_t slices = tile_tokens / slice_tokens;

/// A row of float32 results in shared memory: the eight keep rows off each other's banks.
template <std::uint32_t width>
constexpr std::uint32_t result_floats = width + 8;

template <std::uint32_t width>
constexpr std::uint32_t slice_halves = slice_tokens * row_halves<width>;

// A warp's results take the place of its keys and values.
template <std::uint32_t width>
constexpr bool results_fit = sizeof(float) * warp_queries * result_floats<width> <=
                             sizeof(std::uint16_t) * slices * slice_halves<width>;

__host__ __device__ inline std::uint32_t head_parts(const Heads& heads) {
  return divide_up(heads.heads / heads.kv_heads, warp_queries);
}

/// A warp's copies of its tile, sixteen positions at a time.
template <std::uint32_t width>
class SliceLoader {
 public:
  /// All lanes together.
  __device__ SliceLoader(const AttentionArgs& args, const RowGroup& group, std::uint32_t kv_head,
                         std::uint32_t tile)
      : pages_(args, group.slot, kv_head), tile_(tile), end_(group.position + 1) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t position = tile + warp_lanes * i + lane_index();
      blocks_[i] = position < end_ ? pages_.block_of(position) : 0;
    }
  }

  /// Starts the copies of the slice's keys or values; zeros behind the end.
  __device__ void load(std::uint16_t* to, bool values, std::uint32_t slice) const {
    SLUICE_UNROLL
    for (std::uint32_t token = 0; token < slice_tokens; token += 4) {
      const std::uint32_t first = slice * slice_tokens + token, t = first + lane_index() / 8;
      const std::uint32_t block =
          __shfl_sync(all_lanes, blocks_[first / warp_lanes], static_cast<int>(t % warp_lanes));
      const bool valid = tile_ + t < end_;
      const std::uint16_t* from = valid ? pages_.at(block, tile_ + t, values) : pages_.first;
      std::uint16_t* row = to + t % slice_tokens * row_halves<width>;
      SLUICE_UNROLL
      for (std::uint32_t d = lane_index() % 8 * 8; d < width; d += 64) {
        const bool inside = valid && d < pages_.kv.head_stride;
        copy_async(row + d, inside ? from + d : pages_.first, inside);
      }
    }
  }

 private:
  Pages pages_;
  std::uint32_t tile_, end_;
  std::uint32_t blocks_[2];  ///< of positions tile + lane and tile + 32 + lane
};

/// What the warps of a block tell each other of their tiles, by query.
struct TileNotes {
  float peak[split_tiles_max][warp_queries];
  float rescale[split_tiles_max][warp_queries];
  float sum[split_tiles_max][warp_queries];
};

/// A split's state in memory: peak, sum, outputs.
__device__ float* partial_of(const AttentionArgs& args, const RowGroup& group, std::uint32_t split,
                             std::uint32_t head) {
  const std::size_t index = std::size_t{group.partials + split} * args.heads.heads + head;
  return args.partials + index * (2 + args.heads.head_dim);
}

__device__ bool is_whole(const AttentionArgs& args, const Range& range, std::uint32_t split) {
  return split * args.split_tokens <= range.begin && range.end <= (split + 1) * args.split_tokens;
}

/// A tile's part of the block's result: weighted values and notes, in shared memory.
template <std::uint32_t width>
__device__ void attend_tile(const AttentionArgs& args, const RowGroup& group, const Range& range,
                            std::uint32_t tile, std::uint32_t kv_head, std::uint32_t head,
                            std::uint32_t heads, std::uint16_t* own, TileNotes& notes) {
  constexpr std::uint32_t steps = width / 16;
  const std::uint32_t row = lane_index() / 4;
  const bool works = range.meets(tile, tile_tokens);
  const SliceLoader<width> loader(args, group, kv_head, tile);
  Scores scores{};
  if (works) {
    SLUICE_UNROLL
    for (std::uint32_t slice = 0; slice < slices; ++slice) {
      loader.load(own + slice * slice_halves<width>, false, slice);
      commit_copies();
    }
    TileA queries[steps];
    const float* from = row_of(args.qkv, group.row) + head * args.heads.head_dim;
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < steps; ++k) {
      std::uint32_t words[2][2] = {};
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) {
        const std::uint32_t query = row + 8 * i;
        if (query < heads) load_query(args, from + query * args.heads.head_dim, k, words[i]);
      }
      queries[k] = {{words[0][0], words[1][0], words[0][1], words[1][1]}};
    }
    SLUICE_UNROLL
    for (std::uint32_t slice = 0; slice < slices; ++slice) {
      std::uint16_t* keys = own + slice * slice_halves<width>;
      wait_copies<slices - 1>();
      __syncwarp();  // the keys that every lane copied are there
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < steps; ++k) {
        multiply_keys<width>(scores + 2 * slice, queries[k], keys, k);
      }
      __syncwarp();  // and are done with
      loader.load(keys, true, slice);
      commit_copies();
    }
    cap_scores(args, scores);
    const Range ranges[2] = {range, range};
    if (tile < range.begin || tile + tile_tokens > range.end) mask_scores(scores, tile, ranges);
  }
  float peak[2];
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    peak[i] = works ? tile_peak(scores, i) : minus_infinity();
    if (lane_index() % 4 == 0) notes.peak[warp_index()][row + 8 * i] = peak[i];
  }
  __syncthreads();
  if (!works) return;
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    float before = minus_infinity();
    for (std::uint32_t warp = 0; warp < warp_index(); ++warp) {
      before = higher(before, notes.peak[warp][row + 8 * i]);
    }
    peak[i] = higher(before, peak[i]);
    if (lane_index() % 4 == 0) {
      notes.rescale[warp_index()][row + 8 * i] = power_of_two(before - peak[i]);
    }
  }
  Weights weights;
  weigh(scores, peak, weights);
  const TileSums sums = sum_weights(weights);
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (lane_index() % 4 == 0) notes.sum[warp_index()][row + 8 * i] = sums.at[2 * i];
  }
  TileSums out[width / 8] = {};
  const auto multiply = [&](std::uint32_t slice) {
    __syncwarp();  // the values that every lane copied are there
    SLUICE_UNROLL
    for (std::uint32_t d = 0; d < steps; ++d) {
      multiply_values<width>(out + 2 * d, weights[slice], own + slice * slice_halves<width>, d);
    }
  };
  static_assert(slices == 4);
  wait_copies<3>();
  multiply(0);
  wait_copies<2>();
  multiply(1);
  wait_copies<1>();
  multiply(2);
  wait_copies<0>();
  multiply(3);
  __syncwarp();  // the values are done with
  auto* results = reinterpret_cast<float*>(own);
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < width / 8; ++n) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      float* to = results + (row + 8 * i) * result_floats<width> + 8 * n + lane_index() % 4 * 2;
      if (row + 8 * i < heads) {
        *reinterpret_cast<float2*>(to) = {out[n].at[2 * i], out[n].at[2 * i + 1]};
      }
    }
  }
}

/// Blocks of an A100's multiprocessor, by its shared memory: so many registers they may have.
template <std::uint32_t width>
constexpr std::uint32_t blocks_each = width <= 64 ? 4 : width <= 128 ? 2 : 1;

template <std::uint32_t width>
__global__ void __launch_bounds__(split_tiles_max* warp_lanes, blocks_each<width>)
    split_kernel(AttentionArgs args) {
  take_turn();
  static_assert(results_fit<width>);
  const std::uint32_t index = blockIdx.z, split = blockIdx.x;
  if (index >= header(args.step).single_groups) return;
  const RowGroup group = row_group(args, index);
  const Range range = seen(args, group.position);
  const std::uint32_t begin = split * args.split_tokens;
  if (!range.meets(begin, args.split_tokens)) return;
  const std::uint32_t of_kv = args.heads.heads / args.heads.kv_heads;
  const std::uint32_t kv_head = blockIdx.y / head_parts(args.heads);
  const std::uint32_t offset = blockIdx.y % head_parts(args.heads) * warp_queries;
  const std::uint32_t head = kv_head * of_kv + offset;
  const std::uint32_t heads = least(warp_queries, of_kv - offset);
  const std::uint32_t warps = args.split_tokens / tile_tokens;
  constexpr std::uint32_t tile_halves = slices * slice_halves<width>;
  SharedPieces shared;
  auto* tiles = shared.take<std::uint16_t>(warps * tile_halves);
  TileNotes& notes = *shared.take<TileNotes>(1);
  attend_tile<width>(args, group, range, begin + warp_index() * tile_tokens, kv_head, head, heads,
                     tiles + warp_index() * tile_halves, notes);
  __syncthreads();
  const bool whole = is_whole(args, range, split);
  for (std::uint32_t i = threadIdx.x; i < heads * width; i += blockDim.x) {
    const std::uint32_t query = i / width, d = i % width;
    if (d >= args.heads.head_dim) continue;
    float peak = minus_infinity(), sum = 0.0F, out = 0.0F;
    for (std::uint32_t warp = 0; warp < warps; ++warp) {
      if (!range.meets(begin + warp * tile_tokens, tile_tokens)) continue;
      const auto* results = reinterpret_cast<const float*>(tiles + warp * tile_halves);
      const float rescale = notes.rescale[warp][query];
      peak = higher(peak, notes.peak[warp][query]);
      sum = fma_f32(sum, rescale, notes.sum[warp][query]);
      out = fma_f32(out, rescale, results[query * result_floats<width> + d]);
    }
    if (whole) {
      float top = minus_infinity(), total = 0.0F;
      const Fold fold(top, total, peak, sum);
      const std::uint32_t column = (head + query) * args.heads.head_dim + d;
      put(args.out, group.row, column, fold(0.0F, out) * (1.0F / total));
      continue;
    }
    float* to = partial_of(args, group, split, head + query);
    to[2 + d] = out;
    if (d != 0) continue;
    to[0] = peak;
    to[1] = sum;
  }
}

constexpr std::uint32_t combine_threads = 128;

/// Splits whose states are asked for at once.
constexpr std::uint32_t combine_splits = 8;

/// A block a row and head: its splits in their order.
__global__ void __launch_bounds__(combine_threads) combine_kernel(AttentionArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x, head = blockIdx.y;
  if (index >= header(args.step).single_groups) return;
  const RowGroup group = row_group(args, index);
  const Range range = seen(args, group.position);
  const std::uint32_t begin = range.begin / args.split_tokens;
  const std::uint32_t last = (range.end - 1) / args.split_tokens;
  if (is_whole(args, range, begin)) return;  // its block has written the result
  for (std::uint32_t d = threadIdx.x; d < args.heads.head_dim; d += combine_threads) {
    float peak = minus_infinity(), sum = 0.0F, out = 0.0F;
    for (std::uint32_t first = begin; first <= last; first += combine_splits) {
      float peaks[combine_splits], sums[combine_splits], outs[combine_splits];
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < combine_splits; ++i) {
        const float* from = partial_of(args, group, least(first + i, last), head);
        peaks[i] = from[0];
        sums[i] = from[1];
        outs[i] = from[2 + d];
      }
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < combine_splits; ++i) {
        if (first + i > last) continue;
        const Fold fold(peak, sum, peaks[i], sums[i]);
        out = fold(out, outs[i]);
      }
    }
    put(args.out, group.row, head * args.heads.head_dim + d, out * (1.0F / sum));
  }
}

template <std::uint32_t width>
constexpr std::size_t split_bytes(std::uint32_t warps) {
  return SharedPieces::bytes<std::uint16_t>(warps * slices * slice_halves<width>) +
         SharedPieces::bytes<TileNotes>(1);
}

// An A100's block has 163 KiB.
static_assert(split_bytes<attention_width_max>(split_tiles_max) <= std::size_t{163} << 10);

}  // namespace

cudaError_t prepare_splits(const Heads& heads) {
  return with_width(heads.head_dim, [](auto width) {
    return allow_shared(split_kernel<width>, split_bytes<width>(split_tiles_max));
  });
}

cudaError_t attention_splits(const AttentionArgs& args, std::uint32_t groups, std::uint32_t splits,
                             LaunchChain& chain) {
  const std::uint32_t warps = args.split_tokens / tile_tokens;
  const dim3 grid(splits, args.heads.kv_heads * head_parts(args.heads), groups);
  const cudaError_t status = with_width(args.heads.head_dim, [&](auto width) {
    return launch(split_kernel<width>, grid, warps * warp_lanes, split_bytes<width>(warps), chain,
                  args);
  });
  if (status != cudaSuccess || splits == 1) return status;
  return launch(combine_kernel, dim3(groups, args.heads.heads), combine_threads, 0, chain, args);
}

}  // namespace sluice::kernels::cuda
