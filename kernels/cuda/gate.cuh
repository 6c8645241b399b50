#pragma once
// What a Gate makes of two numbers: a kernel of its own takes them from memory, one that multiplies
// a few rows from where it has just summed them, and both give the same bits.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {

/// x / (1 + 2^y), within some 4 units in the last place: what comes of it is rounded to bf16.
__device__ inline float over_one_and_power(float x, float y) {
#ifdef __CUDACC__
  float power, part;
  asm("ex2.approx.f32 %0, %1;" : "=f"(power) : "f"(y));
  asm("rcp.approx.f32 %0, %1;" : "=f"(part) : "f"(1.0F + power));
  return x * part;
#else
  return x / (1.0F + exp_f32(y * 0.69314718056F));
#endif
}

__device__ inline float silu(float x) { return over_one_and_power(x, x * -1.44269504089F); }

/// 0.5 x (1 + tanh(y)) = x / (1 + e^(-2y)) with y = sqrt(2 / pi) (x + 0.044715 x^3); 2 sqrt(2 / pi)
/// log2(e) is 2.302...
__device__ inline float gelu_tanh(float x) {
  const float y = x * fma_f32(0.044715F * x, x, 1.0F);
  return over_one_and_power(x, -2.30220819814F * y);
}

__device__ inline float gated(const GateArgs& args, float x, float other) {
  return (args.gelu ? gelu_tanh(x) : silu(x)) * other;
}

}  // namespace sluice::kernels::cuda
