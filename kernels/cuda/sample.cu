// Draws a row's token from all of its logits. Thresholds are found by radix selection over the
// ordered bits of z, with integer counts or masses, which add up the same in any order.

#include "kernels/cuda/sample.cuh"

namespace sluice::kernels::cuda {
namespace {

struct CountOne {
  __device__ std::uint64_t operator()(float) const { return 1; }
};

struct CountMass {
  __device__ std::uint64_t operator()(float z) const { return mass(z); }
};

/// The highest key whose tokens, with those above it, weigh at least `target`, a byte a round.
template <class Weigh>
__device__ std::uint32_t select_key(const Row& row, const Scale& scale, std::uint64_t target,
                                    Weigh weigh, const Shared& shared) {
  std::uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (std::uint32_t i = threadIdx.x; i < bins; i += block_threads) shared.masses[i] = 0;
    __syncthreads();
    each_logit(row.logits, row.count, [&](std::uint32_t, float logit) {
      const float z = scale(logit);
      const std::uint32_t key = Scale::key(z);
      if (shift < 24 && key >> (shift + 8) != prefix) return;
      const std::uint64_t weight = weigh(z);
      if (weight == 0) return;
      atomicAdd(reinterpret_cast<unsigned long long*>(&shared.masses[key >> shift & 255U]),
                static_cast<unsigned long long>(weight));
    });
    __syncthreads();
    // Suffix sums: masses[i] becomes what bins i and up weigh.
    for (std::uint32_t step = 1; step < bins; step *= 2) {
      const bool mine = threadIdx.x < bins && threadIdx.x + step < bins;
      const std::uint64_t above = mine ? shared.masses[threadIdx.x + step] : 0;
      __syncthreads();
      if (mine) shared.masses[threadIdx.x] += above;
      __syncthreads();
    }
    // The one bin at which the weight reaches the target; the lowest takes what rounding left.
    if (threadIdx.x < bins) {
      const std::uint64_t up = shared.masses[threadIdx.x];
      const std::uint64_t above = threadIdx.x + 1 < bins ? shared.masses[threadIdx.x + 1] : 0;
      if ((up >= target || threadIdx.x == 0) && above < target) {
        shared.flags[0] = threadIdx.x;
        shared.total[0] = above;
      }
    }
    __syncthreads();
    prefix = prefix << 8 | shared.flags[0];
    target -= shared.total[0];
    __syncthreads();
  }
  return prefix;
}

/// The token's own log-probability, then the best, highest first.
__device__ void list_logprobs(const Row& row, float peak, Token drawn, DrawnRow& out,
                              const Shared& shared) {
  const std::uint64_t total = total_mass(row, peak, shared);
  if (threadIdx.x == 0) {
    out.logprobs[0] = {drawn, log_probability(row.logits[drawn] - peak, total)};
    out.logprob_count = 1;
  }
  Best last{0.0F, 0};
  for (std::int32_t n = 0; n < row.params->logprobs; ++n) {
    Best best{banned, row.count};
    each_logit(row.logits, row.count, [&](Token t, float logit) {
      const bool listed = n > 0 && (logit > last.value || (logit == last.value && t <= last.token));
      if (!listed && logit != banned) best = better(best, {logit, t});
    });
    best = block_best(best, shared);
    if (best.token == row.count) break;
    if (threadIdx.x == 0) {
      out.logprobs[n + 1] = {best.token, log_probability(best.value - peak, total)};
      out.logprob_count = static_cast<std::uint32_t>(n) + 2;
    }
    last = best;
  }
}

__device__ Token choose(const Row& row, const Best& favourite, const Shared& shared) {
  const StepOpen& p = *row.params;
  if (p.temperature == 0.0F) return favourite.token;
  Scale scale = scale_of(p, favourite.value);
  if (p.top_k > 0 && p.top_k < row.count) {
    scale.key_min = select_key(row, scale, p.top_k, CountOne(), shared);
  }
  if (p.top_p < 1.0F) {
    std::uint64_t mine = 0;
    each_logit(row.logits, row.count,
               [&](std::uint32_t, float logit) { mine += mass(scale(logit)); });
    const std::uint64_t target = top_p_target(block_total(mine, shared), p.top_p);
    scale.key_min = select_key(row, scale, target, CountMass(), shared);
  }
  return race(row, scale, favourite.token, shared).token;
}

/// From a whole row, of which the caller says what the model gave, where to adjust it, and a mask.
__device__ void draw(Row& row, std::uint32_t slot, const SlotArrays& slots, DrawnRow& out,
                     SharedPieces& pieces) {
  const Shared shared(pieces);
  const auto failed = static_cast<DrawStatus>(slots.states[slot].failed);
  if (threadIdx.x == 0) {
    out.status = failed;
    out.logprob_count = 0;
  }
  if (failed != DrawStatus::drawn) return;
  begin_row(row, slots, slot);
  row.count = slots.vocabulary;
  __syncthreads();  // every thread has read the state that the last lines change
  const Best favourite = adjust(row, slots, shared);
  if (favourite.value == banned) {
    const DrawStatus why =
        has_numbers(row, shared) ? DrawStatus::none_allowed : DrawStatus::all_nan;
    if (threadIdx.x == 0) give_up(slots, slot, why, out);
    return;
  }
  const Token token = choose(row, favourite, shared);
  if (row.params->logprobs >= 0) list_logprobs(row, favourite.value, token, out, shared);
  if (threadIdx.x == 0) append(slots, slot, token, out);
}

__global__ void __launch_bounds__(block_threads, 1) sample_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x;
  if (index >= header(args.step).sampled) return;
  SharedPieces pieces;
  const StepRow at = sampled_row(args.step, index);
  DrawnRow& out = args.drawn[index];
  if (standing(at, args.slots.states[at.slot]) == DrawStatus::misplaced) {
    if (threadIdx.x == 0) out.status = DrawStatus::misplaced;
    return;
  }
  Row row{};
  row.raw = row_of(args.logits, index);
  row.logits = args.adjusted + std::size_t{index} * args.slots.vocabulary;
  draw(row, at.slot, args.slots, out, pieces);
}

__global__ void hold_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.y;
  const Token t = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= header(args.step).sampled || t >= args.slots.vocabulary) return;
  const std::size_t slot = sampled_row(args.step, index).slot;
  args.slots.held[slot * args.slots.vocabulary + t] = row_of(args.logits, index)[t];
}

__global__ void __launch_bounds__(block_threads, 1) held_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x;
  if (index >= header(args.step).held) return;
  SharedPieces pieces;
  const HeldRow& held = part<HeldRow>(args.step, header(args.step).held_offset)[index];
  Row row{};
  row.raw = args.slots.held + std::size_t{held.slot} * args.slots.vocabulary;
  row.logits = args.adjusted + std::size_t{index} * args.slots.vocabulary;
  row.mask = part<std::uint64_t>(args.step, held.mask);
  row.mask_words = held.mask_words;
  draw(row, held.slot, args.slots, args.drawn[index], pieces);
}

}  // namespace

cudaError_t sample(const SampleArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  return launch(sample_kernel, sampled, block_threads, Shared::bytes(), chain, args);
}

cudaError_t hold(const SampleArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  const dim3 grid(divide_up(args.slots.vocabulary, row_threads), sampled);
  return launch(hold_kernel, grid, row_threads, 0, chain, args);
}

cudaError_t sample_held(const SampleArgs& args, std::uint32_t held, LaunchChain& chain) {
  return launch(held_kernel, held, block_threads, Shared::bytes(), chain, args);
}

}  // namespace sluice::kernels::cuda
