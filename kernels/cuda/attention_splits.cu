// Attention of single rows, a sequence's next token: a block takes a split of the positions of one
// key head, a warp a tile of it, and all heads of that key head share what is read. The arithmetic
// is attention_tile.cuh's: what a tile has to know of those before it is their greatest score, and
// the greatest of several is the same in any order.
//
// With 4 heads to a key head, a byte of keys and values is worth 4 multiply-adds, two hundredths of
// what fills an H100's tensor cores: memory is the limit. A warp asks for its tile's 16 KiB of keys
// at once (at 128 elements), and the second-level cache for as many of values, which it loads as
// keys make room: so 128 KiB of a block are on their way. A Hopper multiprocessor has shared memory
// for three such blocks, an A100's for two. To read 4.8 TB/s at a latency of 0.8 us, an H200 must
// have 29 KiB on their way to each multiprocessor. Partial results are 2 KiB in memory for the 128
// KiB that a split reads; the last block of a sequence's heads puts them together. Seen on an H200
// with 64 sequences of some 2,050 positions: 538 MB of a layer in 138 us, 3.9 of 4.5 TB/s.
//
// Of 8-bit keys and values a tile's 16 KiB are asked for at once and lie side by side: with halves'
// shared memory, as many bytes of a multiprocessor's blocks are on their way.
//
// Where they have not, as for one sequence, time is what a block waits for: the step's header, its
// group, the table of its blocks, keys, and values from the second-level cache. All but the queries
// and the newest position's keys and values come before the kernel's turn, while the products and
// rotations ahead of it end; and a warp that is alone has its own instructions to wait for, some
// two thousand, so that none are spent on heads that are not there.

#include "kernels/cuda/attention_tile.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t slice_tokens = 16;
constexpr std::uint32_t slices = tile_tokens / slice_tokens;

/// Slices that are waited for together: a score takes a product for each sixteen elements, each of
/// which waits for the one before, and four such chains keep a warp's tensor cores busy.
constexpr std::uint32_t together = 2;

/// A row of float32 results in shared memory: the eight keep rows off each other's banks.
template <std::uint32_t width>
constexpr std::uint32_t result_floats = width + 8;

template <std::uint32_t width, class Element>
constexpr std::uint32_t row_elements = is_e4m3<Element> ? row_bytes<width> : row_halves<width>;

/// Of its keys, or of its values.
template <std::uint32_t width, class Element>
constexpr std::uint32_t slice_elements = slice_tokens* row_elements<width, Element>;

/// A warp's shared memory, in halves: keys, then values in their place; 8-bit ones side by side.
template <std::uint32_t width, class Element>
constexpr std::uint32_t tile_halves = slices* slice_elements<width, Element>;

// A warp's results take the place of its keys and values.
template <std::uint32_t width, class Element>
constexpr bool results_fit = sizeof(float) * warp_queries* result_floats<width> <=
                             sizeof(std::uint16_t) * tile_halves<width, Element>;

__host__ __device__ inline std::uint32_t head_parts(const Heads& heads) {
  return divide_up(heads.heads / heads.kv_heads, warp_queries);
}

