#pragma once
// What the products' kernels share, so that a result's bits are the same from each of them. For
// tensor cores weights and activations are bf16, sums float32. A row's columns are cut into at most
// `sections` sections; within one, a chain of tensor-core steps of 16 columns each, from the first
// to the last; the sections are added in their order. This depends on the weight's columns alone.

#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/step.cuh"
#include "kernels/cuda/unpack.cuh"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t sections = 8;

/// Columns of two tensor-core steps. Lane t of four takes elements 8t .. 8t + 7 of them, one read
/// of a row, as its two pairs of the first step and two of the second: which of a step's columns an
/// element takes does not matter, so long as weight and activation agree.
inline constexpr std::uint32_t chunk = 32;

/// Columns of a weight that is not packed, in whole chunks: what its rows hold at least.
__host__ __device__ inline std::uint32_t chunked(std::uint32_t columns) {
  return divide_up(columns, chunk) * chunk;
}

inline constexpr std::uint32_t tile_rows = 16;  ///< weight rows of a tensor-core tile
inline constexpr std::uint32_t tile_inputs = 8;  ///< its activation rows

__host__ __device__ inline std::uint32_t section_columns(std::uint32_t columns) {
  return padded(divide_up(columns, sections));
}

/// sums += a chunk of 16 weight rows, of which this lane has g and g + 8, times 8 activation rows,
/// of which it has g.
__device__ inline void multiply_chunk(TileSums& sums, const uint4& upper, const uint4& lower,
                                      const uint4& x) {
  multiply_bf16(sums, {{upper.x, lower.x, upper.y, lower.y}}, {{x.x, x.y}});
  multiply_bf16(sums, {{upper.z, lower.z, upper.w, lower.w}}, {{x.z, x.w}});
}

/// Which of the products side by side a block works on, and where in it.
struct Place {
  std::uint32_t product = 0;
  std::uint32_t row = 0;  ///< first weight row
};

/// Blocks of `block_rows` weight rows are dealt out product after product.
__device__ inline Place find_place(const LinearArgs& args, std::uint32_t block,
                                   std::uint32_t block_rows) {
  for (std::uint32_t i = 0;; ++i) {
    const std::uint32_t blocks = divide_up(args.product[i].weight.rows, block_rows);
    if (block < blocks) return {i, block * block_rows};
    block -= blocks;
  }
}

inline std::uint32_t count_blocks(const LinearArgs& args, std::uint32_t block_rows) {
  std::uint32_t blocks = 0;
  for (std::uint32_t i = 0; i < args.count; ++i) {
    blocks += divide_up(args.product[i].weight.rows, block_rows);
  }
  return blocks;
}

/// What weight row o makes of the sum of its products.
__device__ inline float scaled(const Product& product, std::uint32_t o, float sum) {
  if (product.weight.scales != nullptr) sum *= product.weight.scales[o];
  return product.bias != nullptr ? sum + product.bias[o] : sum;
}

/// Asks for what scaled() reads of some 16 rows from `row` on, which would be the last thing that a
/// block waits for.
__device__ inline void prefetch_scaling(const Product& product, std::uint32_t row) {
  if (product.weight.scales != nullptr) prefetch_line(product.weight.scales + row);
  if (product.bias != nullptr) prefetch_line(product.bias + row);
}

/// Of weight row o and activation row r.
__device__ inline void write_result(const Product& product, std::uint32_t o, std::uint32_t r,
                                    float sum) {
  float* out = row_of(product.out, r) + o;
  const float value = scaled(product, o, sum);
  *out = product.accumulate ? *out + value : value;
}

// The kernels, for weights of any format but float32.
cudaError_t linear_few(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_few_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_many(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);

cudaError_t prepare_many(const DeviceWeight& weight);

// The same for packed weights.
cudaError_t prepare_stream(const DeviceWeight& weight);
cudaError_t prepare_split(const DeviceWeight& weight);
cudaError_t prepare_wide(const DeviceWeight& weight);
cudaError_t linear_stream(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_stream_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_split(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_split_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_wide(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear_wide_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain);

/// Activation rows up to which linear_few and linear_stream are the faster.
inline constexpr std::uint32_t few_rows = 16;

/// And those that linear_split takes.
inline constexpr std::uint32_t split_rows = 64;

}  // namespace sluice::kernels::cuda
