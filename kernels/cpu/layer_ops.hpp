#pragma once
// The row-wise operations of a layer. Each call does one row; rows are independent.

#include <cstdint>

#include "kernels/backend.hpp"
#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/state.hpp"

namespace sluice::kernels::cpu {

/// out[0, padded(width)) = row `row` of the table times `scale`.
void embed_row(const CpuWeight& table, std::uint32_t row, float scale, float* out);

/// `in`, `gain` and `out` are padded with zeros to padded(width); `in` may be `out`. Accumulating
/// adds to `out`.
void norm_row(const float* in, const float* gain, std::uint32_t width, float epsilon,
              bool accumulate, float* out);

/// norm_row of one head [head_dim], which nothing pads; `gain` is padded. `head` may be `out`.
void norm_head(const float* head, const float* gain, std::uint32_t head_dim, float epsilon,
               float* out);

/// out[i] = activation(in[i]) * in[width + i] for i in [first, last)
void gate_row(const float* in, Activation activation, std::uint32_t width, std::uint32_t first,
              std::uint32_t last, float* out);

/// values[i] = cap * tanh(values[i] / cap) for i in [first, last), which start at a multiple of 16;
/// `values` is padded.
void soft_cap_row(float cap, std::uint32_t first, std::uint32_t last, float* values);

/// Cosines, then sines, [2, pairs], of a position's rotations. The angle is the float32 product of
/// position and inverse frequency, as transformers computes it; its functions are exact.
void angles_row(std::uint32_t position, const float* inverse_frequencies, std::uint32_t pairs,
                float magnitude, float* out);

/// Rotates one head [head_dim] in place.
void rotate_head(float* head, const float* angles, std::uint32_t pairs, RopePairs order);

/// Rotates a key head (in `scratch`, [head_dim]; the row keeps its own) and stores key and value.
void store_head(const float* key, const float* value, std::uint32_t head_dim, const float* angles,
                std::uint32_t pairs, RopePairs order, const KvPlace& place);

}  // namespace sluice::kernels::cpu
