// Products of packed weights with many activation rows, by Hopper's own products. A block has 192,
// 128 or 64 weight rows times 128 or 64 activation rows. One warp of it brings 64 columns of both
// to shared memory a stage, by bulk copies, as far ahead as there is room; up to three groups of
// four warps multiply 64 weight rows each, which they unpack from there to registers on the way.
// Two blocks with the same weight rows and neighbouring activation rows run together, as a cluster:
// each brings half of the weights, to both. Where a Gate follows, a block has as many rows of both
// products, and its warps trade.
//
// The limit is the second-level cache. Blocks by themselves bring 40 KiB a stage of 192 x 128 to a
// multiprocessor for what its tensor cores do in 0.44 us: 12 TB/s of all 132. So an 8B model's
// prompt of 2,048 tokens was seen on an H200 at 361 TFLOP/s, attention and norms included, where
// cuBLAS multiplies at 796, and its products at 440, 33 bytes a clock and multiprocessor. Two
// blocks together bring 28 KiB each.

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/wide.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t stage_columns = 64;
constexpr std::uint32_t units = stage_columns / unit_columns;
constexpr std::uint32_t group_panels = 4;  ///< of four warps

// Of a thread: what 65,536 give all, which the copying warps leave to the others.
[[maybe_unused]] constexpr std::uint32_t copier_registers = 40;
template <class S>
constexpr std::uint32_t multiplier_registers = S::groups == 3 ? 152 : 232;

/// Blocks side by side that share activation rows in the second-level cache, before the next ones
/// of the same weight rows: 16 of 128 rows of 4,096 columns are 16 MiB.
constexpr std::uint32_t neighbours = 16;

/// Activation rows up to which a block has 64 of them.
constexpr std::uint32_t small_rows = 64;

template <class Packed, std::uint32_t groups_, std::uint32_t tokens_, std::uint32_t cluster_,
          bool gate>
struct Shape {
  using P = Packed;
  static constexpr std::uint32_t groups = groups_, tokens = tokens_, cluster = cluster_;
  static constexpr bool with_gate = gate;
  static constexpr std::uint32_t threads = (groups + 1) * wide_threads;
  static constexpr std::uint32_t panels = groups * group_panels;
  static constexpr std::uint32_t rows = panels * panel_rows / (gate ? 2 : 1);  ///< of a product

  static constexpr std::uint32_t part_bytes = units * P::unit_bytes;  ///< of a panel, of a stage
  static constexpr std::uint32_t weight_bytes = panels * part_bytes;
  static constexpr std::uint32_t input_bytes = tokens * stage_columns * 2;
  static constexpr std::uint32_t stage_bytes = weight_bytes + input_bytes;
  static constexpr std::uint32_t stages = 204'800 / stage_bytes;
  static constexpr std::uint32_t barriers = 2 * stages + 2;
  static constexpr std::size_t bytes = SharedPieces::bytes<unsigned char>(stages * stage_bytes) +
                                       SharedPieces::bytes<std::uint64_t>(barriers);
  static_assert(!gate || panels / 2 * panel_rows * tokens * sizeof(float) <= stages * stage_bytes);
  static_assert(neighbours % cluster == 0);

  /// Blocks side by side, whole clusters of them.
  static std::uint32_t count_blocks(std::uint32_t activation_rows) {
    return divide_up(activation_rows, tokens * cluster) * cluster;
  }

  /// How long a launch takes, about: its blocks one after the other on a multiprocessor, each as
  /// long as what it multiplies takes to come from the second-level cache.
  static std::uint64_t cost(std::uint32_t blocks, std::uint32_t processors) {
    return std::uint64_t{divide_up(blocks, processors)} *
           (panels * panel_rows / cluster + tokens);
  }
};

#ifndef SLUICE_NO_WIDE
/// Stages in shared memory and who may use them: `full` when all has come, `empty` when all
/// multiplying warps of the cluster are done. At the end `done` tells that no warp of the block
/// multiplies any more, and `traded` that every one has given what another needs.
template <class S>
struct Stages {
  unsigned char* data;
  std::uint64_t *full, *empty, *done, *traded;

  __device__ explicit Stages(SharedPieces& shared)
      : data(shared.take<unsigned char>(S::stages * S::stage_bytes)),
        full(shared.take<std::uint64_t>(S::barriers)),
        empty(full + S::stages),
        done(empty + S::stages),
        traded(done + 1) {
    if (threadIdx.x == 0) {
      for (std::uint32_t i = 0; i < S::stages; ++i) {
        init_barrier(full + i, 1);
        init_barrier(empty + i, S::panels * S::cluster);
      }
      init_barrier(done, S::panels);
      init_barrier(traded, S::panels);
      show_barriers();
    }
    if constexpr (S::cluster > 1) {
      meet_cluster();
    } else {
      __syncthreads();
    }
  }
  __device__ unsigned char* at(std::uint32_t stage) const {
    return data + stage % S::stages * S::stage_bytes;
  }
};

