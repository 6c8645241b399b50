// How ranks draw a token when each has the logits of its own tokens alone: to the bit what a whole
// row gives (sample.cu), where it takes no list of tokens (Draw, program.hpp). Each adjusts its
// logits and tells its best; with the row's peak everyone knows z, and tells the winner of the race
// among its own tokens, and their mass, which adds up the same in any order.

#include "kernels/cuda/sample.cuh"

namespace sluice::kernels::cuda {
namespace {

/// A sampled row on this rank; false: the step has no such row. Of one that gives no token settle()
/// says so, whatever was told.
__device__ bool open_row(const CandidateArgs& args, std::uint32_t index, Row& row) {
  if (index >= header(args.step).sampled) return false;
  const StepRow at = sampled_row(args.step, index);
  begin_row(row, args.slots, at.slot);
  row.first = args.first;
  row.count = args.count;
  row.raw = row_of(args.logits, index);
  row.logits = args.adjusted + std::size_t{index} * args.slots.vocabulary;
  return true;
}

/// Of what all ranks told, the grid being as large as what they told of.
__device__ RankPeak row_peak(const CandidateArgs& args, std::uint32_t index) {
  Best best{banned, args.slots.vocabulary};
  std::uint32_t numbers = 0;
  for (std::uint32_t rank = 0; rank < args.ranks; ++rank) {
    const RankPeak& told = args.peaks[std::size_t{rank} * gridDim.x + index];
    best = better(best, {told.value, told.token});
    numbers |= told.numbers;
  }
  return {best.value, best.token, numbers, 0};
}

__global__ void __launch_bounds__(block_threads, 1) peak_kernel(CandidateArgs args) {
  take_turn();
  SharedPieces pieces;
  const Shared shared(pieces);
  const std::uint32_t index = blockIdx.x;
  Row row{};
  if (!open_row(args, index, row)) return;
  const Best best = adjust(row, args.slots, shared);
  const bool numbers = best.value != banned || has_numbers(row, shared);
  if (threadIdx.x != 0) return;
  args.own_peaks[index] = {best.value, best.token, numbers ? 1U : 0U, 0};
}

__global__ void __launch_bounds__(block_threads, 1) tally_kernel(CandidateArgs args) {
  take_turn();
  SharedPieces pieces;
  const Shared shared(pieces);
  const std::uint32_t index = blockIdx.x;
  Row row{};
  if (!open_row(args, index, row)) return;
  const float peak = row_peak(args, index).value;
  const RankPeak own = args.own_peaks[index];
  RankTally tally{banned, own.token, banned, 0, 0};
  if (own.value != banned) {
    if (row.params->temperature != 0.0F) {
      const Best winner = race(row, scale_of(*row.params, peak), own.token, shared);
      tally = {winner.value, winner.token, row.logits[winner.token - row.first], 0, 0};
    }
    if (row.params->logprobs >= 0) tally.mass = total_mass(row, peak, shared);
  }
  if (threadIdx.x == 0) args.own_tallies[index] = tally;
}

/// A warp a row, of which one lane works: a few records of each rank are all there is.
__global__ void settle_kernel(CandidateArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x;
  if (index >= header(args.step).sampled || threadIdx.x != 0) return;
  const StepRow at = sampled_row(args.step, index);
  const SlotState& state = args.slots.states[at.slot];
  DrawnRow& out = args.drawn[index];
  out.status = standing(at, state);
  out.logprob_count = 0;
  if (out.status != DrawStatus::drawn) return;
  const RankPeak peak = row_peak(args, index);
  if (peak.value == banned) {
    const DrawStatus why = peak.numbers != 0 ? DrawStatus::none_allowed : DrawStatus::all_nan;
    return give_up(args.slots, at.slot, why, out);
  }
  RankTally drawn{banned, args.slots.vocabulary, banned, 0, 0};
  std::uint64_t mass = 0;
  for (std::uint32_t rank = 0; args.tallied && rank < args.ranks; ++rank) {
    const RankTally& told = args.tallies[std::size_t{rank} * gridDim.x + index];
    if (ahead({told.worth, told.token}, {drawn.worth, drawn.token})) drawn = told;
    mass += told.mass;
  }
  if (state.open.temperature == 0.0F) drawn = {0.0F, peak.token, peak.value, 0, 0};
  // Where the group broke on the way, what was told is anything, and the step fails.
  const Token token = least(drawn.token, args.slots.vocabulary - 1);
  if (state.open.logprobs >= 0) {
    out.logprobs[0] = {token, log_probability(drawn.logit - peak.value, mass)};
    out.logprob_count = 1;
  }
  append(args.slots, at.slot, token, out);
}

}  // namespace

cudaError_t find_peaks(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  return launch(peak_kernel, sampled, block_threads, Shared::bytes(), chain, args);
}

cudaError_t tally(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  return launch(tally_kernel, sampled, block_threads, Shared::bytes(), chain, args);
}

cudaError_t settle(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  return launch(settle_kernel, sampled, warp_lanes, 0, chain, args);
}

}  // namespace sluice::kernels::cuda
