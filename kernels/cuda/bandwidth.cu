// How fast the device reads its memory: every word of it is added up, four reads of 16 bytes under
// way a thread.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.hpp"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t reads = 4;

__global__ void __launch_bounds__(row_threads)
    add_words_kernel(const uint4* words, std::size_t count, std::uint32_t* sum) {
  take_turn();
  const std::size_t threads = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  std::uint32_t total = 0;
  for (; at + (reads - 1) * threads < count; at += reads * threads) {
    uint4 w[reads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) w[i] = words[at + i * threads];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < reads; ++i) total += w[i].x + w[i].y + w[i].z + w[i].w;
  }
  for (; at < count; at += threads) {
    const uint4 w = words[at];
    total += w.x + w.y + w.z + w.w;
  }
  atomicAdd(sum, total);  // of integers: the same in any order
}

}  // namespace

cudaError_t add_words(const uint4* words, std::size_t count, std::uint32_t* sum,
                      std::uint32_t blocks, LaunchChain& chain) {
  return launch(add_words_kernel, blocks, row_threads, 0, chain, words, count, sum);
}

}  // namespace sluice::kernels::cuda
