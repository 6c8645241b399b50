#include "kernels/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/elementary.hpp"

namespace sluice::kernels {

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::uint64_t key) {
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return c;
}

std::uint32_t noise_bits(std::uint64_t seed, std::uint32_t index, Token token) {
  return philox({token / 4, index, 0, 0}, seed)[token % 4];
}

float gumbel(std::uint32_t bits) {
  float log_u;
  if (bits >= 0xC0000000U) {  // near 1, u - 1 keeps the digits that u would lose
    log_u = log1p_f32((static_cast<float>(~bits) + 0.5F) * -0x1p-32F);
  } else {
    log_u = log_f32((static_cast<float>(bits) + 0.5F) * 0x1p-32F);
  }
  return -log_f32(-log_u);
}

std::uint64_t mass(float z) {
  return static_cast<std::uint64_t>(static_cast<double>(exp_f32(z)) * mass_one);
}

std::uint64_t top_p_target(std::uint64_t total, float top_p) {
  const double target = static_cast<double>(total) * static_cast<double>(top_p);
  return std::clamp<std::uint64_t>(static_cast<std::uint64_t>(target), 1,
                                   std::max<std::uint64_t>(total, 1));
}

float inverse_temperature(float temperature) {
  return std::min(1.0F / temperature, std::numeric_limits<float>::max());
}

float penalized(float logit, const Penalties& p, bool in_prompt, std::uint32_t output_count) {
  if (in_prompt || output_count > 0) {
    logit = logit > 0.0F ? logit / p.repetition : logit * p.repetition;
  }
  if (output_count > 0) {
    logit -= p.presence + p.frequency * static_cast<float>(output_count);
  }
  return logit;
}

float tamed(float logit) {
  if (std::isnan(logit)) return banned;
  return std::min(logit, std::numeric_limits<float>::max());
}

float log_probability(float below, std::uint64_t total) {
  return below - log_f32(static_cast<float>(static_cast<double>(total) / mass_one));
}

}  // namespace sluice::kernels
