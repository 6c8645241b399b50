#pragma once
// Tensor cores and asynchronous copies to shared memory, on every device since sm_80. Lane l's
// place in a tile: g = l / 4 counts rows of A and columns of B, t = l % 4 the pairs within them.

#include "kernels/cuda/numbers.cuh"

namespace sluice::kernels::cuda {

/// A lane's part of a 16 x 16 operand of half-precision numbers, two in a word, the first in the
/// low half: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with the column behind it.
struct TileA {
  std::uint32_t pairs[4];
};

/// Of a 16 x 8 operand: (2t, g), (2t + 8, g), each with the row behind it.
struct TileB {
  std::uint32_t pairs[2];
};

/// Of a 16 x 8 tile of float32: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
struct TileSums {
  float at[4];
};

#ifndef __CUDACC__
// On the host the last lane that comes multiplies for its warp, while the others' arguments lie on
// their stacks: a number is widened once, not by each lane that needs it. What touches nothing but
// these operands goes without sanitizers, which made two fifths of kernels/invariance of it.
#define SLUICE_OF_OPERANDS __attribute__((no_sanitize("address", "undefined")))

/// Row and column of a lane's i-th sum in a 16 x 8 tile.
struct SumPlace {
  std::uint32_t row, column;
};
inline SumPlace place_of_sum(std::uint32_t lane, std::uint32_t i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

/// An operand A of a whole warp, in numbers.
struct WarpRows {
  float at[16][16];

  template <float (*widen)(std::uint32_t)>
  SLUICE_OF_OPERANDS void put(std::uint32_t lane, const TileA& tile) {
    for (std::uint32_t i = 0; i < 4; ++i) {
      for (std::uint32_t s = 0; s < 2; ++s) {
        at[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + s] =
            widen(tile.pairs[i] >> 16 * s & 0xFFFFU);
      }
    }
  }
};

/// An operand B likewise, and the sums.
struct WarpColumns {
  float at[16][8];
};
struct WarpSums {
  float at[16][8];
};

/// sums += a b as the device's instruction defines it, but for how it rounds within: here once.
SLUICE_OF_OPERANDS inline void multiply_warp(WarpSums& sums, const WarpRows& a,
                                             const WarpColumns& b) {
  for (std::uint32_t row = 0; row < 16; ++row) {
    double exact[8];
    for (std::uint32_t n = 0; n < 8; ++n) exact[n] = sums.at[row][n];
    for (std::uint32_t k = 0; k < 16; ++k) {
      const double x = a.at[row][k];
      for (std::uint32_t n = 0; n < 8; ++n) exact[n] += x * b.at[k][n];
    }
    for (std::uint32_t n = 0; n < 8; ++n) sums.at[row][n] = static_cast<float>(exact[n]);
  }
}

/// What each lane of a warp brought to an exchange.
template <class Payload>
struct WarpPayloads {
  Payload of[32];

  explicit WarpPayloads(cuda_host::Payloads all) {
    for (std::uint32_t lane = 0; lane < 32; ++lane) {
      __builtin_memcpy(&of[lane], all + lane * cuda_host::payload_bytes, sizeof(Payload));
    }
  }
};

template <float (*widen)(std::uint32_t)>
void multiply_on_host(TileSums& d, const TileA& a, const TileB& b, const cuda_host::Where& where) {
  struct Lane {
    TileSums* d;
    const TileA* a;
    const TileB* b;
  };
  const Lane mine{&d, &a, &b};
  cuda_host::meet_warp(all_lanes, &mine, sizeof mine, where, [](std::byte* all) {
    const WarpPayloads<Lane> lanes(all);
    WarpRows rows;
    WarpColumns columns;
    WarpSums sums;
    for (std::uint32_t lane = 0; lane < 32; ++lane) {
      const Lane& one = lanes.of[lane];
      rows.put<widen>(lane, *one.a);
      for (std::uint32_t i = 0; i < 4; ++i) {
        const auto [row, column] = place_of_sum(lane, i);
        columns.at[lane % 4 * 2 + i / 2 * 8 + i % 2][lane / 4] =
            widen(one.b->pairs[i / 2] >> i % 2 * 16 & 0xFFFFU);
        sums.at[row][column] = one.d->at[i];
      }
    }
    multiply_warp(sums, rows, columns);
    for (std::uint32_t lane = 0; lane < 32; ++lane) {
      for (std::uint32_t i = 0; i < 4; ++i) {
        const auto [row, column] = place_of_sum(lane, i);
        lanes.of[lane].d->at[i] = sums.at[row][column];
      }
    }
  });
}

#undef SLUICE_OF_OPERANDS

#define SLUICE_MMA(name, type, widen)                                                     \
  inline void name(TileSums& d, const TileA& a, const TileB& b,                           \
                   const cuda_host::Where& where = cuda_host::Where::current()) {         \
    multiply_on_host<widen>(d, a, b, where);                                              \
  }
#else
#define SLUICE_MMA(name, type, widen)                                                     \
  __device__ inline void name(TileSums& d, const TileA& a, const TileB& b) {              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                            \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
        : "+f"(d.at[0]), "+f"(d.at[1]), "+f"(d.at[2]), "+f"(d.at[3])                      \
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]),             \
          "r"(b.pairs[0]), "r"(b.pairs[1]));                                              \
  }
