#pragma once
// Weights as the CPU's products read them: the file's own bits, sixteen rows side by side, so that
// one vector holds the same columns of sixteen rows and a product needs no folding of lanes. As
// many bytes as in the file (the K formats' scales take 3% more).
//
// A strip is sixteen rows, zeros beyond the last row and the last column. A block is 32 columns.
// float32 and float16 lie column by column, sixteen rows each; float16 with two strips side by
// side, so that a column fills a line. bfloat16 lies by pairs of columns, row r's two in word r,
// the even column below, which is a line; two strips' lines side by side. A quantized strip has
// first the scales of all its blocks, then, at a multiple of 64 bytes, the quants. Of a block,
// vector j of 0..7 means columns 4j .. 4j + 3, byte 4 r + i being column 4j + i of row r:
//   nibbles   4 vectors; vector j in the low half of vector j % 4's bytes, 4 + j in the high half
//   bytes     8 vectors, the signed value plus 128
//   5th bits  8 words of 64 bits, one a vector, bit 4 r + i for byte 4 r + i
//   5th, 6th  2 vectors; two bits for vector j at bit 2 (j % 4) of vector j / 4's bytes
// The scales of a block are sixteen halves, or pairs of bytes where a head of halves for each 256
// columns comes before (K formats).

#include <cstddef>
#include <cstdint>

#include "kernels/program.hpp"

namespace sluice::kernels::cpu {

/// Goes up whenever weights are packed otherwise: tests/kernels/packed.cpp knows the bits of each.
inline constexpr std::uint32_t packed_version = 1;

inline constexpr std::uint32_t strip_rows = 16;
inline constexpr std::uint32_t block_cols = 32;

/// From one column of a strip of float32 or float16 to its next.
inline constexpr std::uint32_t column_bytes = 64;

/// From one pair of columns of a strip of bfloat16 to its next.
inline constexpr std::uint32_t pair_bytes = 128;

struct PackedLayout {
  std::uint32_t quant_bytes = 0;  ///< of a block, for sixteen rows
  std::uint32_t scale_bytes = 0;  ///< of a block
  std::uint32_t head_bytes = 0;   ///< of eight blocks, before their scales
  std::uint32_t beside = 1;       ///< strips whose columns lie interleaved
  std::uint32_t beside_bytes = 0; ///< from one of them to the next

  constexpr std::size_t scale_at(std::size_t block) const {
    const std::size_t heads = head_bytes == 0 ? 0 : block / 8 + 1;
    return heads * head_bytes + block * scale_bytes;
  }
};

constexpr PackedLayout packed_layout(Format format) {
  switch (format) {
    case Format::q4_0: return {256, 32, 0};
    case Format::q4_1: return {256, 64, 0};
    case Format::q5_0: return {256 + 64, 32, 0};
    case Format::q5_1: return {256 + 64, 64, 0};
    case Format::q8_0: return {512, 32, 0};
    case Format::q4_k: return {256, 32, 64};
    case Format::q5_k: return {256 + 64, 32, 64};
    case Format::q6_k: return {256 + 128, 32, 32};
    case Format::f32: return {2048, 0, 0};
    case Format::f16: return {1024, 0, 0, 2, column_bytes / 2};
    case Format::bf16: return {1024, 0, 0, 2, pair_bytes / 2};
  }
  return {};
}

/// As what products with weights of a format read their activations.
enum class Activations : std::uint8_t {
  f32,   ///< as they are
  bf16,  ///< narrow.hpp
  int8,  ///< quantize.hpp
};

constexpr Activations activations_of(Format format) {
  if (format == Format::f32 || format == Format::f16) return Activations::f32;
  return format == Format::bf16 ? Activations::bf16 : Activations::int8;
}

/// A weight in strips.
struct PackedWeight {
  Format format = Format::f32;
  std::uint32_t rows = 0;
  std::uint32_t cols = 0;
  std::size_t quants_at = 0;    ///< bytes of a strip's scales, rounded up to 64
  std::size_t strip_bytes = 0;
  std::uint8_t* data = nullptr; ///< bytes(), aligned to 64, zeros before fill()

  std::uint32_t strips() const { return (rows + strip_rows - 1) / strip_rows; }
  std::uint32_t blocks() const { return (cols + block_cols - 1) / block_cols; }
  /// Strips that lie interleaved, the first of them at a multiple of this.
  std::uint32_t beside() const { return packed_layout(format).beside; }
  const std::uint8_t* strip(std::uint32_t index) const { return data + strip_at(index); }

  std::size_t bytes() const {
    return (strips() + beside() - 1) / beside() * beside() * strip_bytes;
  }

  /// Of this shape; `data` is for the caller to give.
  static PackedWeight of(const WeightShape& shape);

  /// Fills a strip from its rows as the file has them, `row_stride` bytes apart. Any thread, a
  /// strip each.
  void fill(std::uint32_t index, const std::byte* rows_in_file, std::size_t row_stride);

 private:
  std::size_t strip_at(std::uint32_t index) const {
    const std::uint32_t among = index % beside();
    return (index - among) * strip_bytes + among * packed_layout(format).beside_bytes;
  }
};

}  // namespace sluice::kernels::cpu