/// A warp's copies of its tile, sixteen positions at a time.
template <std::uint32_t width, class Element>
class SliceLoader {
 public:
  /// All lanes together.
  __device__ SliceLoader(const AttentionArgs& args, const RowGroup& group, std::uint32_t kv_head,
                         std::uint32_t tile)
      : tokens_(args.kv.block_tokens),
        stride_(args.kv.head_stride),
        keys_(keys_of<Element>(args.kv, args.layer, 0, kv_head)) {
    const std::uint32_t end = group.position + 1;
    count_ = tile < end ? least(end - tile, tile_tokens) : 0;
    const PagesOf<Element> pages(args, group.slot, kv_head);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t position = tile + warp_lanes * i + lane_index();
      const std::uint32_t block = position < end ? pages.block_of(position) : 0;
      rows_[i] = block * (2 * args.kv.kv_heads * tokens_) + (position & (tokens_ - 1));
    }
  }

  /// Starts the copies of the slice's keys or values; zeros behind the end.
  __device__ void load(Element* to, bool values, std::uint32_t slice) const {
    const std::uint32_t place = lane_index() % 8 * sixteen_bytes;
    SLUICE_UNROLL
    for (std::uint32_t token = 0; token < slice_tokens; token += 4) {
      const std::uint32_t first = slice * slice_tokens + token, t = first + lane_index() / 8;
      const std::uint32_t rows = first < warp_lanes ? rows_[0] : rows_[1];
      const std::uint32_t row = __shfl_sync(all_lanes, rows, static_cast<int>(t % warp_lanes));
      const Element* from = at(row, values) + place;
      Element* copy = to + t % slice_tokens * row_elements<width, Element> + place;
      SLUICE_UNROLL
      for (std::uint32_t d = 0; d < width; d += 8 * sixteen_bytes) {
        if (place + d >= width) continue;
        copy_async(copy + d, from + d, t < count_ && place + d < stride_);
      }
    }
  }

  /// Asks for the tile's values, which are loaded when the keys have made room.
  __device__ void prefetch_values() const {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      SLUICE_UNROLL
      for (std::uint32_t d = 0; d < width; d += 64) {
        const bool inside = warp_lanes * i + lane_index() < count_ && d < stride_;
        if (inside) prefetch_line(at(rows_[i], true) + d);
      }
    }
  }

 private:
  static constexpr std::uint32_t sixteen_bytes = 16 / sizeof(Element);

  __device__ const Element* at(std::uint32_t row, bool values) const {
    return keys_ + std::size_t{row + (values ? tokens_ : 0)} * stride_;
  }

  std::uint32_t tokens_, stride_;  ///< of a block; from one row to the next
  const Element* keys_;            ///< of block 0
  std::uint32_t count_;            ///< positions of the tile
  /// Of positions tile + lane and tile + 32 + lane, their keys' rows behind keys_: 2^32 of them
  /// would be 64 GiB of one layer.
  std::uint32_t rows_[2];
};

