// Products of packed weights with some tens of activation rows, by Hopper's own products. A block
// has 192, 128 or 64 weight rows times up to 64 activation rows (wide_block.cuh), of two of their
// columns' eight sections; four blocks with the same rows run together, as a cluster, and then add
// up a quarter of the results each, section after section, out of each other's shared memory. So
// matrices of few rows keep most multiprocessors busy, and of bf16 what has to come to one for a
// weight is one and a third of it. Bound by memory: 128 operations a weight. Seen on an H200 with
// 32 rows of an 8B model: 235 MB of gate and up weights in 90 us, 2.6 TB/s; with the products
// left out of the code all takes 0.94 of the time. A wave of blocks costs some 5 us beside what it
// reads, and not as many clusters of four run at once as 132 multiprocessors would hold: those of
// 4,096 rows took two waves before shapes were chosen by what there is room for.

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/wide_block.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t parts = 4;  ///< blocks of a cluster
constexpr std::uint32_t sections_each = sections / parts;
static_assert(sections % parts == 0);

#ifndef SLUICE_NO_WIDE
constexpr std::uint32_t fours = 4;  ///< sums of a lane that lie together

/// Sums of a block's sections in its shared memory, where the cluster finds them.
template <class S>
struct Parts {
  float* sums;

  /// Of a lane's sums from the i-th on.
  __device__ static std::uint32_t place(std::uint32_t section, std::uint32_t i,
                                        std::uint32_t warp) {
    constexpr std::uint32_t rows = S::sums / fours;
    return (((section * rows + i / fours) * S::panels + warp) * warp_lanes + lane_index()) * fours;
  }
  __device__ void put(std::uint32_t section, const float (&kept)[S::sums]) const {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < S::sums; i += fours) {
      *reinterpret_cast<float4*>(sums + place(section, i, warp_index())) = {kept[i], kept[i + 1],
                                                                            kept[i + 2],
                                                                            kept[i + 3]};
    }
  }

  /// A warp's four from the i-th on, of all `count` sections in their order: asked for together.
  __device__ void total(std::uint32_t i, std::uint32_t warp, std::uint32_t count,
                        float (&out)[fours]) const {
    float4 each[sections];
    SLUICE_UNROLL
    for (std::uint32_t rank = 0; rank < parts; ++rank) {
      const ThereFloats there(sums, rank);
      SLUICE_UNROLL
      for (std::uint32_t s = rank * sections_each; s < (rank + 1) * sections_each; ++s) {
        each[s] = {0, 0, 0, 0};
        if (s < count) each[s] = there.four(place(s % sections_each, i, warp));
      }
    }
    SLUICE_UNROLL
    for (float& sum : out) sum = 0.0F;
    SLUICE_UNROLL
    for (std::uint32_t s = 0; s < sections; ++s) {
      if (s >= count) continue;
      out[0] += each[s].x, out[1] += each[s].y, out[2] += each[s].z, out[3] += each[s].w;
    }
  }
};

/// The block's quarter of the cluster's results: activation rows 16 x its rank and on.
template <class S>
class Quarter {
 public:
  __device__ Quarter(const Share<S>& share, const GatedArgs& args, std::uint32_t rows)
      : share_(share),
        args_(args),
        rows_(rows),
        upper_(share.row(warp_index()) + lane_index() / 4) {}

  /// What results are added to, which comes while the cluster meets.
  __device__ void ask() {
    const Product& product = share_.product(warp_index());
    SLUICE_UNROLL
    for (std::uint32_t half = 0; half < 2; ++half) {
      SLUICE_UNROLL
      for (float& before : before_[half]) before = 0.0F;
      if (S::with_gate || !product.accumulate) continue;
      each(begin() + half * fours, product.weight.rows,
           [&](std::uint32_t k, std::uint32_t o, std::uint32_t token) {
             before_[half][k] = row_of(product.out, token)[o];
           });
    }
  }

