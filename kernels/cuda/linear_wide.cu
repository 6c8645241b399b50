// Products of packed weights with many activation rows, by Hopper's own products. A block has 192
// weight rows times 128 or 64 activation rows. One warp of it brings 64 columns of both to shared
// memory a stage, by bulk copies, as far ahead as there is room; three groups of four warps multiply
// 64 weight rows each, which they unpack from there to registers on the way. A block's activations
// serve 192 weights: 77 operations a byte that comes from the second-level cache.
//
// Seen on an H200 at weights of 28,416 x 4,096 and 2,048 rows: 600 TFLOP/s in bf16 and 549 in e4m3,
// where cuBLAS has some 770 to 800 in bf16. A group's products wait for each other, for the
// compiler lets none run while registers of the next are written; the other two groups fill in.

#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/wide.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t groups = 3;
constexpr std::uint32_t block_rows = groups * 64;
constexpr std::uint32_t block_threads = (groups + 1) * wide_threads;
constexpr std::uint32_t stage_columns = 64;

// Registers of a thread: 512 of 128 in all.
[[maybe_unused]] constexpr std::uint32_t multiplier_registers = 152, copier_registers = 40;

/// Blocks side by side that share activation rows in the second-level cache, before the next ones
/// of the same weight rows: 16 of 128 rows of 4,096 columns are 16 MiB.
[[maybe_unused]] constexpr std::uint32_t neighbours = 16;

/// Activation rows up to which a block has 64 of them.
constexpr std::uint32_t small_rows = 64;

template <class P, std::uint32_t tokens>
struct Shape {
  static constexpr std::uint32_t panels = block_rows / panel_rows;
  static constexpr std::uint32_t units = stage_columns / P::columns;  ///< of a panel, of a stage
  static constexpr std::uint32_t weight_bytes = panels * units * unit_bytes;
  static constexpr std::uint32_t input_bytes = tokens * stage_columns * 2;
  static constexpr std::uint32_t stage_bytes = weight_bytes + input_bytes;
  static constexpr std::uint32_t stages = 204'800 / stage_bytes;
  static constexpr std::size_t bytes = SharedPieces::bytes<unsigned char>(stages * stage_bytes) +
                                       SharedPieces::bytes<std::uint64_t>(2 * stages);
};

#ifndef SLUICE_NO_WIDE
/// Stages in shared memory and who may use them: `full` when all has come, `empty` when all groups
/// of warps are done.
template <class S>
struct Stages {
  unsigned char* data;
  std::uint64_t *full, *empty;

  __device__ explicit Stages(SharedPieces& shared)
      : data(shared.take<unsigned char>(S::stages * S::stage_bytes)),
        full(shared.take<std::uint64_t>(2 * S::stages)),
        empty(full + S::stages) {
    if (threadIdx.x == 0) {
      for (std::uint32_t i = 0; i < S::stages; ++i) {
        init_barrier(full + i, 1);
        init_barrier(empty + i, groups);
      }
      show_barriers();
    }
    __syncthreads();
  }
  __device__ unsigned char* at(std::uint32_t stage) const {
    return data + stage % S::stages * S::stage_bytes;
  }
};

/// One warp's: a lane a panel, and one the activations.
template <class P, class S>
__device__ void bring(const LinearArgs& args, const DeviceWeight& weight, std::uint32_t row,
                      std::uint32_t token, const Stages<S>& stages) {
  const std::uint32_t steps = padded(weight.cols) / stage_columns;
  const std::uint32_t last = divide_up(weight.rows, panel_rows) - 1, lane = lane_index();
  constexpr std::uint32_t panel_part = S::units * unit_bytes;
  const Bytes panel = weight.data + least(row / panel_rows + lane, last) * panel_bytes<P>(weight.cols);
  const std::uint16_t* inputs = args.in.narrow + narrow_row(args.in.stride, token);
  for (std::uint32_t step = 0; step < steps; ++step) {
    const std::uint32_t slot = step % S::stages, round = step / S::stages;
    if (round > 0) await_phase(stages.empty + slot, (round - 1) % 2);
    unsigned char* to = stages.at(step);
    if (lane == 0) arrive_for(stages.full + slot, S::stage_bytes);
    __syncwarp();
    if (lane < S::panels) {
      copy_bulk(to + lane * panel_part, panel + std::size_t{step} * panel_part, panel_part,
                stages.full + slot);
    } else if (lane == S::panels) {
      copy_bulk(to + S::weight_bytes, inputs + narrow_column(step * stage_columns), S::input_bytes,
                stages.full + slot);
    }
  }
}

