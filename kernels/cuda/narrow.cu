// Rounding to narrower floats: activations to bf16, where no kernel before does it on its way, and
// weights to e4m3 when they are loaded.

#include "kernels/cuda/step.cuh"
#include "kernels/cuda/unpack.cuh"

namespace sluice::kernels::cuda {
namespace {

__global__ void narrow_kernel(NarrowArgs args) {
  take_turn();
  const std::uint32_t r = blockIdx.y;
  const std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= row_count(args.step, args.space) || i >= args.width) return;
  args.rows.narrow[narrow_at(args.rows.stride, r, i)] = narrow_bf16(row_of(args.rows, r)[i]);
}

constexpr float e4m3_largest = 448.0F;

/// A block a row. What of the weight is no element of it is zero already.
template <class U>
__global__ void narrow_weight_kernel(NarrowWeightArgs args) {
  take_turn();
  SharedPieces shared;
  auto* largest = shared.take<float>(row_threads / warp_lanes);
  Bytes row = args.in.data + blockIdx.x * args.in.stride;
  auto* out = const_cast<std::uint8_t*>(args.out.data) + blockIdx.x * args.out.stride;
  const std::uint32_t columns = args.in.cols;
  float most_of_mine = 0.0F;
  for (std::uint32_t k = threadIdx.x * 8; k < columns; k += row_threads * 8) {
    float w[8];
    unpack_eight<U>(row, k, w);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) {
      if (k + i < columns) most_of_mine = most(most_of_mine, fabsf(w[i]));
    }
  }
  most_of_mine = warp_max(most_of_mine);
  if (lane_index() == 0) largest[warp_index()] = most_of_mine;
  __syncthreads();
  float most_of_all = 0.0F;
  for (std::uint32_t i = 0; i < row_threads / warp_lanes; ++i) {
    most_of_all = most(most_of_all, largest[i]);
  }
  const float scale = most_of_all > 0.0F ? most_of_all / e4m3_largest : 1.0F;
  if (threadIdx.x == 0) const_cast<float*>(args.out.scales)[blockIdx.x] = scale;
  for (std::uint32_t k = threadIdx.x * 8; k < columns; k += row_threads * 8) {
    float w[8];
    unpack_eight<U>(row, k, w);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) {
      if (k + i >= columns) break;
      // A scale that was rounded up to a subnormal must not take a value past the largest.
      const float value = most(-e4m3_largest, least(w[i] / scale, e4m3_largest));
      out[k + i] = narrow_e4m3(value);
    }
  }
}

}  // namespace

cudaError_t narrow(const NarrowArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const dim3 grid(divide_up(args.width, row_threads), rows);
  return launch(narrow_kernel, grid, row_threads, 0, chain, args);
}

cudaError_t narrow_weight(const NarrowWeightArgs& args, LaunchChain& chain) {
  return with_unpack(args.in, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, UnpackE4m3>) {
      return cudaErrorInvalidValue;
    } else {
      return launch(narrow_weight_kernel<U>, args.in.rows, row_threads,
                    SharedPieces::bytes<float>(row_threads / warp_lanes), chain, args);
    }
  });
}

}  // namespace sluice::kernels::cuda
