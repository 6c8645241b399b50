#pragma once
// What a Gate makes of two numbers: a kernel of its own takes them from memory, one that multiplies
// a few rows from where it has just summed them, and both give the same bits.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {

__device__ inline float silu(float x) { return x / (1.0F + exp_f32(0.0F - x)); }

/// 0.5 x (1 + tanh(y)) = x / (1 + e^(-2y)) with y = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ inline float gelu_tanh(float x) {
  const float y = x * fma_f32(0.044715F * x, x, 1.0F);
  return x / (1.0F + exp_f32(-1.5957691216F * y));
}

__device__ inline float gated(const GateArgs& args, float x, float other) {
  return (args.gelu ? gelu_tanh(x) : silu(x)) * other;
}

}  // namespace sluice::kernels::cuda
