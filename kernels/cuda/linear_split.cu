// Products of packed weights with some tens of activation rows, by Hopper's own products. A block
// has 192, 128 or 64 weight rows times up to 64 activation rows (wide_block.cuh), of two of their
// columns' eight sections; four blocks with the same rows run together, as a cluster, and then add
// up a quarter of the results each, section after section, out of each other's shared memory. So
// matrices of few rows keep all multiprocessors busy, and what has to come to one for a weight is
// one and a third of it. Bound by memory: 128 operations a weight.
//
// Not yet seen on a GPU. In 64 x 64 blocks, which brought as much of activations as of weights, and
// of 4,096 rows kept 64 of 132 multiprocessors busy, the products of a step of 64 rows of an 8B
// model took 7.5 ms on an H200, where 15 GB take 3.3.

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/wide_block.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t parts = 4;  ///< blocks of a cluster
constexpr std::uint32_t sections_each = sections / parts;

#ifndef SLUICE_NO_WIDE
/// Sums of a block's sections in its shared memory, where the cluster finds them.
template <class S>
struct Parts {
  float* sums;

  __device__ static std::uint32_t place(std::uint32_t section, std::uint32_t i,
                                        std::uint32_t warp) {
    return ((section * S::sums + i) * S::panels + warp) * warp_lanes + lane_index();
  }
  __device__ void put(std::uint32_t section, std::uint32_t i, float sum) const {
    sums[place(section, i, warp_index())] = sum;
  }

  /// The i-th of a warp's, of all `count` sections in their order.
  __device__ float total(std::uint32_t i, std::uint32_t warp, std::uint32_t count) const {
    float each[sections];
    SLUICE_UNROLL
    for (std::uint32_t s = 0; s < sections; ++s) {
      each[s] = 0.0F;
      if (s < count) {
        each[s] = load_from(sums + place(s % sections_each, i, warp), s / sections_each);
      }
    }
    float sum = 0.0F;
    SLUICE_UNROLL
    for (std::uint32_t s = 0; s < sections; ++s) {
      if (s < count) sum += each[s];
    }
    return sum;
  }
};

/// Writes the block's quarter of the cluster's results: activation rows 16 x its rank and on.
template <class S>
__device__ void write_quarter(const Share<S>& share, const GatedArgs& args, const Parts<S>& all,
                              std::uint32_t rows) {
  constexpr std::uint32_t quarter = S::sums / parts;
  const LinearArgs& linear = args.linear;
  const std::uint32_t count = divide_up(linear.product[0].weight.cols,
                                        section_columns(linear.product[0].weight.cols));
  const std::uint32_t warp = warp_index(), upper = share.row(warp) + lane_index() / 4;
  const std::uint32_t begin = cluster_rank() * quarter;
  const auto token_of = [&](std::uint32_t i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; };
  if constexpr (S::with_gate) {
    // Of two warps with the same rows of the two products each takes half.
    const std::uint32_t first_warp = warp & ~2U, from = begin + (warp & 2U) / 2 * (quarter / 2);
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < quarter / 2; ++k) {
      const std::uint32_t i = from + k, o = upper + i % 4 / 2 * 8, token = token_of(i);
      if (o >= args.gate.width || token >= rows) continue;
      const float gate = scaled(linear.product[0], o, all.total(i, first_warp, count));
      const float value = scaled(linear.product[1], o, all.total(i, first_warp + 2, count));
      put(args.gate.out, token, o, gated(args.gate, gate, value));
    }
  } else {
    const Product& product = share.product(warp);
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < quarter; ++k) {
      const std::uint32_t i = begin + k, o = upper + i % 4 / 2 * 8, token = token_of(i);
      if (o >= product.weight.rows || token >= rows) continue;
      write_result(product, o, token, all.total(i, warp, count));
    }
  }
}
#endif

template <class S>
__global__ void __launch_bounds__(S::threads, 1) split_columns_kernel(GatedArgs gated_args) {
  start_next();
#ifndef SLUICE_NO_WIDE
  const LinearArgs& args = gated_args.linear;
  const std::uint32_t block = blockIdx.x / parts;
  Place place{0, block * S::rows};
  if constexpr (!S::with_gate) place = find_place(args, block, S::rows);
  const Share<S> share{args, place};
  const std::uint32_t section = cluster_rank() * sections_each;
  const Stretch columns(args.product[0].weight, section, section + sections_each);
  SharedPieces shared;
  const Stages<S> stages(shared);
  const Parts<S> all{reinterpret_cast<float*>(stages.data)};
  const bool multiplies = warp_index() < S::panels;
  if (!multiplies) {
    leave_registers<S::copier_registers>();
    if (warp_index() == S::panels) {
      bring(share, columns, 0, stages, [] { await_previous(); });
    } else {
      await_previous();
    }
  } else {
    take_registers<S::multiplier_registers>();
    await_previous();
    Multiplier<S> multiplier(share, columns, stages);
    float kept[sections_each][S::sums] = {};
    multiplier.run([&](std::uint32_t i, const float (&sums)[S::sums]) {
      SLUICE_UNROLL
      for (std::uint32_t s = 0; s < sections_each; ++s) {
        SLUICE_UNROLL
        for (std::uint32_t k = 0; s == i && k < S::sums; ++k) kept[s][k] = sums[k];
      }
    });
    multiplier.meet(stages.done);  // the sums take the place of what all have multiplied
    SLUICE_UNROLL
    for (std::uint32_t s = 0; s < sections_each; ++s) {
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < S::sums; ++k) all.put(s, k, kept[s][k]);
    }
  }
  meet_cluster();
  if (multiplies) write_quarter(share, gated_args, all, row_count(args.step, args.space));
  meet_cluster();  // none ends while another reads its memory
#else
  await_previous();
#endif
}

template <class P, std::uint32_t groups, bool gate>
struct Split {
  using S = Shape<P, groups, split_rows, Together::results, parts, gate>;
  static_assert(sections_each * S::sums * S::panels * warp_lanes * sizeof(float) <=
                S::stages * S::stage_bytes);

  /// How long a launch takes, about: its blocks one after the other on a multiprocessor, each as
  /// long as what it multiplies takes to come.
  static std::uint64_t cost(const GatedArgs& args, std::uint32_t) {
    const std::uint32_t blocks = count_row_blocks<S>(args) * parts;
    return std::uint64_t{divide_up(blocks, args.linear.processors)} *
           (S::panels * panel_rows + S::tokens);
  }
  static cudaError_t launch(const GatedArgs& args, std::uint32_t, LaunchChain& chain) {
    return launch_clusters(split_columns_kernel<S>, parts, count_row_blocks<S>(args) * parts,
                           S::threads, S::bytes, chain, args);
  }
  static cudaError_t prepare() { return allow_shared(split_columns_kernel<S>, S::bytes); }
};

template <class P, bool gate>
using AnySplit = Choice<Split<P, 3, gate>, Split<P, 2, gate>, Split<P, 1, gate>>;

template <bool gate>
cudaError_t launch_any(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_packed(args.linear.product[0].weight, [&]<class P>(P) {
    return AnySplit<P, gate>::launch(args, rows, chain);
  });
}

}  // namespace

cudaError_t prepare_split(const DeviceWeight& weight) {
  return with_packed(weight, []<class P>(P) {
    const cudaError_t status = AnySplit<P, false>::prepare();
    return status != cudaSuccess ? status : AnySplit<P, true>::prepare();
  });
}

cudaError_t linear_split(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<false>({args, {}}, rows, chain);
}

cudaError_t linear_split_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<true>(args, rows, chain);
}

}  // namespace sluice::kernels::cuda
