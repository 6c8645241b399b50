// Draws a row's token as kernels/sampling.hpp defines it: a block a row. Thresholds are found by
// radix selection over the ordered bits of z, with integer counts or masses, which add up the same
// in any order.

#include "kernels/cuda/step.cuh"
#include "kernels/sampling.hpp"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_threads = 512;
constexpr std::uint32_t block_warps = block_threads / warp_lanes;
constexpr std::uint32_t bins = 256;  ///< a byte of the key a round

/// A candidate: the higher value wins, the lower token among equals.
struct Best {
  float value;
  Token token;
};

__device__ Best better(const Best& a, const Best& b) {
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.token < b.token ? a : b;
}

struct Shared {
  float* values;          ///< [block_warps]
  Token* tokens;          ///< [block_warps]
  std::uint64_t* masses;  ///< [bins]
  std::uint64_t* total;   ///< [2]
  std::uint32_t* flags;   ///< [2]

  __device__ explicit Shared(SharedPieces& pieces)
      : values(pieces.take<float>(block_warps)),
        tokens(pieces.take<Token>(block_warps)),
        masses(pieces.take<std::uint64_t>(bins)),
        total(pieces.take<std::uint64_t>(2)),
        flags(pieces.take<std::uint32_t>(2)) {}

  static constexpr std::size_t bytes() {
    return SharedPieces::bytes<float>(block_warps) + SharedPieces::bytes<Token>(block_warps) +
           SharedPieces::bytes<std::uint64_t>(bins) + SharedPieces::bytes<std::uint64_t>(2) +
           SharedPieces::bytes<std::uint32_t>(2);
  }
};

/// The best of every thread's candidate; every thread has the result.
__device__ Best block_best(Best best, const Shared& shared) {
  for (std::uint32_t step = 16; step > 0; step /= 2) {
    const Best other{__shfl_xor_sync(all_lanes, best.value, static_cast<int>(step)),
                     __shfl_xor_sync(all_lanes, best.token, static_cast<int>(step))};
    best = better(best, other);
  }
  if (lane_index() == 0) {
    shared.values[warp_index()] = best.value;
    shared.tokens[warp_index()] = best.token;
  }
  __syncthreads();
  best = {shared.values[0], shared.tokens[0]};
  for (std::uint32_t i = 1; i < block_warps; ++i) {
    best = better(best, {shared.values[i], shared.tokens[i]});
  }
  __syncthreads();  // before the next use of the room
  return best;
}

/// Sum over the block.
__device__ std::uint64_t block_total(std::uint64_t mine, const Shared& shared) {
  if (threadIdx.x == 0) shared.total[0] = 0;
  __syncthreads();
  for (std::uint32_t step = 16; step > 0; step /= 2) {
    mine += __shfl_xor_sync(all_lanes, mine, static_cast<int>(step));
  }
  if (lane_index() == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&shared.total[0]),
              static_cast<unsigned long long>(mine));
  }
  __syncthreads();
  const std::uint64_t total = shared.total[0];
  __syncthreads();
  return total;
}

/// Logits that a thread has under way together. With one, each of a block's passes over 128,256 of
/// them would wait 250 times for the second-level cache: some 40 us beside the 3.4 ms that an H200
/// reads an 8B model's weights in. This is arithmetic; no GPU has run it.
constexpr std::uint32_t reads = 8;

/// Calls f(token, logit) for each that is the thread's, lowest token first.
template <class F>
__device__ void each_logit(const float* logits, std::uint32_t vocabulary, F f) {
  for (Token first = threadIdx.x; first < vocabulary; first += reads * block_threads) {
    float some[reads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      some[i] = logits[least(first + i * block_threads, vocabulary - 1)];
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const Token t = first + i * block_threads;
      if (t < vocabulary) f(t, some[i]);
    }
  }
}

/// A row's logits on their way to a token.
struct Row {
  const StepOpen* params;
  std::uint32_t slot;
  std::uint32_t drawn;  ///< tokens drawn before
  const float* raw;     ///< as the model gave them
  float* logits;        ///< adjusted
  std::uint32_t vocabulary;
  const std::uint64_t* mask;
  std::uint32_t mask_words;  ///< 0: any token
};

__device__ bool allowed(const Row& row, Token t) {
  if (row.mask_words == 0) return true;
  return t / 64 < row.mask_words && (row.mask[t / 64] >> (t % 64) & 1U) != 0;
}

