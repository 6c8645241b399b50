#pragma once
// 8-bit floats with 4 bits of exponent (bias 7) and 3 of fraction, in double.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sluice::kernels::test {

/// Of finite ones: all but 0x7F and 0xFF.
inline double e4m3_value(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 3 & 15U);
  const double fraction = static_cast<double>(bits & 7U) / 8;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
  return (bits & 0x80U) != 0 ? -magnitude : magnitude;
}

/// The bits of the nearest finite one; between two the even.
inline std::uint32_t e4m3_nearest(double value) {
  std::uint32_t best = 0;
  for (std::uint32_t bits = 1; bits < 0x7FU; ++bits) {
    const double off = std::abs(e4m3_value(bits) - std::abs(value));
    const double best_off = std::abs(e4m3_value(best) - std::abs(value));
    if (off < best_off || (off == best_off && bits % 2 == 0)) best = bits;
  }
  return best | (std::signbit(value) ? 0x80U : 0U);
}

/// Its value, faster.
inline double e4m3_rounded(double value) {
  const int exponent = value == 0 ? -6 : std::max(std::ilogb(value), -6);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, 3 - exponent)), exponent - 3);
  return std::clamp(rounded, -448.0, 448.0);
}

}  // namespace sluice::kernels::test
