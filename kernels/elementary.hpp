#pragma once
// exp, log, sine and cosine with one result on every machine: made of IEEE operations and fused
// multiply-adds in a fixed order, never of a C library, whose last bit depends on its version.
// Vector code repeats these steps and agrees to the bit.

#include <bit>
#include <cmath>
#include <cstdint>

/// Before a function that CUDA kernels call too. It may call no constexpr function of the library.
#ifdef __CUDACC__
#define SLUICE_HOST_DEVICE __host__ __device__
#else
#define SLUICE_HOST_DEVICE
#endif

namespace sluice::kernels {

/// a * b + c, rounded once
SLUICE_HOST_DEVICE inline float fma_f32(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

SLUICE_HOST_DEVICE inline std::uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return std::bit_cast<std::uint32_t>(value);
#endif
}

SLUICE_HOST_DEVICE inline float float_of(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

/// Constants of exp_f32, shared with its vector form.
struct ExpSteps {
  static constexpr float lowest = -86.5F;        ///< below: 0, before 2^n would be subnormal
  static constexpr float highest = 88.0F;        ///< above: as at 88, still finite
  static constexpr float log2_e = 1.44269504F;
  static constexpr float round = 12582912.0F;    ///< 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375F;  ///< 9 bits: n * ln2_high is exact
  static constexpr float ln2_low = -2.12194440e-4F;
  /// Taylor, highest first; |r| <= ln2 / 2, so the next term is below 6e-9.
  static constexpr float taylor[8] = {1.0F / 5040, 1.0F / 720, 1.0F / 120, 1.0F / 24,
                                      1.0F / 6,    0.5F,       1.0F,       1.0F};
};

/// e^x within 2 units in the last place; NaN of NaN.
SLUICE_HOST_DEVICE inline float exp_f32(float x) {
  if (x != x) return x;
  if (x < ExpSteps::lowest) return 0.0F;
  if (x > ExpSteps::highest) x = ExpSteps::highest;
  const float shifted = fma_f32(x, ExpSteps::log2_e, ExpSteps::round);
  const float n = shifted - ExpSteps::round;
  float r = fma_f32(-n, ExpSteps::ln2_high, x);
  r = fma_f32(-n, ExpSteps::ln2_low, r);
  constexpr float taylor[8] = {ExpSteps::taylor[0], ExpSteps::taylor[1], ExpSteps::taylor[2],
                               ExpSteps::taylor[3], ExpSteps::taylor[4], ExpSteps::taylor[5],
                               ExpSteps::taylor[6], ExpSteps::taylor[7]};
  float p = taylor[0];
  for (int i = 1; i < 8; ++i) p = fma_f32(p, r, taylor[i]);
  // The integer n sits in the low bits of `shifted`; moved up it adds n to the exponent.
  return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

/// tanh(x) within 2e-7: 1 - 2 / (1 + e^2x)
SLUICE_HOST_DEVICE inline float tanh_f32(float x) {
  return 1.0F - 2.0F / (1.0F + exp_f32(x + x));
}

/// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1], exact to about 1 unit even near 0.
SLUICE_HOST_DEVICE inline float log1p_f32(float f) {
  const float s = f / (2.0F + f);  // log(1 + f) = 2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172
  const float s2 = s * s;
  float p = 2.0F / 11;
  p = fma_f32(p, s2, 2.0F / 9);
  p = fma_f32(p, s2, 2.0F / 7);
  p = fma_f32(p, s2, 2.0F / 5);
  p = fma_f32(p, s2, 2.0F / 3);
  return fma_f32(p * s2, s, 2.0F * s);
}

/// Natural logarithm of a positive, normal x.
SLUICE_HOST_DEVICE inline float log_f32(float x) {
  const auto bits = static_cast<std::int32_t>(bits_of(x));
  const std::int32_t exponent = (bits - 0x3F3504F3) >> 23;  // the mantissa lands in [0.707, 1.414)
  const float mantissa = float_of(static_cast<std::uint32_t>(bits - exponent * (1 << 23)));
  const auto e = static_cast<float>(exponent);
  const float tail = fma_f32(e, ExpSteps::ln2_low, log1p_f32(mantissa - 1.0F));
  return fma_f32(e, ExpSteps::ln2_high, tail);
}

struct SineCosine {
  double sine;
  double cosine;
};

/// Of an angle of at most about 2^20 radians, to about 1e-15: exact once rounded to float32, but
/// for rare ties.
SLUICE_HOST_DEVICE inline SineCosine sine_cosine(double angle) {
  constexpr double two_over_pi = 0.63661977236758134308;
  constexpr double half_pi_high = 0x1.921fb54400000p+0;  // 33 bits: times a 20-bit n exact
  constexpr double half_pi_low = 0x1.0b4611a626331p-34;
  const double n = floor(angle * two_over_pi + 0.5);
  const double r = (angle - n * half_pi_high) - n * half_pi_low;
  const double r2 = r * r;
  double s = -1.0 / 1307674368000.0;  // -1/15!; |r| <= pi/4, the next term is below 5e-17
  double c = 1.0 / 20922789888000.0;  // 1/16!
  constexpr double sine_terms[] = {1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0,
                                   -1.0 / 5040.0,      1.0 / 120.0,       -1.0 / 6.0};
  constexpr double cosine_terms[] = {-1.0 / 87178291200.0, 1.0 / 479001600.0, -1.0 / 3628800.0,
                                     1.0 / 40320.0,        -1.0 / 720.0,      1.0 / 24.0,
                                     -0.5,                 1.0};
  for (const double term : sine_terms) s = s * r2 + term;
  for (const double term : cosine_terms) c = c * r2 + term;
  s = s * r2 * r + r;
  switch (static_cast<std::int64_t>(n) & 3) {
    case 0: return {s, c};
    case 1: return {c, -s};
    case 2: return {-s, -c};
    default: return {-c, s};
  }
}

}  // namespace sluice::kernels
