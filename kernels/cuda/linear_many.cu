// Products with many activation rows. A block has a rectangle of weight rows times activation
// rows; 64 columns of both come to shared memory a stage, several stages ahead of the tensor cores.
// A warp reads a chunk of its rows from there, 16 bytes a lane, and uses each weight for all its
// activation rows and the other way round: at 64 x 32 results a warp, 6 KiB for 32 steps, which at
// the tensor cores' full rate is 96 of the 128 bytes a clock that shared memory gives.

#include "kernels/cuda/linear.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t stage_columns = 2 * chunk;
constexpr std::uint32_t piece_columns = 8;  ///< of 16 bytes of bf16
constexpr std::uint32_t stage_pieces = stage_columns / piece_columns;

/// Blocks side by side that share activation rows in the second-level cache, before the next ones
/// of the same weight rows: 16 of 128 rows of 4,096 columns are 16 MiB.
constexpr std::uint32_t neighbours = 16;

/// A block's shape: warps_m x warps_n warps, each of m x n tiles of 16 weight rows and 8 activation
/// rows.
template <std::uint32_t warps_m, std::uint32_t warps_n, std::uint32_t m, std::uint32_t n>
struct Shape {
  static constexpr std::uint32_t tiles_m = m, tiles_n = n, across = warps_n;
  static constexpr std::uint32_t threads = warps_m * warps_n * warp_lanes;
  static constexpr std::uint32_t weights = warps_m * m * tile_rows;
  static constexpr std::uint32_t tokens = warps_n * n * tile_inputs;
  static constexpr std::uint32_t stages = 4;
  static constexpr std::uint32_t stage_elements = (weights + tokens) * stage_columns;
  static constexpr std::size_t bytes = SharedPieces::bytes<std::uint16_t>(stages * stage_elements);
};

/// For up to `small_rows` rows, where weights still come from memory faster than they are used, and
/// small blocks fill the device; and for more.
using Small = Shape<2, 2, 2, 4>;
using Large = Shape<2, 4, 4, 4>;
constexpr std::uint32_t small_rows = 512;

/// Where in a stage's `rows` rows the piece of a row lies: each chunk's rows lie one behind the
/// other, 64 bytes each, so that the eight lanes of one access read 128 bytes in a row; the second
/// chunk's in pairs the other way round, so that the writes of a row's two chunks meet other banks.
__device__ inline std::uint32_t place_of(std::uint32_t rows, std::uint32_t row,
                                         std::uint32_t piece) {
  const std::uint32_t half = piece / 4;
  return (half * rows + (row ^ half)) * chunk + piece % 4 * piece_columns;
}

/// What comes to a stage: the columns k .. k + 63 of a block's rows, zeros behind their end.
template <class U, class S>
class Stager {
 public:
  __device__ Stager(const LinearArgs& args, const DeviceWeight& weight, std::uint32_t row,
                    std::uint32_t token)
      : in_(args.in), weight_(weight), row_(row), token_(token) {}

  /// Of so many activation rows in all; before the first is asked for.
  __device__ void set_rows(std::uint32_t rows) { last_ = rows - 1; }

  /// Starts the copies of activations to a stage.
  __device__ void start_inputs(std::uint16_t* stage, std::uint32_t k) const {
    std::uint16_t* x = stage + S::weights * stage_columns;
    for (std::uint32_t i = threadIdx.x; i < S::tokens * stage_pieces; i += S::threads) {
      const std::uint32_t r = i / stage_pieces, piece = i % stage_pieces;
      const std::uint32_t column = k + piece * piece_columns;
      copy_async(x + place_of(S::tokens, r, piece),
                 in_.narrow + narrow_at(in_.stride, least(token_ + r, last_), column),
                 column < chunked(weight_.cols));
    }
  }

