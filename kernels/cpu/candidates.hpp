#pragma once
// How ranks draw a token when each has the logits of its own tokens alone: to the bit what
// sample.hpp gives for the whole row. Each adjusts its logits; then all tell
//   1. the highest of their own. With the row's peak everyone knows z;
//   2. for rows that the peak does not decide: masses, that add up the same in any order; if there
//      is no threshold, the winner of the race among their own tokens; else their best tokens.
// Where top-k or top-p reaches below a list's end nobody can tell the token, which all know alike:
// the row is gathered whole.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/cpu/sample.hpp"

namespace sluice::kernels::cpu {

/// Tokens of a rank's list where top-k or top-p asks for one. Longer ones are seldom needed and
/// take time to make: of 64, 128, 256 and 512, 64 gave the shortest steps at top-p 0.9 and
/// temperature 0.7 (18.5, 19.5, 20.8 and 24.2 ms for 16 rows of SmolLM2-135M on three ranks,
/// sealed).
inline constexpr std::size_t list_tokens_max = 64;

/// What a rank tells of a row first.
struct Peak {
  Candidate best;
  std::uint32_t numbers = 0;  ///< whether any of the model's logits is not NaN
};

/// Of two ranks' tokens together.
Peak higher(const Peak& a, const Peak& b);

/// What a rank tells next; its list lies behind it.
struct Tally {
  std::uint64_t kept_mass = 0;   ///< of z, at the temperature, without what min-p rules out
  std::uint64_t total_mass = 0;  ///< of adjusted logits below the peak, for log-probabilities
  Candidate winner;
  float winner_logit = 0.0F;
  std::uint32_t listed = 0;  ///< less than was room for: every token that is not banned
};
static_assert(sizeof(Tally) % alignof(Tally) == 0 && alignof(Candidate) <= alignof(Tally));

inline constexpr std::size_t tally_bytes_max =
    sizeof(Tally) + list_tokens_max * sizeof(Candidate);

/// Where the ranks' tallies of one row lie, in rank order.
struct Tallies {
  std::byte* first = nullptr;
  std::size_t bytes = 0;   ///< of each, a multiple of 8
  std::size_t stride = 0;  ///< bytes from one to the next rank's
  std::uint32_t ranks = 1;

  std::byte* of(std::uint32_t rank) const { return first + rank * stride; }
  std::size_t room() const { return (bytes - sizeof(Tally)) / sizeof(Candidate); }
};

/// A rank's tokens, with room for their adjusted logits: `adjusted` is read by `tally`.
Peak find_peak(const Slot& slot, const TokenValues& raw, std::span<float> room,
               TokenValues& adjusted);

/// Bytes of a row's tally, a multiple of 8, the same on every rank: 0 where the peak decides.
std::size_t tally_bytes(const Slot& slot, const Peak& peak, std::uint32_t vocabulary);

/// Writes rank `rank`'s tally. `own`: the best of its tokens; `peak`: the row's.
void tally(const Slot& slot, const TokenValues& adjusted, const Candidate& own, const Peak& peak,
           std::uint32_t vocabulary, SampleScratch& scratch, const Tallies& out,
           std::uint32_t rank);

/// Draws as draw() does. Nothing has happened where that takes the whole row: none.
std::optional<SlotTokens> settle(Slot& slot, const Peak& peak, const Tallies& tallies,
                                 std::uint32_t vocabulary, SampleScratch& scratch);

}  // namespace sluice::kernels::cpu
