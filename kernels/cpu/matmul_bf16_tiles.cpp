// Vectors of 512 bits with byte dot products: what processors with tiles have; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_bf16_tiles.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/core.hpp"
#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/matmul-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/tiles-inl.hpp"
#include "kernels/cpu/tiles.hpp"

// Products of bfloat16 weights with many rows on a processor that multiplies tiles: to the bit what
// matmul_bf16.cpp gives, whose two chains a block are what the instruction adds up of a pair's
// first and second elements. So what a tile of weights has in a word are two columns of a block
// that are sixteen apart, which lie in two lines of the packed strip.
//
// Arithmetic intensity: one instruction, of 16 cycles, is sixteen rows by a strip by a block, where
// two units of vectors need 256 cycles by multiply-adds. Two tiles of rows and two strips have four
// sums, which stay in tiles, for four loads of 1 KiB a block: 32 cycles of 64 out of the
// first-level cache. Two tiles of rows stay there while eight strips pass by, unpacked, out of the
// second, at 32 bytes a cycle, if a task has so many. Unpacking a strip's block, two operations and
// a store a line, takes as long as two or three tiles of rows: with four rows vectors were 1.25
// times as fast, with eight as fast, with nine tiles 1.1 times.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;

#if HWY_TARGET == HWY_AVX3_DL

using cpu::NarrowBlock;

constexpr std::size_t tile_rows = NarrowBlock::rows;
// What is unpacked together, and read by two tiles of rows that are 24 KiB of as many blocks. Of 8
// to 24 blocks and of four or eight strips no other was faster in 7 rounds of a prompt of 512 with
// two threads; 24 blocks of four strips took 1.3 times as long, and with one thread as long.
constexpr std::size_t stretch_blocks = 12;
constexpr std::uint32_t strips_together = 8;

constexpr std::size_t sum_tiles = 32;  // tiles of rows that weights are unpacked once for
constexpr std::size_t prefetch_bytes = 8192;  // how far ahead of its use a weight is asked for

/// Weights of a strip and a block as tiles read them, and of a stretch.
using WeightTile = std::uint16_t[16][32];
using StripTiles = WeightTile[stretch_blocks];
using TileSums = float[tile_rows][cpu::strip_rows];

/// Blocks [first, last) of S strips that lie interleaved, or of one.
template <std::size_t S>
HWY_NOINLINE void unpack(const cpu::PackedWeight& weight, std::size_t strip, std::size_t first,
                         std::size_t last, StripTiles* to) {
  constexpr std::size_t pairs = cpu::block_cols / 2;
  constexpr std::size_t beside = cpu::packed_layout(Format::bf16).beside_bytes;
  const std::uint8_t* at = weight.strip(static_cast<std::uint32_t>(strip));
  at += first * pairs * cpu::pair_bytes;
  for (std::size_t b = 0; b < last - first; ++b, at += pairs / 2 * cpu::pair_bytes) {
    for (std::size_t k = 0; k < pairs / 2; ++k, at += cpu::pair_bytes) {
      const std::uint8_t* behind = at + pairs / 2 * cpu::pair_bytes;
      unroll<S>([&](auto s) SLUICE_INLINE {
        __builtin_prefetch(at + s * beside + prefetch_bytes);
        __builtin_prefetch(behind + s * beside + prefetch_bytes);
        store_chains(_mm512_loadu_si512(at + s * beside), _mm512_loadu_si512(behind + s * beside),
                     to[s][b] + 2 * k);
      });
    }
  }
}

/// Some strips' blocks [first, last), unpacked, with rows.
struct Stretch {
  const Product& product;
  std::size_t rows;
  std::size_t first;
  std::size_t last;

  bool begins() const { return first == 0; }
  bool ends() const { return last == product.weight->blocks(); }
};

