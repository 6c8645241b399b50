#pragma once
// Products of packed weights with activations; sixteen results at once, a lane each, and every
// result in one order whatever the number of rows, threads or the instruction set:
//   float32, float16   one chain of fused multiply-adds over the columns (matmul_float)
//   bfloat16           with x rounded to bfloat16 or as it is, block by block of 32 columns, from
//                      zero on: of each the sum of two such chains, of sixteen columns each and
//                      from zero on, of each pair of columns the odd one first; denormals taken for
//                      zeros (matmul_bf16, matmul_bf16_tiles)
//   quantized          block by block of 32 columns, with fused multiply-adds,
//     (d * step) * (2^-a (q . x_a) + 2^-b (q . x_b)) + m * (sum of x)            (matmul_int8,
//                                                                               matmul_tiles)
// a and b being the block's halves, x rounded to int8 (quantize.hpp), q . x exact integers; Q6_K,
// whose halves have scales of their own, adds them apart, and where m is a multiple of d, that is
// taken from q instead.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/narrow.hpp"
#include "kernels/cpu/packed.hpp"
#include "kernels/cpu/quantize.hpp"
#include "kernels/program.hpp"

namespace sluice::kernels::cpu {

/// Activation rows are padded with zeros to a multiple of this: whole blocks of weights.
inline constexpr std::size_t row_quantum = block_cols;

constexpr std::size_t padded(std::size_t width) {
  return (width + row_quantum - 1) / row_quantum * row_quantum;
}

/// Of a file, not read in place, but copied as it is loaded: a page that is touched brings fifteen
/// others.
inline constexpr std::size_t copied_bytes = std::size_t{32} << 10;

/// From so many rows on products of quantized weights take strips in pairs where a processor has
/// AVX-512: the last of an odd number goes alone and takes longer than half of one.
inline constexpr std::uint32_t paired_rows = 8;

/// A weight where it lies, and as products read it.
struct CpuWeight : WeightShape {
  std::size_t row_stride = 0;  ///< bytes
  const std::byte* data = nullptr;
  FileSource source;  ///< of `data`
  const PackedWeight* packed = nullptr;
};

/// Activations, [rows, stride]
struct RowView {
  float* data = nullptr;
  std::size_t stride = 0;

  float* row(std::size_t r) const { return data + r * stride; }
};

/// Rows rounded for each kind of product that reads them; without data where none does.
struct RoundedRows {
  QuantizedView int8;
  NarrowView bf16;
};

/// Rounds columns [first, last) of row x into row r of `rows`; `first` is a multiple of row_quantum
/// and `last` one too or the row's end, behind which x is padded to one.
inline void round_row(const float* x, std::uint32_t first, std::uint32_t last,
                      const RoundedRows& to, std::size_t r, std::size_t rows) {
  const auto end = static_cast<std::uint32_t>(padded(last));
  if (to.int8.data != nullptr) quantize(x, first, end, to.int8, r, rows);
  if (to.bf16.data != nullptr) narrow(x, first, end, to.bf16, r, rows);
}

struct Product {
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;  ///< [weight rows, rounded up to strips] or none
  RowView in;                   ///< padded to row_quantum with zeros
  RoundedRows rounded;          ///< the same as the weight's format reads it, if rounded
  RowView out;                  ///< starts at the product's first column
  bool accumulate = false;
};

/// out[r][o] for the rows o of strips [first, last) and activation rows r in [0, rows).
void multiply(const Product& product, std::uint32_t rows, std::uint32_t first, std::uint32_t last);

}  // namespace sluice::kernels::cpu
