#pragma once
// Products of packed weights with rounded activations. Each result adds, block by block of 32
// columns, in this order and with fused multiply-adds
//   d * (step_a * (q . x_a) + step_b * (q . x_b)) + m * (sum of x)
// a and b being the block's halves, q . x exact integers: the same whatever the number of rows,
// threads or the instruction set. Q6_K, whose halves have scales of their own, adds them apart.

#include <cstdint>

#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/packed.hpp"
#include "kernels/cpu/quantize.hpp"

namespace sluice::kernels::cpu {

struct PackedProduct {
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;  ///< [weight rows, rounded up to strips] or none
  QuantizedView in;
  RowView out;                  ///< starts at the product's first column
  bool accumulate = false;
};

/// out[r][o] for the rows o of strips [first, last) and activation rows r in [0, rows).
void multiply(const PackedProduct& product, std::uint32_t rows, std::uint32_t first,
              std::uint32_t last);

}  // namespace sluice::kernels::cpu
