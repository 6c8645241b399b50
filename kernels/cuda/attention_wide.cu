// Attention of many rows by Hopper's own products: a block has 128 queries of one key head, four
// warps 64 of them, and others bring tiles of keys and of values. The arithmetic is
// attention_tile.cuh's.
//
// Products of a tile of 128 elements take the tensor cores 528 clocks for four warps, and read its
// 33 KiB from shared memory once, in 264: queries and weights stay in registers. Seen on an H200,
// when a weight took eleven instructions where it takes two: 216 TFLOP/s of what queries see, of
// 8,192 rows (200 us for 2,048 of 32 heads), tensor cores waited for by few, and instructions by
// most: a warp had some 640 of its own for a tile, most of them a weight's, and a scheduler two
// such warps and one that copies. A tile is 128 operations a byte, as in attention.cu: 400 TFLOP/s
// would read 3.1 TB/s from the second-level cache. Outputs of a tile and of a split take 132
// registers of a thread, scores 32, weights 16 and queries 32: outputs of all splits before lie in
// shared memory.
//
// The blocks stay, each for every so many-th lot of queries: the copying warps ask for the next
// lot's tiles while the others are at their last. Long lots come first, and blocks take them there
// and back, so that all have about as much.

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/wide.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t multipliers = 2;  ///< groups of four warps
constexpr std::uint32_t block_threads = (multipliers + 1) * wide_threads;
constexpr std::uint32_t group_queries = block_queries / multipliers;
static_assert(group_queries == wide_threads / warp_lanes * warp_queries);

/// Tiles of keys, and as many of values, that there is room for.
constexpr std::uint32_t stages = 4;

/// What a thread's queries, and those of its four warps, see. In shared memory: registers are
/// short.
struct alignas(16) Limits {
  Sight own;
  std::uint32_t first_end, end;  ///< behind what the first of all sees, and the last
};

template <std::uint32_t width>
struct Shape {
  static constexpr std::uint32_t matrices = width / 8;  ///< of eight positions' keys

  // Halves of eight positions; behind values lie ones, whose products are the weights' sums.
  static constexpr std::uint32_t key_eight = matrices * 64;
  static constexpr std::uint32_t value_eight = (matrices + 1) * 64;
  static constexpr std::uint32_t key_halves = tile_tokens / 8 * key_eight;
  static constexpr std::uint32_t value_halves = tile_tokens / 8 * value_eight;

  static constexpr std::uint32_t outs = width / 2;  ///< floats of a thread
  static constexpr std::uint32_t pairs = outs / 2;
  static constexpr std::uint32_t threads = multipliers * wide_threads;  ///< that multiply

  static constexpr std::size_t bytes =
      SharedPieces::bytes<std::uint16_t>(stages * (key_halves + value_halves)) +
      SharedPieces::bytes<float2>(threads * pairs) + SharedPieces::bytes<float4>(threads) +
      SharedPieces::bytes<Limits>(threads) + SharedPieces::bytes<std::uint64_t>(4 * stages);
  // A Hopper multiprocessor's block has 227 KiB.
  static_assert(bytes <= std::size_t{227} << 10);
};

#ifndef SLUICE_NO_WIDE
/// Copies of a tile's keys or values that may be on their way when the next are waited for.
constexpr std::uint32_t ahead = 3;

/// Registers of a thread: what 65,536 give all, which the copying warps leave to the others.
constexpr std::uint32_t copier_registers = 40;
constexpr std::uint32_t multiplier_registers = 232;

/// A place for keys or values, one after the other: of even index keys, of odd ones values.
struct Place {
  std::uint32_t count = 0;

  __device__ std::uint32_t index() const { return count % (2 * stages); }
  __device__ std::uint32_t parity() const { return count / (2 * stages) % 2; }  ///< of its phase
};

/// What the block's threads share: tiles, `full` when all of one has come, `empty` when all warps
/// are done with it that multiply; and what each thread keeps for itself.
template <std::uint32_t width>
struct Shared {
  using S = Shape<width>;

  std::uint16_t* tiles;
  float2* whole;   ///< [pairs][threads]: outputs of the splits so far
  float4* states;  ///< [threads]: their peaks and sums
  Limits* limits;  ///< [threads]
  std::uint64_t *full, *empty;

