#pragma once
// Half-precision numbers as their bits: the device's conversions, and the host's for the tests.

#include "kernels/cuda/device.cuh"
#include "kernels/quant.hpp"

#ifdef __CUDACC__
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

/// Eight halves of 16 bytes, widened.
__device__ inline void widen_eight_f16(const uint4& halves, float out[8]) {
  const std::uint32_t words[4] = {halves.x, halves.y, halves.z, halves.w};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = widen_f16(words[i] & 0xFFFFU);
    out[2 * i + 1] = widen_f16(words[i] >> 16);
  }
}

}  // namespace sluice::kernels::cuda