/// Everything between the model's logits and the temperature; returns the highest. One pass, but
/// where single tokens are changed between its steps.
__device__ Best adjust(const Row& row, const SlotArrays& slots, const Shared& shared) {
  const StepOpen& p = *row.params;
  const std::uint32_t* uses = slots.uses + std::size_t{row.slot} * slots.vocabulary;
  const TokenBias* biases = slots.biases + std::size_t{row.slot} * slots.list_capacity;
  const Token* stops = slots.stops + std::size_t{row.slot} * slots.list_capacity;
  const Penalties penalties{p.repetition, p.presence, p.frequency};
  const auto penalize = [&](float logit, std::uint32_t used) {
    return penalized(logit, penalties, (used & SlotArrays::in_prompt) != 0,
                     used & ~SlotArrays::in_prompt);
  };
  bool penalties_left = p.repetition != 1.0F || p.presence != 0.0F || p.frequency != 0.0F;
  const bool stops_banned = row.drawn < p.min_tokens && p.stop_count > 0;
  const float* from = row.raw;
  if (p.bias_count > 0 || stops_banned) {
    for (Token t = threadIdx.x; t < row.vocabulary; t += block_threads) row.logits[t] = row.raw[t];
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < p.bias_count; i += block_threads) {
      if (biases[i].token < row.vocabulary) row.logits[biases[i].token] += biases[i].bias;
    }
    __syncthreads();
    for (Token t = threadIdx.x; penalties_left && t < row.vocabulary; t += block_threads) {
      row.logits[t] = penalize(row.logits[t], uses[t]);
    }
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; stops_banned && i < p.stop_count; i += block_threads) {
      if (stops[i] < row.vocabulary) row.logits[stops[i]] = banned;
    }
    __syncthreads();
    from = row.logits;
    penalties_left = false;
  }
  Best best{banned, row.vocabulary};
  for (Token first = threadIdx.x; first < row.vocabulary; first += reads * block_threads) {
    float logits[reads];
    std::uint32_t used[reads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const Token t = least(first + i * block_threads, row.vocabulary - 1);
      logits[i] = from[t];
      used[i] = penalties_left ? uses[t] : 0;
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const Token t = first + i * block_threads;
      if (t >= row.vocabulary) continue;
      const float logit = allowed(row, t) ? tamed(penalize(logits[i], used[i])) : banned;
      row.logits[t] = logit;
      best = better(best, {logit, t});
    }
  }
  return block_best(best, shared);  // whose barriers also publish the logits
}

/// z of sampling.hpp, and what has been ruled out so far.
struct Scale {
  float peak = 0.0F;
  float inverse = 1.0F;
  float min_p = 0.0F;
  std::uint32_t key_min = 0;

  __device__ float operator()(float logit) const {
    const float z = (logit - peak) * inverse;
    if (min_p > 0.0F && !(exp_f32(z) >= min_p)) return banned;
    return key(z) < key_min ? banned : z;
  }

  /// Rises with z; the two zeros have one key.
  static __device__ std::uint32_t key(float z) {
    const std::uint32_t bits = bits_of(z + 0.0F);
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
  }
};

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
    each_logit(row.logits, row.vocabulary, [&](Token, float logit) {
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

/// The token with the highest z + noise. Noise is made only where it could win.
__device__ Token race(const Row& row, const Scale& scale, Token favourite, const Shared& shared) {
  const std::uint64_t seed = row.params->seed;
  const NoiseWords first = philox_words({{favourite / 4, row.drawn, 0, 0}}, seed);
  Best best{scale(row.logits[favourite]) + gumbel(first.word[favourite % 4]), favourite};
  for (std::uint32_t four = threadIdx.x; four * 4 < row.vocabulary; four += block_threads) {
    float z[4];
    float top = banned;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const Token t = four * 4 + i;
      z[i] = t < row.vocabulary ? scale(row.logits[t]) : banned;
      top = z[i] > top ? z[i] : top;
    }
    if (top + gumbel_highest < best.value) continue;
    const NoiseWords words = philox_words({{four, row.drawn, 0, 0}}, seed);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      if (z[i] == banned || z[i] + gumbel_highest < best.value) continue;
      best = better(best, {z[i] + gumbel(words.word[i]), four * 4 + i});
    }
  }
  return block_best(best, shared).token;
}

