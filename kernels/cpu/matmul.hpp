#pragma once
// Matrix products with float32, float16 and bfloat16 weights; packed_matmul.hpp has the quantized
// ones. Each result is one dot product in sixteen lanes, lane l adding elements l, l + 16,
// l + 32 ... with fused multiply-adds, folded by the tree of lanes-inl.hpp: the same whatever the
// number of rows, threads or the instruction set.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/program.hpp"

namespace sluice::kernels::cpu {

/// Activation rows are padded with zeros to a multiple of this, which every weight group divides.
inline constexpr std::size_t row_quantum = 32;

constexpr std::size_t padded(std::size_t width) {
  return (width + row_quantum - 1) / row_quantum * row_quantum;
}

struct PackedWeight;

/// A weight where it lies, and what products use instead where its format is packed.
struct CpuWeight : WeightShape {
  std::size_t row_bytes = 0;
  const std::byte* data = nullptr;
  const PackedWeight* packed = nullptr;
};

/// Activations, [rows, stride]
struct RowView {
  float* data = nullptr;
  std::size_t stride = 0;

  float* row(std::size_t r) const { return data + r * stride; }
};

struct Product {
  CpuWeight weight;
  const float* bias = nullptr;  ///< [weight.rows] or none
  RowView in;                   ///< padded to row_quantum with zeros
  RowView out;                  ///< starts at the product's first column
  bool accumulate = false;
};

/// Weight rows that one task takes when many activation rows share them: together they stay in a
/// core's second-level cache (256 KiB of float32), and are whole register tiles.
std::uint32_t tile_rows(std::uint32_t cols);

/// Scratch of multiply(), in floats.
std::size_t tile_floats(std::uint32_t cols);

/// out[r][o] for weight rows o in [first, last) and activation rows r in [0, rows).
void multiply(const Product& product, std::uint32_t rows, std::uint32_t first, std::uint32_t last,
              float* scratch);

}  // namespace sluice::kernels::cpu
