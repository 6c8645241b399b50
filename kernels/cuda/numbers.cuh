#pragma once
// Half-precision numbers as their bits: the device's conversions, and the host's for the tests.

#include <bit>
#include <cmath>

#include "kernels/cuda/device.cuh"
#include "kernels/elementary.hpp"
#include "kernels/quant.hpp"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sluice::kernels::cuda {

__device__ inline float widen_f16(std::uint32_t bits) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#elif defined(__F16C__)
  return static_cast<float>(std::bit_cast<_Float16>(static_cast<std::uint16_t>(bits)));
#else
  return f16_to_f32(static_cast<std::uint16_t>(bits));
#endif
}

/// To nearest, ties to even.
__device__ inline std::uint16_t narrow_f16(float value) {
#ifdef __CUDACC__
  return __half_as_ushort(__float2half_rn(value));
#else
  return f32_to_f16(value);
#endif
}

__device__ inline float float_from_bits(std::uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

__device__ inline float widen_bf16(std::uint32_t bits) { return float_from_bits(bits << 16); }

/// To nearest, ties to even.
__device__ inline std::uint16_t narrow_bf16(float value) {
#ifdef __CUDACC__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  return f32_to_bf16(value);
#endif
}

#ifndef __CUDACC__
/// Rounded once: what float32 cuts off shows as its last bit, below bf16's.
inline std::uint16_t f64_to_bf16(double value) {
  const auto near = static_cast<float>(value);
  if (static_cast<double>(near) == value || !std::isfinite(value)) return f32_to_bf16(near);
  const bool beyond = std::abs(static_cast<double>(near)) > std::abs(value);
  const float cut = beyond ? std::nextafter(near, 0.0F) : near;
  return f32_to_bf16(float_from_bits(bits_of(cut) | 1U));
}
#endif

/// Two bf16 in a word, the first in its low half.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(both.x) | std::uint32_t{__bfloat16_as_ushort(both.y)} << 16;
#else
  return f32_to_bf16(low) | std::uint32_t{f32_to_bf16(high)} << 16;
#endif
}

/// a * b + c of both halves of words, each rounded once, to nearest, ties to even.
__device__ inline std::uint32_t fma_bf16(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#ifdef __CUDACC__
  std::uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  const auto half = [&](std::uint32_t shift) -> std::uint32_t {
    const auto of = [shift](std::uint32_t word) {
      return static_cast<double>(widen_bf16(word >> shift & 0xFFFFU));
    };
    return f64_to_bf16(of(a) * of(b) + of(c));
  };
  return half(0) | half(16) << 16;
#endif
}

inline constexpr std::uint32_t negative_zeros_bf16 = 0x80008000U;

/// The low half of a word twice, or the high one: how the device's products take a half, so that it
/// needs no instruction.
__device__ inline std::uint32_t twice_low(std::uint32_t word) {
#ifdef __CUDACC__
  std::uint32_t result;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low}; }"
      : "=r"(result)
      : "r"(word));
  return result;
#else
  return (word & 0xFFFFU) | word << 16;
#endif
}
__device__ inline std::uint32_t twice_high(std::uint32_t word) {
#ifdef __CUDACC__
  std::uint32_t result;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high}; }"
      : "=r"(result)
      : "r"(word));
  return result;
#else
  return word >> 16 | (word & 0xFFFF0000U);
#endif
}

/// word & mask | bits, which the compiler makes two instructions of where both are constants.
__device__ inline std::uint32_t mask_and_set(std::uint32_t word, std::uint32_t mask,
                                             std::uint32_t bits) {
#ifdef __CUDACC__
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
#else
  return (word & mask) | bits;
#endif
}

/// Both halves of a word times a bf16.
__device__ inline std::uint32_t scale_bf16(std::uint32_t both, std::uint16_t factor) {
  return fma_bf16(both, factor | std::uint32_t{factor} << 16, negative_zeros_bf16);
}

