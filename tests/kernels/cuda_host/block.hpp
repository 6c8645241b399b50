#pragma once
// A CUDA block on the host: every thread is a fiber, and threads meet at barriers and warp
// exchanges. What a GPU would leave undefined is reported instead: threads of a block that wait at
// different barriers or never come, lanes missing from an exchange, shared memory beyond what was
// asked for; and kernels that end without having waited for those before them. Odd blocks run their
// threads in reverse, so that a missing barrier shows as a wrong result.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <type_traits>

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// Where the running fiber is in its grid.
extern thread_local constinit uint3 threadIdx, blockIdx;
extern thread_local constinit dim3 blockDim, gridDim;

namespace cuda_host {

using Where = std::source_location;

/// Whole pages of memory.
struct Pages {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
};

/// What a kernel's threads owe those around it (kernels/cuda/chain.hpp).
struct Turn {
  bool owed = false;  ///< each must call the two below
  Pages closed = {};  ///< and before it has, none may touch these; a block's wait together
};

/// Runs every block of a grid, one after the other, but for those of a cluster, so many along x,
/// which run together; returns what went wrong, or "".
std::string run_grid(dim3 grid, dim3 block, std::size_t shared_bytes,
                     const std::function<void()>& thread, const Turn& turn = {},
                     unsigned cluster = 1);

/// The device's griddepcontrol.launch_dependents and .wait. Kernels run one after the other here.
void start_next();
void await_previous(const Where& where = Where::current());

unsigned char* dynamic_shared();
void check_shared_end(const unsigned char* end);

/// Waits for every thread of the block.
void meet_block(const Where& where);

inline constexpr std::size_t payload_bytes = 48;

/// What the lanes of a warp brought to an exchange: [32][payload_bytes]. Valid until the lane's
/// next.
using Payloads = const std::byte*;

/// Brings `payload` and waits for every lane of `mask`. `last`, if any, runs once when all are
/// there.
Payloads meet_warp(unsigned mask, const void* payload, std::size_t bytes, const Where& where,
                   void (*last)(std::byte* payloads) = nullptr);

/// A copy of 16 bytes to shared memory, or of zeros, that is made when its thread waits for its
/// group and not before. A thread that ends with copies not waited for is reported.
void copy_later(void* shared, const void* from, bool valid);
void commit_copies();
void wait_copies(int pending);

/// Barriers in shared memory (kernels/cuda/wide.cuh): a phase ends when so many threads have
/// arrived and the bytes that they announced have come.
void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals);
void arrive(std::uint64_t* barrier, std::uint32_t announced_bytes);
void await_phase(std::uint64_t* barrier, std::uint32_t parity,
                 const Where& where = Where::current());

/// A copy to shared memory, in sixteens of bytes, that is made when a thread waits for the barrier
/// and not before. A block that ends with copies that nobody waited for is reported.
void copy_bulk(void* shared, const void* from, std::uint32_t bytes, std::uint64_t* barrier);

/// Of the running block's cluster. What reaches for a block that has ended is reported.
unsigned cluster_rank();
void meet_cluster(const Where& where);
void arrive_at(std::uint64_t* barrier, unsigned rank);  ///< where that block has such a one
const float* at_rank(const float* shared, unsigned rank);  ///< likewise
void copy_bulk_to_cluster(void* shared, const void* from, std::uint32_t bytes,
                          std::uint64_t* barrier,
                          unsigned ranks);  ///< to each of these, a bit each, for its own barrier

/// Ends the running kernel with this complaint.
[[noreturn]] void complain(const std::string& what);

template <class T>
T shuffle(unsigned mask, T value, unsigned from, const Where& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= payload_bytes);
  const Payloads all = meet_warp(mask, &value, sizeof value, where);
  if ((mask >> from & 1U) == 0) complain("a shuffle from a lane that is not in its mask");
  T result;
  __builtin_memcpy(&result, all + from * payload_bytes, sizeof result);
  return result;
}

inline unsigned lane() { return threadIdx.x % 32; }

}  // namespace cuda_host

// The language's own names. Blocks are one-dimensional in this project.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
inline void __syncthreads(const cuda_host::Where& where = cuda_host::Where::current()) {
  cuda_host::meet_block(where);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFU,
                       const cuda_host::Where& where = cuda_host::Where::current()) {
  cuda_host::meet_warp(mask, nullptr, 0, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from,
              const cuda_host::Where& where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, static_cast<unsigned>(from) % 32, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with,
                  const cuda_host::Where& where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, cuda_host::lane() ^ static_cast<unsigned>(with), where);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              const cuda_host::Where& where = cuda_host::Where::current()) {
  const auto* all = cuda_host::meet_warp(mask, &predicate, sizeof predicate, where);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) {
    const bool set = (mask >> i & 1U) != 0 && all[i * cuda_host::payload_bytes] != std::byte{0};
    result |= (set ? 1U : 0U) << i;
  }
  return result;
}

/// Blocks run one after the other and fibers are switched only where they meet: nothing interrupts.
inline void __threadfence() {}

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = static_cast<T>(before + value);
  return before;
}

template <class T>
T atomicOr(T* to, T value) {
  const T before = *to;
  *to = static_cast<T>(before | value);
  return before;
}