/// T tiles of rows, from t on, by S strips; `sums` are of each strip T tiles'.
template <std::size_t S, std::size_t T, class Tiles>
HWY_NOINLINE void multiply_stretch(Tiles& tiles, const Stretch& work, std::size_t t,
                                   std::uint32_t strip, const StripTiles* weights,
                                   TileSums* sums) {
  const NarrowBlock* x[T];
  for (std::size_t i = 0; i < T; ++i) x[i] = work.product.rounded.bf16.tile(t + i) + work.first;
  unroll<S * T>([&](auto i) SLUICE_INLINE {
    if (work.begins()) {
      tiles.template zero<i>();
    } else {
      tiles.template load_sums<i>(sums[i][0]);
    }
  });
  for (std::size_t b = 0; b < work.last - work.first; ++b) {
    unroll<S>([&](auto s) SLUICE_INLINE { tiles.template load_b<6 + s>(weights[s][b]); });
    unroll<T>([&](auto i) SLUICE_INLINE {
      tiles.template load_a<4 + i>(x[i][b].values);
      unroll<S>([&](auto s) SLUICE_INLINE { tiles.template dot<s * T + i, 4 + i, 6 + s>(); });
    });
  }
  unroll<S * T>([&](auto i) SLUICE_INLINE { tiles.template store<i>(sums[i][0]); });
  if (!work.ends()) return;
  for (std::size_t i = 0; i < T; ++i) {
    const std::size_t r = (t + i) * tile_rows;
    for (std::size_t line = 0; line < std::min(work.rows - r, tile_rows); ++line) {
      unroll<S>([&](auto s) SLUICE_INLINE {
        finish(work.product, r + line, strip + s, load(sums[s * T + i][line]));
      });
    }
  }
}

/// Strips [first, last) for tiles [from, to) of the rows: no more of either than there is room for.
template <class Tiles>
void multiply_strips(Tiles& tiles, const Product& p, std::size_t rows, std::size_t from,
                     std::size_t to, std::uint32_t first, std::uint32_t last) {
  alignas(64) TileSums sums[sum_tiles * strips_together];
  alignas(64) StripTiles weights[strips_together];
  const std::size_t blocks = p.weight->blocks(), count = last - first;
  const std::size_t stretches = (blocks + stretch_blocks - 1) / stretch_blocks;
  for (std::size_t i = 0; i < stretches; ++i) {
    const Stretch work{p, rows, blocks * i / stretches, blocks * (i + 1) / stretches};
    for (std::size_t s = 0; s < count;) {
      if ((first + s) % 2 == 0 && s + 2 <= count) {
        unpack<2>(*p.weight, first + s, work.first, work.last, weights + s);
        s += 2;
      } else {
        unpack<1>(*p.weight, first + s, work.first, work.last, weights + s);
        s += 1;
      }
    }
    const auto run = [&](auto tiles_of_rows, std::size_t t) {
      constexpr std::size_t T = tiles_of_rows();
      TileSums* of = sums + (t - from) * count;
      std::uint32_t s = 0;
      for (; s + 2 <= count; s += 2) {
        multiply_stretch<2, T>(tiles, work, t, first + s, weights + s, of + s * T);
      }
      if (s < count) multiply_stretch<1, T>(tiles, work, t, first + s, weights + s, of + s * T);
    };
    std::size_t t = from;
    for (; t + 2 <= to; t += 2) run(std::integral_constant<std::size_t, 2>(), t);
    if (t < to) run(std::integral_constant<std::size_t, 1>(), t);
  }
}

template <class Tiles>
void multiply_in(const Product& p, std::uint32_t rows, std::uint32_t first, std::uint32_t last) {
  SLUICE_ASSERT(p.weight->blocks() * cpu::block_cols == p.rounded.bf16.cols,
                "rows as wide as the weight");
  const std::size_t all = (rows + tile_rows - 1) / tile_rows;
  const std::size_t times = (all + sum_tiles - 1) / sum_tiles;
  Tiles tiles;
  for (std::uint32_t s = first; s < last; s += strips_together) {
    for (std::size_t i = 0; i < times; ++i) {
      multiply_strips(tiles, p, rows, all * i / times, all * (i + 1) / times, s,
                      std::min(last, s + strips_together));
    }
  }
}

#endif

void multiply_bf16_tiles([[maybe_unused]] const Product& p, [[maybe_unused]] std::uint32_t rows,
                         [[maybe_unused]] std::uint32_t first,
                         [[maybe_unused]] std::uint32_t last) {
  const cpu::NoDenormals flushed;
#if SLUICE_TILES
  if (cpu::has_tiles()) return multiply_in<ProcessorTiles<16>>(p, rows, first, last);
#endif
#if HWY_TARGET == HWY_AVX3_DL
  multiply_in<LoopTiles<16>>(p, rows, first, last);
#else
  SLUICE_ASSERT(false, "rows rounded for tiles where there are none");
#endif
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply_bf16_tiles);

namespace cpu {

void multiply_bf16_tiles(const Product& product, std::uint32_t rows, std::uint32_t first,
                         std::uint32_t last) {
  HWY_DYNAMIC_DISPATCH(multiply_bf16_tiles)(product, rows, first, last);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