  __device__ explicit Shared(SharedPieces pieces)
      : tiles(pieces.take<std::uint16_t>(stages * (S::key_halves + S::value_halves))),
        whole(pieces.take<float2>(S::threads * S::pairs)),
        states(pieces.take<float4>(S::threads)),
        limits(pieces.take<Limits>(S::threads)),
        full(pieces.take<std::uint64_t>(4 * stages)),
        empty(full + 2 * stages) {}

  /// All threads of the block, once.
  __device__ void prepare() const {
    constexpr std::uint32_t ones = 0x3C003C00U;  // two, of f16
    constexpr std::uint32_t rows = stages * tile_tokens;
    for (std::uint32_t i = threadIdx.x; i < rows; i += block_threads) {
      const std::uint32_t stage = i / tile_tokens, position = i % tile_tokens;
      std::uint16_t* const row = values(2 * stage + 1) + position / 8 * S::value_eight +
                                 S::matrices * 64 + position % 8 * 8;
      *reinterpret_cast<uint4*>(row) = {ones, ones, ones, ones};
    }
    show_products();
    if (threadIdx.x == 0) {
      for (std::uint32_t i = 0; i < 2 * stages; ++i) {
        init_barrier(full + i, wide_threads / warp_lanes);
        init_barrier(empty + i, S::threads / warp_lanes);
      }
      show_barriers();
    }
    __syncthreads();
  }

  __device__ std::uint16_t* keys(std::uint32_t index) const {
    return tiles + index / 2 * (S::key_halves + S::value_halves);
  }
  __device__ std::uint16_t* values(std::uint32_t index) const {
    return keys(index) + S::key_halves;
  }

  __device__ void await(const Place& place) const {
    await_phase(full + place.index(), place.parity());
  }

  /// The warp is done with what lies there.
  __device__ void release(const Place& place) const {
    __syncwarp();
    if (lane_index() == 0) arrive(empty + place.index());
  }
};

/// Which queries a block has in each round: a lot is a group's, of one key head. What follows from
/// the round is not kept, for registers are short.
struct Round {
  std::uint32_t number = 0;

  __device__ bool over(const AttentionArgs& args) const { return number * gridDim.x >= lots(args); }

  /// Not in the last round, for some blocks.
  __device__ bool has_lot(const AttentionArgs& args) const { return lot() < lots(args); }

  /// May be none.
  __device__ Queries queries(const AttentionArgs& args) const {
    return {args, group(args), lot() % blocks_of_group(args.heads)};
  }
  __device__ RowGroup group(const AttentionArgs& args) const {
    return row_group(args, header(args.step).groups - 1 - lot() / blocks_of_group(args.heads));
  }

 private:
  __device__ static std::uint32_t lots(const AttentionArgs& args) {
    const std::uint32_t groups = header(args.step).groups;
    return groups > args.first_group ? (groups - args.first_group) * blocks_of_group(args.heads)
                                     : 0;
  }
  __device__ std::uint32_t lot() const {
    const std::uint32_t place = number % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return number * gridDim.x + place;
  }
};

/// Four warps' copies: of each eight positions a warp brings 64 bytes, so that eight lanes write
/// one matrix and four read beside each other.
template <std::uint32_t width>
class Bringer {
 public:
  using S = Shape<width>;

  __device__ Bringer(const AttentionArgs& args, const Shared<width>& shared)
      : args_(args), shared_(shared) {}

  __device__ void run() {
    for (Round round; !round.over(args_); ++round.number) {
      if (!round.has_lot(args_)) continue;
      const Queries q = round.queries(args_);
      if (q.none()) continue;
      const Pages pages(args_, round.group(args_).slot, q.kv_head);
      const auto [begin, end] = q.tiles_of(args_, q.first, block_queries);
      look_up(pages, begin, end);
      for (std::uint32_t tile = begin; tile < end; tile += tile_tokens) {
        take_rows();
        look_up(pages, tile + tile_tokens, end);
        const std::uint32_t count = end - tile;
        bring<S::key_eight>(pages, shared_.keys(place_.index()), false, count);
        bring<S::value_eight>(pages, shared_.values(place_.index()), true, count);
      }
    }
    wait_copies<0>();
    while (told_.count != place_.count) tell();
  }

 private:
  static constexpr std::uint32_t quarters = width / 32;  ///< of 64 bytes, of a position
  static constexpr std::uint32_t warps = wide_threads / warp_lanes;
  static constexpr std::uint32_t warps_each = warps / quarters;          ///< of a quarter
  static constexpr std::uint32_t copies = tile_tokens / 8 / warps_each;  ///< of a lane and tile
  static_assert(warps % quarters == 0 && 4 % warps_each == 0);

