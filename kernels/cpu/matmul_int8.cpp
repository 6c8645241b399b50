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
#include "kernels/cpu/pass_by.hpp"

// Arithmetic intensity: a block of 16 x 32 weights is 288 to 576 bytes; one activation row takes 8
// dot products of 64 bytes of it and 5 or 6 float operations, 30 instructions with the unpacking,
// where a core gets some 6 bytes a cycle from memory. So few rows run at the speed of memory, and
// from eight rows on the dot products bound. The two units that do them also do, for a row, one
// product of scales and one multiply-add (another for scales' offsets), while subtractions and sums
// are other units': 8 of 10 are dot products, or of 11. Then a tile is of two strips, so that four
// activations are loaded once for two dot products: with one strip a core that loads twice a cycle
// needs longer for the loads than for the products.

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

// With fewer registers more rows come this way (below), one tile after the other, and read from the
// second-level cache what does not stay in the first.
constexpr bool may_pass_by = HWY_CAP_GE512;

// Weights that stay in the first-level cache, beside a tile of activations, for all rows.
constexpr std::size_t cached_bytes = std::size_t{24} << 10;

/// Where a half's dot products for a row begin: at the bits of its origin, less the format's zero
/// times the sum of its values.
template <class Kind>
HWY_INLINE hn::Vec<I> start(const QuantizedBlock& x, std::size_t half) {
  if constexpr (Kind::zero == 8) return hn::Set(I(), x.starts_8[half]);
  if constexpr (Kind::zero == 128) return hn::Set(I(), x.starts_128[half]);
  const auto none = hn::BitCast(I(), hn::Set(F(), x.origins[half]));
  if constexpr (Kind::zero == 0) return none;
  const auto eight = hn::Sub(hn::Set(I(), x.starts_8[half]), none);
  return hn::Add(none, hn::ShiftLeft<Kind::zero == 16 ? 1 : 2>(eight));
}

/// A half's origin in every lane, for in_steps.
HWY_INLINE Part origin_of(const QuantizedBlock& x, std::size_t half) {
#if HWY_CAP_GE512
  // As assembly: GCC else keeps it in a register from where the products began, one too many.
  __m512 origin;
  asm("vbroadcastss %1, %0" : "=v"(origin) : "m"(x.origins[half]));
  return Part{origin};
#else
  return hn::Set(F(), x.origins[half]);
#endif
}

/// What a half's dot products give, in the block's steps.
HWY_INLINE Lanes in_steps(const Sums& dots, Part origin) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    v.part[i] = hn::Sub(hn::BitCast(F(), dots.part[i]), origin);
  });
  return v;
}

/// sum += what a block's halves give. The steps' product does not wait for the dot products.
template <class Kind>
HWY_INLINE void add_block(const Lanes& first, const Lanes& second, const QuantizedBlock& x,
                          const Scales<Kind::halves>& scale, Lanes& sum) {
  const Lanes step = set(x.step);
  if constexpr (Kind::halves == 1) {
    sum = fma(first + second, scale.d[0] * step, sum);
  } else {
    sum = fma(first, scale.d[0] * step, sum);
    sum = fma(second, scale.d[1] * step, sum);
  }
  if constexpr (Kind::zero == 0) sum = fma(set(x.sum), scale.m, sum);
}

/// Goes through the blocks of a strip.
template <class Kind>
struct Cursor {
  static constexpr cpu::PackedLayout layout = cpu::packed_layout(Kind::format);
  static constexpr std::size_t block_bytes =
      layout.quant_bytes + layout.scale_bytes + layout.head_bytes / 8;
  Bytes scales;
  Bytes head;
  Bytes quants;

  HWY_INLINE Cursor(const cpu::PackedWeight& weight, std::uint32_t strip)
      : scales(weight.strip(strip)),
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
  HWY_INLINE Quants vector(std::size_t j) const { return Kind::quants(quants, j); }
  HWY_INLINE Scales<Kind::halves> scale() const { return Kind::scales(scales, head); }
  HWY_INLINE void leave() {
    quants += layout.quant_bytes;
    scales += layout.scale_bytes;
  }
};

