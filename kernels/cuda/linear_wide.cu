// Products of packed weights with many activation rows. A block has 192, 128 or 64 weight rows
// times 128 activation rows (wide_block.cuh). Two blocks with the same weight rows and neighbouring
// activation rows run together, as a cluster: each brings half of the weights, to both. Where a
// Gate follows, a block has as many rows of both products, and its warps trade.
//
// The limit is the second-level cache. Two blocks together bring 28 KiB a stage of 192 x 128 to
// each multiprocessor, which its tensor cores multiply in 0.44 us. Seen on an H200 (a prompt of
// 2,048 tokens, 8B in bf16): products at 580 TFLOP/s, where cuBLAS has 790; with the products left
// out of the code, copies alone take 0.73 of that time, 31 bytes a clock and multiprocessor, with
// the unpacking left out all takes 0.89. Blocks that come and go cost some 8,000 clocks each, a
// tenth of one of 4,096 columns. Four blocks that share both operands would bring 20 KiB, but an
// H200 has room for fewer such clusters than its multiprocessors tell (linear_split.cu).

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/wide_block.cuh"

namespace sluice::kernels::cuda {
namespace {

/// Blocks side by side that share activation rows in the second-level cache, before the next ones
/// of the same weight rows: 16 of 128 rows of 4,096 columns are 16 MiB.
constexpr std::uint32_t neighbours = 16;

#ifndef SLUICE_NO_WIDE
/// A warp's results: its panel's rows times the block's activation rows.
template <class S>
class Results {
 public:
  __device__ Results(const Share<S>& share, const Stages<S>& stages)
      : share_(share), stages_(stages) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) totals_[i] = 0.0F;
  }

  __device__ void add(const float (&sums)[S::sums]) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) totals_[i] += sums[i];
  }

  /// What weight rows make of sums; a lane has two.
  __device__ void scale() {
    const Product& product = share_.product(warp_index());
    const std::uint32_t row = share_.row(warp_index()) + lane_index() / 4;
    SLUICE_UNROLL
    for (std::uint32_t half = 0; half < 2; ++half) {
      const std::uint32_t o = least(row + half * 8, product.weight.rows - 1);
      const float factor = product.weight.scales != nullptr ? product.weight.scales[o] : 1.0F;
      const float bias = product.bias != nullptr ? product.bias[o] : 0.0F;
      SLUICE_UNROLL
      for (std::uint32_t i = 2 * half; i < count; i += 4) {
        SLUICE_UNROLL
        for (std::uint32_t j = i; j < i + 2; ++j) {
          if (product.weight.scales != nullptr) totals_[j] *= factor;
          if (product.bias != nullptr) totals_[j] += bias;
        }
      }
    }
  }

  /// Writes what there is of activation rows from `token` on.
  __device__ void write(std::uint32_t token, std::uint32_t rows) {
    const Product& product = share_.product(warp_index());
    if (product.accumulate) {
      each(token, rows, [&](std::uint32_t o, std::uint32_t r, float& value) {
        value += row_of(product.out, r)[o];
      });
    }
    each(token, rows, [&](std::uint32_t o, std::uint32_t r, float& value) {
      row_of(product.out, r)[o] = value;
    });
  }

  /// Writes the gate's results: of two warps with the same rows of its two products, one has the
  /// first half of the activation rows, the other the second, and they trade what they lack.
  __device__ void write_gated(const GateArgs& gate, std::uint32_t token, std::uint32_t rows) {
    constexpr std::uint32_t half = count / 2;
    const bool second = warp_index() % group_panels >= 2;
    const auto place = [&](std::uint32_t warp) {
      return reinterpret_cast<float*>(stages_.data) + warp * (half * warp_lanes) + lane_index();
    };
    Multiplier<S>::meet(stages_.done);
    float* given = place(warp_index());
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < half; ++i) {
      given[i * warp_lanes] = second ? totals_[i] : totals_[half + i];
    }
    Multiplier<S>::meet(stages_.traded);
    const float* taken = place(warp_index() ^ 2U);
    const std::uint32_t row = share_.row(warp_index()) + lane_index() / 4;
    token += lane_index() % 4 * 2 + (second ? S::tokens / 2 : 0);
    // What put() does, from where the lane's first element lies: the others' ways are constants,
    // for none is in another panel or in another of Rows::narrow's stretches of rows.
    float* const data = row_of(gate.out, token) + row;
    std::uint16_t* narrow = gate.out.narrow;
    if (narrow != nullptr) narrow += narrow_at(gate.out.stride, token, row);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < half; ++i) {
      const std::uint32_t down = i % 4 / 2 * 8, on = i / 4 * 8 + i % 2;
      if (row + down >= gate.width || token + on >= rows) continue;
      const float other = taken[i * warp_lanes];
      const float value =
          second ? gated(gate, other, totals_[half + i]) : gated(gate, totals_[i], other);
      data[std::size_t{on} * gate.out.stride + down] = value;
      if (narrow != nullptr) {
        narrow[narrow_row(0, on) + narrow_column(down)] = narrow_bf16(value);
      }
    }
  }

 private:
  static constexpr std::uint32_t count = S::sums;

  /// f(weight row, activation row, result) of those that there are.
  template <class F>
  __device__ void each(std::uint32_t token, std::uint32_t rows, F f) {
    const std::uint32_t row = share_.row(warp_index()) + lane_index() / 4;
    token += lane_index() % 4 * 2;
    const std::uint32_t end = share_.product(warp_index()).weight.rows;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t o = row + i % 4 / 2 * 8, r = token + i / 4 * 8 + i % 2;
      if (o < end && r < rows) f(o, r, totals_[i]);
    }
  }

  const Share<S>& share_;
  const Stages<S>& stages_;
  float totals_[count];
};
#endif

