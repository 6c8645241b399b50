#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/sample.hpp"
#include "kernels/sampling.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

// Vectors of `count` floats, a multiple of 16; banned tokens are -inf and stay so.

/// Tames in place (see sampling.hpp) and returns the highest.
float tame(float* logits, std::size_t count) {
  const Part limit = hn::Set(F(), std::numeric_limits<float>::max());
  const Part lowest = hn::Set(F(), banned);
  Lanes top = set(banned);
  for (std::size_t i = 0; i < count; i += 16) {
    Lanes x = load(logits + i);
    for (std::size_t p = 0; p < parts; ++p) {
      const Part number = hn::IfThenElse(hn::Eq(x.part[p], x.part[p]), x.part[p], lowest);
      x.part[p] = hn::Min(number, limit);
    }
    store(x, logits + i);
    top = max(top, x);
  }
  return highest(top);
}

/// z = (logit - peak) * scale
void scale_below(const float* logits, std::size_t count, float peak, float scale, float* z) {
  for (std::size_t i = 0; i < count; i += 16) {
    store((load(logits + i) - set(peak)) * set(scale), z + i);
  }
}

/// Sum of mass(value - below)
std::uint64_t total_mass(const float* values, std::size_t count, float below) {
  std::uint64_t total = 0;
  float e[16];
  for (std::size_t i = 0; i < count; i += 16) {
    store(exp(load(values + i) - set(below)), e);
    for (const float one : e) {
      total += static_cast<std::uint64_t>(static_cast<double>(one) * mass_one);
    }
  }
  return total;
}

