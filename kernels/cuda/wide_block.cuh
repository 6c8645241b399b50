#pragma once
// A block of Hopper's own products, which two files make kernels of. Four warps of it bring 64
// columns of weights and activations to shared memory a stage, by bulk copies, as far ahead as
// there is room; up to three groups of four warps multiply 64 weight rows each, which they unpack
// from there to registers on the way.

#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/wide.cuh"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t stage_columns = 64;
inline constexpr std::uint32_t stage_units = stage_columns / unit_columns;
inline constexpr std::uint32_t group_panels = 4;   ///< of four warps
inline constexpr std::uint32_t copying_warps = 4;  ///< which setmaxnreg takes together

/// What the blocks of a cluster have together: weights, or results of different columns.
enum class Together : std::uint8_t { weights, results };

template <class Packed, std::uint32_t groups_, std::uint32_t tokens_, Together together_,
          std::uint32_t cluster_, bool gate>
struct Shape {
  using P = Packed;
  static constexpr std::uint32_t groups = groups_, tokens = tokens_, cluster = cluster_;
  static constexpr bool with_gate = gate;
  static constexpr bool shares_weights = together_ == Together::weights && cluster > 1;
  static constexpr std::uint32_t threads = (groups + 1) * wide_threads;
  static constexpr std::uint32_t panels = groups * group_panels;
  static constexpr std::uint32_t rows = panels * panel_rows / (gate ? 2 : 1);  ///< of a product

  static constexpr std::uint32_t part_bytes = stage_units * P::unit_bytes;  ///< a panel's, a stage
  static constexpr std::uint32_t weight_bytes = panels * part_bytes;
  static constexpr std::uint32_t input_bytes = tokens * stage_columns * 2;
  static constexpr std::uint32_t stage_bytes = weight_bytes + input_bytes;
  static constexpr std::uint32_t stages = 204'800 / stage_bytes;
  static constexpr std::uint32_t barriers = 2 * stages + 2;
  static constexpr std::size_t bytes = SharedPieces::bytes<unsigned char>(stages * stage_bytes) +
                                       SharedPieces::bytes<std::uint64_t>(barriers);

  /// Sums of a thread that multiplies: TileSums of its panel and each eight activation rows.
  static constexpr std::uint32_t sums = tokens / 2;

  /// Registers of a thread: what 65,536 give all, which the copying warps leave to the others.
  static constexpr std::uint32_t copier_registers = 40;
  static constexpr std::uint32_t multiplier_registers = groups == 3 ? 152 : 232;
};

/// Blocks, one under the other, that have all weight rows.
template <class S>
std::uint32_t count_weight_blocks(const GatedArgs& args) {
  return S::with_gate ? divide_up(args.gate.width, S::rows) : count_blocks(args.linear, S::rows);
}

/// Takes the cheapest of kernels, of such the first. Each has a cost for so many activation rows, a
/// launch, and what is to be done before any.
template <class... Kernels>
struct Choice {
  static cudaError_t launch(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
    using Launch = cudaError_t (*)(const GatedArgs&, std::uint32_t, LaunchChain&);
    const Launch launches[] = {Kernels::launch...};
    const std::uint64_t costs[] = {Kernels::cost(args, rows)...};
    std::size_t best = 0;
    for (std::size_t i = 1; i < sizeof...(Kernels); ++i) {
      if (costs[i] < costs[best]) best = i;
    }
    return launches[best](args, rows, chain);
  }
  static cudaError_t prepare() {
    cudaError_t status = cudaSuccess;
    ((status = status != cudaSuccess ? status : Kernels::prepare()), ...);
    return status;
  }
};

// For a packed weight: Any<P, gate> is the Choice of how it is packed.

template <template <class P, bool gate> class Any, bool gate>
cudaError_t launch_any(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_packed(args.linear.product[0].weight,
                     [&]<class P>(P) { return Any<P, gate>::launch(args, rows, chain); });
}

template <template <class P, bool gate> class Any>
cudaError_t prepare_any(const DeviceWeight& weight) {
  return with_packed(weight, []<class P>(P) {
    const cudaError_t status = Any<P, false>::prepare();
    return status != cudaSuccess ? status : Any<P, true>::prepare();
  });
}

