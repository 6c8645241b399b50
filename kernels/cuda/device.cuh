#pragma once
// The thin layer that every kernel stands on: launches, shared memory, warps. Tests compile the
// same kernels for the host, where tests/kernels/cuda_host stands in for CUDA's own header.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cuda/chain.hpp"

/// Before a loop whose arrays must stay in registers; before one whose unrolled body has too many.
#ifdef __CUDACC__
#define SLUICE_UNROLL _Pragma("unroll")
#define SLUICE_KEEP_LOOP _Pragma("unroll 1")
#else
#define SLUICE_UNROLL
#define SLUICE_KEEP_LOOP
#endif

namespace sluice::kernels::cuda {

/// Runs a kernel, which keeps chain.hpp's rule: the one place that launches. `cluster` blocks along
/// x, whose number is a multiple of it, run together. Errors of the kernel itself come with a later
/// call.
template <class... Parameters, class... Args>
cudaError_t launch_clusters(void (*kernel)(Parameters...), std::uint32_t cluster, dim3 grid,
                            dim3 block, std::size_t dynamic_shared_bytes, LaunchChain& chain,
                            Args&&... args) {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.stream = chain.stream();
  config.attrs = attributes;
  if (chain.next_starts_early()) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {cluster, 1, 1};
  }
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  chain.launched();
  return status;
}

/// The same, each block by itself.
template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   std::size_t dynamic_shared_bytes, LaunchChain& chain, Args&&... args) {
  return launch_clusters(kernel, 1, grid, block, dynamic_shared_bytes, chain,
                         std::forward<Args>(args)...);
}

/// Whether this code waits: only then may its kernels start early.
__device__ constexpr bool waits_in_turn() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return false;
#else
  return true;
#endif
}

/// Lets the kernel behind this one start; its own wait keeps it from what this one writes.
__device__ inline void start_next() {
#ifndef __CUDACC__
  cuda_host::start_next();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Waits until the kernels before this one have ended: what they wrote can be read then, and what
/// they read be written.
__device__ inline void await_previous() {
#ifndef __CUDACC__
  cuda_host::await_previous();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Asks the second-level cache for the 128 bytes at `at`; weights' before the wait, too.
__device__ inline void prefetch_line([[maybe_unused]] const void* at) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

/// Two floats that another block of this launch may have written, which the first-level cache does
/// not know of.
__device__ inline float2 read_others(const float* at) {
#ifdef __CUDACC__
  return __ldcg(reinterpret_cast<const float2*>(at));
#else
  return *reinterpret_cast<const float2*>(at);
#endif
}

/// Lets the next kernel start and waits, in a kernel that has nothing to do before.
__device__ inline void take_turn() {
  start_next();
  await_previous();
}

/// How many clusters of a kernel, that may have so much shared memory, run at the same time: fewer
/// than their blocks' number tells, for a cluster's are neighbours, and what is left of some of the
/// device's parts is less than one.
template <class... Parameters>
cudaError_t count_clusters(void (*kernel)(Parameters...), std::uint32_t cluster, dim3 block,
                           std::size_t dynamic_shared_bytes, std::uint32_t& count) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = cluster;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.attrs = &together;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  count = static_cast<std::uint32_t>(clusters);
  return status;
}

/// Lets a kernel have more than 48 KiB of dynamic shared memory.
template <class... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), std::size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

/// Hands out a block's dynamic shared memory piece by piece; each piece 16-byte aligned. On the
/// host the shim checks that the pieces fit what was asked for at the launch.
class SharedPieces {
 public:
  __device__ SharedPieces() {
#ifdef __CUDACC__
    extern __shared__ uint4 dynamic_shared[];
    next_ = reinterpret_cast<unsigned char*>(dynamic_shared);
#else
    next_ = cuda_host::dynamic_shared();
#endif
  }

  template <class T>
  __device__ T* take(std::uint32_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 15) / 16 * 16;
#ifndef __CUDACC__
    cuda_host::check_shared_end(next_);
#endif
    return piece;
  }

  /// What a launch must ask for, for one piece.
  template <class T>
  static constexpr std::size_t bytes(std::size_t count) {
    return (count * sizeof(T) + 15) / 16 * 16;
  }

 private:
  unsigned char* next_;
};

inline constexpr std::uint32_t warp_lanes = 32;
inline constexpr std::uint32_t all_lanes = 0xFFFFFFFFU;

__device__ inline std::uint32_t lane_index() { return threadIdx.x % warp_lanes; }
__device__ inline std::uint32_t warp_index() { return threadIdx.x / warp_lanes; }

/// Sum over a warp in one order: lane i with i ^ 16, then ^ 8, 4, 2, 1. Every lane has the result.
__device__ inline float warp_sum(float value) {
  for (std::uint32_t step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(all_lanes, value, static_cast<int>(step));
  }
  return value;
}

/// The sums of `count` values, a power of two, at once: lane l has that of v[l / (32 / count)], to
/// the bit as warp_sum gives it. The lanes share the values out as they fold them, so 16 take 16
/// exchanges and not 80. Changes v.
template <std::uint32_t count>
__device__ float warp_sums(float (&v)[count]) {
  const std::uint32_t lane = threadIdx.x % warp_lanes;
  std::uint32_t step = warp_lanes / 2;
  SLUICE_UNROLL
  for (std::uint32_t half = count / 2; half > 0; half /= 2) {
    const bool upper = (lane & step) != 0;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < half; ++i) {
      const float kept = upper ? v[i + half] : v[i];
      const float given = upper ? v[i] : v[i + half];
      v[i] = kept + __shfl_xor_sync(all_lanes, given, static_cast<int>(step));
    }
    step /= 2;
  }
  SLUICE_UNROLL
  for (; step > 0; step /= 2) {
    v[0] += __shfl_xor_sync(all_lanes, v[0], static_cast<int>(step));
  }
  return v[0];
}

__device__ inline float warp_max(float value) {
  for (std::uint32_t step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(all_lanes, value, static_cast<int>(step));
    value = value > other ? value : other;
  }
  return value;
}

template <class T>
__host__ __device__ constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
__host__ __device__ constexpr T least(T a, T b) {
  return b < a ? b : a;
}

template <class T>
__host__ __device__ constexpr T most(T a, T b) {
  return a < b ? b : a;
}

}  // namespace sluice::kernels::cuda
