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
// units; one less for Q4_0 and Q8_0) the dot products bound: 2/3 of their peak, or 8/11. Then a
// tile is of two strips, so that four activations are loaded once for two dot products: with one
// strip a core that loads twice a cycle needs longer for the loads than for the products.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;
using cpu::QuantizedBlock;

// Activation rows that share a block's unpacked weights: a power of two.
#if HWY_CAP_GE512
constexpr std::size_t tile_rows = 8;  // 8 quants, 8 sums, and 16 of 32 registers left over
#elif SLUICE_PORTABLE
constexpr std::size_t tile_rows = 1;
#else
constexpr std::size_t tile_rows = 4;
#endif

// How far ahead of its use a weight is asked for: SmolLM2 in Q4_0 decodes 330 tokens/s without, 450
// with 2 KiB, 480 with 4, 490 with 6 and 8. Strips lie one behind the other and are asked for as
// one stream, scales and quants: with the quants of each strip alone, lines were left out where
// strips meet, so that each strip waited for memory, and a step took 1.3 to 1.4 times as long.
constexpr std::size_t prefetch_bytes = 8192;

// For few rows weights pass through the first-level cache alone: a step reads more than the others
// hold, and what carries tokens between steps finds its code there. Where more rows come this way
// (below), what does not stay in the first is read from the second.
#if HWY_CAP_GE512
constexpr int few_rows_locality = 0;
#else
constexpr int few_rows_locality = 3;
#endif

// Weights that stay in the first-level cache, beside a tile of activations, for all rows.
constexpr std::size_t cached_bytes = std::size_t{24} << 10;

/// A block's accumulators for a row: where the format's zero begins them, else 0. `h`: the half.
template <class Kind>
HWY_INLINE hn::Vec<I> start(const QuantizedBlock& x, std::size_t h) {
  if constexpr (requires { Kind::starts(x); }) {
    return hn::Set(I(), Kind::starts(x)[h]);
  } else {
    return hn::Zero(I());
  }
}

/// sum += what the dot products of a block's halves give.
template <class Kind>
HWY_INLINE void add_block(const Lanes& first, const Sums& second, const QuantizedBlock& x,
                          const Scales<Kind::halves>& scale, Lanes& sum) {
  if constexpr (Kind::halves == 1) {
    const Lanes both = fma(to_float(second), set(x.steps[1]), first);
    sum = fma(both, scale.d[0], sum);
    if constexpr (!requires { Kind::starts(x); }) {
      sum = fma(set(x.sums[0]) + set(x.sums[1]), scale.m[0], sum);
    }
  } else {
    sum = fma(first, scale.d[0], sum);
    sum = fma(to_float(second) * set(x.steps[1]), scale.d[1], sum);
    sum = fma(set(x.sums[0]), scale.m[0], sum);
    sum = fma(set(x.sums[1]), scale.m[1], sum);
  }
}

/// Goes through the blocks of S strips side by side.
template <class Kind, std::size_t S>
struct Cursor {
  static constexpr cpu::PackedLayout layout = cpu::packed_layout(Kind::format);
  std::size_t strip_bytes;
  Bytes scales;
  Bytes head;
  Bytes quants;

  HWY_INLINE Cursor(const cpu::PackedWeight& weight, std::uint32_t strip)
      : strip_bytes(weight.strip_bytes),
        scales(weight.strip(strip)),
        head(nullptr),
        quants(weight.strip(strip) + weight.quants_at) {}