/// Bans what has exp(z) < floor
void ban_below(float* z, std::size_t count, float floor) {
  for (std::size_t i = 0; i < count; i += 16) {
    const Lanes x = load(z + i);
    const Lanes e = exp(x);
    Lanes kept;
    for (std::size_t p = 0; p < parts; ++p) {
      const auto stays = hn::Ge(e.part[p], hn::Set(F(), floor));
      kept.part[p] = hn::IfThenElse(stays, x.part[p], hn::Set(F(), banned));
    }
    store(kept, z + i);
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(tame);
HWY_EXPORT(scale_below);
HWY_EXPORT(total_mass);
HWY_EXPORT(ban_below);

namespace cpu {
namespace {

std::size_t round16(std::size_t n) { return (n + 15) / 16 * 16; }

void apply_mask(std::span<float> logits, std::span<const std::uint64_t> allowed) {
  for (std::size_t word = 0; word * 64 < logits.size(); ++word) {
    const std::uint64_t bits = word < allowed.size() ? allowed[word] : 0;
    if (bits == ~std::uint64_t{0}) continue;
    const std::size_t end = std::min(logits.size(), (word + 1) * 64);
    for (std::size_t t = word * 64; t < end; ++t) {
      if ((bits >> (t % 64) & 1) == 0) logits[t] = banned;
    }
  }
}

/// Everything between the model's logits and the temperature; returns the highest.
float adjust(const Slot& slot, std::span<const float> raw, std::span<const std::uint64_t> allowed,
             std::span<float> out) {
  const SamplingParams& s = slot.sampling;
  std::copy(raw.begin(), raw.end(), out.begin());
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(raw.size()), out.end(), banned);
  for (const auto& [token, bias] : s.logit_bias) {
    if (token < raw.size()) out[token] += bias;
  }
  const Penalties penalties{s.repetition_penalty, s.presence_penalty, s.frequency_penalty};
  for (const Token token : slot.used) {
    const std::uint32_t use = slot.uses[token];
    out[token] =
        penalized(out[token], penalties, (use & Slot::in_prompt) != 0, use & ~Slot::in_prompt);
  }
  if (slot.token_count - slot.prompt_tokens < s.min_tokens) {
    for (const Token token : s.stop_tokens) {
      if (token < raw.size()) out[token] = banned;
    }
  }
  if (!allowed.empty()) apply_mask(out.first(raw.size()), allowed);
  return HWY_DYNAMIC_DISPATCH(tame)(out.data(), out.size());
}

/// The highest values of z, enough of them for `enough(candidates)`: the cut goes down until it is.
template <class Enough>
void gather(std::span<const float> z, std::vector<float>& candidates, Enough enough) {
  for (float cut = -4.0F;; cut *= 2) {
    if (cut < -64.0F) cut = std::numeric_limits<float>::lowest();
    candidates.clear();
    for (const float value : z) {
      if (value >= cut) candidates.push_back(value);
    }
    if (enough() || cut == std::numeric_limits<float>::lowest()) return;
  }
}

void ban_under(std::span<float> z, float threshold) {
  for (float& value : z) value = value < threshold ? banned : value;
}

void keep_top_k(std::span<float> z, std::uint32_t k, std::vector<float>& candidates) {
  gather(z, candidates, [&] { return candidates.size() >= k; });
  if (candidates.size() <= k) return;
  const auto kth = candidates.begin() + (k - 1);
  std::nth_element(candidates.begin(), kth, candidates.end(), std::greater<>());
  ban_under(z, *kth);
}

void keep_top_p(std::span<float> z, float top_p, std::vector<float>& candidates) {
  const std::uint64_t total = HWY_DYNAMIC_DISPATCH(total_mass)(z.data(), z.size(), 0.0F);
  const std::uint64_t target = top_p_target(total, top_p);
  gather(z, candidates, [&] {
    std::uint64_t gathered = 0;
    for (const float value : candidates) gathered += mass(value);
    return gathered >= target;
  });
  std::sort(candidates.begin(), candidates.end(), std::greater<>());
  std::uint64_t gathered = 0;
  for (const float value : candidates) {
    gathered += mass(value);
    if (gathered >= target) return ban_under(z, value);
  }
}

/// What noise could at best be worth: bits below `least[n]` give a Gumbel value below n. A little
/// low, so that rounding never rules out a winner.
struct NoiseFloor {
  std::array<std::uint32_t, 24> least{};

  NoiseFloor() {
    for (std::size_t n = 0; n < least.size(); ++n) {  // u = exp(-exp(-n))
      const double above = -std::expm1(-std::exp(-static_cast<double>(n))) * 1.001 + 1e-9;
      least[n] = static_cast<std::uint32_t>((1.0 - std::min(above, 1.0)) * 4294967295.0);
    }
  }
};

/// The token with the highest z + noise. Noise is made only where it could win.
Token race(std::span<const float> z, Token favourite, std::uint64_t seed, std::uint32_t index) {
  static const NoiseFloor floor;
  Token winner = favourite;
  float best = z[favourite] + gumbel(noise_bits(seed, index, favourite));
  for (std::size_t block = 0; block < z.size(); block += 4) {
    const float top =
        std::max(std::max(z[block], z[block + 1]), std::max(z[block + 2], z[block + 3]));
    if (top + gumbel_highest < best) continue;
    const auto words = philox({static_cast<std::uint32_t>(block / 4), index, 0, 0}, seed);
    for (std::size_t i = 0; i < 4; ++i) {
      const float value = z[block + i];
      if (value + gumbel_highest < best) continue;
      const float needed = best - value;
      if (needed >= 1.0F &&
          words[i] < floor.least[static_cast<std::size_t>(std::min(needed, 23.0F))]) {
        continue;
      }
      const float score = value + gumbel(words[i]);
      const auto token = static_cast<Token>(block + i);
      if (score > best || (score == best && token < winner)) {
        best = score;
        winner = token;
      }
    }
  }
  return winner;
}

std::vector<TokenLogprob> list_logprobs(std::span<const float> logits, float peak, Token drawn,
                                        std::size_t best_count) {
  const std::uint64_t total =
      HWY_DYNAMIC_DISPATCH(total_mass)(logits.data(), logits.size(), peak);
  const auto entry = [&](Token token) {
    return TokenLogprob{token, log_probability(logits[token] - peak, total)};
  };
  std::vector<Token> best;  // highest first, lowest id among equals
  best.reserve(best_count + 1);
  for (Token t = 0; t < logits.size() && best_count > 0; ++t) {
    if (logits[t] == banned) continue;
    if (best.size() == best_count && logits[t] <= logits[best.back()]) continue;
    const auto place = std::upper_bound(best.begin(), best.end(), t,
                                        [&](Token a, Token b) { return logits[a] > logits[b]; });
    best.insert(place, t);
    if (best.size() > best_count) best.pop_back();
  }
  std::vector<TokenLogprob> list{entry(drawn)};
  for (const Token token : best) list.push_back(entry(token));
  return list;
}

Token choose(const Slot& slot, std::size_t vocabulary, float peak, SampleScratch& scratch) {
  const SamplingParams& s = slot.sampling;
  const std::span<const float> logits = scratch.logits;
  const auto favourite =
      static_cast<Token>(std::find(logits.begin(), logits.end(), peak) - logits.begin());
  if (s.temperature == 0.0F) return favourite;
  const std::span<float> z = scratch.z;
  HWY_DYNAMIC_DISPATCH(scale_below)
  (logits.data(), logits.size(), peak, inverse_temperature(s.temperature), z.data());
  if (s.min_p > 0.0F) HWY_DYNAMIC_DISPATCH(ban_below)(z.data(), z.size(), s.min_p);
  if (s.top_k > 0 && s.top_k < vocabulary) keep_top_k(z, s.top_k, scratch.candidates);
  if (s.top_p < 1.0F) keep_top_p(z, s.top_p, scratch.candidates);
  return race(z, favourite, s.seed, slot.token_count - slot.prompt_tokens);
}

}  // namespace

SampleScratch::SampleScratch(std::uint32_t vocabulary)
    : logits(round16(vocabulary)), z(round16(vocabulary)) {
  candidates.reserve(round16(vocabulary));
}

SlotTokens draw(Slot& slot, std::span<const float> logits, std::span<const std::uint64_t> allowed,
                SampleScratch& scratch) {
  SlotTokens result;
  result.slot = slot.ref;
  if (slot.error) {
    result.error = slot.error;
    return result;
  }
  const float peak = adjust(slot, logits, allowed, scratch.logits);
  if (peak == banned) {
    const bool numbers = std::any_of(logits.begin(), logits.end(), [](float x) { return x == x; });
    slot.error =
        Error{ErrorCode::internal,
              numbers ? "no token is allowed: the mask, bias or minimum length rule out all"
                      : "every logit is NaN: the weights or the KV cache are damaged",
              0};
    result.error = slot.error;
    return result;
  }
  const Token token = choose(slot, logits.size(), peak, scratch);
  if (slot.sampling.logprobs >= 0) {
    result.logprobs.push_back(list_logprobs(scratch.logits, peak, token,
                                            static_cast<std::size_t>(slot.sampling.logprobs)));
  }
  slot.append(token);
  result.tokens.push_back(token);
  return result;
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
