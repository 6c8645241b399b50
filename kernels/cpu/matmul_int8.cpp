// Vectors with byte dot products (VNNI) are a target of their own here; elsewhere nothing needs it.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_int8.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/matmul-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/packed-inl.hpp"

// Arithmetic intensity: a block of 16 x 32 weights is 288 to 576 bytes; one activation row takes 8
// dot products of 64 bytes and 3 or 4 float operations of it, 30 instructions with the unpacking,
// where a core gets some 6 bytes a cycle from memory. So few rows run at the speed of memory, and
// from eight rows on (6 cycles each: 8 dot products, a product and three multiply-adds on two
// units; one less for Q4_0 and Q8_0) the dot products bound: 2/3 of their peak, or 8/11.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;
using cpu::QuantizedRow;

// Activation rows that share a block's unpacked weights: a power of two.
#if HWY_CAP_GE512
constexpr std::size_t tile_rows = 8;  // 8 quants, 8 sums, and 16 of 32 registers left over
#elif SLUICE_PORTABLE
constexpr std::size_t tile_rows = 1;
#else
constexpr std::size_t tile_rows = 4;
#endif

// How far ahead of its use a weight is asked for: SmolLM2 in Q4_0 decodes 330 tokens/s without, 450
// with 2 KiB, 480 with 4, 490 with 6 and 8.
constexpr std::size_t prefetch_bytes = 8192;

// Weights that stay in the first-level cache, beside a tile of activations, for all rows.
constexpr std::size_t cached_bytes = std::size_t{24} << 10;

/// sums[n] = the sixteen results of a strip for activation row n.
template <class Kind, std::size_t N>
HWY_INLINE void multiply_strip(const cpu::PackedWeight& weight, Bytes strip,
                               const QuantizedRow (&x)[N], Lanes (&sums)[N]) {
  constexpr cpu::PackedLayout layout = cpu::packed_layout(Kind::format);
  unroll<N>([&](auto n) SLUICE_INLINE { sums[n] = set(0.0F); });
  Bytes scales = strip;
  Bytes head = nullptr;
  Bytes quants = strip + weight.quants_at;
  const std::size_t blocks = weight.blocks();
  for (std::size_t b = 0; b < blocks; ++b) {
    if (layout.head_bytes != 0 && b % 8 == 0) {
      head = scales;
      scales += layout.head_bytes;
    }
    for (std::size_t line = 0; line < layout.quant_bytes; line += 64) {
      __builtin_prefetch(quants + prefetch_bytes + line);
    }
    Quants q[8];
    Kind::quants(quants, q);
    const Scales<Kind::halves> scale = Kind::scales(scales, head);
    unroll<N>([&](auto n) SLUICE_INLINE {
      const std::int8_t* values = x[n].values + 32 * b;
      Sums a{}, c{};
      if constexpr (requires { Kind::starts(x[n]); }) {
        const std::int32_t* starts = Kind::starts(x[n]) + 2 * b;
        unroll<parts>([&](auto i) SLUICE_INLINE {
          a.part[i] = hn::Set(I(), starts[0]);
          c.part[i] = hn::Set(I(), starts[1]);
        });
      } else {
        unroll<parts>([&](auto i) SLUICE_INLINE { a.part[i] = c.part[i] = hn::Zero(I()); });
      }
      unroll<4>([&](auto j) SLUICE_INLINE {
        add_dots<Kind::small>(q[j], values + 4 * j, a);
        add_dots<Kind::small>(q[4 + j], values + 16 + 4 * j, c);
      });
      const Lanes first = to_float(a) * set(x[n].steps[2 * b]);
      if constexpr (Kind::halves == 1) {
        const Lanes both = fma(to_float(c), set(x[n].steps[2 * b + 1]), first);
        sums[n] = fma(both, scale.d[0], sums[n]);
        if constexpr (!requires { Kind::starts(x[n]); }) {
          sums[n] = fma(set(x[n].pair_sums[b]), scale.m[0], sums[n]);
        }
      } else {
        const Lanes second = to_float(c) * set(x[n].steps[2 * b + 1]);
        sums[n] = fma(first, scale.d[0], sums[n]);
        sums[n] = fma(second, scale.d[1], sums[n]);
        sums[n] = fma(set(x[n].sums[2 * b]), scale.m[0], sums[n]);
        sums[n] = fma(set(x[n].sums[2 * b + 1]), scale.m[1], sums[n]);
      }
    });
    quants += layout.quant_bytes;
    scales += layout.scale_bytes;
  }
}

/// Strips [first, last) with N activation rows.
template <class Kind, std::size_t N>
HWY_NOINLINE void multiply_tile(const Product& p, std::size_t r, std::size_t first,
                                std::size_t last) {
  QuantizedRow x[N];
  for (std::size_t n = 0; n < N; ++n) x[n] = p.rounded.row(r + n);
  for (std::size_t s = first; s < last; ++s) {
    Lanes sums[N];
    multiply_strip<Kind, N>(*p.weight, p.weight->strip(static_cast<std::uint32_t>(s)), x, sums);
    unroll<N>([&](auto n) SLUICE_INLINE { finish(p, r + n, s, sums[n]); });
  }
}

/// Rows [r, rows) in tiles of N, then of fewer.
template <class Kind, std::size_t N>
HWY_INLINE void multiply_tiles(const Product& p, std::size_t r, std::size_t rows,
                               std::size_t first, std::size_t last) {
  for (; r + N <= rows; r += N) multiply_tile<Kind, N>(p, r, first, last);
  if constexpr (N > 1) multiply_tiles<Kind, N / 2>(p, r, rows, first, last);
}

void multiply_int8(const Product& p, std::uint32_t rows, std::uint32_t first,
                     std::uint32_t last) {
  with_packed(p.weight->format, [&](auto kind) SLUICE_INLINE {
    const auto cached = static_cast<std::uint32_t>(cached_bytes / p.weight->strip_bytes);
    const std::uint32_t chunk = std::max(1U, cached);
    for (std::uint32_t s = first; s < last; s += chunk) {
      multiply_tiles<decltype(kind), tile_rows>(p, 0, rows, s, std::min(last, s + chunk));
    }
  });
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply_int8);

namespace cpu {

void multiply_int8(const Product& product, std::uint32_t rows, std::uint32_t first,
              std::uint32_t last) {
  HWY_DYNAMIC_DISPATCH(multiply_int8)(product, rows, first, last);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