template <class S>
__global__ void __launch_bounds__(S::threads, 1)
    wide_kernel(GatedArgs gated_args, std::uint32_t blocks_m) {
  start_next();
#ifndef SLUICE_NO_WIDE
  const LinearArgs& args = gated_args.linear;
  const std::uint32_t blocks_n = gridDim.x / blocks_m;
  const std::uint32_t band = blockIdx.x / (neighbours * blocks_m);
  const std::uint32_t width = least(neighbours, blocks_n - band * neighbours);
  const std::uint32_t in_band = blockIdx.x - band * neighbours * blocks_m;
  const std::uint32_t token = (band * neighbours + in_band % width) * S::tokens;
  const std::uint32_t rows = row_count(args.step, args.space);
  if (token / (S::tokens * S::cluster) * (S::tokens * S::cluster) >= rows) {
    await_previous();
    return;
  }
  Place place{0, in_band / width * S::rows};
  if constexpr (!S::with_gate) place = find_place(args, in_band / width, S::rows);
  const Share<S> share{args, place};
  const Stretch columns(args.product[0].weight, 0, sections);
  SharedPieces shared;
  const Stages<S> stages(shared);
  if (warp_index() >= S::panels) {
    leave_registers<S::copier_registers>();
    // A block without rows brings weights for its neighbour, and multiplies the last rows again.
    const std::uint32_t last = (rows - 1) / S::tokens * S::tokens;
    bring(share, columns, least(token, last), stages, [] { await_previous(); });
  } else {
    take_registers<S::multiplier_registers>();
    await_previous();
    Multiplier<S> multiplier(share, columns, stages);
    Results<S> results(share, stages);
    multiplier.run([&](std::uint32_t, const float (&sums)[S::sums]) { results.add(sums); });
    results.scale();
    if constexpr (S::with_gate) {
      results.write_gated(gated_args.gate, token, rows);
    } else {
      results.write(token, rows);
    }
  }
  if constexpr (S::cluster > 1) await_cluster();  // none ends while another reaches for its memory
#else
  await_previous();
#endif
}

template <class P, std::uint32_t groups, std::uint32_t cluster, bool gate>
struct Wide {
  using S = Shape<P, groups, 128, Together::weights, cluster, gate>;
  static_assert(neighbours % cluster == 0);
  static_assert(!gate || S::panels / 2 * panel_rows * S::tokens * sizeof(float) <=
                             S::stages * S::stage_bytes);

  /// Blocks side by side that have all activation rows, whole clusters of them.
  static std::uint32_t count_input_blocks(std::uint32_t rows) {
    return divide_up(rows, S::tokens * cluster) * cluster;
  }

  /// How long a launch takes, about: its blocks one after the other on a multiprocessor, each as
  /// long as what it multiplies takes to come from the second-level cache.
  static std::uint64_t cost(const GatedArgs& args, std::uint32_t rows) {
    const std::uint32_t blocks = count_weight_blocks<S>(args) * count_input_blocks(rows);
    return std::uint64_t{divide_up(blocks, args.linear.processors)} *
           (S::panels * panel_rows / cluster + S::tokens);
  }
  static cudaError_t launch(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
    const std::uint32_t blocks_m = count_weight_blocks<S>(args);
    return launch_clusters(wide_kernel<S>, cluster, blocks_m * count_input_blocks(rows), S::threads,
                           S::bytes, chain, args, blocks_m);
  }
  static cudaError_t prepare() { return allow_shared(wide_kernel<S>, S::bytes); }
};

template <class P, bool gate>
using AnyWide = Choice<Wide<P, 3, 2, gate>, Wide<P, 2, 2, gate>, Wide<P, 1, 2, gate>,
                       Wide<P, 3, 1, gate>, Wide<P, 2, 1, gate>, Wide<P, 1, 1, gate>>;

}  // namespace

cudaError_t prepare_wide(const DeviceWeight& weight) { return prepare_any<AnyWide>(weight); }

cudaError_t linear_wide(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<AnyWide, false>({args, {}}, rows, chain);
}

cudaError_t linear_wide_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<AnyWide, true>(args, rows, chain);
}

}  // namespace sluice::kernels::cuda