  /// And of weights in bf16.
  __device__ void start_weights(std::uint16_t* stage, std::uint32_t k) const {
    if constexpr (plain) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < pieces_each; ++i) {
        const Piece p = piece_of(i, k);
        copy_async(stage + p.to, p.row + std::size_t{p.column} * sizeof(std::uint16_t), p.valid);
      }
    }
  }

  /// Weights in other formats come by way of registers: read early, written when there is room.
  __device__ void read(std::uint32_t k) {
    if constexpr (!plain) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < pieces_each; ++i) {
        const Piece p = piece_of(i, k);
        held_[i] = p.valid ? packed<U>(load_packed<U>(p.row, p.column)) : uint4{0, 0, 0, 0};
      }
    }
  }
  __device__ void write(std::uint16_t* stage) const {
    if constexpr (!plain) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < pieces_each; ++i) {
        *reinterpret_cast<uint4*>(stage + piece_of(i, 0).to) = held_[i];
      }
    }
  }

 private:
  static constexpr bool plain = std::is_same_v<U, Unpack<Format::bf16>>;
  static constexpr std::uint32_t pieces_each = S::weights * stage_pieces / S::threads;
  static_assert(pieces_each * S::threads == S::weights * stage_pieces);

  struct Piece {
    Bytes row;
    std::uint32_t column, to;
    bool valid;
  };

  __device__ Piece piece_of(std::uint32_t i, std::uint32_t k) const {
    const std::uint32_t index = i * S::threads + threadIdx.x;
    const std::uint32_t row = index / stage_pieces, piece = index % stage_pieces;
    const std::uint32_t column = k + piece * piece_columns;
    return {weight_.data + least(row_ + row, weight_.rows - 1) * weight_.stride, column,
            place_of(S::weights, row, piece), column < chunked(weight_.cols)};
  }

  const Rows& in_;
  const DeviceWeight& weight_;
  std::uint32_t row_, token_, last_ = 0;
  uint4 held_[plain ? 1 : pieces_each];
};

/// A warp's tiles of results: those of the running section, and of the sections before it.
template <class S>
struct Results {
  TileSums section[S::tiles_m][S::tiles_n], total[S::tiles_m][S::tiles_n];

  __device__ void clear() {
    each([](TileSums& running, TileSums& all) { running = all = {}; });
  }
  __device__ void end_section() {
    each([](TileSums& running, TileSums& all) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 4; ++i) all.at[i] += running.at[i];
      running = {};
    });
  }
  template <class F>
  __device__ void each(F f) {
    SLUICE_UNROLL
    for (std::uint32_t m = 0; m < S::tiles_m; ++m) {
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < S::tiles_n; ++n) f(section[m][n], total[m][n]);
    }
  }
};

/// A chunk of a stage, for a warp's tiles.
template <class S>
__device__ void multiply_stage(Results<S>& results, const std::uint16_t* stage,
                               std::uint32_t half) {
  const std::uint32_t piece = half * 4 + lane_index() % 4, g = lane_index() / 4;
  const std::uint32_t row = warp_index() / S::across * S::tiles_m * tile_rows + g;
  const std::uint32_t token = warp_index() % S::across * S::tiles_n * tile_inputs + g;
  const auto read = [&](const std::uint16_t* from, std::uint32_t rows, std::uint32_t at) {
    return *reinterpret_cast<const uint4*>(from + place_of(rows, at, piece));
  };
  uint4 x[S::tiles_n];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < S::tiles_n; ++n) {
    x[n] = read(stage + S::weights * stage_columns, S::tokens, token + n * tile_inputs);
  }
  SLUICE_UNROLL
  for (std::uint32_t m = 0; m < S::tiles_m; ++m) {
    const uint4 upper = read(stage, S::weights, row + m * tile_rows);
    const uint4 lower = read(stage, S::weights, row + m * tile_rows + 8);
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < S::tiles_n; ++n) {
      multiply_chunk(results.section[m][n], upper, lower, x[n]);
    }
  }
}