/// Which rows a block has, and which of them its panels: with a gate, two of each group's are the
/// first product's and two, in the same rows, the second's.
template <class S>
struct Share {
  const LinearArgs& args;
  Place place;

  __device__ const Product& product(std::uint32_t panel) const {
    return args.product[S::with_gate ? panel % group_panels / 2 : place.product];
  }
  __device__ std::uint32_t row(std::uint32_t panel) const {
    const std::uint32_t group = panel / group_panels, of = panel % group_panels;
    const std::uint32_t at = S::with_gate ? group * 2 + of % 2 : panel;
    return place.row + at * panel_rows;
  }
};

/// One warp's: a lane a panel, and one the activations, rows from `token` on. Of a cluster's panels
/// each block brings every so many-th, to all.
template <class S>
__device__ void bring(const Share<S>& share, std::uint32_t token, const Stages<S>& stages) {
  using P = typename S::P;
  const std::uint32_t lane = lane_index(), panel = least(lane, S::panels - 1);
  const DeviceWeight& weight = share.product(panel).weight;
  const std::uint32_t steps = padded(weight.cols) / stage_columns;
  const std::uint32_t last = divide_up(weight.rows, panel_rows) - 1;
  constexpr std::uint32_t part = S::part_bytes;
  const Bytes from = unit_at<P>(weight, least(share.row(panel) / panel_rows, last) * panel_rows, 0);
  const Rows& in = share.args.in;
  const std::uint16_t* inputs = in.narrow + narrow_row(in.stride, token);
  for (std::uint32_t step = 0; step < steps; ++step) {
    const std::uint32_t slot = step % S::stages, round = step / S::stages;
    if (round > 0) await_phase(stages.empty + slot, (round - 1) % 2);
    unsigned char* to = stages.at(step);
    if (lane == 0) arrive_for(stages.full + slot, S::stage_bytes);
    __syncwarp();
    if (lane < S::panels) {
      const Bytes weights = from + std::size_t{step} * part;
      if constexpr (S::cluster == 1) {
        copy_bulk(to + lane * part, weights, part, stages.full + slot);
      } else if (lane % S::cluster == cluster_rank()) {
        copy_bulk_to_cluster(to + lane * part, weights, part, stages.full + slot, S::cluster);
      }
    } else if (lane == S::panels) {
      copy_bulk(to + S::weight_bytes, inputs + narrow_column(step * stage_columns), S::input_bytes,
                stages.full + slot);
    }
  }
}

/// A group of four warps'.
template <class S>
class Multiplier {
 public:
  __device__ Multiplier(const Share<S>& share, const Stages<S>& stages)
      : share_(share),
        stages_(stages),
        steps_(padded(share.args.product[0].weight.cols) / stage_columns),
        section_(section_columns(share.args.product[0].weight.cols) / stage_columns) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) sums_[i] = totals_[i] = 0.0F;
  }

  __device__ void run() {
    TileA low[tiles], high[tiles];  // one half's products run while the other's are unpacked
    for (std::uint32_t step = 0; step < steps_;) {
      const std::uint32_t first = step, end = least(first + section_, steps_);
      for (; step < end; ++step) {
        await_phase(stages_.full + step % S::stages, step / S::stages % 2);
        take(step, 0, low, step != first);
        await_products<1>();  // the step before is done with its stage
        if (step != first) release(step - 1);
        take(step, 1, high, true);
        await_products<1>();
      }
      await_products<0>();
      release(step - 1);
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < count; ++i) {
        keep_sum(sums_[i]);
        totals_[i] += sums_[i];
      }
    }
    scale();
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
    meet(stages_.done);
    float* given = place(warp_index());
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < half; ++i) {
      given[i * warp_lanes] = second ? totals_[i] : totals_[half + i];
    }
    meet(stages_.traded);
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
  static constexpr std::uint32_t tiles = unit_tiles;  ///< of half a stage
  static constexpr std::uint32_t count = S::tokens / 2;

  /// All multiplying warps of the block.
  __device__ void meet(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_index() == 0) arrive(barrier);
    await_phase(barrier, 0);
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

  /// The warp has read its part of the stage, and its products are done with the rest.
  __device__ void release(std::uint32_t step) const {
    __syncwarp();
    std::uint64_t* const empty = stages_.empty + step % S::stages;
    if constexpr (S::cluster == 1) {
      if (lane_index() == 0) arrive(empty);
    } else if (lane_index() < S::cluster) {
      arrive_at(empty, lane_index());
    }
  }

  /// Starts half a stage's products, on top of the section's sums if `add`.
  __device__ void take(std::uint32_t step, std::uint32_t half, TileA (&weights)[tiles],
                       std::uint32_t add) {
    using P = typename S::P;
    const unsigned char* stage = stages_.at(step);
    const unsigned char* unit = stage + (warp_index() * units + half) * P::unit_bytes;
    P::unpack(P::read(unit, lane_index()), weights);
    const auto* inputs = reinterpret_cast<const std::uint16_t*>(stage + S::weight_bytes);
    begin_products();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < tiles; ++i) {
      multiply_async(sums_, weights[i], wide_columns(inputs + (half * tiles + i) * 128),
                     i == 0 ? add : 1U);
    }
    end_products();
  }

  const Share<S>& share_;
  const Stages<S>& stages_;
  const std::uint32_t steps_, section_;
  float sums_[count], totals_[count];
};
#endif

