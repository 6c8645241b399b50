#pragma once
// Draws a row's token as kernels/sampling.hpp defines it, from whole rows of logits. Its parts also
// serve ranks, which draw from what each knows of its own tokens (candidates.hpp).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/batch.hpp"
#include "kernels/cpu/state.hpp"
#include "kernels/sampling.hpp"

namespace sluice::kernels::cpu {

/// A token with its logit, or with what it is worth in a race.
struct Candidate {
  float value = banned;
  Token token = 0;
};

/// The order of both: the higher value, the lower token among equals.
inline bool ahead(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

/// The values of consecutive tokens, from `first` on.
struct TokenValues {
  Token first = 0;
  std::span<const float> values;

  float of(Token token) const { return values[token - first]; }
};

/// Room for a number of tokens' adjusted values, wherever they begin.
std::size_t adjusted_room(std::size_t tokens);

/// Room for one row's sampling; one a thread. Sized once, so that a step allocates nothing.
struct SampleScratch {
  explicit SampleScratch(std::uint32_t vocabulary);

  std::vector<float> logits;  ///< adjusted, [adjusted_room(vocabulary)]
  std::vector<float> z;       ///< as many
  std::vector<float> known;
  std::vector<Candidate> candidates;
};

/// Draws from `logits` [vocabulary], appends the token to the slot and reports it. `allowed` is a
/// mask's words, empty for any token. Without a finite logit to draw from: `internal`, and the slot
/// is done for.
SlotTokens draw(Slot& slot, std::span<const float> logits, std::span<const std::uint64_t> allowed,
                SampleScratch& scratch);

// The parts.

/// Adjusted logits, and the best of them.
struct Adjusted {
  TokenValues logits;
  Candidate best;
};

/// Everything between the model's logits and the temperature, of all tokens, or without a mask of
/// some. `out` [adjusted_room(raw)] takes the logits; they begin at a whole block of noise, with
/// what is none of the tokens banned.
Adjusted adjust(const Slot& slot, const TokenValues& raw, std::span<const std::uint64_t> allowed,
                std::span<float> out);

/// z of adjusted logits, without what min-p rules out, in `out` [as many].
TokenValues scale(const SamplingParams& sampling, const TokenValues& logits, float peak,
                  std::span<float> out);

/// Sum of mass(value - below).
std::uint64_t total_mass(const TokenValues& values, float below);

/// Whether top-k, or one of top-k and top-p, rules tokens out.
bool has_top_k(const SamplingParams& sampling, std::size_t vocabulary);
bool has_threshold(const SamplingParams& sampling, std::size_t vocabulary);

/// Which of the buckets, the highest z first, takes the mass of z <= 0: a sixteenth each, and the
/// last all from -16 down.
inline constexpr std::size_t mass_buckets = 256;
inline std::size_t mass_bucket(float z) {
  return z > -16.0F ? static_cast<std::size_t>(z * -16.0F) : mass_buckets - 1;
}

/// The lowest z that top-k and top-p keep, `banned` where that is every one, from those of `known`:
/// all that there are (finite ones), or else all above some z. None: it takes more of them.
/// `kept_mass` is the mass of all that there are, needed without top-k. Leaves `known` with others,
/// or in another order.
std::optional<float> lowest_kept(const SamplingParams& sampling, std::size_t vocabulary,
                                 std::vector<float>& known, bool all, std::uint64_t kept_mass);

/// The token with the highest z + noise, and what that came to: `banned` where all are. `likely`:
/// one with a high z. `index`: the token's place in the output.
Candidate race(const TokenValues& z, Token likely, std::uint64_t seed, std::uint32_t index);

/// The `count` highest that are not banned, the best first. `best` needs room for one more.
void list_best(const TokenValues& logits, std::size_t count, std::vector<Candidate>& best);

/// The drawn token's place in the slot's output.
std::uint32_t output_index(const Slot& slot);

/// Reports that no token can be drawn; `numbers`: not for all of the row being NaN.
SlotTokens no_token(Slot& slot, bool numbers);

/// Appends the token, reports it, and of log-probabilities what was asked: `drawn` is its logit,
/// `best` the highest ones. `total_mass` is that of all logits below `peak`.
SlotTokens append_drawn(Slot& slot, const Candidate& drawn, std::span<const Candidate> best,
                        float peak, std::uint64_t total_mass);

}  // namespace sluice::kernels::cpu