/// A group of a single row, all of it at once; false: the step has fewer.
__device__ bool single_group(const AttentionArgs& args, std::uint32_t index, RowGroup& group) {
  const std::uint32_t count = header(args.step).single_groups;
  const std::uint32_t offset = header(args.step).group_offset;
  __syncwarp();  // the compiler would put the second read behind what the first decides
  if (index >= count) return false;
  group = part<RowGroup>(args.step, offset)[index];
  __syncwarp();  // as above
  return true;
}

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
template <std::uint32_t width, class Element>
__device__ void attend_tile(const AttentionArgs& args, const RowGroup& group, const Range& range,
                            std::uint32_t tile, std::uint32_t kv_head, std::uint32_t head,
                            std::uint32_t heads, std::uint16_t* own_halves, TileNotes& notes) {
  constexpr std::uint32_t steps = width / 16, slice_size = slice_elements<width, Element>;
  constexpr bool narrow = is_e4m3<Element>;
  auto* own = reinterpret_cast<Element*>(own_halves);
  Element* own_values = narrow ? own + slices * slice_size : own;
  const std::uint32_t row = lane_index() / 4;
  const bool works = range.meets(tile, tile_tokens);
  const SliceLoader<width, Element> loader(args, group, kv_head, tile);
  // Keys and values are those of steps before, but for the row's own, which is in this slice, if in
  // the tile at all: the rest is on its way before the kernel's turn.
  const std::uint32_t newest = (group.position - tile) / slice_tokens;
  const auto ask = [&](Element* to, bool values) {
    SLUICE_UNROLL
    for (std::uint32_t slice = 0; slice < slices; slice += together) {
      SLUICE_UNROLL
      for (std::uint32_t i = slice; i < slice + together; ++i) {
        if (i != newest) loader.load(to + i * slice_size, values, i);
      }
      commit_copies();
    }
  };
  if (works) {
    ask(own, false);
    if constexpr (narrow) {
      ask(own_values, true);
    } else {
      loader.prefetch_values();
    }
  }
  await_previous();
  Scores scores{};
  if (works) {
    // A query's first eight heads are asked for together, the others if there are any. Rows behind
    // the last head repeat it: they are written nowhere.
    const float* from = row_of(args.qkv, group.row) + head * args.heads.head_dim;
    float2 pairs[steps][2];
    const auto read = [&](std::uint32_t i) {
      const float* query = from + least(row + 8 * i, heads - 1) * args.heads.head_dim;
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < steps; ++k) read_query<Element>(args, query, k, pairs[k]);
    };
    TileA queries[steps]{};
    const auto pack = [&](std::uint32_t i, float scale) {
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < steps; ++k) {
        queries[k].pairs[i] = pack_query(pairs[k][0], scale);
        queries[k].pairs[2 + i] = pack_query(pairs[k][1], scale);
      }
    };
    read(0);
    if (newest < slices) {
      loader.load(own + newest * slice_size, false, newest);
      if (narrow) loader.load(own_values + newest * slice_size, true, newest);
    }
    commit_copies();
    const float scale = query_scale(args);
    pack(0, scale);
    if (heads > warp_queries / 2) {
      read(1);
      pack(1, scale);
    }
    SLUICE_UNROLL
    for (std::uint32_t slice = 0; slice < slices; slice += together) {
      if (slice == 0 && newest < slices) {
        wait_copies<0>();  // the row's own were asked for last
      } else if (!narrow) {
        wait_copies<slices / together>();
      } else if (slice == 0) {
        wait_copies<2 * slices / together>();
      } else {
        wait_copies<2 * slices / together - 1>();
      }
      __syncwarp();  // the keys that every lane copied are there
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < steps; ++k) {
        if constexpr (narrow) {
          multiply_keys<width>(scores + 2 * slice, queries[k], own + slice * slice_size, k);
        } else {
          SLUICE_UNROLL
          for (std::uint32_t i = slice; i < slice + together; ++i) {
            multiply_keys<width>(scores + 2 * i, queries[k], own + i * slice_size, k);
          }
        }
      }
      if constexpr (!narrow) {
        __syncwarp();  // and are done with
        SLUICE_UNROLL
        for (std::uint32_t i = slice; i < slice + together; ++i) {
          loader.load(own_values + i * slice_size, true, i);
        }
        commit_copies();
      }
    }
    cap_scores(args, scores);
    const Range ranges[2] = {range, range};
    if (tile < range.begin || tile + tile_tokens > range.end) mask_scores(scores, tile, ranges);
  }
  // What a warp does for eight heads it leaves out where there are no more.
  const std::uint32_t eights = divide_up(heads, warp_queries / 2);
  float peak[2];
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (i >= eights) continue;
    peak[i] = works ? tile_peak(scores, i) : minus_infinity();
    if (lane_index() % 4 == 0) notes.peak[warp_index()][row + 8 * i] = peak[i];
  }
  __syncthreads();
  if (!works) return;
  Weights weights{};
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (i >= eights) continue;
    float before = minus_infinity();
    SLUICE_UNROLL
    for (std::uint32_t warp = 0; warp + 1 < split_tiles_max; ++warp) {
      const float other = notes.peak[warp][row + 8 * i];
      if (warp < warp_index()) before = higher(before, other);
    }
    peak[i] = higher(before, peak[i]);
    if (lane_index() % 4 == 0) {
      notes.rescale[warp_index()][row + 8 * i] = power_of_two(before - peak[i]);
    }
    weigh_row(scores, i, peak[i], weights);
  }
  const TileSums sums = sum_weights(weights);
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (lane_index() % 4 == 0) notes.sum[warp_index()][row + 8 * i] = sums.at[2 * i];
  }
  TileSums out[width / 8] = {};
  const auto multiply = [&](std::uint32_t first) {
    __syncwarp();  // the values that every lane copied are there
    if constexpr (narrow) {
      SLUICE_UNROLL
      for (std::uint32_t d = 0; d < steps; ++d) {
        multiply_values<width>(out + 2 * d, weights + first, own_values + first * slice_size, d);
      }
    } else {
      SLUICE_UNROLL
      for (std::uint32_t slice = first; slice < first + together; ++slice) {
        SLUICE_UNROLL
        for (std::uint32_t d = 0; d < steps; ++d) {
          multiply_values<width>(out + 2 * d, weights[slice], own_values + slice * slice_size, d);
        }
      }
    }
  };
  static_assert(slices == 2 * together);
  wait_copies<narrow ? 2 : 1>();  // 8-bit values came before the row's own
  multiply(0);
  wait_copies<0>();
  multiply(together);
  __syncwarp();  // the values are done with
  auto* results = reinterpret_cast<float*>(own);
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < width / 8; n += narrow ? 2 : 1) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      float* to = results + (row + 8 * i) * result_floats<width> + 8 * n;
      if (row + 8 * i >= heads) continue;
      const float *left = out[n].at + 2 * i, *right = out[n | 1].at + 2 * i;
      if constexpr (narrow) {
        auto* four = reinterpret_cast<float4*>(to + lane_index() % 4 * 4);
        *four = {left[0], right[0], left[1], right[1]};
      } else {
        *reinterpret_cast<float2*>(to + lane_index() % 4 * 2) = {left[0], left[1]};
      }
    }
  }
}

