#pragma once
// multiply() by the kind of weight.

#include "kernels/cpu/matmul.hpp"

namespace sluice::kernels::cpu {

/// Of weights in float32 or float16.
void multiply_float(const Product& product, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last);

/// Of weights in bfloat16 with activations rounded to it, or as they are where none are rounded.
void multiply_bf16(const Product& product, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last);

/// Whether they are multiplied with the processor's bfloat16 dot products: the same bits, sooner.
bool bf16_by_dots();

/// Of quantized weights with rounded activations.
void multiply_int8(const Product& product, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last);

}  // namespace sluice::kernels::cpu
