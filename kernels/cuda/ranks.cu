// What ranks have sent each other, put together. Every float is read once and written once; those
// of a decode step are few, so that a launch is most of what these cost.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.hpp"

namespace sluice::kernels::cuda {
namespace {

/// Four floats a thread: ((r0 + r1) + r2) + ...
__global__ void add_kernel(const float* all, std::uint32_t ranks, std::size_t floats,
                           float* out) {
  take_turn();
  const std::size_t i = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
  if (i >= floats) return;
  float4 sum = *reinterpret_cast<const float4*>(all + i);
  for (std::uint32_t rank = 1; rank < ranks; ++rank) {
    const float4 more = *reinterpret_cast<const float4*>(all + rank * floats + i);
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
  }
  *reinterpret_cast<float4*>(out + i) = sum;
}

/// A grid of columns, rows and ranks.
__global__ void spread_kernel(SpreadArgs args) {
  take_turn();
  const std::uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
  const std::uint32_t rank = blockIdx.z;
  const auto begin = static_cast<std::uint32_t>(std::uint64_t{args.width} * rank / args.ranks);
  const auto end = static_cast<std::uint32_t>(std::uint64_t{args.width} * (rank + 1) / args.ranks);
  if (column >= end - begin) return;
  const std::size_t row = std::size_t{rank} * gridDim.y + blockIdx.y;
  args.out.data[std::size_t{blockIdx.y} * args.out.stride + begin + column] =
      args.all[row * args.widest + column];
}

}  // namespace

cudaError_t add_ranks(const float* all, std::uint32_t ranks, std::size_t floats, float* out,
                      LaunchChain& chain) {
  constexpr std::size_t each = std::size_t{row_threads} * 4;
  const auto blocks = static_cast<std::uint32_t>((floats + each - 1) / each);
  return launch(add_kernel, blocks, row_threads, 0, chain, all, ranks, floats, out);
}

cudaError_t spread(const SpreadArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const dim3 grid((args.widest + row_threads - 1) / row_threads, rows, args.ranks);
  return launch(spread_kernel, grid, row_threads, 0, chain, args);
}

}  // namespace sluice::kernels::cuda
