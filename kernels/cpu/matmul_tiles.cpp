// Vectors with byte dot products (VNNI) are a target of their own here; elsewhere nothing needs it.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_tiles.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <array>
#include <bit>

#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/matmul-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/packed-inl.hpp"
#include "kernels/cpu/tiles-inl.hpp"
#include "kernels/cpu/tiles.hpp"

// Products of quantized weights with many rows on a processor that multiplies tiles: to the bit
// what matmul_int8.cpp gives. One instruction multiplies sixteen rows' 32 activations with sixteen
// weights of each, in bfloat16, and sums in float32; that is exact: a quant less its zero has at
// most 8 bits, an activation is a byte halved up to five times, and so a block's products and all
// their sums are multiples of 2^-5 below 2^19.
//
// Arithmetic intensity: a unit of sixteen rows, sixteen weights' rows and one block is one such
// instruction, of 16 cycles, where vectors need 128 dot products, of half a cycle each. But what it
// gives has to be scaled and added up, which only vectors can: a store and a load of each of the
// sixteen lines, a product of scales and a multiply-add, some 25 cycles of the units that load. So
// tiles keep weights, four blocks of a strip, and rows pass by them: then a unit loads one tile,
// and its sums once for four units.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;

#if HWY_TARGET == HWY_AVX3_DL

using cpu::TiledBlock;

constexpr std::size_t tile_rows = TiledBlock::rows;
constexpr std::size_t parts_together = 4;  // as many tiles as hold weights
constexpr std::size_t sum_tiles = 16;      // tiles of rows that weights are unpacked once for
constexpr std::size_t sum_strips = 4;      // with so many sums, 64 KiB, in the second-level cache

/// What tiles read of a strip at once: of formats with two scales a block a part is half of one,
/// else all. Line k of its quants has of each row columns c and c + 2, where c = k / 2 * 4 + k % 2.
struct WeightPart {
  std::uint16_t quants[16][32];
  Lanes d;
  Lanes m;
};

constexpr short bf16_bits(int value) {
  return static_cast<short>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16);
}

/// bfloat16 of the quant, less the format's zero, in the low byte of each 16 bits.
template <class Kind>
HWY_INLINE __m512i to_bf16(__m512i quants) {
  if constexpr (has_small_quants<Kind>) {  // by a table of 32, or of twice as many
    constexpr auto table = [] {
      std::array<std::array<short, 32>, 2> of{};
      for (int i = 0; i < 64; ++i) of[i / 32][i % 32] = bf16_bits(i - Kind::zero);
      return of;
    }();
    const __m512i low = _mm512_loadu_si512(table[0].data());
    if constexpr (Kind::largest < 32) return _mm512_permutexvar_epi16(quants, low);
    return _mm512_permutex2var_epi16(low, quants, _mm512_loadu_si512(table[1].data()));
  } else {
    const __m512i zero = _mm512_set1_epi32(Kind::zero);
    const __m512i even = _mm512_and_si512(quants, _mm512_set1_epi32(255));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(quants, 16), _mm512_set1_epi32(255));
    const auto as_float = [&](__m512i quant) SLUICE_INLINE {
      return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(quant, zero)));
    };
    return _mm512_or_si512(_mm512_srli_epi32(as_float(even), 16), as_float(odd));
  }
}

/// Where a strip's blocks are.
struct BlockPlace {
  std::uint32_t strip;
  std::size_t block;
};

/// Blocks of a strip. Asks for as many, which are next.
template <class Kind>
HWY_NOINLINE void unpack(const cpu::PackedWeight& weight, BlockPlace from, std::size_t blocks,
                         BlockPlace next, WeightPart* to) {
  constexpr cpu::PackedLayout layout = cpu::packed_layout(Kind::format);
  constexpr std::size_t H = Kind::halves;
  Bytes base = weight.strip(from.strip);
  for (std::size_t i = 0; i < blocks; ++i, to += H) {
    const std::size_t b = from.block + i;
    Bytes quants = base + weight.quants_at + b * layout.quant_bytes;
    Bytes ahead = weight.strip(next.strip);
    __builtin_prefetch(ahead + layout.scale_at(next.block + i));
    for (std::size_t line = 0; line < layout.quant_bytes; line += 64) {
      __builtin_prefetch(ahead + weight.quants_at + (next.block + i) * layout.quant_bytes + line);
    }
    unroll<8>([&](auto j) SLUICE_INLINE {
      const __m512i q = Kind::quants(quants, j).part[0].raw;
      auto* lines = to[j * H / 8].quants[2 * j % (16 / H)];
      _mm512_store_si512(lines, to_bf16<Kind>(q));
      _mm512_store_si512(lines + 32, to_bf16<Kind>(_mm512_srli_epi16(q, 8)));
    });
    Bytes head = base + layout.scale_at(b / 8 * 8) - layout.head_bytes;
    const Scales<H> scales = Kind::scales(base + layout.scale_at(b), head);
    unroll<H>([&](auto h) SLUICE_INLINE { to[h].d = scales.d[h]; });
    to[0].m = scales.m;
  }
}

