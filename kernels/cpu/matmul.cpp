#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/matmul.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::CpuWeight;
using cpu::padded;
using cpu::Product;
using cpu::row_quantum;

using Bytes = const std::uint8_t*;

// Each format: bytes of a group of 32 elements, and how to widen one; equal to `dequantize`.

struct UnpackF32 {
  static constexpr std::size_t bytes = 128;
  static HWY_INLINE void group(Bytes block, Lanes w[2]) {
    float copy[32];  // the file need not align them
    std::memcpy(copy, block, sizeof copy);
    w[0] = load(copy);
    w[1] = load(copy + 16);
  }
};

struct UnpackF16 {
  static constexpr std::size_t bytes = 64;
  static HWY_INLINE void group(Bytes block, Lanes w[2]) {
    w[0] = load_half(reinterpret_cast<const std::uint16_t*>(block));
    w[1] = load_half(reinterpret_cast<const std::uint16_t*>(block) + 16);
  }
};

struct UnpackBF16 {
  static constexpr std::size_t bytes = 64;
  static HWY_INLINE void group(Bytes block, Lanes w[2]) {
    const hn::Rebind<std::uint16_t, F> u16;
    const auto* from = reinterpret_cast<const std::uint16_t*>(block);
    for (std::size_t i = 0; i < 2 * parts; ++i) {
      const auto wide = hn::PromoteTo(I(), hn::LoadU(u16, from + i * part_lanes));
      w[i / parts].part[i % parts] = hn::BitCast(F(), hn::ShiftLeft<16>(wide));
    }
  }
};

/// Calls f with the unpacker of a format: the one place that dispatches on it.
template <class Call>
HWY_INLINE void with_unpacker(Format format, Call f) {
  switch (format) {
    case Format::f32: return f(UnpackF32());
    case Format::f16: return f(UnpackF16());
    case Format::bf16: return f(UnpackBF16());
    default: SLUICE_ASSERT(false, "a packed format has products of its own");
  }
}

// Register tile: weight rows x activation rows, as many accumulators as leave room for the loads.
#if HWY_CAP_GE512
constexpr std::size_t tile_m = 4, tile_n = 6;  // 24 of 32 registers
#elif HWY_CAP_GE256
constexpr std::size_t tile_m = 2, tile_n = 3;  // 12 of 16
#else
constexpr std::size_t tile_m = 2, tile_n = 3;  // 24 of 32 (NEON)
#endif

// How far ahead of its use a weight is asked for. Rows lie one behind the other, but reading four
// at a time hides that from the hardware: without this, SmolLM2 Q4_1 decodes 56 tokens/s on a core
// of an EPYC 9004, with it 69. A little over 100 ns of work at 30 GB/s.
constexpr std::size_t prefetch_bytes = 4096;

HWY_INLINE Bytes row_of(const CpuWeight& weight, std::size_t row) {
  return reinterpret_cast<Bytes>(weight.data) + row * weight.row_bytes;
}

/// Walks the whole groups of a row: visit(group's byte, its first column).
template <class Unpack, class Visit>
HWY_INLINE void each_group(std::size_t cols, Visit visit) {
  for (std::size_t k = 0, at = 0; k + 32 <= cols; k += 32, at += Unpack::bytes) visit(at, k);
}

/// The part of a row of plain floats after its last whole group, zeros behind it.
template <class Unpack>
struct Tail {
  std::size_t column;
  std::uint8_t bytes[Unpack::bytes] = {};

  HWY_INLINE Tail(const CpuWeight& weight, Bytes row) : column(weight.cols / 32 * 32) {
    const std::size_t at = column / 32 * Unpack::bytes;
    std::memcpy(bytes, row + at, weight.row_bytes - at);
  }
};

/// The dot products of M weight rows of whole groups with one activation row.
template <class Unpack, std::size_t M>
HWY_INLINE void dot_rows(const CpuWeight& weight, std::size_t first, const float* x, float* sums) {
  Lanes acc[M];
  Bytes row[M];
  unroll<M>([&](auto m) SLUICE_INLINE {
    acc[m] = set(0.0F);
    row[m] = row_of(weight, first + m);
  });
  each_group<Unpack>(weight.cols, [&](std::size_t at, std::size_t k) SLUICE_INLINE {
    const Lanes x0 = load(x + k);
    const Lanes x1 = load(x + k + 16);
    unroll<M>([&](auto m) SLUICE_INLINE {
      Lanes w[2];
      __builtin_prefetch(row[m] + at + prefetch_bytes);
      Unpack::group(row[m] + at, w);
      acc[m] = fma(w[0], x0, acc[m]);
      acc[m] = fma(w[1], x1, acc[m]);
    });
  });
  unroll<M>([&](auto m) SLUICE_INLINE { sums[m] = sum(acc[m]); });
}

HWY_INLINE void finish(const Product& p, std::size_t r, std::size_t o, float value) {
  float* out = p.out.row(r) + o;
  if (p.bias != nullptr) value += p.bias[o];
  *out = p.accumulate ? *out + value : value;
}