  /// Asks where the rows of a tile's positions lie, two to a lane: behind block 0's first key.
  __device__ void look_up(const Pages& pages, std::uint32_t tile, std::uint32_t end) {
    const KvArrays& kv = args_.kv;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t position = tile + warp_lanes * i + lane_index();
      const std::uint32_t block = position < end ? pages.block_of(position) : 0;
      asked_[i] = block * (2 * kv.kv_heads * kv.block_tokens) + (position & (kv.block_tokens - 1));
    }
  }

  /// Takes those that the lane copies from.
  __device__ void take_rows() {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < copies; ++i) {
      const std::uint32_t lane = eight_of(i) % 4 * 8 + lane_index() % 8;
      rows_[i] = __shfl_sync(all_lanes, asked_[i * warps_each / 4], static_cast<int>(lane));
    }
  }

  /// Which eight positions of a tile the warp's i-th copies are of.
  __device__ static std::uint32_t eight_of(std::uint32_t i) {
    return warp_index() % warps / quarters + i * warps_each;
  }

  /// Brings a tile's keys or values as soon as there is room; zeros behind the positions that
  /// there are, and behind head_dim.
  template <std::uint32_t eight_halves>
  __device__ void bring(const Pages& pages, std::uint16_t* to, bool values, std::uint32_t count) {
    await_phase(shared_.empty + place_.index(), place_.parity() ^ 1U);
    const std::uint32_t stride = pages.kv.head_stride, row = lane_index() % 8;
    const std::uint32_t matrix = warp_index() % warps % quarters * 4 + lane_index() / 8;
    const std::uint32_t there = matrix * 8 < stride && row < count ? count - row : 0;
    const std::uint16_t* from =
        pages.first + matrix * 8 + (values ? std::size_t{pages.kv.block_tokens} * stride : 0);
    to += eight_of(0) * eight_halves + matrix * 64 + row * 8;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < copies; ++i) {
      copy_async(to + i * warps_each * eight_halves, from + std::size_t{rows_[i]} * stride,
                 eight_of(i) * 8 < there);
    }
    commit_copies();
    ++place_.count;
    if (place_.count - told_.count <= ahead) return;
    wait_copies<ahead>();
    tell();
  }

  /// The oldest copies not told of have come, this thread's.
  __device__ void tell() {
    show_products();
    __syncwarp();
    if (lane_index() == 0) arrive(shared_.full + told_.index());
    ++told_.count;
  }

  const AttentionArgs& args_;
  const Shared<width>& shared_;
  std::uint32_t asked_[2] = {}, rows_[copies] = {};
  Place place_, told_;  ///< of the next copies, and of the oldest not told of
};

/// Four warps'.
template <std::uint32_t width>
class Attender {
 public:
  using S = Shape<width>;

  __device__ Attender(const AttentionArgs& args, const Shared<width>& shared)
      : args_(args), shared_(shared) {}

  __device__ void run() {
    for (Round round; !round.over(args_); ++round.number) {
      if (!round.has_lot(args_)) continue;
      const Queries q = round.queries(args_);
      if (q.none()) continue;
      const Range tiles = q.tiles_of(args_, q.first, block_queries);
      const std::uint32_t own = of_group(q);
      if (own > q.last) {
        pass(tiles.begin, tiles.end);
        continue;
      }
      const Range seen_tiles = q.tiles_of(args_, own, group_queries);
      pass(tiles.begin, seen_tiles.begin);
      attend(q, seen_tiles);
      const Queries again = round.queries(args_);
      write(again);
      const std::uint32_t end = again.tiles_of(args_, of_group(again), group_queries).end;
      pass(divide_up(end, tile_tokens) * tile_tokens,
           again.tiles_of(args_, again.first, block_queries).end);
    }
  }

 private:
  static constexpr std::uint32_t steps = width / 16;

  /// The first query of the four warps; may lie behind the last.
  __device__ static std::uint32_t of_group(const Queries& q) {
    return q.first + threadIdx.x / wide_threads * group_queries;
  }

  // Places as one lane has them: so the compiler knows them to be the same for all, and products
  // take addresses from a warp's own registers.

