#pragma once
// Hopper's own products: four warps multiply 64 rows of their registers with columns that lie in
// shared memory, and bulk copies bring those there. Of sm_90a alone; elsewhere nothing calls them.
// Each warp's part, sixteen rows, has the bits of mma.cuh's products (seen on an H200: the first
// operand's rows, the second's columns and the sums lie as they do there, sixteen columns a step).

#include "kernels/cuda/mma.cuh"

#if defined(__CUDACC__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SLUICE_NO_WIDE 1
#endif

namespace sluice::kernels::cuda {

/// Whether this code has them.
__device__ constexpr bool multiplies_wide() {
#ifdef SLUICE_NO_WIDE
  return false;
#else
  return true;
#endif
}

inline constexpr std::uint32_t wide_threads = 128;  ///< that multiply together

/// Columns of the second operand lie in groups of eight; of a group, 64 rows in steps of eight,
/// each a matrix of 128 bytes (Rows::narrow has them so).
inline constexpr std::uint32_t wide_group_halves = 512;

#if defined(__CUDACC__) && !defined(SLUICE_NO_WIDE)
// Barriers in shared memory, whose phases end when so many threads have arrived and all the bytes
// that were announced have come.

__device__ inline std::uint32_t shared_address(const void* at) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
}
__device__ inline void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

/// After the last init_barrier, and before the block meets.
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// Arrives, and announces bytes for this phase.
__device__ inline void arrive_for(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Until the phase of this parity has ended; the first one's is 0.
__device__ inline void await_phase(std::uint64_t* barrier, std::uint32_t parity) {
  std::uint32_t ended = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
}

/// Starts a copy to shared memory, in sixteens of bytes, that counts for the barrier's phase.
__device__ inline void copy_bulk(void* shared, const void* from, std::uint32_t bytes,
                                 std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Blocks of a cluster can reach each other's shared memory, while both run.

__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Waits for every thread of the cluster, which then sees what all of them wrote: a fence that the
/// whole device takes part in.
__device__ inline void meet_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

/// Waits for every thread of the cluster, but not for what they wrote.
__device__ inline void await_cluster() {
  asm volatile(
      "barrier.cluster.arrive.relaxed;\n"
      "barrier.cluster.wait;" ::
          : "memory");
}

/// Arrives at what is this barrier in another block, or in this one, behind what the thread read:
/// with `.release.cluster`, for what it wrote as well, each would be a fence of the whole device.
__device__ inline void arrive_at(std::uint64_t* barrier, std::uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

/// Where something lies in another block's shared memory, or in this one's.
struct ThereFloats {
  std::uint32_t address;

  __device__ ThereFloats(const float* shared, std::uint32_t rank) {
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(shared_address(shared)), "r"(rank));
  }

  /// Four from the i-th on, a multiple of four. Volatile, so that none is moved before a meeting.
  __device__ float4 four(std::uint32_t i) const {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address + i * 4));
    return v;
  }
};

/// copy_bulk() to the same place of each of `blocks` blocks, where it counts for the same barrier.
__device__ inline void copy_bulk_to_cluster(void* shared, const void* from, std::uint32_t bytes,
                                            std::uint64_t* barrier, std::uint32_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)),
      "h"(static_cast<std::uint16_t>((1U << blocks) - 1))
      : "memory");
}

/// A thread's registers from here on, of all of its four warps.
template <std::uint32_t count>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <std::uint32_t count>
__device__ inline void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

/// What comes before a group of products.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Until only the last `pending` groups may still run.
template <int pending>
__device__ inline void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/// Keeps the compiler from reading a sum before await_products().
__device__ inline void keep_sum(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }

/// Lets products that start behind a barrier see what this thread has written to shared memory, and
/// its copies there that it has waited for.
__device__ inline void show_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Which columns a product takes, in matrices of eight elements of eight columns, sixteen bytes a
/// column, or of multiply_rows_async an element: `halves`, 16-byte aligned, is the first; so many
/// halves on lies the one of the next eight elements, and so many that of the next eight columns.
using WideColumns = std::uint64_t;
__device__ inline WideColumns wide_columns(const std::uint16_t* halves,
                                           std::uint32_t next_matrix = 64,
                                           std::uint32_t next_group = wide_group_halves) {
  return (shared_address(halves) >> 4 & 0x3FFFU) | WideColumns{next_matrix / 8} << 16 |
         WideColumns{next_group / 8} << 32;
}