/// One activation row: every weight is used once, so it never leaves the registers.
template <class Unpack>
HWY_NOINLINE void multiply_row(const Product& p, std::size_t first, std::size_t last) {
  constexpr std::size_t m = 4;  // enough chains to hide the latency of multiply-add
  const float* x = p.in.row(0);
  float sums[m];
  for (; first + m <= last; first += m) {
    dot_rows<Unpack, m>(p.weight, first, x, sums);
    for (std::size_t i = 0; i < m; ++i) finish(p, 0, first + i, sums[i]);
  }
  for (; first < last; ++first) {
    dot_rows<Unpack, 1>(p.weight, first, x, sums);
    finish(p, 0, first, sums[0]);
  }
}

template <class Unpack>
HWY_NOINLINE void unpack_whole(const CpuWeight& weight, std::size_t row, float* out) {
  Bytes from = row_of(weight, row);
  each_group<Unpack>(weight.cols, [&](std::size_t at, std::size_t k) SLUICE_INLINE {
    Lanes w[2];
    Unpack::group(from + at, w);
    store(w[0], out + k);
    store(w[1], out + k + 16);
  });
  if (weight.cols % 32 != 0) {
    const Tail<Unpack> tail(weight, from);
    Lanes w[2];
    Unpack::group(tail.bytes, w);
    store(w[0], out + tail.column);
    store(w[1], out + tail.column + 16);
  }
}

/// A register tile: M unpacked weight rows against N activation rows.
template <std::size_t M, std::size_t N>
HWY_NOINLINE void multiply_tile(const Product& p, const float* w, std::size_t o, std::size_t r) {
  const std::size_t k_end = padded(p.weight.cols);
  const float* x = p.in.row(r);
  const std::size_t stride = p.in.stride;
  Lanes acc[M * N];
  unroll<M * N>([&](auto i) SLUICE_INLINE { acc[i] = set(0.0F); });
  for (std::size_t k = 0; k < k_end; k += 16) {
    Lanes weights[M];
    unroll<M>([&](auto m) SLUICE_INLINE { weights[m] = load(w + m * k_end + k); });
    unroll<N>([&](auto n) SLUICE_INLINE {
      const Lanes activation = load(x + n * stride + k);
      unroll<M>([&](auto m) SLUICE_INLINE {
        acc[m * N + n] = fma(weights[m], activation, acc[m * N + n]);
      });
    });
  }
  unroll<M * N>([&](auto i) SLUICE_INLINE { finish(p, r + i % N, o + i / N, sum(acc[i])); });
}

template <std::size_t N>
void multiply_columns(const Product& p, const float* tile, std::size_t first, std::size_t last,
                      std::size_t r) {
  const std::size_t k_end = padded(p.weight.cols);
  std::size_t o = first;
  for (; o + tile_m <= last; o += tile_m) {
    multiply_tile<tile_m, N>(p, tile + (o - first) * k_end, o, r);
  }
  for (; o < last; ++o) multiply_tile<1, N>(p, tile + (o - first) * k_end, o, r);
}

/// Calls multiply_columns for the last N < tile_n rows.
template <std::size_t N>
void multiply_rest(const Product& p, const float* tile, std::size_t first, std::size_t last,
                   std::size_t r, std::size_t rest) {
  if constexpr (N > 0) {
    if (rest == N) return multiply_columns<N>(p, tile, first, last, r);
    multiply_rest<N - 1>(p, tile, first, last, r, rest);
  }
}

/// Unpacks weight rows [first, last) to a tile, for any number of activation rows.
void multiply_unpacked(const Product& p, std::uint32_t rows, std::uint32_t first,
                       std::uint32_t last, float* tile) {
  with_unpacker(p.weight.format, [&](auto unpack) SLUICE_INLINE {
    for (std::uint32_t o = first; o < last; ++o) {
      unpack_whole<decltype(unpack)>(p.weight, o, tile + (o - first) * padded(p.weight.cols));
    }
  });
  std::size_t r = 0;
  for (; r + tile_n <= rows; r += tile_n) multiply_columns<tile_n>(p, tile, first, last, r);
  multiply_rest<tile_n - 1>(p, tile, first, last, r, rows - r);
}

void multiply(const Product& p, std::uint32_t rows, std::uint32_t first, std::uint32_t last,
              float* scratch) {
  if (rows == 1 && p.weight.cols % row_quantum == 0) {
    return with_unpacker(p.weight.format, [&](auto unpack) SLUICE_INLINE {
      multiply_row<decltype(unpack)>(p, first, last);
    });
  }
  const std::uint32_t step = cpu::tile_rows(p.weight.cols);
  for (; first < last; first += step) {
    multiply_unpacked(p, rows, first, std::min(last, first + step), scratch);
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply);

namespace cpu {

std::uint32_t tile_rows(std::uint32_t cols) {
  constexpr std::size_t cache_floats = std::size_t{256} * 1024 / sizeof(float);
  const std::size_t rows = cache_floats / padded(cols) / 4 * 4;
  return static_cast<std::uint32_t>(std::clamp<std::size_t>(rows, 4, 32));
}

std::size_t tile_floats(std::uint32_t cols) { return tile_rows(cols) * padded(cols); }

void multiply(const Product& product, std::uint32_t rows, std::uint32_t first, std::uint32_t last,
              float* scratch) {
  HWY_DYNAMIC_DISPATCH(kernels::multiply)(product, rows, first, last, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