/// The token's own log-probability, then the best, highest first.
__device__ void list_logprobs(const Row& row, float peak, Token drawn, DrawnRow& out,
                              const Shared& shared) {
  std::uint64_t mine = 0;
  each_logit(row.logits, row.vocabulary,
             [&](Token, float logit) { mine += mass(logit - peak); });
  const std::uint64_t total = block_total(mine, shared);
  if (threadIdx.x == 0) {
    out.logprobs[0] = {drawn, log_probability(row.logits[drawn] - peak, total)};
    out.logprob_count = 1;
  }
  Best last{0.0F, 0};
  for (std::int32_t n = 0; n < row.params->logprobs; ++n) {
    Best best{banned, row.vocabulary};
    each_logit(row.logits, row.vocabulary, [&](Token t, float logit) {
      const bool listed = n > 0 && (logit > last.value || (logit == last.value && t <= last.token));
      if (!listed && logit != banned) best = better(best, {logit, t});
    });
    best = block_best(best, shared);
    if (best.token == row.vocabulary) break;
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
  Scale scale;
  scale.peak = favourite.value;
  scale.inverse = inverse_temperature(p.temperature);
  scale.min_p = p.min_p;
  if (p.top_k > 0 && p.top_k < row.vocabulary) {
    scale.key_min = select_key(row, scale, p.top_k, CountOne(), shared);
  }
  if (p.top_p < 1.0F) {
    std::uint64_t mine = 0;
    each_logit(row.logits, row.vocabulary,
               [&](Token, float logit) { mine += mass(scale(logit)); });
    const std::uint64_t target = top_p_target(block_total(mine, shared), p.top_p);
    scale.key_min = select_key(row, scale, target, CountMass(), shared);
  }
  return race(row, scale, favourite.token, shared);
}

/// Why a row has no token: its numbers, or what it was asked.
__device__ DrawStatus why_nothing(const Row& row, const Shared& shared) {
  std::uint64_t numbers = 0;
  each_logit(row.raw, row.vocabulary,
             [&](Token, float logit) { numbers += logit == logit ? 1U : 0U; });
  return block_total(numbers, shared) > 0 ? DrawStatus::none_allowed : DrawStatus::all_nan;
}

__device__ void draw(Row& row, const SlotArrays& slots, DrawnRow& out, SharedPieces& pieces) {
  const Shared shared(pieces);
  SlotState& state = slots.states[row.slot];
  const auto failed = static_cast<DrawStatus>(state.failed);
  if (threadIdx.x == 0) {
    out.status = failed;
    out.logprob_count = 0;
  }
  if (failed != DrawStatus::drawn) return;
  row.params = &state.open;
  row.drawn = state.token_count - state.open.prompt_tokens;
  row.vocabulary = slots.vocabulary;
  const std::uint32_t place = state.token_count;
  __syncthreads();  // every thread has read the state that the last lines change
  const Best favourite = adjust(row, slots, shared);
  if (favourite.value == banned) {
    const DrawStatus why = why_nothing(row, shared);
    if (threadIdx.x == 0) {
      out.status = why;
      state.failed = static_cast<std::uint32_t>(why);
    }
    return;
  }
  const Token token = choose(row, favourite, shared);
  if (row.params->logprobs >= 0) list_logprobs(row, favourite.value, token, out, shared);
  if (threadIdx.x != 0) return;
  out.token = token;
  slots.tokens[std::size_t{row.slot} * slots.token_capacity + place] = token;
  const StepOpen& p = *row.params;
  if (p.repetition != 1.0F || p.presence != 0.0F || p.frequency != 0.0F) {
    ++slots.uses[std::size_t{row.slot} * slots.vocabulary + token];
  }
  state.token_count = place + 1;
}

__global__ void __launch_bounds__(block_threads, 1) sample_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x;
  if (index >= header(args.step).sampled) return;
  SharedPieces pieces;
  const std::uint32_t r = part<std::uint32_t>(args.step, header(args.step).sampled_offset)[index];
  const StepRow at = step_row(args.step, r);
  const SlotState& state = args.slots.states[at.slot];
  DrawnRow& out = args.drawn[index];
  if (state.failed == 0 && at.position + 1 != state.token_count) {
    if (threadIdx.x == 0) out.status = DrawStatus::misplaced;
    return;
  }
  Row row{};
  row.slot = at.slot;
  row.raw = row_of(args.logits, index);
  row.logits = args.adjusted + std::size_t{index} * args.slots.vocabulary;
  draw(row, args.slots, out, pieces);
}

__global__ void hold_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.y;
  const Token t = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= header(args.step).sampled || t >= args.slots.vocabulary) return;
  const std::uint32_t r = part<std::uint32_t>(args.step, header(args.step).sampled_offset)[index];
  const std::size_t slot = step_row(args.step, r).slot;
  args.slots.held[slot * args.slots.vocabulary + t] = row_of(args.logits, index)[t];
}

__global__ void __launch_bounds__(block_threads, 1) held_kernel(SampleArgs args) {
  take_turn();
  const std::uint32_t index = blockIdx.x;
  if (index >= header(args.step).held) return;
  SharedPieces pieces;
  const HeldRow& held = part<HeldRow>(args.step, header(args.step).held_offset)[index];
  Row row{};
  row.slot = held.slot;
  row.raw = args.slots.held + std::size_t{held.slot} * args.slots.vocabulary;
  row.logits = args.adjusted + std::size_t{index} * args.slots.vocabulary;
  row.mask = part<std::uint64_t>(args.step, held.mask);
  row.mask_words = held.mask_words;
  draw(row, args.slots, args.drawn[index], pieces);
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
