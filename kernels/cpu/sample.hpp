#pragma once
// Draws a row's token as kernels/sampling.hpp defines it.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/batch.hpp"
#include "kernels/cpu/state.hpp"

namespace sluice::kernels::cpu {

/// Room for one row's sampling; one a thread. Sized once, so that a step allocates nothing.
struct SampleScratch {
  explicit SampleScratch(std::uint32_t vocabulary);

  std::vector<float> logits;      ///< adjusted, [round16(vocabulary)], the rest banned
  std::vector<float> z;           ///< [round16(vocabulary)]
  std::vector<float> candidates;
};

/// Draws from `logits` [vocabulary], appends the token to the slot and reports it. `allowed` is a
/// mask's words, empty for any token. Without a finite logit to draw from: `internal`, and the slot
/// is done for.
SlotTokens draw(Slot& slot, std::span<const float> logits, std::span<const std::uint64_t> allowed,
                SampleScratch& scratch);

}  // namespace sluice::kernels::cpu