/// Sums of a tile of rows with a strip.
using TileSums = float[tile_rows][cpu::strip_rows];

/// A strip's products with tiles [from, to) of the rows.
struct StripWork {
  const Product& product;
  std::size_t rows;
  std::size_t from;
  std::size_t to;
  std::uint32_t strip;
  TileSums* sums;  ///< of tile `from` first

  HWY_INLINE void finish_tile(std::size_t t) const {
    const std::size_t r = (from + t) * tile_rows;
    for (std::size_t i = 0; i < std::min(rows - r, tile_rows); ++i) {
      finish(product, r + i, strip, load(sums[t][i]));
    }
  }
};

/// Adds to a strip's sums what N parts of it give, H of a block and the first of block b; `last`:
/// these are all. `offsets`: the weights have an m.
template <std::size_t H, bool offsets, std::size_t N, class Tiles>
HWY_NOINLINE void multiply_parts(Tiles& tiles, const WeightPart* weights, const StripWork& work,
                                 std::size_t b, bool last) {
  static_assert(N <= parts_together && (N == 1 || N % 2 == 0));
  const TiledBlock* x = work.product.rounded.int8.tile(work.from) + b;
  const std::size_t stride = work.product.weight->blocks(), count = work.to - work.from;
  TileSums* sums = work.sums;
  alignas(64) float dots[N][tile_rows][cpu::strip_rows];
  unroll<N>([&](auto i) SLUICE_INLINE { tiles.template load_b<4 + i>(weights[i].quants); });
  const auto begin = [&](auto i, std::size_t t) SLUICE_INLINE {
    tiles.template load_a<2 + i % 2>(x[t * stride + i / H].values[0] + i % H * 16);
    tiles.template zero<i % 2>();
    tiles.template dot<i % 2, 2 + i % 2, 4 + i>();
  };
  const auto end = [&](auto i) SLUICE_INLINE { tiles.template store<i % 2>(dots[i][0]); };
  constexpr std::integral_constant<std::size_t, 0> zeroth;
  constexpr std::integral_constant<std::size_t, 1 % N> first;
  // A part's instruction is given two parts ahead, for it takes long, and stored one ahead.
  begin(zeroth, 0);
  end(zeroth);
  if constexpr (N > 1) begin(first, 0);
  for (std::size_t t = 0; t < count; ++t) {
    const std::size_t next = std::min(t + 1, count - 1);
    Lanes sum[tile_rows];
    unroll<tile_rows>([&](auto r) SLUICE_INLINE { sum[r] = load(sums[t][r]); });
    unroll<N>([&](auto i) SLUICE_INLINE {
      constexpr std::size_t after = i + 2;
      if constexpr (N > 1) {
        begin(std::integral_constant<std::size_t, after % N>(), after < N ? t : next);
        end(std::integral_constant<std::size_t, (i + 1) % N>());
      }
      const TiledBlock& in = x[t * stride + i / H];
      unroll<tile_rows>([&](auto r) SLUICE_INLINE {
        sum[r] = fma(load(dots[i][r]), weights[i].d * set(in.steps[r]), sum[r]);
        if constexpr (offsets) sum[r] = fma(set(in.sums[r]), weights[i].m, sum[r]);
      });
      if constexpr (N == 1) {
        begin(zeroth, next);
        end(zeroth);
      }
    });
    unroll<tile_rows>([&](auto r) SLUICE_INLINE { store(sum[r], sums[t][r]); });
    if (last) work.finish_tile(t);  // here memory's answers are waited for beside the next products
  }
}

