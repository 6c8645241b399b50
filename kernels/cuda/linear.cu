// Which kernel a product takes; and products with float32 weights, in full. There lane l of a warp
// adds elements 8l .. 8l + 7, then the same 256 further on, in one chain of fused multiply-adds;
// the lanes end in warp_sum's tree.

#include "kernels/cuda/linear.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t block_warps = 4;
constexpr std::uint32_t warp_rows = 2;  ///< weight rows of a warp: each read of x serves both
constexpr std::uint32_t block_rows = block_warps * warp_rows;

template <std::uint32_t N>
__global__ void __launch_bounds__(block_warps* warp_lanes) full_kernel(LinearArgs args) {
  take_turn();
  const std::uint32_t rows = row_count(args.step, args.space);
  const std::uint32_t first = blockIdx.y * N;
  if (first >= rows) return;
  const Place place = find_place(args, blockIdx.x, block_rows);
  const Product& product = args.product[place.product];
  const DeviceWeight& weight = product.weight;
  const std::uint32_t row = place.row + warp_index() * warp_rows;
  if (row >= weight.rows) return;
  Bytes w_row[warp_rows];
  const float* x_row[N];
  float sums[warp_rows * N];
  SLUICE_UNROLL
  for (std::uint32_t m = 0; m < warp_rows; ++m) {
    w_row[m] = weight.data + least(row + m, weight.rows - 1) * weight.stride;
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
    for (std::uint32_t m = 0; m < warp_rows; ++m) {
      unpack_eight<Unpack<Format::f32>>(w_row[m], k, w[m]);
    }
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
  const std::uint32_t o = row + mine / N, r = first + mine % N;
  if (lane_index() % sharers != 0 || o >= weight.rows || r >= rows) return;
  write_result(product, o, r, sum);
}

template <std::uint32_t N>
cudaError_t launch_full(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch(full_kernel<N>, dim3(count_blocks(args, block_rows), divide_up(rows, N)),
                block_warps * warp_lanes, 0, chain, args);
}

}  // namespace

cudaError_t prepare_linear(const DeviceWeight& weight) {
  if (!weight.packed) return prepare_many(weight);
  cudaError_t status = prepare_stream(weight);
  if (status == cudaSuccess) status = prepare_split(weight);
  return status != cudaSuccess ? status : prepare_wide(weight);
}

cudaError_t linear(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  if (args.product[0].weight.packed) {
    if (rows <= few_rows) return linear_stream(args, rows, chain);
    return rows <= split_rows ? linear_split(args, rows, chain) : linear_wide(args, rows, chain);
  }
  if (takes_narrow(args.product[0].weight)) {
    return rows <= few_rows ? linear_few(args, rows, chain) : linear_many(args, rows, chain);
  }
  if (rows == 1) return launch_full<1>(args, rows, chain);
  return rows <= 4 ? launch_full<4>(args, rows, chain) : launch_full<8>(args, rows, chain);
}

cudaError_t linear_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  if (args.linear.product[0].weight.packed) {
    if (rows <= few_rows) return linear_stream_gated(args, rows, chain);
    return rows <= split_rows ? linear_split_gated(args, rows, chain)
                              : linear_wide_gated(args, rows, chain);
  }
  if (rows <= few_rows) return linear_few_gated(args, rows, chain);
  const cudaError_t status = linear(args.linear, rows, chain);
  return status != cudaSuccess ? status : gate(args.gate, rows, chain);
}

}  // namespace sluice::kernels::cuda
