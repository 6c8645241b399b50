#pragma once
// Weights in the order in which tensor cores take them, for devices with the kernels for that. A
// panel of 16 rows is cut into units of 512 bytes, from its first columns to its last; 16 bytes of
// a unit are what a lane holds of one product's first operand, or of two. So a warp reads whole
// lines, one behind the other, and what it reads needs no shuffling. Rows are filled up to whole
// panels and columns to padded() ones, with zeros.

#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/unpack.cuh"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t unit_bytes = 512;

/// A unit of 16 columns.
struct PackedBf16 {
  static constexpr std::uint32_t columns = 16, element_bytes = 2, tiles = 1;

  /// Where in a lane's bytes an element lies, of row `row` and column `column` of a unit.
  static __host__ __device__ constexpr std::uint32_t place(std::uint32_t row,
                                                           std::uint32_t column) {
    return (column / 8 * 2 + row / 8) * 4 + column % 2 * 2;
  }
  static __device__ void unpack(const uint4& unit, TileA (&out)[tiles]) {
    out[0] = {{unit.x, unit.y, unit.z, unit.w}};
  }
};

/// A unit of 32 columns. Of a word's four bytes the lowest and the third are neighbours in a row,
/// the others those eight rows further down: a shift and a mask move two to where bf16 has its bits
/// (UnpackE4m3).
struct PackedE4m3 {
  static constexpr std::uint32_t columns = 32, element_bytes = 1, tiles = 2;

  static __host__ __device__ constexpr std::uint32_t place(std::uint32_t row,
                                                           std::uint32_t column) {
    return column / 16 * 8 + column % 16 / 8 * 4 + column % 2 * 2 + row / 8;
  }
  static __device__ std::uint32_t low(std::uint32_t q) {
    return scale_bf16((q << 4 & 0x07F007F0U) | (q << 8 & 0x80008000U), UnpackE4m3::scale);
  }
  static __device__ std::uint32_t high(std::uint32_t q) {
    return scale_bf16((q >> 4 & 0x07F007F0U) | (q & 0x80008000U), UnpackE4m3::scale);
  }
  static __device__ void unpack(const uint4& unit, TileA (&out)[tiles]) {
    out[0] = {{low(unit.x), high(unit.x), low(unit.y), high(unit.y)}};
    out[1] = {{low(unit.z), high(unit.z), low(unit.w), high(unit.w)}};
  }
};

template <class P>
__host__ __device__ constexpr std::size_t panel_bytes(std::uint32_t columns) {
  return std::size_t{padded(columns) / P::columns} * unit_bytes;
}

/// Where an element lies in a packed weight.
template <class P>
__host__ __device__ constexpr std::size_t packed_at(std::uint32_t columns, std::uint32_t row,
                                                    std::uint32_t column) {
  const std::uint32_t lane = row % 8 * 4 + column % 8 / 2;
  return row / panel_rows * panel_bytes<P>(columns) +
         std::size_t{column / P::columns} * unit_bytes + lane * 16 +
         P::place(row % panel_rows, column % P::columns);
}

/// Calls f(P()) for how a packed weight is packed.
template <class F>
cudaError_t with_packed(const DeviceWeight& weight, F f) {
  return weight.scales != nullptr ? f(PackedE4m3()) : f(PackedBf16());
}

}  // namespace sluice::kernels::cuda
