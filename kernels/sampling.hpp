#pragma once
// The definition of sampling that every backend shares (design section 6.5): noise, masses and
// thresholds as scalar functions. Backends vectorise and prune, and must draw the same token.
//
// A row's logits become the drawn token so:
//  1. adjust: bias, repetition penalty, presence and frequency penalty; stop tokens below
//     min_tokens and tokens outside the mask become -inf; NaN becomes -inf, +inf the largest float.
//  2. temperature 0: the highest logit, the lowest id among equals.
//  3. z = (logit - highest logit) * inverse_temperature: at most 0.
//  4. min-p keeps exp_f32(z) >= min_p. top-k keeps z >= the k-th highest z of what is left. top-p
//     keeps z >= the highest threshold whose tokens' masses add up to top_p_target(total).
//  5. The kept token with the highest z + gumbel(...) wins, the lowest id among equals.

#include <array>
#include <cstdint>
#include <limits>

#include "kernels/core.hpp"

namespace sluice::kernels {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key);

/// The 32 random bits of a token: word `token % 4` of philox({token / 4, index, 0, 0}, seed), where
/// `index` is the drawn token's place in the sequence's output.
std::uint32_t noise_bits(std::uint64_t seed, std::uint32_t index, Token token);

/// A standard Gumbel variable, -log(-log((bits + 1/2) / 2^32)); rises with `bits`.
float gumbel(std::uint32_t bits);

/// Bounds of gumbel(): a token further than their distance below the best z cannot win.
inline constexpr float gumbel_lowest = -3.14F;
inline constexpr float gumbel_highest = 22.88F;

/// Mass of a token in fixed point, exp_f32(z) * 2^40 rounded down; z <= 0. Sums of up to 2^23
/// masses fit 64 bits and are the same in any order.
std::uint64_t mass(float z);
inline constexpr double mass_one = 0x1p40;

/// The masses that top-p must gather of a total: at least 1.
std::uint64_t top_p_target(std::uint64_t total, float top_p);

/// 1 / temperature, finite for every temperature > 0.
float inverse_temperature(float temperature);

inline constexpr float banned = -std::numeric_limits<float>::infinity();

/// A logit after bias and penalties. `output_count`: how often the token was generated before;
/// `in_prompt`: whether the prompt has it.
struct Penalties {
  float repetition = 1.0F;
  float presence = 0.0F;
  float frequency = 0.0F;
};
float penalized(float logit, const Penalties& penalties, bool in_prompt,
                std::uint32_t output_count);

/// NaN to -inf, +inf to the largest float.
float tamed(float logit);

/// log-probability of a token `below` = logit - highest logit under, given the total mass at
/// temperature 1.
float log_probability(float below, std::uint64_t total);

}  // namespace sluice::kernels