  HWY_INLINE void enter(std::size_t block) {
    if (layout.head_bytes == 0 || block % 8 != 0) return;
    head = scales;
    scales += layout.head_bytes;
  }
  /// Asks for what lies so far ahead of the block and of its scales.
  HWY_INLINE void ask(std::size_t ahead) const {
    for (std::size_t line = 0; line < layout.quant_bytes; line += 64) {
      __builtin_prefetch(quants + ahead + line);
    }
    __builtin_prefetch(scales + ahead);
  }
  HWY_INLINE Quants vector(std::size_t s, std::size_t j) const {
    return Kind::quants(quants + s * strip_bytes, j);
  }
  HWY_INLINE Scales<Kind::halves> scale(std::size_t s) const {
    const Bytes its_head = layout.head_bytes == 0 ? nullptr : head + s * strip_bytes;
    return Kind::scales(scales + s * strip_bytes, its_head);
  }
  HWY_INLINE void leave() {
    quants += layout.quant_bytes;
    scales += layout.scale_bytes;
  }
};

/// sums[n] = the sixteen results of a strip for activation row n. A block's quants are unpacked
/// once for all rows.
template <class Kind, std::size_t N>
HWY_INLINE void multiply_strip(const cpu::PackedWeight& weight, std::uint32_t strip,
                               const QuantizedBlock* const (&x)[N], Lanes (&sums)[N]) {
  unroll<N>([&](auto n) SLUICE_INLINE { sums[n] = set(0.0F); });
  Cursor<Kind, 1> at(weight, strip);
  const std::size_t blocks = weight.blocks();
  constexpr auto layout = Cursor<Kind, 1>::layout;
  constexpr std::size_t block_bytes =
      layout.quant_bytes + layout.scale_bytes + layout.head_bytes / 8;
  Bytes ahead = weight.strip(strip) + prefetch_bytes;
  for (std::size_t b = 0; b < blocks; ++b) {
    at.enter(b);
    for (std::size_t line = 0; line < block_bytes; line += 64) {
      __builtin_prefetch(ahead + line, 0, few_rows_locality);
    }
    ahead += block_bytes;
    Quants q[8];
    unroll<8>([&](auto j) SLUICE_INLINE { q[j] = at.vector(0, j); });
    const Scales<Kind::halves> scale = at.scale(0);
    unroll<N>([&](auto n) SLUICE_INLINE {
      const QuantizedBlock& block = x[n][b];
      Sums a, c;
      unroll<parts>([&](auto i) SLUICE_INLINE {
        a.part[i] = start<Kind>(block, 0);
        c.part[i] = start<Kind>(block, 1);
      });
      unroll<4>([&](auto j) SLUICE_INLINE {
        add_dots<Kind::small>(q[j], block.values + 4 * j, a);
        add_dots<Kind::small>(q[4 + j], block.values + 16 + 4 * j, c);
      });
      add_block<Kind>(to_float(a) * set(block.steps[0]), c, block, scale, sums[n]);
    });
    at.leave();
  }
}

/// Strips [first, last) with N activation rows.
template <class Kind, std::size_t N>
HWY_NOINLINE void multiply_tile(const Product& p, std::size_t r, std::uint32_t first,
                                std::uint32_t last) {
  const QuantizedBlock* x[N];
  for (std::size_t n = 0; n < N; ++n) x[n] = p.rounded.int8.row(r + n);
  for (std::uint32_t s = first; s < last; ++s) {
    Lanes sums[N];
    multiply_strip<Kind, N>(*p.weight, s, x, sums);
    unroll<N>([&](auto n) SLUICE_INLINE { finish(p, r + n, s, sums[n]); });
  }
}

/// Rows [r, rows) in tiles of N, then of fewer.
template <class Kind, std::size_t N>
HWY_INLINE void multiply_tiles(const Product& p, std::size_t r, std::size_t rows,
                               std::uint32_t first, std::uint32_t last) {
  for (; r + N <= rows; r += N) multiply_tile<Kind, N>(p, r, first, last);
  if constexpr (N > 1) multiply_tiles<Kind, N / 2>(p, r, rows, first, last);
}

#if HWY_CAP_GE512

// A tile of two strips: 8 sums, 8 halves of a block and 8 accumulators of 32 registers.
constexpr std::size_t pair_rows = 4;