template <class S>
__device__ void write_results(const Product& product, const Results<S>& results, std::uint32_t row,
                              std::uint32_t token, std::uint32_t rows) {
  row += warp_index() / S::across * S::tiles_m * tile_rows + lane_index() / 4;
  token += warp_index() % S::across * S::tiles_n * tile_inputs + lane_index() % 4 * 2;
  SLUICE_UNROLL
  for (std::uint32_t m = 0; m < S::tiles_m; ++m) {
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < S::tiles_n; ++n) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 4; ++i) {
        const std::uint32_t o = row + m * tile_rows + i / 2 * 8;
        const std::uint32_t r = token + n * tile_inputs + i % 2;
        if (o < product.weight.rows && r < rows) {
          write_result(product, o, r, results.total[m][n].at[i]);
        }
      }
    }
  }
}

template <class U, class S>
__global__ void __launch_bounds__(S::threads) many_kernel(LinearArgs args, std::uint32_t blocks_m) {
  start_next();
  const std::uint32_t blocks_n = gridDim.x / blocks_m;
  const std::uint32_t band = blockIdx.x / (neighbours * blocks_m);
  const std::uint32_t width = least(neighbours, blocks_n - band * neighbours);
  const std::uint32_t in_band = blockIdx.x - band * neighbours * blocks_m;
  const std::uint32_t token = (band * neighbours + in_band % width) * S::tokens;
  SharedPieces shared;
  auto* memory = shared.take<std::uint16_t>(S::stages * S::stage_elements);
  const Place place = find_place(args, in_band / width, S::weights);
  const Product& product = args.product[place.product];
  const DeviceWeight& weight = product.weight;
  Stager<U, S> stager(args, weight, place.row, token);
  const std::uint32_t end = chunked(weight.cols);
  const std::uint32_t section = section_columns(weight.cols);
  const auto stage_at = [&](std::uint32_t k) {
    return memory + k / stage_columns % S::stages * S::stage_elements;
  };
  constexpr std::uint32_t ahead = (S::stages - 1) * stage_columns;
  for (std::uint32_t k = 0; k < least(ahead, end); k += stage_columns) {
    stager.start_weights(stage_at(k), k);  // of all these stages in the first one's group
    stager.read(k);
    stager.write(stage_at(k));
  }
  await_previous();
  const std::uint32_t rows = row_count(args.step, args.space);
  if (token >= rows) {
    commit_copies();
    wait_copies<0>();
    return;
  }
  stager.set_rows(rows);
  for (std::uint32_t k = 0; k < ahead; k += stage_columns) {
    if (k < end) stager.start_inputs(stage_at(k), k);
    commit_copies();
  }
  Results<S> results;
  results.clear();
  for (std::uint32_t k = 0; k < end; k += stage_columns) {
    wait_copies<S::stages - 2>();  // this stage's own are there
    __syncthreads();               // everyone's are, and the stage before this is done with
    const bool more = k + ahead < end;
    if (more) {
      stager.start_inputs(stage_at(k + ahead), k + ahead);
      stager.start_weights(stage_at(k + ahead), k + ahead);
      stager.read(k + ahead);
    }
    commit_copies();
    multiply_stage(results, stage_at(k), 0);
    if (k + chunk < end) multiply_stage(results, stage_at(k), 1);
    if (more) stager.write(stage_at(k + ahead));
    if ((k + stage_columns) % section == 0 || k + stage_columns >= end) results.end_section();
  }
  wait_copies<0>();
  write_results(product, results, place.row, token, rows);
}

template <class U, class S>
cudaError_t launch_many(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const std::uint32_t blocks_m = count_blocks(args, S::weights);
  return launch(many_kernel<U, S>, blocks_m * divide_up(rows, S::tokens), S::threads, S::bytes,
                chain, args, blocks_m);
}

}  // namespace

cudaError_t prepare_many(const DeviceWeight& weight) {
  return with_unpack(weight, []<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaSuccess;
    } else {
      const cudaError_t status = allow_shared(many_kernel<U, Small>, Small::bytes);
      return status != cudaSuccess ? status : allow_shared(many_kernel<U, Large>, Large::bytes);
    }
  });
}

cudaError_t linear_many(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_unpack(args.product[0].weight, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return rows <= small_rows ? launch_many<U, Small>(args, rows, chain)
                                : launch_many<U, Large>(args, rows, chain);
    }
  });
}

}  // namespace sluice::kernels::cuda