  /// Behind the meeting.
  __device__ void write(const Parts<S>& all) const {
    const LinearArgs& linear = args_.linear;
    const std::uint32_t columns = linear.product[0].weight.cols, warp = warp_index();
    const std::uint32_t count = divide_up(columns, section_columns(columns));  // of sections
    if constexpr (S::with_gate) {
      // Of two warps with the same rows of the two products each takes half.
      const std::uint32_t first_warp = warp & ~2U, from = begin() + (warp & 2U) / 2 * fours;
      float first[fours], second[fours];
      all.total(from, first_warp, count, first);
      all.total(from, first_warp + 2, count, second);
      each(from, args_.gate.width, [&](std::uint32_t k, std::uint32_t o, std::uint32_t token) {
        put(args_.gate.out, token, o,
            gated(args_.gate, scaled(linear.product[0], o, first[k]),
                  scaled(linear.product[1], o, second[k])));
      });
    } else {
      const Product& product = share_.product(warp);
      float totals[2][fours];
      SLUICE_UNROLL
      for (std::uint32_t half = 0; half < 2; ++half) {
        all.total(begin() + half * fours, warp, count, totals[half]);
      }
      SLUICE_UNROLL
      for (std::uint32_t half = 0; half < 2; ++half) {
        each(begin() + half * fours, product.weight.rows,
             [&](std::uint32_t k, std::uint32_t o, std::uint32_t token) {
               const float value = scaled(product, o, totals[half][k]);
               row_of(product.out, token)[o] =
                   product.accumulate ? before_[half][k] + value : value;
             });
      }
    }
  }

 private:
  static constexpr std::uint32_t own = S::sums / S::cluster;  ///< of a lane's sums
  static_assert(own == 2 * fours);

  __device__ static std::uint32_t begin() { return cluster_rank() * own; }

  /// f(of four, weight row, activation row) of those that there are.
  template <class F>
  __device__ void each(std::uint32_t from, std::uint32_t weight_rows, F f) const {
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < fours; ++k) {
      const std::uint32_t o = upper_ + k / 2 * 8;
      const std::uint32_t token = from / 4 * 8 + lane_index() % 4 * 2 + k % 2;
      if (o < weight_rows && token < rows_) f(k, o, token);
    }
  }

  const Share<S>& share_;
  const GatedArgs& args_;
  std::uint32_t rows_, upper_;
  float before_[2][fours];
};
#endif

template <class S>
__global__ void __launch_bounds__(S::threads, 1) split_columns_kernel(GatedArgs gated_args) {
  start_next();
#ifndef SLUICE_NO_WIDE
  const LinearArgs& args = gated_args.linear;
  const std::uint32_t block = blockIdx.x / S::cluster;
  Place place{0, block * S::rows};
  if constexpr (!S::with_gate) place = find_place(args, block, S::rows);
  const Share<S> share{args, place};
  const std::uint32_t section = cluster_rank() * sections_each;
  const Stretch columns(args.product[0].weight, section, section + sections_each);
  SharedPieces shared;
  const Stages<S> stages(shared);
  const Parts<S> all{reinterpret_cast<float*>(stages.data)};
  const bool multiplies = warp_index() < S::panels;
  const std::uint32_t rows = row_count(args.step, args.space);
  if (!multiplies) {
    leave_registers<S::copier_registers>();
    bring(share, columns, 0, stages, [] { await_previous(); });
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
    for (std::uint32_t s = 0; s < sections_each; ++s) all.put(s, kept[s]);
  }
  Quarter<S> quarter(share, gated_args, rows);
  if (multiplies) quarter.ask();
  meet_cluster();
  if (multiplies) quarter.write(all);
  await_cluster();  // none ends while another reads its memory
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
    const std::uint32_t blocks = count_weight_blocks<S>(args) * parts;
    return std::uint64_t{divide_up(blocks, args.linear.clustered)} *
           (S::panels * panel_rows + S::tokens);
  }
  static cudaError_t launch(const GatedArgs& args, std::uint32_t, LaunchChain& chain) {
    return launch_clusters(split_columns_kernel<S>, parts, count_weight_blocks<S>(args) * parts,
                           S::threads, S::bytes, chain, args);
  }
  static cudaError_t prepare() { return allow_shared(split_columns_kernel<S>, S::bytes); }
};

template <class P, bool gate>
using AnySplit = Choice<Split<P, 3, gate>, Split<P, 2, gate>, Split<P, 1, gate>>;

}  // namespace

std::uint32_t count_clustered(std::uint32_t processors) {
  using Any = Split<PackedBf16, 3, false>;  // all are as large
  std::uint32_t clusters = 0;
  const bool told = Any::prepare() == cudaSuccess &&
                    count_clusters(split_columns_kernel<Any::S>, parts, Any::S::threads,
                                   Any::S::bytes, clusters) == cudaSuccess;
  if (!told) cudaGetLastError();  // no later call's
  return clusters == 0 ? processors : clusters * parts;
}

cudaError_t prepare_split(const DeviceWeight& weight) { return prepare_any<AnySplit>(weight); }

cudaError_t linear_split(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<AnySplit, false>({args, {}}, rows, chain);
}

cudaError_t linear_split_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<AnySplit, true>(args, rows, chain);
}

}  // namespace sluice::kernels::cuda