/// Those that lie so many halves further on.
__device__ inline WideColumns further(WideColumns columns, std::uint32_t halves) {
  return columns + halves / 8;
}

// d = a b, or d += a b if `add`: of a warp's sixteen rows, which it has in registers, and columns
// in shared memory, sixteen elements deep. Element 4 n + i of d is element i of TileSums of the
// n-th group of columns. All four warps together; runs on until await_products().

#define SLUICE_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SLUICE_D16(i) SLUICE_D4(i), SLUICE_D4((i) + 4), SLUICE_D4((i) + 8), SLUICE_D4((i) + 12)
#define SLUICE_D32 SLUICE_D16(0), SLUICE_D16(16)
#define SLUICE_D64 SLUICE_D32, SLUICE_D16(32), SLUICE_D16(48)
#define SLUICE_NAMES32                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SLUICE_NAMES64                                                                      \
  SLUICE_NAMES32                                                                            \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define SLUICE_LIST(...) __VA_ARGS__

/// `across` is 1 where matrices have sixteen bytes an element.
#define SLUICE_WIDE(name, count, d_list, product, operands, add_name, across)                    \
  __device__ inline void name(float(&d)[count], const TileA& a, WideColumns b,                   \
                              std::uint32_t add) {                                               \
    asm volatile(                                                                                \
        "{\n"                                                                                    \
        ".reg .pred add;\n"                                                                      \
        "setp.ne.b32 add, " add_name                                                             \
        ", 0;\n"                                                                                 \
        "wgmma.mma_async.sync.aligned." product " " operands ", add, 1, 1, " across              \
        ";\n"                                                                                    \
        "}"                                                                                      \
        : d_list                                                                                 \
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "l"(b), "r"(add)); \
  }

/// Of bf16 and 64 columns, or 128.
SLUICE_WIDE(multiply_async, 32, SLUICE_D32, "m64n64k16.f32.bf16.bf16",
            "{" SLUICE_NAMES32 "}, {%32, %33, %34, %35}, %36", "%37", "0")
SLUICE_WIDE(multiply_async, 64, SLUICE_D64, "m64n128k16.f32.bf16.bf16",
            "{" SLUICE_NAMES64 "}, {%64, %65, %66, %67}, %68", "%69", "0")

/// Of f16 and 64 columns.
SLUICE_WIDE(multiply_f16_async, 32, SLUICE_D32, "m64n64k16.f32.f16.f16",
            "{" SLUICE_NAMES32 "}, {%32, %33, %34, %35}, %36", "%37", "0")

/// Of f16 and 72 columns, or 136, of which eight lie beside each other, element by element.
SLUICE_WIDE(multiply_rows_async, 36, SLUICE_LIST(SLUICE_D32, SLUICE_D4(32)),
            "m64n72k16.f32.f16.f16",
            "{" SLUICE_NAMES32 ", %32, %33, %34, %35}, {%36, %37, %38, %39}, %40", "%41", "1")
SLUICE_WIDE(multiply_rows_async, 68, SLUICE_LIST(SLUICE_D64, SLUICE_D4(64)),
            "m64n136k16.f32.f16.f16",
            "{" SLUICE_NAMES64 ", %64, %65, %66, %67}, {%68, %69, %70, %71}, %72", "%73", "1")

#undef SLUICE_WIDE
#undef SLUICE_LIST
#undef SLUICE_NAMES64
#undef SLUICE_NAMES32
#undef SLUICE_D64
#undef SLUICE_D32
#undef SLUICE_D16
#undef SLUICE_D4
#elif !defined(__CUDACC__)
// The host's, as the device's: copies are made when somebody waits for them, and not before.
inline void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals) {
  cuda_host::init_barrier(barrier, arrivals);
}
inline void show_barriers() {}
inline void arrive(std::uint64_t* barrier) { cuda_host::arrive(barrier, 0); }
inline void arrive_for(std::uint64_t* barrier, std::uint32_t bytes) {
  cuda_host::arrive(barrier, bytes);
}
inline void await_phase(std::uint64_t* barrier, std::uint32_t parity,
                        const cuda_host::Where& where = cuda_host::Where::current()) {
  cuda_host::await_phase(barrier, parity, where);
}
inline void copy_bulk(void* shared, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  cuda_host::copy_bulk(shared, from, bytes, barrier);
}
inline std::uint32_t cluster_rank() { return cuda_host::cluster_rank(); }
inline void meet_cluster(const cuda_host::Where& where = cuda_host::Where::current()) {
  cuda_host::meet_cluster(where);
}
inline void await_cluster(const cuda_host::Where& where = cuda_host::Where::current()) {
  cuda_host::meet_cluster(where);
}
inline void arrive_at(std::uint64_t* barrier, std::uint32_t rank) {
  cuda_host::arrive_at(barrier, rank);
}
struct ThereFloats {
  const float* at;