/// The nearest of 8-bit floats with 4 bits of exponent and 3 of fraction, ties to even: of a value
/// of 448 at most, times 2^-120 the bits are bf16's own.
__device__ inline std::uint8_t narrow_e4m3(float value) {
  const std::uint32_t bits = bits_of(value * 0x1p-120F);
  const std::uint32_t rounded = (bits & 0x7FFFFFFFU) + 0x7FFFFU + (bits >> 20 & 1U);
  return static_cast<std::uint8_t>(rounded >> 20 | (bits >> 24 & 0x80U));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define SLUICE_CONVERTS_E4M3
#endif

/// Any value as the device's own conversion makes an 8-bit float of it: to nearest, ties to even,
/// rounded once; 448 at most; no number stays none.
__device__ inline std::uint8_t saturate_e4m3(float value) {
  const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t sign = bits >> 24 & 0x80U;
  if (magnitude > 0x7F800000U) return 0x7F;
  if (magnitude >= 0x43E00000U) return static_cast<std::uint8_t>(sign | 0x7EU);
  if (magnitude < 0x3C800000U) {
    // Below 2^-6 they are multiples of 2^-9, as floats are from 2^14 on.
    return static_cast<std::uint8_t>(sign | (bits_of(float_from_bits(magnitude) + 0x1p14F) & 15U));
  }
  const std::uint32_t rounded = magnitude + 0x7FFFFU + (magnitude >> 20 & 1U);
  return static_cast<std::uint8_t>(sign | ((rounded >> 20) - (120U << 3)));
}

/// Two of them, the first in the low byte.
__device__ inline std::uint16_t pack_e4m3(float low, float high) {
#ifdef SLUICE_CONVERTS_E4M3
  std::uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
#else
  return static_cast<std::uint16_t>(saturate_e4m3(low) | saturate_e4m3(high) << 8);
#endif
}

/// Both halves of a word times 2^8.
__device__ inline std::uint32_t times_256_f16(std::uint32_t word) {
#ifdef __CUDACC__
  std::uint32_t result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(word), "r"(0x5C005C00U));
  return result;
#else
  return narrow_f16(widen_f16(word & 0xFFFFU) * 256.0F) |
         std::uint32_t{narrow_f16(widen_f16(word >> 16) * 256.0F)} << 16;
#endif
}

/// The low two of a word's 8-bit floats as halves, or the high two; exact.
template <bool high>
__device__ std::uint32_t widen_e4m3(std::uint32_t word) {
#ifdef SLUICE_CONVERTS_E4M3
  std::uint32_t result;
  if constexpr (high) {
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, high; }"
        : "=r"(result)
        : "r"(word));
  } else {
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }"
        : "=r"(result)
        : "r"(word));
  }
  return result;
#else
  const std::uint32_t two = high ? word >> 16 : word;
  const std::uint32_t apart = (two & 0xFFU) << 8 | (two & 0xFF00U) << 16;
  // A place to the right, exponent and fraction are a half's of 2^-8 times the value. Of no number,
  // which has them all set, a carry reaches the place above.
  const std::uint32_t magnitudes = apart >> 1 & 0x3F803F80U;
  const std::uint32_t none = (magnitudes + 0x00800080U) & 0x40004000U;
  return times_256_f16(magnitudes) | none >> 1 | (apart & 0x80008000U);
#endif
}

/// A word's bytes with the middle two in each other's place.
__device__ inline std::uint32_t swap_middle(std::uint32_t word) {
#ifdef __CUDACC__
  return __byte_perm(word, 0, 0x3120);
#else
  return (word & 0xFF0000FFU) | (word >> 8 & 0xFF00U) | (word << 8 & 0xFF0000U);
#endif
}

/// Eight halves of 16 bytes, widened.
__device__ inline void widen_eight_f16(const uint4& halves, float out[8]) {
  const std::uint32_t words[4] = {halves.x, halves.y, halves.z, halves.w};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = widen_f16(words[i] & 0xFFFFU);
    out[2 * i + 1] = widen_f16(words[i] >> 16);
  }
}

}  // namespace sluice::kernels::cuda
