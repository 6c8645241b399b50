#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_float.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/matmul-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"

// Arithmetic intensity: a column of a strip is 32 bytes of halves for one multiply-add of sixteen
// lanes a row, where a core gets some 8 bytes a cycle from memory and does two multiply-adds: up to
// eight rows run at the speed of memory. For many rows the multiply-adds bound; a register tile of
// two strips and twelve rows has 24 of them for 14 loads.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;

using Bytes = const std::uint8_t*;

// Each format: strips that lie interleaved (packed.hpp), and how to widen a column of one; equal
// to `dequantize`.

struct ColumnF32 {
  static constexpr std::size_t beside = cpu::packed_layout(Format::f32).beside;
  static HWY_INLINE Lanes widen(Bytes at) { return load(reinterpret_cast<const float*>(at)); }
};

struct ColumnF16 {
  static constexpr std::size_t beside = cpu::packed_layout(Format::f16).beside;
  static HWY_INLINE Lanes widen(Bytes at) {
    return load_half(reinterpret_cast<const std::uint16_t*>(at));
  }
};

// Register tile: strips x activation rows, as many chains as leave room for the loads.
#if HWY_CAP_GE512
constexpr std::size_t tile_strips = 2, tile_rows = 12;  // 24 of 32 registers
#elif SLUICE_PORTABLE
constexpr std::size_t tile_strips = 1, tile_rows = 1;
#else
constexpr std::size_t tile_strips = 1, tile_rows = 6;   // 12 of 16 (AVX2), 24 of 32 (NEON)
#endif

// For one or two rows: a chain of multiply-adds waits four cycles for itself, in which memory gives
// two strips' columns; and of 16-bit floats two strips share each line.
constexpr std::size_t few_strips = SLUICE_PORTABLE ? 1 : 2;

// Strips that all rows go over together: they come from the second-level cache, often enough for
// the multiply-adds.
constexpr std::uint32_t cached_strips = 4;

// How far ahead of its use a weight is asked for.
constexpr std::size_t prefetch_bytes = 8192;

template <class Column, std::size_t S, std::size_t N>
HWY_NOINLINE void multiply_tile(const Product& p, std::size_t r, std::size_t strip) {
  const std::size_t cols = cpu::padded(p.weight->cols);
  Bytes weights[S];
  const float* x[N];
  Lanes sums[S * N];
  for (std::size_t s = 0; s < S; ++s) {
    weights[s] = p.weight->strip(static_cast<std::uint32_t>(strip + s));
  }
  for (std::size_t n = 0; n < N; ++n) x[n] = p.in.row(r + n);
  unroll<S * N>([&](auto i) SLUICE_INLINE { sums[i] = set(0.0F); });
  for (std::size_t k = 0; k < cols; ++k) {
    Lanes w[S];
    unroll<S>([&](auto s) SLUICE_INLINE {
      Bytes at = weights[s] + k * cpu::column_bytes;
      if (s % Column::beside == 0) __builtin_prefetch(at + prefetch_bytes);
      w[s] = Column::widen(at);
    });
    unroll<N>([&](auto n) SLUICE_INLINE {
      const Lanes activation = set(x[n][k]);
      unroll<S>([&](auto s) SLUICE_INLINE {
        sums[s * N + n] = fma(w[s], activation, sums[s * N + n]);
      });
    });
  }
  unroll<S * N>([&](auto i) SLUICE_INLINE { finish(p, r + i % N, strip + i / N, sums[i]); });
}

/// Strips [first, last) for N rows from r on, S strips at once, then fewer.
template <class Column, std::size_t S, std::size_t N>
HWY_INLINE void multiply_strips(const Product& p, std::size_t r, std::size_t first,
                                std::size_t last) {
  for (; first + S <= last; first += S) multiply_tile<Column, S, N>(p, r, first);
  if constexpr (S > 1) multiply_strips<Column, S / 2, N>(p, r, first, last);
}

/// Rows [r, rows), N at once, then fewer.
template <class Column, std::size_t N>
HWY_INLINE void multiply_rows(const Product& p, std::size_t r, std::size_t rows, std::size_t first,
                              std::size_t last) {
  constexpr std::size_t strips = N <= 2 ? few_strips : tile_strips;
  for (; r + N <= rows; r += N) multiply_strips<Column, strips, N>(p, r, first, last);
  if constexpr (N > 1) {
    multiply_rows<Column, (N > 4 ? 4 : N / 2)>(p, r, rows, first, last);
  }
}

void multiply_float(const Product& p, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last) {
  const auto run = [&](auto column) SLUICE_INLINE {
    for (std::uint32_t s = first; s < last; s += cached_strips) {
      multiply_rows<decltype(column), tile_rows>(p, 0, rows, s, std::min(last, s + cached_strips));
    }
  };
  switch (p.weight->format) {
    case Format::f32: return run(ColumnF32());
    case Format::f16: return run(ColumnF16());
    default: SLUICE_ASSERT(false, "a format that rounds activations");
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply_float);

namespace cpu {

void multiply_float(const Product& product, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last) {
  HWY_DYNAMIC_DISPATCH(multiply_float)(product, rows, first, last);
}

void multiply(const Product& product, std::uint32_t rows, std::uint32_t first,
              std::uint32_t last) {
  switch (activations_of(product.weight->format)) {
    case Activations::f32: return multiply_float(product, rows, first, last);
    case Activations::bf16:
      if (product.rounded.bf16.tiled(rows)) return multiply_bf16_tiles(product, rows, first, last);
      return multiply_bf16(product, rows, first, last);
    case Activations::int8:
      if (product.rounded.int8.tiled(rows)) return multiply_tiles(product, rows, first, last);
      return multiply_int8(product, rows, first, last);
  }
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