  ThereFloats(const float* shared, std::uint32_t rank) : at(cuda_host::at_rank(shared, rank)) {}
  float4 four(std::uint32_t i) const { return {at[i], at[i + 1], at[i + 2], at[i + 3]}; }
};
inline void copy_bulk_to_cluster(void* shared, const void* from, std::uint32_t bytes,
                                 std::uint64_t* barrier, std::uint32_t blocks) {
  cuda_host::copy_bulk_to_cluster(shared, from, bytes, barrier, (1U << blocks) - 1);
}
template <std::uint32_t count>
void take_registers() {}
template <std::uint32_t count>
void leave_registers() {}
inline void begin_products() {}
inline void end_products() {}
template <int pending>
void await_products() {}
inline void keep_sum(float&) {}
inline void show_products() {}
struct WideColumns {
  const std::uint16_t* first;
  std::uint32_t next_matrix, next_group;
};
inline WideColumns wide_columns(const std::uint16_t* halves, std::uint32_t next_matrix = 64,
                                std::uint32_t next_group = wide_group_halves) {
  return {halves, next_matrix, next_group};
}
inline WideColumns further(WideColumns columns, std::uint32_t halves) {
  columns.first += halves;
  return columns;
}

/// `next_element`, `next_column`: within a matrix.
template <float (*widen)(std::uint32_t), std::uint32_t next_element, std::uint32_t next_column,
          std::size_t count>
void multiply_wide_on_host(float (&d)[count], const TileA& a, const WideColumns& b,
                           std::uint32_t add, const cuda_host::Where& where) {
  struct Lane {
    float* d;
    const TileA* a;
    WideColumns b;
    std::uint32_t add;
  };
  const Lane mine{d, &a, b, add};
  cuda_host::meet_warp(all_lanes, &mine, sizeof mine, where, [](std::byte* all) {
    const WarpPayloads<Lane> lanes(all);
    const Lane& first = lanes.of[0];
    WarpRows rows;
    for (std::uint32_t lane = 0; lane < 32; ++lane) {
      const Lane& one = lanes.of[lane];
      rows.put<widen>(lane, *one.a);
      if (one.b.first != first.b.first || one.add != first.add) {
        cuda_host::complain("lanes of a warp multiply by different columns");
      }
    }
    for (std::size_t n = 0; n < count / 4; ++n) {
      const std::uint16_t* group = first.b.first + n * first.b.next_group;
      WarpColumns columns;
      for (std::uint32_t k = 0; k < 16; ++k) {
        for (std::uint32_t column = 0; column < 8; ++column) {
          columns.at[k][column] = widen(group[k / 8 * first.b.next_matrix + column * next_column +
                                              k % 8 * next_element]);
        }
      }
      WarpSums sums{};
      const auto each_sum = [&](auto visit) {
        for (std::uint32_t lane = 0; lane < 32; ++lane) {
          for (std::uint32_t i = 0; i < 4; ++i) {
            const auto [row, column] = place_of_sum(lane, i);
            visit(sums.at[row][column], lanes.of[lane].d[4 * n + i]);
          }
        }
      };
      if (first.add != 0) each_sum([](float& sum, const float& own) { sum = own; });
      multiply_warp(sums, rows, columns);
      each_sum([](const float& sum, float& own) { own = sum; });
    }
  });
}

#define SLUICE_WIDE(name, widen, next_element, next_column)                              \
  template <std::size_t sums>                                                            \
  void name(float(&d)[sums], const TileA& a, const WideColumns& b, std::uint32_t add,    \
            const cuda_host::Where& where = cuda_host::Where::current()) {               \
    multiply_wide_on_host<widen, next_element, next_column, sums>(d, a, b, add, where);  \
  }
SLUICE_WIDE(multiply_async, widen_bf16, 1, 8)
SLUICE_WIDE(multiply_f16_async, widen_f16, 1, 8)
SLUICE_WIDE(multiply_rows_async, widen_f16, 8, 1)
#undef SLUICE_WIDE
#endif

}  // namespace sluice::kernels::cuda
