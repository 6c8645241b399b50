// Products of weight rows, straight from their blocks, with activation rows. Lane l of a warp adds
// elements 8l .. 8l + 7, then the same 256 further on, in one chain of fused multiply-adds; the
// lanes end in warp_sum's tree. A result's bits depend on its weight row and activation row alone,
// whatever the tile around them.

#include "kernels/cuda/step.cuh"
#include "kernels/cuda/unpack.cuh"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_warps = 4;
constexpr std::uint32_t warp_rows = 2;  ///< weight rows of a warp: each read of x serves both
constexpr std::uint32_t block_rows = block_warps * warp_rows;

struct Place {
  std::uint32_t product = 0;
  std::uint32_t row = 0;  ///< first weight row
};

/// The warp's weight rows: blocks are dealt out product after product.
__device__ bool find_place(const LinearArgs& args, Place& place) {
  std::uint32_t block = blockIdx.x;
  for (std::uint32_t i = 0; i < args.count; ++i) {
    const std::uint32_t blocks = divide_up(args.product[i].weight.rows, block_rows);
    if (block < blocks) {
      place = {i, block * block_rows + warp_index() * warp_rows};
      return place.row < args.product[i].weight.rows;
    }
    block -= blocks;
  }
  return false;
}

template <Format format, std::uint32_t N>
__global__ void __launch_bounds__(block_warps* warp_lanes) linear_kernel(LinearArgs args) {
  const std::uint32_t rows = row_count(args.step, args.space);
  const std::uint32_t first = blockIdx.y * N;
  Place place;
  if (first >= rows || !find_place(args, place)) return;
  const Product& product = args.product[place.product];
  const DeviceWeight& weight = product.weight;
  Bytes w_row[warp_rows];
  const float* x_row[N];
  float sums[warp_rows * N];
  SLUICE_UNROLL
  for (std::uint32_t m = 0; m < warp_rows; ++m) {
    w_row[m] = weight.data + least(place.row + m, weight.rows - 1) * weight.stride;
  }
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < N; ++n) {
    x_row[n] = row_of(args.in, least(first + n, rows - 1));
    SLUICE_UNROLL
    for (std::uint32_t m = 0; m < warp_rows; ++m) sums[m * N + n] = 0.0F;
  }
  for (std::uint32_t k = lane_index() * 8; k < weight.cols; k += warp_lanes * 8) {
    float w[warp_rows][8];
    SLUICE_UNROLL
    for (std::uint32_t m = 0; m < warp_rows; ++m) unpack_eight<format>(w_row[m], k, w[m]);
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < N; ++n) {
      const float4 a = *reinterpret_cast<const float4*>(x_row[n] + k);
      const float4 b = *reinterpret_cast<const float4*>(x_row[n] + k + 4);
      const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      SLUICE_UNROLL
      for (std::uint32_t m = 0; m < warp_rows; ++m) {
        SLUICE_UNROLL
        for (std::uint32_t i = 0; i < 8; ++i)
          sums[m * N + n] = fma_f32(w[m][i], x[i], sums[m * N + n]);
      }
    }
  }
  const float sum = warp_sums(sums);
  constexpr std::uint32_t sharers = warp_lanes / (warp_rows * N);  ///< lanes with the same sum
  const std::uint32_t mine = lane_index() / sharers;
  const std::uint32_t o = place.row + mine / N, r = first + mine % N;
  if (lane_index() % sharers != 0 || o >= weight.rows || r >= rows) return;
  float* out = row_of(product.out, r) + o;
  const float value = product.bias != nullptr ? sum + product.bias[o] : sum;
  *out = product.accumulate ? *out + value : value;
}

template <Format format, std::uint32_t N>
cudaError_t launch_linear(const LinearArgs& args, std::uint32_t rows, cudaStream_t stream) {
  std::uint32_t blocks = 0;
  for (std::uint32_t i = 0; i < args.count; ++i) {
    blocks += divide_up(args.product[i].weight.rows, block_rows);
  }
  return launch(linear_kernel<format, N>, dim3(blocks, divide_up(rows, N)),
                block_warps * warp_lanes, 0, stream, args);
}

template <Format format>
cudaError_t launch_linear(const LinearArgs& args, std::uint32_t rows, cudaStream_t stream) {
  if (rows == 1) return launch_linear<format, 1>(args, rows, stream);
  if (rows <= 4) return launch_linear<format, 4>(args, rows, stream);
  return launch_linear<format, 8>(args, rows, stream);
}

}  // namespace

cudaError_t linear(const LinearArgs& args, std::uint32_t rows, cudaStream_t stream) {
  switch (args.product[0].weight.format) {
    case Format::f32:
      return launch_linear<Format::f32>(args, rows, stream);
    case Format::f16:
      return launch_linear<Format::f16>(args, rows, stream);
    case Format::bf16:
      return launch_linear<Format::bf16>(args, rows, stream);
    case Format::q8_0:
      return launch_linear<Format::q8_0>(args, rows, stream);
    case Format::q4_0:
      return launch_linear<Format::q4_0>(args, rows, stream);
    case Format::q4_1:
      return launch_linear<Format::q4_1>(args, rows, stream);
    case Format::q5_0:
      return launch_linear<Format::q5_0>(args, rows, stream);
    case Format::q5_1:
      return launch_linear<Format::q5_1>(args, rows, stream);
    case Format::q4_k:
      return launch_linear<Format::q4_k>(args, rows, stream);
    case Format::q5_k:
      return launch_linear<Format::q5_k>(args, rows, stream);
    case Format::q6_k:
      return launch_linear<Format::q6_k>(args, rows, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sluice::kernels::cuda
