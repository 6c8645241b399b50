#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/sample.hpp"

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
std::uint64_t add_masses(const float* values, std::size_t count, float below) {
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

/// Adds mass(z) of each to its bucket's sum. `count` need be no multiple of 16.
void add_to_buckets(const float* z, std::size_t count, std::uint64_t* sums) {
  float values[16], e[16];
  for (std::size_t i = 0; i < count; i += 16) {
    const std::size_t n = std::min<std::size_t>(16, count - i);
    std::fill(std::copy_n(z + i, n, values), std::end(values), banned);  // whose mass is 0
    store(exp(load(values)), e);
    for (std::size_t j = 0; j < n; ++j) {
      sums[cpu::mass_bucket(values[j])] +=
          static_cast<std::uint64_t>(static_cast<double>(e[j]) * mass_one);
    }
  }
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
HWY_EXPORT(add_masses);
HWY_EXPORT(add_to_buckets);
HWY_EXPORT(ban_below);

namespace cpu {
namespace {

constexpr std::size_t noise_tokens = 4;  ///< that share a block of Philox

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

void ban_under(std::span<float> z, float threshold) {
  for (float& value : z) value = value < threshold ? banned : value;
}

/// Bans what top-k and top-p rule out of whole rows: the highest values of z are looked at, more
/// of them until they tell.
void ban_tail(const SamplingParams& s, std::size_t vocabulary, std::span<float> z,
              std::vector<float>& known) {
  const bool by_mass = !has_top_k(s, vocabulary);
  const std::uint64_t kept_mass = by_mass ? total_mass({0, z}, 0.0F) : 0;
  for (float cut = -4.0F;; cut *= 2) {
    if (cut < -64.0F) cut = std::numeric_limits<float>::lowest();
    known.clear();
    for (const float value : z) {
      if (value >= cut) known.push_back(value);
    }
    const bool all = cut == std::numeric_limits<float>::lowest();
    if (const auto lowest = lowest_kept(s, vocabulary, known, all, kept_mass)) {
      return ban_under(z, *lowest);
    }
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

Token choose(const Slot& slot, const TokenValues& logits, std::size_t vocabulary,
             const Candidate& best, SampleScratch& scratch) {
  const SamplingParams& s = slot.sampling;
  if (s.temperature == 0.0F) return best.token;
  const std::span<float> room(scratch.z);
  const TokenValues z = scale(s, logits, best.value, room);
  if (has_threshold(s, vocabulary)) {
    ban_tail(s, vocabulary, room.first(z.values.size()), scratch.known);
  }
  return race(z, best.token, s.seed, output_index(slot)).token;
}

}  // namespace

std::size_t adjusted_room(std::size_t tokens) { return round16(tokens + noise_tokens - 1); }

Adjusted adjust(const Slot& slot, const TokenValues& raw, std::span<const std::uint64_t> allowed,
                std::span<float> out) {
  const SamplingParams& s = slot.sampling;
  const std::size_t lead = raw.first % noise_tokens;
  const std::span<float> all = out.first(round16(lead + raw.values.size()));
  const std::span<float> own = all.subspan(lead, raw.values.size());
  std::fill(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(lead), banned);
  std::copy(raw.values.begin(), raw.values.end(), own.begin());
  std::fill(all.begin() + static_cast<std::ptrdiff_t>(lead + own.size()), all.end(), banned);
  const auto is_own = [&](Token token) {
    return token >= raw.first && token - raw.first < own.size();
  };
  for (const auto& [token, bias] : s.logit_bias) {
    if (is_own(token)) own[token - raw.first] += bias;
  }
  const Penalties penalties{s.repetition_penalty, s.presence_penalty, s.frequency_penalty};
  for (const Token token : slot.used) {
    if (!is_own(token)) continue;
    const std::uint32_t use = slot.uses[token];
    float& logit = own[token - raw.first];
    logit = penalized(logit, penalties, (use & Slot::in_prompt) != 0, use & ~Slot::in_prompt);
  }
  if (output_index(slot) < s.min_tokens) {
    for (const Token token : s.stop_tokens) {
      if (is_own(token)) own[token - raw.first] = banned;
    }
  }
  SLUICE_ASSERT(allowed.empty() || raw.first == 0, "a mask for a part of the vocabulary");
  if (!allowed.empty()) apply_mask(own, allowed);
  const float peak = HWY_DYNAMIC_DISPATCH(tame)(all.data(), all.size());
  const auto at = std::find(own.begin(), own.end(), peak) - own.begin();
  return {{raw.first - static_cast<Token>(lead), all},
          {peak + 0.0F, raw.first + static_cast<Token>(at)}};  // of the two zeros one
}

TokenValues scale(const SamplingParams& s, const TokenValues& logits, float peak,
                  std::span<float> out) {
  const std::size_t count = logits.values.size();
  HWY_DYNAMIC_DISPATCH(scale_below)
  (logits.values.data(), count, peak, inverse_temperature(s.temperature), out.data());
  if (s.min_p > 0.0F) HWY_DYNAMIC_DISPATCH(ban_below)(out.data(), count, s.min_p);
  return {logits.first, out.first(count)};
}

std::uint64_t total_mass(const TokenValues& values, float below) {
  return HWY_DYNAMIC_DISPATCH(add_masses)(values.values.data(), values.values.size(), below);
}

bool has_top_k(const SamplingParams& s, std::size_t vocabulary) {
  return s.top_k > 0 && s.top_k < vocabulary;
}

bool has_threshold(const SamplingParams& s, std::size_t vocabulary) {
  return has_top_k(s, vocabulary) || s.top_p < 1.0F;
}

std::optional<float> lowest_kept(const SamplingParams& s, std::size_t vocabulary,
                                 std::vector<float>& known, bool all, std::uint64_t kept_mass) {
  float lowest = banned;
  if (has_top_k(s, vocabulary)) {
    if (known.size() < s.top_k && !all) return std::nullopt;
    if (known.size() >= s.top_k) {
      const auto behind = known.begin() + s.top_k;
      std::nth_element(known.begin(), behind - 1, known.end(), std::greater<>());
      lowest = *(behind - 1);
      known.erase(std::remove_if(behind, known.end(), [&](float z) { return z < lowest; }),
                  known.end());
    }
  }
  if (s.top_p >= 1.0F) return lowest;
  // Only the bucket in which the target is reached is put in order: a flat row keeps thousands.
  std::array<std::uint64_t, mass_buckets> sums{};
  HWY_DYNAMIC_DISPATCH(add_to_buckets)(known.data(), known.size(), sums.data());
  const std::uint64_t known_mass = std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
  const std::uint64_t total = has_top_k(s, vocabulary) ? known_mass : kept_mass;
  const std::uint64_t target = top_p_target(total, s.top_p);
  if (known_mass < target) return std::nullopt;
  std::uint64_t gathered = 0;
  std::size_t bucket = 0;
  while (gathered + sums[bucket] < target) gathered += sums[bucket++];
  const auto end = std::partition(known.begin(), known.end(),
                                  [&](float z) { return cpu::mass_bucket(z) == bucket; });
  std::sort(known.begin(), end, std::greater<>());
  for (auto z = known.begin(); z != end; ++z) {
    if ((gathered += mass(*z)) >= target) return *z;
  }
  return *(end - 1);
}

/// Noise is made only where it could win.
Candidate race(const TokenValues& all, Token likely, std::uint64_t seed, std::uint32_t index) {
  static const NoiseFloor floor;
  const std::span<const float> z = all.values;
  if (all.of(likely) == banned) return {};  // it ranks highest: so are all
  Candidate best{all.of(likely) + gumbel(noise_bits(seed, index, likely)), likely};
  for (std::size_t block = 0; block < z.size(); block += noise_tokens) {
    const float top =
        std::max(std::max(z[block], z[block + 1]), std::max(z[block + 2], z[block + 3]));
    if (top + gumbel_highest < best.value) continue;
    const Token first = all.first + static_cast<Token>(block);
    const auto words = philox({first / 4, index, 0, 0}, seed);
    for (std::size_t i = 0; i < noise_tokens; ++i) {
      const float value = z[block + i];
      if (value + gumbel_highest < best.value) continue;
      const float needed = best.value - value;
      if (needed >= 1.0F &&
          words[i] < floor.least[static_cast<std::size_t>(std::min(needed, 23.0F))]) {
        continue;
      }
      const Candidate one{value + gumbel(words[i]), first + static_cast<Token>(i)};
      if (ahead(one, best)) best = one;
    }
  }
  return best;
}

void list_best(const TokenValues& logits, std::size_t count, std::vector<Candidate>& best) {
  best.clear();
  if (count == 0) return;
  float least = banned;  // that a later token must be above
  for (std::size_t i = 0; i < logits.values.size(); ++i) {
    const float value = logits.values[i];
    if (value <= least) continue;
    const Candidate one{value, logits.first + static_cast<Token>(i)};
    best.insert(std::upper_bound(best.begin(), best.end(), one, ahead), one);
    if (best.size() > count) best.pop_back();
    if (best.size() == count) least = best.back().value;
  }
}

std::uint32_t output_index(const Slot& slot) { return slot.token_count - slot.prompt_tokens; }

SlotTokens no_token(Slot& slot, bool numbers) {
  slot.error =
      Error{ErrorCode::internal,
            numbers ? "no token is allowed: the mask, bias or minimum length rule out all"
                    : "every logit is NaN: the weights or the KV cache are damaged",
            0};
  return {slot.ref, {}, {}, slot.error};
}

SlotTokens append_drawn(Slot& slot, const Candidate& drawn, std::span<const Candidate> best,
                        float peak, std::uint64_t total) {
  SlotTokens result;
  result.slot = slot.ref;
  if (slot.sampling.logprobs >= 0) {
    const auto entry = [&](const Candidate& c) {
      return TokenLogprob{c.token, log_probability(c.value - peak, total)};
    };
    std::vector<TokenLogprob>& list = result.logprobs.emplace_back();
    list.reserve(best.size() + 1);
    list.push_back(entry(drawn));
    for (const Candidate& c : best) list.push_back(entry(c));
  }
  slot.append(drawn.token);
  result.tokens.push_back(drawn.token);
  return result;
}

SampleScratch::SampleScratch(std::uint32_t vocabulary)
    : logits(adjusted_room(vocabulary)), z(adjusted_room(vocabulary)) {
  known.reserve(z.size());
  candidates.reserve(z.size() + 1);
}

SlotTokens draw(Slot& slot, std::span<const float> logits, std::span<const std::uint64_t> allowed,
                SampleScratch& scratch) {
  if (slot.error) return {slot.ref, {}, {}, slot.error};
  const auto [adjusted, best] = adjust(slot, {0, logits}, allowed, scratch.logits);
  if (best.value == banned) {
    const bool numbers = std::any_of(logits.begin(), logits.end(), [](float x) { return x == x; });
    return no_token(slot, numbers);
  }
  const Token token = choose(slot, adjusted, logits.size(), best, scratch);
  const Candidate drawn{adjusted.of(token), token};
  if (slot.sampling.logprobs < 0) return append_drawn(slot, drawn, {}, best.value, 0);
  list_best(adjusted, static_cast<std::size_t>(slot.sampling.logprobs), scratch.candidates);
  return append_drawn(slot, drawn, scratch.candidates, best.value,
                      total_mass(adjusted, best.value));
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
