#pragma once
// Products of packed weights with activations; sixteen results at once, a lane each, and every
// result in one order whatever the number of rows, threads or the instruction set:
//   float32, float16, bfloat16   one chain of fused multiply-adds over the columns (matmul_float)
//   quantized                    block by block of 32 columns, with fused multiply-adds,
//     d * (step_a * (q . x_a) + step_b * (q . x_b)) + m * (sum of x)            (matmul_int8)
// a and b being the block's halves, x rounded to int8, q . x exact integers; Q6_K, whose halves
// have scales of their own, adds them apart, and Q4_0 and Q8_0, whose m is -8 d and -128 d, take q
// less 8 and 128.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/packed.hpp"
#include "kernels/cpu/quantize.hpp"
#include "kernels/program.hpp"

namespace sluice::kernels::cpu {

/// Activation rows are padded with zeros to a multiple of this: whole blocks of weights.
inline constexpr std::size_t row_quantum = block_cols;

constexpr std::size_t padded(std::size_t width) {
  return (width + row_quantum - 1) / row_quantum * row_quantum;
}

/// A weight where it lies, and as products read it.
struct CpuWeight : WeightShape {
  std::size_t row_stride = 0;  ///< bytes
  const std::byte* data = nullptr;
  bool paged = false;  ///< `data` lies in a mapped file
  const PackedWeight* packed = nullptr;
};

/// Activations, [rows, stride]
struct RowView {
  float* data = nullptr;
  std::size_t stride = 0;

  float* row(std::size_t r) const { return data + r * stride; }
};

struct Product {
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;  ///< [weight rows, rounded up to strips] or none
  RowView in;                   ///< padded to row_quantum with zeros
  QuantizedView rounded;        ///< the same rounded, where the weight is quantized
  RowView out;                  ///< starts at the product's first column
  bool accumulate = false;
};

/// out[r][o] for the rows o of strips [first, last) and activation rows r in [0, rows).
void multiply(const Product& product, std::uint32_t rows, std::uint32_t first, std::uint32_t last);

}  // namespace sluice::kernels::cpu
