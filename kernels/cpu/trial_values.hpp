#pragma once
// What the processor's bfloat16 instructions are tried with before they are used.

#include <cstdint>

namespace sluice::kernels::cpu {

/// One random bfloat16 of 2^-8 to 2^8 after the other, the same in each trial.
class TrialValues {
 public:
  std::uint16_t next() {
    const std::uint32_t sign_and_fraction = draw() >> 16 & 0x807FU;
    return static_cast<std::uint16_t>(sign_and_fraction | (119 + draw() % 16) << 7);
  }

 private:
  std::uint32_t draw() { return state_ = state_ * 1664525U + 1013904223U; }

  std::uint32_t state_ = 1;
};

}  // namespace sluice::kernels::cpu
