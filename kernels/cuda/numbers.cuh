#pragma once
// Half-precision numbers as their bits: the device's conversions, and the host's for the tests.

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

/// Two bf16 in a word, the first in its low half.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(both.x) | std::uint32_t{__bfloat16_as_ushort(both.y)} << 16;
#else
  return f32_to_bf16(low) | std::uint32_t{f32_to_bf16(high)} << 16;
#endif
}

/// Both halves of a word times a bf16, whose product must be exact.
__device__ inline std::uint32_t scale_bf16(std::uint32_t both, std::uint16_t factor) {
#ifdef __CUDACC__
  const std::uint32_t factors = factor | std::uint32_t{factor} << 16;
  std::uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(both), "r"(factors), "r"(0x80008000U));
  return result;
#else
  const float scale = widen_bf16(factor);
  return pack_bf16(widen_bf16(both & 0xFFFFU) * scale, widen_bf16(both >> 16) * scale);
#endif
}

/// The nearest of 8-bit floats with 4 bits of exponent and 3 of fraction, ties to even: of a value
/// of 448 at most, times 2^-120 the bits are bf16's own.
__device__ inline std::uint8_t narrow_e4m3(float value) {
  const std::uint32_t bits = bits_of(value * 0x1p-120F);
  const std::uint32_t rounded = (bits & 0x7FFFFFFFU) + 0x7FFFFU + (bits >> 20 & 1U);
  return static_cast<std::uint8_t>(rounded >> 20 | (bits >> 24 & 0x80U));
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