/// Writes four elements of a query's output, or the two that a head ends with.
__device__ void put_four(const AttentionArgs& args, const RowGroup& group, std::uint32_t head,
                         std::uint32_t d, const float4& out, float total) {
  const float inverse = 1.0F / total;
  const std::uint32_t column = head * args.heads.head_dim + d;
  put_pair(args.out, group.row, column, {out.x * inverse, out.y * inverse});
  if (d + 4 > args.heads.head_dim) return;
  put_pair(args.out, group.row, column + 2, {out.z * inverse, out.w * inverse});
}

/// Whether all other splits of the block's heads lie in memory, whose blocks count themselves
/// there. All threads together. The last one sets the count back for the next layer.
__device__ bool comes_last(const AttentionArgs& args, const Range& range, std::uint32_t index) {
  SharedPieces shared;
  auto* last = shared.take<std::uint32_t>(1);
  __syncthreads();  // the block's results are written, and its tiles done with
  if (threadIdx.x == 0) {
    const std::uint32_t splits =
        (range.end - 1) / args.split_tokens - range.begin / args.split_tokens;
    std::uint32_t* arrived = args.arrived + std::size_t{index} * gridDim.y + blockIdx.y;
    __threadfence();
    *last = atomicAdd(arrived, 1U) == splits ? 1U : 0U;
    if (*last != 0) *arrived = 0;
    __threadfence();
  }
  __syncthreads();
  return *last != 0;
}

/// Splits whose states are asked for at once.
constexpr std::uint32_t fold_together = 8;

/// A query's splits in their order: elements d .. d + 3 of its output.
__device__ void fold_splits(const AttentionArgs& args, const RowGroup& group, const Range& range,
                            std::uint32_t head, std::uint32_t d) {
  const std::uint32_t begin = range.begin / args.split_tokens;
  const std::uint32_t last = (range.end - 1) / args.split_tokens;
  const std::uint32_t second = d + 4 <= args.heads.head_dim ? d + 2 : d;
  float peak = minus_infinity(), sum = 0.0F;
  float4 out{0.0F, 0.0F, 0.0F, 0.0F};
  for (std::uint32_t first = begin; first <= last; first += fold_together) {
    float2 states[fold_together], lows[fold_together], highs[fold_together];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < fold_together; ++i) {
      const float* from = partial_of(args, group, least(first + i, last), head);
      states[i] = read_others(from);
      lows[i] = read_others(from + 2 + d);
      highs[i] = read_others(from + 2 + second);
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < fold_together; ++i) {
      if (first + i > last) continue;
      const Fold fold(peak, sum, states[i].x, states[i].y);
      out = {fold(out.x, lows[i].x), fold(out.y, lows[i].y), fold(out.z, highs[i].x),
             fold(out.w, highs[i].y)};
    }
  }
  put_four(args, group, head, d, out, sum);
}

/// Blocks of a Hopper multiprocessor, by its shared memory: so many registers they may have.
template <std::uint32_t width>
constexpr std::uint32_t blocks_each = width <= 64 ? 5 : width <= 96 ? 4 : width <= 128 ? 3 : 1;