/// Strips [first, last) for tiles [from, to) of the rows: no more than sums are kept for.
template <class Kind, class Tiles>
void multiply_strips(Tiles& tiles, const Product& p, std::size_t rows, std::size_t from,
                     std::size_t to, std::uint32_t first, std::uint32_t last) {
  constexpr std::size_t H = Kind::halves, together = parts_together / H;
  alignas(64) TileSums sums[sum_strips][sum_tiles];
  alignas(64) WeightPart weights[parts_together];
  const std::size_t blocks = p.weight->blocks(), count = to - from;
  SLUICE_ASSERT(blocks * cpu::block_cols == p.rounded.int8.cols, "rows as wide as the weight");
  for (std::uint32_t s = first; s < last; ++s)
    std::memset(sums[s - first], 0, count * sizeof(TileSums));
  for (std::size_t b = 0; b < blocks;) {
    const std::size_t left = blocks - b;
    const std::size_t step = left >= together ? together : left >= 2 ? 2 : 1;
    for (std::uint32_t s = first; s < last; ++s) {
      const BlockPlace next = left == step ? BlockPlace{s + (last - first), 0}
                                           : BlockPlace{s, b + step};
      unpack<Kind>(*p.weight, {s, b}, step, next, weights);
      const StripWork work{p, rows, from, to, s, sums[s - first]};
      const auto run = [&](auto parts_of_it) {
        multiply_parts<H, Kind::zero == 0, parts_of_it>(tiles, weights, work, b, left == step);
      };
      switch (step) {
        case 1: run(std::integral_constant<std::size_t, H>()); break;
        case 2: run(std::integral_constant<std::size_t, 2 * H>()); break;
        default: run(std::integral_constant<std::size_t, parts_together>());
      }
    }
    b += step;
  }
}

template <template <std::size_t> class Tiles>
void multiply_by(const Product& p, std::uint32_t rows, std::uint32_t first, std::uint32_t last) {
  const std::size_t all = (rows + tile_rows - 1) / tile_rows;
  const std::size_t times = (all + sum_tiles - 1) / sum_tiles;
  with_packed(p.weight->format, [&](auto kind) SLUICE_INLINE {
    Tiles<16 / decltype(kind)::halves> tiles;
    for (std::uint32_t s = first; s < last; s += sum_strips) {
      for (std::size_t i = 0; i < times; ++i) {
        multiply_strips<decltype(kind)>(tiles, p, rows, all * i / times, all * (i + 1) / times, s,
                                        std::min<std::uint32_t>(last, s + sum_strips));
      }
    }
  });
}

#endif

/// 2^-h * q in bfloat16, of which it is the upper half of the float.
void put_in_tiles([[maybe_unused]] const cpu::QuantizedBlock* blocks,
                  [[maybe_unused]] std::size_t count, [[maybe_unused]] std::size_t row,
                  [[maybe_unused]] cpu::TiledBlock* to) {
#if HWY_TARGET == HWY_AVX3_DL
  for (std::size_t b = 0; b < count; ++b) {
    const cpu::QuantizedBlock& block = blocks[b];
    unroll<2>([&](auto half) SLUICE_INLINE {
      // The bits of 2^-h are the origin's less those of 1.5 * 2^23, and 1's.
      const __m512i origin = _mm512_castps_si512(_mm512_set1_ps(block.origins[half]));
      const __m512i unit = _mm512_add_epi32(origin, _mm512_set1_epi32(0x3F800000 - 0x4B400000));
      const __m512i quants = _mm512_cvtepi8_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.values + 16 * half)));
      const __m512 values = _mm512_mul_ps(_mm512_cvtepi32_ps(quants), _mm512_castsi512_ps(unit));
      const __m512 swapped = _mm512_permute_ps(values, _MM_SHUFFLE(3, 1, 2, 0));
      const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(swapped), 16);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[b].values[row] + 16 * half),
                          _mm512_cvtepi32_epi16(upper));
    });
    to[b].sums[row] = block.sum;
    to[b].steps[row] = block.step;
  }
#else
  SLUICE_ASSERT(false, "rows rounded for tiles where there are none");
#endif
}

void multiply_tiles([[maybe_unused]] const Product& p, [[maybe_unused]] std::uint32_t rows,
                    [[maybe_unused]] std::uint32_t first, [[maybe_unused]] std::uint32_t last) {
#if SLUICE_TILES
  if (cpu::has_tiles()) return multiply_by<ProcessorTiles>(p, rows, first, last);
#endif
#if HWY_TARGET == HWY_AVX3_DL
  multiply_by<LoopTiles>(p, rows, first, last);
#else
  SLUICE_ASSERT(false, "rows rounded for tiles where there are none");
#endif
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply_tiles);
HWY_EXPORT(put_in_tiles);

namespace cpu {

void put_in_tiles(const QuantizedBlock* blocks, std::size_t count, std::size_t row,
                  TiledBlock* to) {
  HWY_DYNAMIC_DISPATCH(put_in_tiles)(blocks, count, row, to);
}

void multiply_tiles(const Product& product, std::uint32_t rows, std::uint32_t first,
                    std::uint32_t last) {
  HWY_DYNAMIC_DISPATCH(multiply_tiles)(product, rows, first, last);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
