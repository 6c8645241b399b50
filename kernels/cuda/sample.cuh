#pragma once
// The parts of a draw as kernels/sampling.hpp defines it, over all of a row's tokens or consecutive
// ones: a block a row.

#include "kernels/cuda/step.cuh"
#include "kernels/sampling.hpp"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t block_threads = 512;
inline constexpr std::uint32_t block_warps = block_threads / warp_lanes;
inline constexpr std::uint32_t bins = 256;  ///< a byte of the key a round

/// A candidate: the higher value wins, the lower token among equals.
struct Best {
  float value;
  Token token;
};

__device__ inline bool ahead(const Best& a, const Best& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

__device__ inline Best better(const Best& a, const Best& b) { return ahead(a, b) ? a : b; }

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
__device__ inline Best block_best(Best best, const Shared& shared) {
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
__device__ inline std::uint64_t block_total(std::uint64_t mine, const Shared& shared) {
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

/// Logits, or fours of them, that a thread has under way together. With one, each of a block's
/// passes over 128,256 of them would wait 250 times for the second-level cache: some 40 us beside
/// the 3.4 ms that an H200 reads an 8B model's weights in. A greedy row takes 11 us there.
inline constexpr std::uint32_t reads = 8;

/// Calls f(place, value) for each of `count` values that is the thread's, lowest place first.
template <class T, class F>
__device__ void each_read(const T* values, std::uint32_t count, F f) {
  for (std::uint32_t first = threadIdx.x; first < count; first += reads * block_threads) {
    T some[reads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      some[i] = values[least(first + i * block_threads, count - 1)];
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const std::uint32_t at = first + i * block_threads;
      if (at < count) f(at, some[i]);
    }
  }
}

/// Calls f(index, logit).
template <class F>
__device__ void each_logit(const float* logits, std::uint32_t count, F f) {
  each_read(logits, count, f);
}

/// Whether logits lie so that four are a read.
__device__ inline bool reads_fours(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(float4) == 0;
}

/// Calls f(index of the first, logits) for each of `count` fours.
template <class F>
__device__ void each_four(const float* logits, std::uint32_t count, F f) {
  each_read(reinterpret_cast<const float4*>(logits), count,
            [&](std::uint32_t at, const float4& four) { f(4 * at, four); });
}

/// The greatest of four; of a number and NaN, the number.
__device__ inline float highest(const float4& four) {
  return fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
}

/// A row's logits on their way to a token.
struct Row {
  const StepOpen* params;
  std::uint32_t slot;
  std::uint32_t drawn;  ///< tokens drawn before
  Token first;          ///< of the consecutive tokens that it has
  std::uint32_t count;  ///< of these
  const float* raw;     ///< as the model gave them
  float* logits;        ///< adjusted
  const std::uint64_t* mask;
  std::uint32_t mask_words;  ///< 0: any token
};

/// What stands in the way of a token of a slot's, if this row is to give it.
__device__ inline DrawStatus standing(const StepRow& row, const SlotState& state) {
  if (state.failed != 0) return static_cast<DrawStatus>(state.failed);
  return row.position + 1 == state.token_count ? DrawStatus::drawn : DrawStatus::misplaced;
}

/// Says whose the row is; what it has is the caller's to say.
__device__ inline void begin_row(Row& row, const SlotArrays& slots, std::uint32_t slot) {
  const SlotState& state = slots.states[slot];
  row.params = &state.open;
  row.slot = slot;
  row.drawn = state.token_count - state.open.prompt_tokens;
}

__device__ inline bool allowed(const Row& row, Token t) {
  if (row.mask_words == 0) return true;
  return t / 64 < row.mask_words && (row.mask[t / 64] >> (t % 64) & 1U) != 0;
}

/// Tames logits that nothing else changes; returns the thread's highest. `kept`: writes them, too.
/// A greedy row's time is this pass, so that there is little more to it than a four's greatest.
__device__ inline Best tame(const Row& row, bool kept) {
  const bool whole = reads_fours(row.raw) && (!kept || reads_fours(row.logits));
  const std::uint32_t count = whole ? row.count / 4 : 0;
  float peak = banned;
  std::uint32_t place = row.count;  // of the first four with that
  each_four(row.raw, count, [&](std::uint32_t t, float4 four) {
    if (kept) {
      four = {tamed(four.x), tamed(four.y), tamed(four.z), tamed(four.w)};
      *reinterpret_cast<float4*>(row.logits + t) = four;
    }
    const float top = highest(four);
    if (!(top > peak) || peak >= largest_f32) return;
    peak = top;
    place = t;
  });
  Best best{banned, row.first + row.count};
  const auto look = [&](std::uint32_t t, float logit) {
    best = better(best, {tamed(logit), row.first + t});
  };
  for (std::uint32_t t = place; t < place + 4 && t < row.count; ++t) look(t, row.raw[t]);
  for (std::uint32_t t = 4 * count + threadIdx.x; t < row.count; t += block_threads) {
    const float logit = row.raw[t];
    if (kept) row.logits[t] = tamed(logit);
    look(t, logit);
  }
  return best;
}

/// Everything between the model's logits and the temperature; returns the highest. One pass, but
/// where single tokens are changed between its steps. A row that is drawn by its highest alone gets
/// no adjusted logits.
__device__ inline Best adjust(const Row& row, const SlotArrays& slots, const Shared& shared) {
  const StepOpen& p = *row.params;
  const std::uint32_t* uses = slots.uses + std::size_t{row.slot} * slots.vocabulary + row.first;
  const TokenBias* biases = slots.biases + std::size_t{row.slot} * slots.list_capacity;
  const Token* stops = slots.stops + std::size_t{row.slot} * slots.list_capacity;
  const Penalties penalties{p.repetition, p.presence, p.frequency};
  const auto penalize = [&](float logit, std::uint32_t used) {
    return penalized(logit, penalties, (used & SlotArrays::in_prompt) != 0,
                     used & ~SlotArrays::in_prompt);
  };
  bool penalties_left = p.repetition != 1.0F || p.presence != 0.0F || p.frequency != 0.0F;
  const bool stops_banned = row.drawn < p.min_tokens && p.stop_count > 0;
  if (!penalties_left && p.bias_count == 0 && !stops_banned && row.mask_words == 0) {
    return block_best(tame(row, p.temperature != 0.0F || p.logprobs >= 0), shared);
  }
  const float* from = row.raw;
  if (p.bias_count > 0 || stops_banned) {
    for (std::uint32_t t = threadIdx.x; t < row.count; t += block_threads) {
      row.logits[t] = row.raw[t];
    }
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < p.bias_count; i += block_threads) {
      const std::uint32_t t = biases[i].token - row.first;  // of others: too large
      if (t < row.count) row.logits[t] += biases[i].bias;
    }
    __syncthreads();
    for (std::uint32_t t = threadIdx.x; penalties_left && t < row.count; t += block_threads) {
      row.logits[t] = penalize(row.logits[t], uses[t]);
    }
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; stops_banned && i < p.stop_count; i += block_threads) {
      const std::uint32_t t = stops[i] - row.first;
      if (t < row.count) row.logits[t] = banned;
    }
    __syncthreads();
    from = row.logits;
    penalties_left = false;
  }
  Best best{banned, row.first + row.count};
  for (std::uint32_t first = threadIdx.x; first < row.count; first += reads * block_threads) {
    float logits[reads];
    std::uint32_t used[reads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const std::uint32_t t = least(first + i * block_threads, row.count - 1);
      logits[i] = from[t];
      used[i] = penalties_left ? uses[t] : 0;
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) {
      const std::uint32_t t = first + i * block_threads;
      if (t >= row.count) continue;
      const Token token = row.first + t;
      const float logit = allowed(row, token) ? tamed(penalize(logits[i], used[i])) : banned;
      row.logits[t] = logit;
      best = better(best, {logit, token});
    }
  }
  return block_best(best, shared);  // whose barriers also publish the logits
}

/// Whether any of the model's logits is not NaN.
__device__ inline bool has_numbers(const Row& row, const Shared& shared) {
  std::uint64_t numbers = 0;
  each_logit(row.raw, row.count,
             [&](std::uint32_t, float logit) { numbers += logit == logit ? 1U : 0U; });
  return block_total(numbers, shared) > 0;
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

/// A row's scale before top-k and top-p, below its peak.
__device__ inline Scale scale_of(const StepOpen& params, float peak) {
  Scale scale;
  scale.peak = peak;
  scale.inverse = inverse_temperature(params.temperature);
  scale.min_p = params.min_p;
  return scale;
}

/// The token with the highest z + noise, and what that came to. Noise is made only where it could
/// win. `favourite` is one that the row has.
__device__ inline Best race(const Row& row, const Scale& scale, Token favourite,
                            const Shared& shared) {
  const std::uint64_t seed = row.params->seed;
  const NoiseWords first = philox_words({{favourite / 4, row.drawn, 0, 0}}, seed);
  const float start = scale(row.logits[favourite - row.first]);
  Best best{start + gumbel(first.word[favourite % 4]), favourite};
  const Token end = row.first + row.count;
  const auto run = [&](std::uint32_t four) {
    float z[4];
    float top = banned;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t t = four * 4 + i - row.first;  // before the first one: too large
      z[i] = t < row.count ? scale(row.logits[t]) : banned;
      top = z[i] > top ? z[i] : top;
    }
    if (top + gumbel_highest < best.value) return;
    const NoiseWords words = philox_words({{four, row.drawn, 0, 0}}, seed);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      if (z[i] == banned || z[i] + gumbel_highest < best.value) continue;
      best = better(best, {z[i] + gumbel(words.word[i]), four * 4 + i});
    }
  };
  std::uint32_t next = row.first / 4 + threadIdx.x;
  if (row.first % 4 == 0 && reads_fours(row.logits)) {
    // Most have no chance: those that may are read again, from the first-level cache.
    const auto* all = reinterpret_cast<const float4*>(row.logits);
    const std::uint32_t begin = row.first / 4, whole = row.count / 4;
    for (std::uint32_t at = threadIdx.x; at < whole; at += reads * block_threads) {
      float4 some[reads];
      std::uint32_t able = 0;
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < reads; ++i) {
        some[i] = all[least(at + i * block_threads, whole - 1)];
      }
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < reads; ++i) {
        const float top = (highest(some[i]) - scale.peak) * scale.inverse;
        const bool may = at + i * block_threads < whole && !(top + gumbel_highest < best.value);
        able |= may ? 1U << i : 0U;
      }
      for (std::uint32_t i = 0; able >> i != 0; ++i) {
        if ((able >> i & 1U) != 0) run(begin + at + i * block_threads);
      }
    }
    next = begin + whole + threadIdx.x;
  }
  for (; next * 4 < end; next += block_threads) run(next);
  return block_best(best, shared);
}

/// Of all logits below the peak, at temperature 1.
__device__ inline std::uint64_t total_mass(const Row& row, float peak, const Shared& shared) {
  std::uint64_t mine = 0;
  each_logit(row.logits, row.count,
             [&](std::uint32_t, float logit) { mine += mass(logit - peak); });
  return block_total(mine, shared);
}

/// The slot yields nothing more. One thread's, as the one below.
__device__ inline void give_up(const SlotArrays& slots, std::uint32_t slot, DrawStatus why,
                               DrawnRow& out) {
  out.status = why;
  slots.states[slot].failed = static_cast<std::uint32_t>(why);
}

__device__ inline void append(const SlotArrays& slots, std::uint32_t slot, Token token,
                              DrawnRow& out) {
  SlotState& state = slots.states[slot];
  out.token = token;
  slots.tokens[std::size_t{slot} * slots.token_capacity + state.token_count] = token;
  const StepOpen& p = state.open;
  if (p.repetition != 1.0F || p.presence != 0.0F || p.frequency != 0.0F) {
    ++slots.uses[std::size_t{slot} * slots.vocabulary + token];
  }
  ++state.token_count;
}

}  // namespace sluice::kernels::cuda
