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

#include "kernels/elementary.hpp"
#include "kernels/token.hpp"

namespace sluice::kernels {

inline constexpr float largest_f32 = std::numeric_limits<float>::max();

struct NoiseWords {
  std::uint32_t word[4];
};

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
SLUICE_HOST_DEVICE inline NoiseWords philox_words(NoiseWords c, std::uint64_t key) {
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c.word[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c.word[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(p0)}};
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return c;
}
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key);

/// The 32 random bits of a token: word `token % 4` of philox({token / 4, index, 0, 0}, seed), where
/// `index` is the drawn token's place in the sequence's output.
std::uint32_t noise_bits(std::uint64_t seed, std::uint32_t index, Token token);

/// A standard Gumbel variable, -log(-log((bits + 1/2) / 2^32)); rises with `bits`.
SLUICE_HOST_DEVICE inline float gumbel(std::uint32_t bits) {
  float log_u;
  if (bits >= 0xC0000000U) {  // near 1, u - 1 keeps the digits that u would lose
    log_u = log1p_f32((static_cast<float>(~bits) + 0.5F) * -0x1p-32F);
  } else {
    log_u = log_f32((static_cast<float>(bits) + 0.5F) * 0x1p-32F);
  }
  return -log_f32(-log_u);
}

/// Bounds of gumbel(): a token further than their distance below the best z cannot win.
inline constexpr float gumbel_lowest = -3.14F;
inline constexpr float gumbel_highest = 22.88F;

/// Mass of a token in fixed point, exp_f32(z) * 2^40 rounded down; z <= 0. Sums of up to 2^23
/// masses fit 64 bits and are the same in any order.
inline constexpr double mass_one = 0x1p40;
SLUICE_HOST_DEVICE inline std::uint64_t mass(float z) {
  return static_cast<std::uint64_t>(static_cast<double>(exp_f32(z)) * mass_one);
}

/// The masses that top-p must gather of a total: at least 1.
SLUICE_HOST_DEVICE inline std::uint64_t top_p_target(std::uint64_t total, float top_p) {
  const double part = static_cast<double>(total) * static_cast<double>(top_p);
  const auto target = static_cast<std::uint64_t>(part);
  const std::uint64_t most = total < 1 ? 1 : total;
  return target < 1 ? 1 : target > most ? most : target;
}

/// 1 / temperature, finite for every temperature > 0.
SLUICE_HOST_DEVICE inline float inverse_temperature(float temperature) {
  const float inverse = 1.0F / temperature;
  return inverse < largest_f32 ? inverse : largest_f32;
}

inline constexpr float banned = -std::numeric_limits<float>::infinity();

/// A logit after bias and penalties. `output_count`: how often the token was generated before;
/// `in_prompt`: whether the prompt has it.
struct Penalties {
  float repetition = 1.0F;
  float presence = 0.0F;
  float frequency = 0.0F;
};
SLUICE_HOST_DEVICE inline float penalized(float logit, const Penalties& p, bool in_prompt,
                                          std::uint32_t output_count) {
  if (in_prompt || output_count > 0) {
    logit = logit > 0.0F ? logit / p.repetition : logit * p.repetition;
  }
  if (output_count > 0) {
    logit -= p.presence + p.frequency * static_cast<float>(output_count);
  }
  return logit;
}

/// NaN to -inf, +inf to the largest float.
SLUICE_HOST_DEVICE inline float tamed(float logit) {
  if (logit != logit) return banned;
  return logit < largest_f32 ? logit : largest_f32;
}

/// log-probability of a token `below` = logit - highest logit under, given the total mass at
/// temperature 1.
SLUICE_HOST_DEVICE inline float log_probability(float below, std::uint64_t total) {
  return below - log_f32(static_cast<float>(static_cast<double>(total) / mass_one));
}

}  // namespace sluice::kernels