/// Strips `strip` and the next with a tile of activation rows. `asks`, with tiles 0 and 1: for the
/// strips behind, one each. (A branch for that in the loop costs up to a fifth: often its end is
/// then not foreseen.)
template <class Kind, bool asks>
HWY_NOINLINE void multiply_pair(const Product& p, std::size_t tile, std::uint32_t strip) {
  constexpr std::size_t S = 2, N = pair_rows;
  const std::size_t r = tile * N;
  Lanes sums[S * N];
  unroll<S * N>([&](auto i) SLUICE_INLINE { sums[i] = set(0.0F); });
  Cursor<Kind, S> at(*p.weight, strip);
  const QuantizedBlock* x[N];
  for (std::size_t n = 0; n < N; ++n) x[n] = p.rounded.int8.row(r + n);
  const std::size_t blocks = p.weight->blocks();
  for (std::size_t b = 0; b < blocks; ++b) {
    at.enter(b);
    if constexpr (asks) at.ask((S + tile) * p.weight->strip_bytes);
    const auto dots = [&](auto h, Sums(&to)[S * N]) SLUICE_INLINE {
      unroll<N>([&](auto n) SLUICE_INLINE {
        unroll<S>([&](auto s) SLUICE_INLINE { to[S * n + s].part[0] = start<Kind>(x[n][b], h); });
      });
      unroll<4>([&](auto j) SLUICE_INLINE {
        Quants q[S];
        unroll<S>([&](auto s) SLUICE_INLINE { q[s] = at.vector(s, 4 * h + j); });
        unroll<N>([&](auto n) SLUICE_INLINE {
          std::int32_t four;
          std::memcpy(&four, x[n][b].values + 16 * h + 4 * j, sizeof four);
          const auto all = hn::Set(I(), four);
          unroll<S>([&](auto s) SLUICE_INLINE {
            add_dots<Kind::small>(q[s], all, to[S * n + s]);
          });
        });
      });
    };
    Sums some[S * N];
    Lanes first[S * N];
    dots(std::integral_constant<std::size_t, 0>(), some);
    unroll<S * N>([&](auto i) SLUICE_INLINE {
      first[i] = to_float(some[i]) * set(x[i / S][b].steps[0]);
    });
    dots(std::integral_constant<std::size_t, 1>(), some);
    Scales<Kind::halves> scale[S];
    unroll<S>([&](auto s) SLUICE_INLINE { scale[s] = at.scale(s); });
    unroll<S * N>([&](auto i) SLUICE_INLINE {
      add_block<Kind>(first[i], some[i], x[i / S][b], scale[i % S], sums[i]);
    });
    at.leave();
  }
  unroll<S * N>([&](auto i) SLUICE_INLINE { finish(p, r + i / S, strip + i % S, sums[i]); });
}

#endif

void multiply_int8(const Product& p, std::uint32_t rows, std::uint32_t first,
                     std::uint32_t last) {
  with_packed(p.weight->format, [&](auto kind) SLUICE_INLINE {
    const auto cached = static_cast<std::uint32_t>(cached_bytes / p.weight->strip_bytes);
    const std::uint32_t chunk = std::max(1U, cached);
    using Kind = decltype(kind);
    std::uint32_t s = first;
#if HWY_CAP_GE512
    for (; rows >= 2 * pair_rows && s + 2 <= last; s += 2) {
      const std::size_t tiles = rows / pair_rows;
      for (std::size_t t = 0; t < 2; ++t) multiply_pair<Kind, true>(p, t, s);
      for (std::size_t t = 2; t < tiles; ++t) multiply_pair<Kind, false>(p, t, s);
      multiply_tiles<Kind, pair_rows / 2>(p, tiles * pair_rows, rows, s, s + 2);
    }
#endif
    for (; s < last; s += chunk) {
      multiply_tiles<Kind, tile_rows>(p, 0, rows, s, std::min(last, s + chunk));
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