  __device__ WideColumns keys_at(const Place& place) const {
    return wide_columns(shared_.keys(__shfl_sync(all_lanes, place.index(), 0)), 64, S::key_eight);
  }
  __device__ WideColumns values_at(const Place& place) const {
    return wide_columns(shared_.values(__shfl_sync(all_lanes, place.index(), 0)), S::value_eight,
                        64);
  }

  /// Lets go of tiles that none of the queries sees.
  __device__ void pass(std::uint32_t tile, std::uint32_t end) {
    for (; tile < end; tile += tile_tokens) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) {
        shared_.await(place_);
        shared_.release(place_);
        ++place_.count;
      }
    }
  }

  /// Makes outputs and sums of all splits.
  __device__ void attend(const Queries& q, const Range& seen_tiles) {
    shared_.limits[threadIdx.x] = {Sight(q), q.position_of(of_group(q)) + 1, seen_tiles.end};
    TileA queries[steps];
    read_queries(q, queries);
    clear_whole();
    float peak[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0.0F, 0.0F};
    float split[S::outs];
    SLUICE_UNROLL
    for (float& out : split) out = 0.0F;
    float sums[32];
    start_scores(queries, keys_at(place_), sums);
    await_products<0>();
    std::uint32_t tile = seen_tiles.begin;
    std::uint32_t split_end = (tile / args_.split_tokens + 1) * args_.split_tokens;
    const auto step = [&](auto goes_on) {
      constexpr bool more = decltype(goes_on)::value;
      SLUICE_UNROLL
      for (float& score : sums) keep_sum(score);
      shared_.release(place_);
      ++place_.count;
      bool sees[2] = {true, true};
      Weights weights;
      float rescale[2];
      {
        Scores scores;
        SLUICE_UNROLL
        for (std::uint32_t i = 0; i < 32; ++i) scores[i / 4].at[i % 4] = sums[i];
        cap_scores(args_, scores);
        const Limits limits = shared_.limits[threadIdx.x];
        // Some query does not see all of it.
        if (seen(args_, limits.end - 1).begin > tile || tile + tile_tokens > limits.first_end) {
          limits.own.mask(args_, tile, scores);
          SLUICE_UNROLL
          for (std::uint32_t i = 0; i < 2; ++i) {
            sees[i] = limits.own.meets(args_, i, tile, tile_tokens);
          }
        }
        raise_peaks(scores, peak, rescale);
        weigh(scores, peak, weights);
      }
      float out[S::outs + 4];  // behind them the weights' sums
      const WideColumns values = values_at(place_), next_keys = keys_at({place_.count + 1});
      shared_.await(place_);
      begin_products();
      SLUICE_UNROLL
      for (std::uint32_t j = 0; j < weight_tiles; ++j) {
        multiply_rows_async(out, weights[j], further(values, 2 * j * S::value_eight),
                            j == 0 ? 0U : 1U);
      }
      end_products();
      ++place_.count;
      if constexpr (more) {
        start_scores(queries, next_keys, sums);
        await_products<1>();
      } else {
        await_products<0>();
      }
      SLUICE_UNROLL
      for (float& each : out) keep_sum(each);
      shared_.release({place_.count - 1});
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) {
        if (!sees[i]) continue;
        sum[i] = fma_f32(sum[i], rescale[i], out[S::outs + 2 * i]);
        SLUICE_UNROLL
        for (std::uint32_t n = 2 * i; n < S::outs; n += 4) {
          split[n] = fma_f32(split[n], rescale[i], out[n]);
          split[n + 1] = fma_f32(split[n + 1], rescale[i], out[n + 1]);
        }
      }
      tile += tile_tokens;
      if (!more || tile == split_end) {
        fold_split(split_end - args_.split_tokens, peak, sum, split);
        split_end += args_.split_tokens;
      }
      if constexpr (more) await_products<0>();
    };
    while (tile + tile_tokens < shared_.limits[threadIdx.x].end) step(std::true_type());
    step(std::false_type());
  }

  __device__ void write(const Queries& q) const {
    const float4 state = shared_.states[threadIdx.x];
    const float totals[2] = {state.z, state.w};
    write_out<width>(args_, q, 0, totals,
                     [&](std::uint32_t n, std::uint32_t i) { return whole_pair(n, i); });
  }

  __device__ void read_queries(const Queries& q, TileA (&queries)[steps]) const {
    const float* rows[2];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t query = least(q.of_lane(i), q.last);
      rows[i] = row_of(args_.qkv, q.row_of(query)) + q.head_of(query) * args_.heads.head_dim;
    }
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < steps; ++k) {
      std::uint32_t words[2][2];
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 2; ++i) load_query(args_, rows[i], k, words[i]);
      queries[k] = {{words[0][0], words[1][0], words[0][1], words[1][1]}};
    }
  }

  /// Starts the products with the keys at place_, once they are there.
  __device__ void start_scores(const TileA (&queries)[steps], WideColumns keys,
                               float (&sums)[32]) const {
    shared_.await(place_);
    begin_products();
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < steps; ++k) {
      multiply_f16_async(sums, queries[k], further(keys, 2 * k * 64), k == 0 ? 0U : 1U);
    }
    end_products();
  }

  /// Of the n-th eight outputs of query i.
  __device__ float2& whole_pair(std::uint32_t n, std::uint32_t i) const {
    return shared_.whole[(2 * n + i) * S::threads + threadIdx.x];
  }

  __device__ void clear_whole() const {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < S::pairs; ++i) whole_pair(i / 2, i % 2) = {0.0F, 0.0F};
    shared_.states[threadIdx.x] = {minus_infinity(), minus_infinity(), 0.0F, 0.0F};
  }

  /// Adds a split to the whole, for the queries that see something of it, and clears it.
  __device__ void fold_split(std::uint32_t begin, float (&peak)[2], float (&sum)[2],
                             float (&split)[S::outs]) const {
    const Sight sight = shared_.limits[threadIdx.x].own;
    const float4 state = shared_.states[threadIdx.x];
    float peaks[2] = {state.x, state.y}, sums[2] = {state.z, state.w};
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      if (sight.meets(args_, i, begin, args_.split_tokens)) {
        const Fold fold(peaks[i], sums[i], peak[i], sum[i]);
        SLUICE_UNROLL
        for (std::uint32_t n = 0; n < S::outs / 4; ++n) {
          float2& pair = whole_pair(n, i);
          const float2 before = pair;
          pair = {fold(before.x, split[4 * n + 2 * i]), fold(before.y, split[4 * n + 2 * i + 1])};
        }
      }
      peak[i] = minus_infinity();
      sum[i] = 0.0F;
    }
    shared_.states[threadIdx.x] = {peaks[0], peaks[1], sums[0], sums[1]};
    SLUICE_UNROLL
    for (float& out : split) out = 0.0F;
  }

  const AttentionArgs& args_;
  const Shared<width>& shared_;
  Place place_;
};
#endif