template <std::uint32_t width, class Element>
__global__ void __launch_bounds__(split_tiles_max* warp_lanes, blocks_each<width>)
    split_kernel(AttentionArgs args) {
  start_next();
  static_assert(results_fit<width, Element>);
  const std::uint32_t index = blockIdx.z, split = blockIdx.x;
  const std::uint32_t begin = split * args.split_tokens;
  RowGroup group;
  if (!single_group(args, index, group)) {
    await_previous();
    return;
  }
  const Range range = seen(args, group.position);
  if (!range.meets(begin, args.split_tokens)) {
    await_previous();
    return;
  }
  const std::uint32_t of_kv = args.heads.heads / args.heads.kv_heads;
  const std::uint32_t kv_head = blockIdx.y / head_parts(args.heads);
  const std::uint32_t offset = blockIdx.y % head_parts(args.heads) * warp_queries;
  const std::uint32_t head = kv_head * of_kv + offset;
  const std::uint32_t heads = least(warp_queries, of_kv - offset);
  const std::uint32_t warps = args.split_tokens / tile_tokens;
  constexpr std::uint32_t tile_size = tile_halves<width, Element>;
  SharedPieces shared;
  auto* tiles = shared.take<std::uint16_t>(warps * tile_size);
  TileNotes& notes = *shared.take<TileNotes>(1);
  attend_tile<width, Element>(args, group, range, begin + warp_index() * tile_tokens, kv_head, head,
                              heads, tiles + warp_index() * tile_size, notes);
  __syncthreads();
  const bool whole = is_whole(args, range, split);
  for (std::uint32_t i = threadIdx.x; i < heads * width / 4; i += blockDim.x) {
    const std::uint32_t query = i / (width / 4), d = i % (width / 4) * 4;
    if (d >= args.heads.head_dim) continue;
    float peaks[split_tiles_max], rescales[split_tiles_max], sums[split_tiles_max];
    float4 results[split_tiles_max];
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < split_tiles_max; ++n) {
      const std::uint32_t warp = least(n, warps - 1);
      peaks[n] = notes.peak[warp][query];
      rescales[n] = notes.rescale[warp][query];
      sums[n] = notes.sum[warp][query];
      const auto* tile = reinterpret_cast<const float*>(tiles + warp * tile_size);
      results[n] = *reinterpret_cast<const float4*>(tile + query * result_floats<width> + d);
    }
    float peak = minus_infinity(), sum = 0.0F;
    float4 out{0.0F, 0.0F, 0.0F, 0.0F};
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < split_tiles_max; ++n) {
      if (n >= warps || !range.meets(begin + n * tile_tokens, tile_tokens)) continue;
      peak = higher(peak, peaks[n]);
      sum = fma_f32(sum, rescales[n], sums[n]);
      out.x = fma_f32(out.x, rescales[n], results[n].x);
      out.y = fma_f32(out.y, rescales[n], results[n].y);
      out.z = fma_f32(out.z, rescales[n], results[n].z);
      out.w = fma_f32(out.w, rescales[n], results[n].w);
    }
    const bool four = d + 4 <= args.heads.head_dim;  // or two: head_dim is even
    if (whole) {
      float top = minus_infinity(), total = 0.0F;
      const Fold fold(top, total, peak, sum);
      put_four(args, group, head + query, d,
               {fold(0.0F, out.x), fold(0.0F, out.y), fold(0.0F, out.z), fold(0.0F, out.w)}, total);
      continue;
    }
    float* to = partial_of(args, group, split, head + query);
    *reinterpret_cast<float2*>(to + 2 + d) = {out.x, out.y};
    if (four) *reinterpret_cast<float2*>(to + 4 + d) = {out.z, out.w};
    if (d == 0) *reinterpret_cast<float2*>(to) = {peak, sum};
  }
  if (whole || !comes_last(args, range, index)) return;
  for (std::uint32_t i = threadIdx.x; i < heads * width / 4; i += blockDim.x) {
    const std::uint32_t query = i / (width / 4), d = i % (width / 4) * 4;
    if (d < args.heads.head_dim) fold_splits(args, group, range, head + query, d);
  }
}

template <std::uint32_t width, class Element>
constexpr std::size_t split_bytes(std::uint32_t warps) {
  return SharedPieces::bytes<std::uint16_t>(warps * tile_halves<width, Element>) +
         SharedPieces::bytes<TileNotes>(1);
}

// An A100's block has 163 KiB.
static_assert(split_bytes<attention_width_max, std::uint16_t>(split_tiles_max) <= 163U << 10);
static_assert(split_bytes<attention_width_max, std::uint8_t>(split_tiles_max) <= 163U << 10);

}  // namespace

cudaError_t prepare_splits(const Heads& heads, KvFormat format) {
  return with_width(heads.head_dim, [&](auto width) {
    return with_element(format, [&]<class Element>(Element) {
      return allow_shared(split_kernel<width, Element>,
                          split_bytes<width, Element>(split_tiles_max));
    });
  });
}

cudaError_t attention_splits(const AttentionArgs& args, std::uint32_t groups, std::uint32_t splits,
                             LaunchChain& chain) {
  const std::uint32_t warps = args.split_tokens / tile_tokens;
  const dim3 grid(splits, args.heads.kv_heads * head_parts(args.heads), groups);
  return with_width(args.heads.head_dim, [&](auto width) {
    return with_element(args.kv.format, [&]<class Element>(Element) {
      return launch(split_kernel<width, Element>, grid, warps * warp_lanes,
                    split_bytes<width, Element>(warps), chain, args);
    });
  });
}

}  // namespace sluice::kernels::cuda