/// sums[n] = the sixteen results of a strip for activation row n. A block's quants are unpacked
/// once for all rows.
template <class Kind, std::size_t N>
HWY_INLINE void multiply_strip(const cpu::PackedWeight& weight, std::uint32_t strip, bool pass_by,
                               const QuantizedBlock* const (&x)[N], Lanes (&sums)[N]) {
  unroll<N>([&](auto n) SLUICE_INLINE { sums[n] = set(0.0F); });
  Cursor<Kind> at(weight, strip);
  constexpr std::size_t block_bytes = Cursor<Kind>::block_bytes;
  Bytes ahead = weight.strip(strip) + prefetch_bytes;
  for (std::size_t b = 0; b < weight.blocks(); ++b) {
    at.enter(b);
    for (std::size_t line = 0; line < block_bytes; line += 64) {
      if (may_pass_by && pass_by) {
        __builtin_prefetch(ahead + line, 0, 0);
      } else {
        __builtin_prefetch(ahead + line);
      }
    }
    ahead += block_bytes;
    Quants q[8];
    unroll<8>([&](auto j) SLUICE_INLINE { q[j] = at.vector(j); });
    const Scales<Kind::halves> scale = at.scale();
    unroll<N>([&](auto n) SLUICE_INLINE {
      const QuantizedBlock& in = x[n][b];
      Sums a, c;
      unroll<parts>([&](auto i) SLUICE_INLINE {
        a.part[i] = start<Kind>(in, 0);
        c.part[i] = start<Kind>(in, 1);
      });
      unroll<4>([&](auto j) SLUICE_INLINE {
        add_dots<has_small_quants<Kind>>(q[j], in.values + 4 * j, a);
        add_dots<has_small_quants<Kind>>(q[4 + j], in.values + 16 + 4 * j, c);
      });
      const Lanes low = in_steps(a, origin_of(in, 0)), high = in_steps(c, origin_of(in, 1));
      add_block<Kind>(low, high, in, scale, sums[n]);
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
  const bool pass_by = cpu::weights_pass_by();
  for (std::uint32_t s = first; s < last; ++s) {
    Lanes sums[N];
    multiply_strip<Kind, N>(*p.weight, s, pass_by, x, sums);
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

// Of several rows a tile is of two strips and four rows: 8 sums, 8 halves of a block and 8
// accumulators of 32 registers.
constexpr std::size_t pair_strips = 2, pair_rows = 4;
static_assert(cpu::paired_rows >= pair_strips * pair_rows, "a tile asks for each strip behind");

/// A pair of strips where they lie, unpacked for one tile. `asks`: for what lies so much further on
/// as well. (A branch for that in the loop costs up to a fifth: its end is often not foreseen.)
template <class Kind, bool asks>
struct PackedPair {
  Cursor<Kind> strips[pair_strips];
  std::size_t ahead;

  PackedPair(const cpu::PackedWeight& weight, std::uint32_t strip, std::size_t strips_ahead = 0)
      : strips{{weight, strip}, {weight, strip + 1}}, ahead(strips_ahead * weight.strip_bytes) {}

  HWY_INLINE void enter(std::size_t block) {
    unroll<pair_strips>([&](auto s) SLUICE_INLINE { strips[s].enter(block); });
    if constexpr (asks) strips[0].ask(ahead);
  }
  HWY_INLINE Quants vector(std::size_t s, std::size_t j) const { return strips[s].vector(j); }
  HWY_INLINE Scales<Kind::halves> scale(std::size_t s) const { return strips[s].scale(); }
  HWY_INLINE void leave() {
    unroll<pair_strips>([&](auto s) SLUICE_INLINE { strips[s].leave(); });
  }
};

// Of many rows, a pair of strips is unpacked once for all tiles, so many columns at once, which
// with a tile's activations stay in a first-level cache of 32 KiB. It takes as long as a tile; what
// it saves a tile is a quarter of one where a quant's bits lie apart, else hardly anything, but for
// strips that leave that cache.
template <class Kind>
constexpr std::size_t many_rows = Kind::apart ? 16 : 128;
constexpr std::size_t unpacked_blocks = 18;
constexpr std::size_t unpacked_rows = 128;

/// Blocks of a pair of strips, a byte a quant.
template <std::size_t halves>
struct PairBlock {
  alignas(64) std::uint8_t quants[8][pair_strips][64];
  Scales<halves> scales[pair_strips];
};

/// The same as `PackedPair`, from blocks unpacked.
template <std::size_t halves>
struct UnpackedPair {
  const PairBlock<halves>* at;

  HWY_INLINE void enter(std::size_t) {}
  HWY_INLINE Quants vector(std::size_t s, std::size_t j) const {
    return load_quants(at->quants[j][s]);
  }
  HWY_INLINE Scales<halves> scale(std::size_t s) const { return at->scales[s]; }
  HWY_INLINE void leave() { ++at; }
};

/// Blocks [first, last).
template <class Kind>
HWY_NOINLINE void unpack(PackedPair<Kind, false>& from, std::size_t first, std::size_t last,
                         PairBlock<Kind::halves>* to) {
  for (std::size_t b = first; b < last; ++b, ++to) {
    from.enter(b);
    unroll<pair_strips>([&](auto s) SLUICE_INLINE {
      unroll<8>([&](auto j) SLUICE_INLINE {
        auto* quants = reinterpret_cast<std::int32_t*>(to->quants[j][s]);
        hn::StoreU(from.vector(s, j).part[0], I(), quants);
      });
      to->scales[s] = from.scale(s);
    });
    from.leave();
  }
}

/// Has these computed by now. GCC puts what is used once off until then, across blocks, in more
/// registers than there are.
template <std::size_t N>
HWY_INLINE void settle(Lanes (&v)[N]) {
  unroll<N>([&](auto i) SLUICE_INLINE {
    auto one = v[i].part[0].raw;  // a copy: Clang lets no assembly write what a lambda captured
    asm volatile("" : "+v"(one));
    v[i].part[0].raw = one;
  });
}

using Tile = Lanes[pair_strips * pair_rows];

/// sums[pair_strips * n + s] += what so many blocks of strip s give for activation row n, whose
/// first of these is x[n].
template <class Kind, class Pair>
HWY_INLINE void multiply_pair(Pair at, std::size_t blocks,
                              const QuantizedBlock* const (&x)[pair_rows], Tile& sums) {
  constexpr std::size_t S = pair_strips, N = pair_rows;
  Tile sum;  // a copy: else GCC keeps these in memory
  unroll<S * N>([&](auto i) SLUICE_INLINE { sum[i] = sums[i]; });
  for (std::size_t b = 0; b < blocks; ++b) {
    at.enter(b);
    const auto dots = [&](auto half, Tile& to) SLUICE_INLINE {
      Sums acc[S * N];
      unroll<N>([&](auto n) SLUICE_INLINE {
        unroll<S>([&](auto s) SLUICE_INLINE {
          acc[S * n + s].part[0] = start<Kind>(x[n][b], half);
        });
      });
      unroll<4>([&](auto j) SLUICE_INLINE {
        Quants q[S];
        unroll<S>([&](auto s) SLUICE_INLINE { q[s] = at.vector(s, 4 * half + j); });
        unroll<N>([&](auto n) SLUICE_INLINE {
          std::int32_t four;
          std::memcpy(&four, x[n][b].values + 16 * half + 4 * j, sizeof four);
          const auto all = hn::Set(I(), four);
          unroll<S>([&](auto s) SLUICE_INLINE {
            add_dots<has_small_quants<Kind>>(q[s], all, acc[S * n + s]);
          });
        });
      });
      unroll<N>([&](auto n) SLUICE_INLINE {
        const Part origin = origin_of(x[n][b], half);
        unroll<S>([&](auto s) SLUICE_INLINE { to[S * n + s] = in_steps(acc[S * n + s], origin); });
      });
      settle(to);
    };
    Tile low, high;
    dots(std::integral_constant<std::size_t, 0>(), low);
    dots(std::integral_constant<std::size_t, 1>(), high);
    Scales<Kind::halves> scale[S];
    unroll<S>([&](auto s) SLUICE_INLINE { scale[s] = at.scale(s); });
    unroll<S * N>([&](auto i) SLUICE_INLINE {
      add_block<Kind>(low[i], high[i], x[i / S][b], scale[i % S], sum[i]);
    });
    settle(sum);
    at.leave();
  }
  unroll<S * N>([&](auto i) SLUICE_INLINE { sums[i] = sum[i]; });
}

/// A tile's first activation rows, from a block on.
struct TileRows {
  const QuantizedBlock* row[pair_rows];

  TileRows(const Product& p, std::size_t r, std::size_t block) {
    for (std::size_t n = 0; n < pair_rows; ++n) row[n] = p.rounded.int8.row(r + n) + block;
  }
};

HWY_INLINE void finish_tile(const Product& p, std::size_t r, std::uint32_t strip,
                            const Tile& sums) {
  unroll<pair_strips * pair_rows>([&](auto i) SLUICE_INLINE {
    finish(p, r + i / pair_strips, strip + i % pair_strips, sums[i]);
  });
}

/// Strips `strip` and the next for so many tiles of rows. Asks for the strips behind meanwhile.
template <class Kind>
HWY_INLINE void multiply_tiles_packed(const Product& p, std::size_t tiles, std::uint32_t strip) {
  for (std::size_t t = 0; t < tiles; ++t) {
    const std::size_t r = t * pair_rows;
    const TileRows x(p, r, 0);
    Tile sums = {};
    if (t < pair_strips) {
      const PackedPair<Kind, true> at(*p.weight, strip, pair_strips + t);
      multiply_pair<Kind>(at, p.weight->blocks(), x.row, sums);
    } else {
      const PackedPair<Kind, false> at(*p.weight, strip);
      multiply_pair<Kind>(at, p.weight->blocks(), x.row, sums);
    }
    finish_tile(p, r, strip, sums);
  }
}

/// The same of rows from r on.
template <class Kind>
HWY_NOINLINE void multiply_tiles_unpacked(const Product& p, std::size_t r, std::size_t tiles,
                                          std::uint32_t strip) {
  const std::size_t blocks = p.weight->blocks();
  const std::size_t passes = (blocks + unpacked_blocks - 1) / unpacked_blocks;
  const std::size_t each = (blocks + passes - 1) / passes;
  const std::size_t asked = pair_strips * p.weight->strip_bytes / tiles;
  PackedPair<Kind, false> packed(*p.weight, strip);
  PairBlock<Kind::halves> unpacked[unpacked_blocks];
  Tile sums[unpacked_rows / pair_rows];
  for (std::size_t first = 0; first < blocks; first += each) {
    const std::size_t last = std::min(blocks, first + each);
    unpack(packed, first, last, unpacked);
    for (std::size_t t = 0; t < tiles; ++t) {
      const TileRows x(p, r + t * pair_rows, first);
      if (first == 0) {
        unroll<pair_strips * pair_rows>([&](auto i) SLUICE_INLINE { sums[t][i] = set(0.0F); });
      }
      if (first == 0 && r == 0) {
        const Bytes behind = p.weight->strip(strip + pair_strips) + t * asked;
        for (std::size_t line = 0; line < asked; line += 64) __builtin_prefetch(behind + line);
      }
      const UnpackedPair<Kind::halves> at{unpacked};
      multiply_pair<Kind>(at, last - first, x.row, sums[t]);
      if (last == blocks) finish_tile(p, r + t * pair_rows, strip, sums[t]);
    }
  }
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
    for (; rows >= cpu::paired_rows && s + pair_strips <= last; s += pair_strips) {
      const std::size_t tiles = rows / pair_rows;
      if (rows < many_rows<Kind>) {
        multiply_tiles_packed<Kind>(p, tiles, s);
      } else {
        const std::size_t times = (tiles * pair_rows + unpacked_rows - 1) / unpacked_rows;
        for (std::size_t i = 0; i < times; ++i) {
          const std::size_t t = tiles * i / times;
          multiply_tiles_unpacked<Kind>(p, t * pair_rows, tiles * (i + 1) / times - t, s);
        }
      }
      multiply_tiles<Kind, pair_rows / 2>(p, tiles * pair_rows, rows, s, s + pair_strips);
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
