#pragma once
// multiply() by the kind of weight.

#include "kernels/cpu/matmul.hpp"

namespace sluice::kernels::cpu {

/// Of weights in float32, float16 or bfloat16.
void multiply_float(const Product& product, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last);

/// Of quantized weights with rounded activations.
void multiply_int8(const Product& product, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last);

}  // namespace sluice::kernels::cpu