template <class S>
__global__ void __launch_bounds__(S::threads, 1)
    wide_kernel(GatedArgs gated_args, std::uint32_t blocks_m) {
  take_turn();
#ifndef SLUICE_NO_WIDE
  const LinearArgs& args = gated_args.linear;
  const std::uint32_t blocks_n = gridDim.x / blocks_m;
  const std::uint32_t band = blockIdx.x / (neighbours * blocks_m);
  const std::uint32_t width = least(neighbours, blocks_n - band * neighbours);
  const std::uint32_t in_band = blockIdx.x - band * neighbours * blocks_m;
  const std::uint32_t token = (band * neighbours + in_band % width) * S::tokens;
  const std::uint32_t rows = row_count(args.step, args.space);
  if (token / (S::tokens * S::cluster) * (S::tokens * S::cluster) >= rows) return;
  Place place{0, in_band / width * S::rows};
  if constexpr (!S::with_gate) place = find_place(args, in_band / width, S::rows);
  const Share<S> share{args, place};
  SharedPieces shared;
  const Stages<S> stages(shared);
  if (warp_index() >= S::panels) {
    leave_registers<copier_registers>();
    // A block without rows brings weights for its neighbour, and multiplies the last rows again.
    const std::uint32_t last = (rows - 1) / S::tokens * S::tokens;
    if (warp_index() == S::panels) bring(share, least(token, last), stages);
  } else {
    take_registers<multiplier_registers<S>>();
    Multiplier<S> multiplier(share, stages);
    multiplier.run();
    if constexpr (S::with_gate) {
      multiplier.write_gated(gated_args.gate, token, rows);
    } else {
      multiplier.write(token, rows);
    }
  }
  if constexpr (S::cluster > 1) meet_cluster();  // none ends while another reaches for its memory
#endif
}

template <class S>
std::uint32_t count_rows(const GatedArgs& args) {
  return S::with_gate ? divide_up(args.gate.width, S::rows) : count_blocks(args.linear, S::rows);
}

template <class S>
cudaError_t launch_wide(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const std::uint32_t blocks_m = count_rows<S>(args);
  return launch_clusters(wide_kernel<S>, S::cluster, blocks_m * S::count_blocks(rows), S::threads,
                         S::bytes, chain, args, blocks_m);
}

template <class S>
std::uint64_t cost(const GatedArgs& args, std::uint32_t rows) {
  return S::cost(count_rows<S>(args) * S::count_blocks(rows), args.linear.processors);
}

template <class... Shapes>
struct Choice {
  /// The cheapest; of such the first.
  static cudaError_t launch(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
    using Launch = cudaError_t (*)(const GatedArgs&, std::uint32_t, LaunchChain&);
    const Launch launches[] = {launch_wide<Shapes>...};
    const std::uint64_t costs[] = {cost<Shapes>(args, rows)...};
    std::size_t best = 0;
    for (std::size_t i = 1; i < sizeof...(Shapes); ++i) {
      if (costs[i] < costs[best]) best = i;
    }
    return launches[best](args, rows, chain);
  }
  static cudaError_t prepare() {
    cudaError_t status = cudaSuccess;
    ((status = status != cudaSuccess ? status : allow_shared(wide_kernel<Shapes>, Shapes::bytes)),
     ...);
    return status;
  }
};

/// For at most small_rows activation rows, and for more.
template <class P, bool gate>
using Small = Choice<Shape<P, 3, 64, 1, gate>, Shape<P, 2, 64, 1, gate>, Shape<P, 1, 64, 1, gate>>;
template <class P, bool gate>
using Large = Choice<Shape<P, 3, 128, 2, gate>, Shape<P, 2, 128, 2, gate>,
                     Shape<P, 1, 128, 2, gate>, Shape<P, 3, 128, 1, gate>,
                     Shape<P, 2, 128, 1, gate>, Shape<P, 1, 128, 1, gate>>;

template <bool gate>
cudaError_t launch_any(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_packed(args.linear.product[0].weight, [&]<class P>(P) {
    return rows <= small_rows ? Small<P, gate>::launch(args, rows, chain)
                              : Large<P, gate>::launch(args, rows, chain);
  });
}

template <class P, bool gate>
cudaError_t prepare() {
  const cudaError_t status = Small<P, gate>::prepare();
  return status != cudaSuccess ? status : Large<P, gate>::prepare();
}

}  // namespace

cudaError_t prepare_wide(const DeviceWeight& weight) {
  return with_packed(weight, []<class P>(P) {
    const cudaError_t status = prepare<P, false>();
    return status != cudaSuccess ? status : prepare<P, true>();
  });
}

cudaError_t linear_wide(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<false>({args, {}}, rows, chain);
}

cudaError_t linear_wide_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<true>(args, rows, chain);
}

}  // namespace sluice::kernels::cuda