template <std::uint32_t width>
__global__ void __launch_bounds__(block_threads, 1) wide_attention_kernel(AttentionArgs args) {
  start_next();
#ifdef SLUICE_NO_WIDE
  await_previous();
#else
  const Shared<width> shared{SharedPieces()};
  shared.prepare();
  await_previous();
  if (warp_index() >= multipliers * wide_threads / warp_lanes) {
    leave_registers<copier_registers>();
    Bringer<width>(args, shared).run();
  } else {
    take_registers<multiplier_registers>();
    Attender<width>(args, shared).run();
  }
#endif
}

/// Calls kernels(width) for the two that there are.
template <class Kernels>
cudaError_t with_wide(const Heads& heads, Kernels kernels) {
  if (heads.head_dim <= 64) return kernels(std::integral_constant<std::uint32_t, 64>());
  return kernels(std::integral_constant<std::uint32_t, 128>());
}

}  // namespace

bool takes_wide(const AttentionArgs& args) {
  const std::uint32_t width = args.heads.head_dim;
  return args.wide && args.kv.format == KvFormat::f16 &&
         ((width > 32 && width <= 64) || (width > 96 && width <= 128));
}

cudaError_t prepare_attention_wide(const AttentionArgs& args) {
  return with_wide(args.heads, [](auto width) {
    return allow_shared(wide_attention_kernel<width>, Shape<width>::bytes);
  });
}

cudaError_t attention_wide(const AttentionArgs& args, std::uint32_t groups, LaunchChain& chain) {
  const std::uint32_t blocks = least(groups * blocks_of_group(args.heads), args.processors);
  return with_wide(args.heads, [&](auto width) {
    return launch(wide_attention_kernel<width>, blocks, block_threads, Shape<width>::bytes, chain,
                  args);
  });
}

}  // namespace sluice::kernels::cuda
