// A compiled program's launches, for a step.

#include <algorithm>

#include "kernels/cuda/program.hpp"

namespace sluice::kernels::cuda {
namespace {

/// Puts one launch on the chain; those without rows are left out.
struct Enqueue {
  const StepCounts& counts;
  DeviceGroup* group;
  LaunchChain& chain;

  std::uint32_t rows(Space space) const {
    return space == Space::batch ? counts.rows : counts.sampled;
  }

  static Result<void> launched(cudaError_t status) {
    if (status == cudaSuccess) return {};
    return tl::unexpected(device_error(status, "a kernel's launch"));
  }

  Result<void> operator()(const EmbedArgs& a) const {
    return launched(embed(a, counts.rows, chain));
  }
  Result<void> operator()(const AnglesArgs& a) const {
    return launched(angles(a, counts.rows, chain));
  }
  Result<void> operator()(const RopeArgs& a) const {
    return launched(rope_store(a, counts.rows, chain));
  }
  Result<void> operator()(const NormArgs& a) const {
    return rows(a.space) == 0 ? Result<void>{} : launched(norm(a, rows(a.space), chain));
  }
  Result<void> operator()(const LinearArgs& a) const {
    return rows(a.space) == 0 ? Result<void>{} : launched(linear(a, rows(a.space), chain));
  }
  Result<void> operator()(const NarrowArgs& a) const {
    return rows(a.space) == 0 ? Result<void>{} : launched(narrow(a, rows(a.space), chain));
  }
  Result<void> operator()(const GateArgs& a) const {
    return rows(a.space) == 0 ? Result<void>{} : launched(gate(a, rows(a.space), chain));
  }
  Result<void> operator()(const GatedArgs& a) const {
    const std::uint32_t count = rows(a.linear.space);
    return count == 0 ? Result<void>{} : launched(linear_gated(a, count, chain));
  }
  Result<void> operator()(const NormedArgs& a) const {
    if (rows(a.norm.space) == 1) return launched(linear_normed(a, chain));
    SLUICE_TRY((*this)(a.norm));
    return a.gated() ? (*this)(a.products) : (*this)(a.products.linear);
  }
  Result<void> operator()(const SoftCapArgs& a) const {
    return rows(a.space) == 0 ? Result<void>{} : launched(soft_cap(a, rows(a.space), chain));
  }
  Result<void> operator()(const SelectArgs& a) const {
    return counts.sampled == 0 ? Result<void>{} : launched(select(a, counts.sampled, chain));
  }
  Result<void> operator()(AttentionArgs a) const {
    const std::uint32_t split = counts.splits > 0 ? counts.single_groups : 0;
    if (split > 0) {
      SLUICE_TRY(launched(attention_splits(a, split, counts.splits, chain)));
      if (split == counts.groups) return {};
    }
    a.first_group = split;
    return launched(attention(a, counts.groups - split, chain));
  }
  Result<void> operator()(const SampleArgs& a) const {
    if (counts.sampled == 0) return {};
    return launched(counts.draw == Draw::hold ? hold(a, counts.sampled, chain)
                                              : sample(a, counts.sampled, chain));
  }
  Result<void> operator()(const ReduceRows& a) const {
    const std::size_t floats = std::size_t{rows(a.space)} * a.values.stride;
    return group->all_reduce(a.values.data, floats, chain);
  }
  Result<void> operator()(const ReduceNorm& a) const {
    const std::uint32_t count = rows(a.sum.space);
    const std::size_t floats = std::size_t{count} * a.sum.values.stride;
    if (count > 0 && floats <= piece_floats) {
      auto terms = group->gather_terms(a.sum.values.data, floats, chain.interrupted());
      if (!terms) return tl::unexpected(terms.error());
      if (*terms != nullptr) {
        return launched(add_norm({a.norm, *terms, a.ranks, floats}, count, chain));
      }
    }
    SLUICE_TRY((*this)(a.sum));
    return (*this)(a.norm);
  }
  Result<void> operator()(const GatherRows& a) const {
    const std::size_t pitch = a.spread.widest * sizeof(float);
    for (std::uint32_t first = 0; first < rows(a.space); first += a.rows_each) {
      const std::uint32_t count = std::min(a.rows_each, rows(a.space) - first);
      SLUICE_CUDA(cudaMemcpy2DAsync(a.own, pitch, a.in.data + std::size_t{first} * a.in.stride,
                                    a.in.stride * sizeof(float), a.own_width * sizeof(float), count,
                                    cudaMemcpyDeviceToDevice, chain.interrupted()));
      SLUICE_TRY(group->all_gather(a.own, a.all, std::size_t{count} * a.spread.widest,
                                   chain.interrupted()));
      SpreadArgs args = a.spread;
      args.out.data += std::size_t{first} * args.out.stride;
      SLUICE_TRY(launched(spread(args, count, chain)));
    }
    return {};
  }
  Result<void> operator()(const DrawApart& a) const {
    if (counts.draw == Draw::hold || counts.draw == Draw::whole) {
      SLUICE_TRY((*this)(a.gather));
      return (*this)(a.sample);
    }
    if (counts.sampled == 0) return {};
    CandidateArgs args = a.candidates;
    args.tallied = counts.draw == Draw::candidates;
    SLUICE_TRY(launched(find_peaks(args, counts.sampled, chain)));
    SLUICE_TRY(meet(args.own_peaks, args.peaks));
    if (args.tallied) {
      SLUICE_TRY(launched(tally(args, counts.sampled, chain)));
      SLUICE_TRY(meet(args.own_tallies, args.tallies));
    }
    return launched(settle(args, counts.sampled, chain));
  }

  /// Every rank's records of the sampled rows.
  template <class Told>
  Result<void> meet(const Told* own, Told* all) const {
    static_assert(sizeof(Told) % sizeof(float) == 0);
    return group->all_gather(reinterpret_cast<const float*>(own), reinterpret_cast<float*>(all),
                             counts.sampled * (sizeof(Told) / sizeof(float)), chain.interrupted());
  }
};

}  // namespace

Result<void> Program::enqueue(const StepCounts& counts, DeviceGroup* group,
                              LaunchChain& chain) const {
  if (counts.rows == 0) return {};
  const Enqueue enqueue{counts, group, chain};
  for (const Launch& launch : launches_) SLUICE_TRY(std::visit(enqueue, launch));
  return {};
}

}  // namespace sluice::kernels::cuda