#endif

/// d += a b, of bf16 or of f16, by all lanes of a warp together. Volatile, so that none is moved to
/// where lanes go different ways.
SLUICE_MMA(multiply_bf16, "bf16", widen_bf16)
SLUICE_MMA(multiply_f16, "f16", widen_f16)
#undef SLUICE_MMA

/// Four 8 x 8 matrices of 16-bit numbers in shared memory: lane l names row l % 8 of matrix l / 8,
/// 16 bytes, aligned. Word m of the result has (g, 2t) and (g, 2t + 1) of matrix m; transposed,
/// (2t, g) and (2t + 1, g). All lanes of a warp together.
#ifdef __CUDACC__
template <bool transposed>
__device__ void load_matrices(std::uint32_t (&out)[4], const void* row) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
  }
}
#else
template <bool transposed>
void load_matrices(std::uint32_t (&out)[4], const void* row,
                   const cuda_host::Where& where = cuda_host::Where::current()) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) cuda_host::complain("a misaligned row");
  const auto* all = cuda_host::meet_warp(all_lanes, &row, sizeof row, where);
  const auto element = [all](std::uint32_t lane, std::uint32_t column) {
    const std::uint16_t* at;
    __builtin_memcpy(&at, all + lane * cuda_host::payload_bytes, sizeof at);
    return std::uint32_t{at[column]};
  };
  const std::uint32_t g = cuda_host::lane() / 4, pair = 2 * (cuda_host::lane() % 4);
  for (std::uint32_t m = 0; m < 4; ++m) {
    out[m] = transposed ? element(8 * m + pair, g) | element(8 * m + pair + 1, g) << 16
                        : element(8 * m + g, pair) | element(8 * m + g, pair + 1) << 16;
  }
}
#endif

/// Starts a copy of 16 bytes, both ends aligned, to shared memory; of zeros where not `valid`, and
/// then `from` is not read.
__device__ inline void copy_async(void* shared, const void* from, bool valid) {
#ifdef __CUDACC__
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const std::uint32_t bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
#else
  cuda_host::copy_later(shared, from, valid);
#endif
}

/// Makes this thread's copies since the last call one group.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_host::commit_copies();
#endif
}

/// Waits for this thread's groups but the last `pending`. Others see its copies after a barrier.
template <int pending>
__device__ void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  cuda_host::wait_copies(pending);
#endif
}

}  // namespace sluice::kernels::cuda
