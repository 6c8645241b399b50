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

/// The same of so many rows that they are rounded for tiles.
void multiply_bf16_tiles(const Product& product, std::uint32_t rows, std::uint32_t first,
                         std::uint32_t last);

/// Whether fewer rows, and attention in pairs, use the processor's bfloat16 dot products: the same
/// bits, sooner where it starts more than one in two cycles.
bool bf16_by_dots();

/// Of quantized weights with rounded activations.
void multiply_int8(const Product& product, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last);

/// The same of so many rows that they are rounded for tiles.
void multiply_tiles(const Product& product, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last);

/// Puts blocks of one row into their tiles'.
void put_in_tiles(const QuantizedBlock* blocks, std::size_t count, std::size_t row,
                  TiledBlock* to);

}  // namespace sluice::kernels::cpu