/// A group of four warps'.
template <class P, class S, std::uint32_t tokens>
class Multiplier {
 public:
  __device__ Multiplier(const DeviceWeight& weight, const Stages<S>& stages)
      : stages_(stages),
        steps_(padded(weight.cols) / stage_columns),
        section_(section_columns(weight.cols) / stage_columns) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < tokens / 2; ++i) sums_[i] = totals_[i] = 0.0F;
  }

  __device__ void run() {
    TileA even[tiles], odd[tiles];  // of steps: one's products run while the other's are unpacked
    for (std::uint32_t step = 0; step < steps_; step += 2) {
      take(step, even);
      take(step + 1, odd);  // padded() columns are an even number of steps
    }
  }

  /// Of weight rows from `row` on and activation rows from `token` on.
  __device__ void write(const Product& product, std::uint32_t row, std::uint32_t token,
                        std::uint32_t rows) const {
    row += warp_index() * panel_rows + lane_index() / 4;
    token += lane_index() % 4 * 2;
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < tokens / 8; ++n) {
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < 4; ++i) {
        const std::uint32_t o = row + i / 2 * 8, r = token + n * 8 + i % 2;
        if (o < product.weight.rows && r < rows) write_result(product, o, r, totals_[4 * n + i]);
      }
    }
  }

 private:
  static constexpr std::uint32_t tiles = stage_columns / 16;

  __device__ void take(std::uint32_t step, TileA (&weights)[tiles]) {
    const std::uint32_t slot = step % S::stages;
    await_phase(stages_.full + slot, step / S::stages % 2);
    const unsigned char* stage = stages_.at(step);
    const auto* units = reinterpret_cast<const uint4*>(stage + warp_index() * S::units * unit_bytes);
    SLUICE_UNROLL
    for (std::uint32_t u = 0; u < S::units; ++u) {
      TileA some[P::tiles];
      P::unpack(units[u * warp_lanes + lane_index()], some);
      SLUICE_UNROLL
      for (std::uint32_t s = 0; s < P::tiles; ++s) weights[u * P::tiles + s] = some[s];
    }
    const auto* inputs = reinterpret_cast<const std::uint16_t*>(stage + S::weight_bytes);
    begin_products();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < tiles; ++i) {
      multiply_async(sums_, weights[i], wide_columns(inputs + i * 128), add_);
      add_ = 1;
    }
    end_products();
    await_products<1>();  // the step before is done with its stage
    if (step > 0 && threadIdx.x % wide_threads == 0) arrive(stages_.empty + (step - 1) % S::stages);
    if ((step + 1) % section_ != 0 && step + 1 != steps_) return;
    await_products<0>();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < tokens / 2; ++i) {
      keep_sum(sums_[i]);
      totals_[i] += sums_[i];
    }
    add_ = 0;
  }

  const Stages<S>& stages_;
  const std::uint32_t steps_, section_;
  std::uint32_t add_ = 0;  ///< whether products go on with the section's sums
  float sums_[tokens / 2], totals_[tokens / 2];
};
#endif

template <class P, std::uint32_t tokens>
__global__ void __launch_bounds__(block_threads, 1)
    wide_kernel(LinearArgs args, std::uint32_t blocks_m) {
  take_turn();
#ifndef SLUICE_NO_WIDE
  using S = Shape<P, tokens>;
  const std::uint32_t blocks_n = gridDim.x / blocks_m;
  const std::uint32_t band = blockIdx.x / (neighbours * blocks_m);
  const std::uint32_t width = least(neighbours, blocks_n - band * neighbours);
  const std::uint32_t in_band = blockIdx.x - band * neighbours * blocks_m;
  const std::uint32_t token = (band * neighbours + in_band % width) * tokens;
  const std::uint32_t rows = row_count(args.step, args.space);
  if (token >= rows) return;
  const Place place = find_place(args, in_band / width, block_rows);
  const Product& product = args.product[place.product];
  SharedPieces shared;
  const Stages<S> stages(shared);
  if (warp_index() >= groups * 4) {
    leave_registers<copier_registers>();
    if (warp_index() == groups * 4) bring<P, S>(args, product.weight, place.row, token, stages);
  } else {
    take_registers<multiplier_registers>();
    Multiplier<P, S, tokens> multiplier(product.weight, stages);
    multiplier.run();
    multiplier.write(product, place.row, token, rows);
  }
#endif
}

template <class P, std::uint32_t tokens>
cudaError_t launch_wide(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const std::uint32_t blocks_m = count_blocks(args, block_rows);
  return launch(wide_kernel<P, tokens>, blocks_m * divide_up(rows, tokens), block_threads,
                Shape<P, tokens>::bytes, chain, args, blocks_m);
}

}  // namespace

cudaError_t prepare_wide(const DeviceWeight& weight) {
  return with_packed(weight, []<class P>(P) {
    const cudaError_t status = allow_shared(wide_kernel<P, 64>, Shape<P, 64>::bytes);
    if (status != cudaSuccess) return status;
    return allow_shared(wide_kernel<P, 128>, Shape<P, 128>::bytes);
  });
}

cudaError_t linear_wide(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_packed(args.product[0].weight, [&]<class P>(P) {
    return rows <= small_rows ? launch_wide<P, 64>(args, rows, chain)
                              : launch_wide<P, 128>(args, rows, chain);
  });
}

}  // namespace sluice::kernels::cuda