#ifndef SLUICE_NO_WIDE
/// Stages in shared memory and who may use them: `full` when all has come, `empty` when all warps
/// are done that multiply what is there. At the end `done` tells that no warp of the block
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
        init_barrier(empty + i, S::panels * (S::shares_weights ? S::cluster : 1));
      }
      init_barrier(done, S::panels);
      init_barrier(traded, S::panels);
      show_barriers();
    }
    if constexpr (S::shares_weights) {
      await_cluster();
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

/// Columns of a block, in stages of them; all but the last section are whole.
struct Stretch {
  std::uint32_t first, count, section;

  /// Sections [first, last) of the product's, as far as there are such.
  __device__ Stretch(const DeviceWeight& weight, std::uint32_t first_section,
                     std::uint32_t last_section)
      : section(section_columns(weight.cols) / stage_columns) {
    const std::uint32_t all = padded(weight.cols) / stage_columns;
    first = least(first_section * section, all);
    count = least(last_section * section, all) - first;
  }
};

/// The four copying warps': each has a quarter of the panels, a lane a panel, and the last warp
/// brings the activations, rows from `token` on. One warp would start copies one after the other,
/// in some 60 clocks each, and take longer over a stage than memory does. Weights that there is
/// room for come before wait(). Of a cluster that shares its weights each block brings every so
/// many-th panel, to all.
template <class S, class Wait>
__device__ void bring(const Share<S>& share, const Stretch& columns, std::uint32_t token,
                      const Stages<S>& stages, Wait wait) {
  using P = typename S::P;
  constexpr std::uint32_t each = S::panels / copying_warps, part = S::part_bytes;
  const std::uint32_t lane = lane_index(), warp = warp_index() - S::panels;
  const std::uint32_t panel = warp * each + least(lane, each - 1);
  const DeviceWeight& weight = share.product(panel).weight;
  const std::uint32_t last = divide_up(weight.rows, panel_rows) - 1;
  const Bytes from = unit_at<P>(weight, least(share.row(panel) / panel_rows, last) * panel_rows,
                                columns.first * stage_columns);
  const Rows& in = share.args.in;
  const std::uint16_t* inputs = in.narrow + narrow_row(in.stride, token);
  const auto bring_weights = [&](std::uint32_t step) {
    std::uint64_t* const full = stages.full + step % S::stages;
    // Others' bytes may come first: the phase ends with this arrival at the earliest.
    if (warp == 0 && lane == 0) arrive_for(full, S::stage_bytes);
    __syncwarp();
    if (lane >= each) return;
    unsigned char* to = stages.at(step) + panel * part;
    const Bytes weights = from + std::size_t{step} * part;
    if constexpr (!S::shares_weights) {
      copy_bulk(to, weights, part, full);
    } else if (panel % S::cluster == cluster_rank()) {
      copy_bulk_to_cluster(to, weights, part, full, S::cluster);
    }
  };
  const auto bring_inputs = [&](std::uint32_t step) {
    if (warp != copying_warps - 1 || lane != each) return;
    copy_bulk(stages.at(step) + S::weight_bytes,
              inputs + narrow_column((columns.first + step) * stage_columns), S::input_bytes,
              stages.full + step % S::stages);
  };
  const std::uint32_t ahead = least(columns.count, S::stages);
  for (std::uint32_t step = 0; step < ahead; ++step) bring_weights(step);
  wait();
  // One that brings nothing holds nobody up, and could so miss a phase.
  if constexpr (S::shares_weights && each < S::cluster) {
    const bool announces = warp == 0 || warp == copying_warps - 1;
    if (panel % S::cluster != cluster_rank() && !announces) return;
  }
  for (std::uint32_t step = 0; step < ahead; ++step) bring_inputs(step);
  for (std::uint32_t step = ahead; step < columns.count; ++step) {
    await_phase(stages.empty + step % S::stages, (step / S::stages - 1) % 2);
    bring_weights(step);
    bring_inputs(step);
  }
}

/// A group of four warps'.
template <class S>
class Multiplier {
 public:
  static constexpr std::uint32_t count = S::sums;

  __device__ Multiplier(const Share<S>& share, const Stretch& columns, const Stages<S>& stages)
      : share_(share), stages_(stages), columns_(columns) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) sums_[i] = 0.0F;
  }

  /// end(i, sums) behind the stretch's i-th section.
  template <class End>
  __device__ void run(End end) {
    TileA low[unit_tiles], high[unit_tiles];  // one's products run while the other is unpacked
    std::uint32_t section = 0;
    for (std::uint32_t step = 0; step < columns_.count; ++section) {
      const std::uint32_t first = step, last = least(first + columns_.section, columns_.count);
      for (; step < last; ++step) {
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
      for (std::uint32_t i = 0; i < count; ++i) keep_sum(sums_[i]);
      end(section, sums_);
    }
  }

  /// All multiplying warps of the block.
  __device__ static void meet(std::uint64_t* barrier) {
    __syncwarp();
    if (lane_index() == 0) arrive(barrier);
    await_phase(barrier, 0);
  }

 private:
  /// The warp has read its part of the stage, and its products are done with the rest.
  __device__ void release(std::uint32_t step) const {
    __syncwarp();
    std::uint64_t* const empty = stages_.empty + step % S::stages;
    if constexpr (!S::shares_weights) {
      if (lane_index() == 0) arrive(empty);
    } else if (lane_index() < S::cluster) {
      arrive_at(empty, lane_index());
    }
  }

  /// Starts half a stage's products, on top of the section's sums if `add`.
  __device__ void take(std::uint32_t step, std::uint32_t half, TileA (&weights)[unit_tiles],
                       std::uint32_t add) {
    using P = typename S::P;
    const unsigned char* stage = stages_.at(step);
    const unsigned char* unit = stage + (warp_index() * stage_units + half) * P::unit_bytes;
    P::unpack(P::read(unit, lane_index()), weights);
    const auto* inputs = reinterpret_cast<const std::uint16_t*>(stage + S::weight_bytes);
    begin_products();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < unit_tiles; ++i) {
      multiply_async(sums_, weights[i], wide_columns(inputs + (half * unit_tiles + i) * 128),
                     i == 0 ? add : 1U);
    }
    end_products();
  }

  const Share<S>& share_;
  const Stages<S>& stages_;
  const Stretch& columns_;
  float sums_[count];
};
#endif

}  // namespace sluice::kernels::cuda
