#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/quantize.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

constexpr std::int32_t infinity = 0x7F800000, power = 1 << 23, one = 127 * power;
constexpr std::int32_t origin = 0x4B400000;  // 1.5 * 2^23
constexpr float tiny = 1e-25F;  // below, 127 / largest would soon not be finite

using Ints = hn::Vec<I>;

// A half is sixteen columns. What is said of halves, or of blocks, is computed side by side: a
// chain of dependent steps for eight blocks takes little longer than for one.
constexpr std::size_t halves = 16, blocks_together = halves / 2, cols_together = 16 * halves;

/// One lane a half; a block's two are neighbours.
struct Halves {
  Ints part[parts];
};

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE Halves swapped(const Halves& v) {
  Halves out;
  for (std::size_t p = 0; p < parts; ++p) out.part[p] = v.part[p ^ 1];
  return out;
}

template <std::size_t N, class With>
HWY_INLINE Ints fold_side_by_side(Ints* v, With) {
  static_assert(N == 1);
  return v[0];
}
#else
/// In each lane what the block's other half has.
HWY_INLINE Halves swapped(const Halves& v) {
  Halves out;
  unroll<parts>([&](auto p) SLUICE_INLINE { out.part[p] = hn::Shuffle2301(v.part[p]); });
  return out;
}

/// N vectors become one: lane i is all lanes of the i-th, folded.
template <std::size_t N, class With>
HWY_INLINE Ints fold_side_by_side(Ints* v, With with) {
  if constexpr (N > 1) {
    unroll<N / 2>([&](auto i) SLUICE_INLINE {
      v[i] = with(hn::ConcatEven(I(), v[2 * i + 1], v[2 * i]),
                  hn::ConcatOdd(I(), v[2 * i + 1], v[2 * i]));
    });
    return fold_side_by_side<N / 2>(v, with);
  } else {
    return v[0];
  }
}
#endif

/// Folds what `make(half, part)` gives for each of a half's vectors.
template <class Make, class With>
HWY_INLINE Halves fold_halves(Make make, With with) {
  Halves out;
  unroll<parts>([&](auto p) SLUICE_INLINE {
    Ints rows[part_lanes];
    unroll<part_lanes>([&](auto i) SLUICE_INLINE {
      const std::size_t half = p * part_lanes + i;
      rows[i] = make(half, 0);
      for (std::size_t other = 1; other < parts; ++other)
        rows[i] = with(rows[i], make(half, other));
    });
    out.part[p] = fold_side_by_side<part_lanes>(rows, with);
  });
  return out;
}

HWY_INLINE Part as_floats(Ints bits) { return hn::BitCast(F(), bits); }
HWY_INLINE Ints ints(std::int32_t value) { return hn::Set(I(), value); }

/// Rounds `blocks_together` blocks.
HWY_INLINE void quantize_blocks(const float* x, cpu::QuantizedBlock* blocks) {
  alignas(64) float largest[halves], inverse[halves], origins[halves], sums[halves], steps[halves];
  alignas(64) std::int32_t starts_8[halves], starts_128[halves];
  const auto part_of = [&](std::size_t half, std::size_t p) SLUICE_INLINE {
    return hn::LoadU(F(), x + 16 * half + p * part_lanes);
  };

  // Of |x|'s bit patterns: NaNs are above infinity, which is above all that is finite.
  const Halves own = fold_halves(
      [&](std::size_t half, std::size_t p) SLUICE_INLINE {
        return hn::And(hn::BitCast(I(), part_of(half, p)), ints(0x7FFFFFFF));
      },
      [](Ints a, Ints b) SLUICE_INLINE { return hn::Max(a, b); });
  const Halves other = swapped(own);
  Part step[parts], unit[parts];
  unroll<parts>([&](auto p) SLUICE_INLINE {
    const Ints top = hn::Max(own.part[p], other.part[p]);
    const Part all = as_floats(top);
    const auto some =
        hn::And(hn::Gt(all, hn::Set(F(), tiny)), hn::Lt(all, as_floats(ints(infinity))));
    step[p] = hn::IfThenElseZero(some, hn::Div(all, hn::Set(F(), 127.0F)));
    const Part to_127 = hn::IfThenElseZero(some, hn::Div(hn::Set(F(), 127.0F), all));
    // Bits' difference is a power of two less where the smaller one's fraction is the larger.
    const Ints halved = hn::And(hn::Min(hn::Sub(top, own.part[p]), ints(cpu::halvings_max * power)),
                                ints(-power));
    unit[p] = as_floats(hn::Sub(ints(one), halved));
    hn::Store(all, F(), largest + p * part_lanes);
    hn::Store(hn::Mul(to_127, as_floats(hn::Add(ints(one), halved))), F(),
              inverse + p * part_lanes);
    hn::Store(as_floats(hn::Sub(ints(origin), halved)), F(), origins + p * part_lanes);
  });

  // Adding 1.5 * 2^23 rounds to an integer, of which the last bits are then the bits. The sum of
  // sixteen such bit patterns, modulo 2^32, is sixteen times its own and the integers'.
  const Halves patterns = fold_halves(
      [&](std::size_t half, std::size_t p) SLUICE_INLINE {
        const hn::RebindToUnsigned<I> u32;
        const hn::Rebind<std::uint8_t, F> u8;
        const Part whole = hn::Add(hn::Mul(part_of(half, p), hn::Set(F(), inverse[half])),
                                   as_floats(ints(origin)));
        std::int8_t* values = blocks[half / 2].values + half % 2 * 16 + p * part_lanes;
        hn::StoreU(hn::TruncateTo(u8, hn::BitCast(u32, whole)), u8,
                   reinterpret_cast<std::uint8_t*>(values));
        return hn::BitCast(I(), whole);
      },
      [](Ints a, Ints b) SLUICE_INLINE { return hn::Add(a, b); });
  Halves scaled;
  unroll<parts>([&](auto p) SLUICE_INLINE {
    const Ints sum = hn::Sub(patterns.part[p],
                             ints(static_cast<std::int32_t>(16U * std::uint32_t{origin})));
    const Ints begin = hn::BitCast(I(), hn::Load(F(), origins + p * part_lanes));
    hn::Store(hn::Sub(begin, hn::ShiftLeft<3>(sum)), I(), starts_8 + p * part_lanes);
    hn::Store(hn::Sub(begin, hn::ShiftLeft<7>(sum)), I(), starts_128 + p * part_lanes);
    scaled.part[p] = hn::BitCast(I(), hn::Mul(unit[p], hn::ConvertTo(F(), sum)));
  });
  const Halves others = swapped(scaled);
  unroll<parts>([&](auto p) SLUICE_INLINE {
    const Part both = hn::Add(as_floats(scaled.part[p]), as_floats(others.part[p]));
    hn::Store(hn::Mul(step[p], both), F(), sums + p * part_lanes);
    hn::Store(step[p], F(), steps + p * part_lanes);
  });

  for (std::size_t half = 0; half < halves; half += 2) {
    cpu::QuantizedBlock& block = blocks[half / 2];
    std::copy_n(origins + half, 2, block.origins);
    std::copy_n(starts_8 + half, 2, block.starts_8);
    std::copy_n(starts_128 + half, 2, block.starts_128);
    block.sum = sums[half];
    block.step = steps[half];
    if (std::isfinite(largest[half])) continue;
    block = {};
    block.sum = block.step = std::numeric_limits<float>::quiet_NaN();
  }
}

void quantize(const float* x, std::uint32_t first, std::uint32_t last,
              const cpu::QuantizedView& view, std::size_t r) {
  cpu::QuantizedBlock* blocks = view.row(r);
  std::size_t k = first;
  for (; k + cols_together <= last; k += cols_together) quantize_blocks(x + k, blocks + k / 32);
  if (k == last) return;
  alignas(64) float rest[cols_together];
  for (std::size_t c = 0; c < cols_together; c += 16)
    store(k + c < last ? load(x + k + c) : set(0.0F), rest + c);
  std::array<cpu::QuantizedBlock, blocks_together> rounded;
  quantize_blocks(rest, rounded.data());
  std::copy_n(rounded.data(), (last - k) / 32, blocks + k / 32);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(quantize);

namespace cpu {

void quantize(const float* x, std::uint32_t first, std::uint32_t last, const QuantizedView& to,
              std::size_t r, std::size_t rows) {
  if (!to.tiled(rows)) return HWY_DYNAMIC_DISPATCH(quantize)(x, first, last, to, r);
  std::array<QuantizedBlock, 8> some;
  const QuantizedView view{reinterpret_cast<std::byte*>(some.data()), 32 * some.size()};
  for (std::uint32_t k = first; k < last; k += view.cols) {
    const std::uint32_t cols = std::min(view.cols, last - k);
    HWY_DYNAMIC_DISPATCH(quantize)(x + k, 0, cols, view, 0);
    put_in_tiles(some.data(), cols / 32, r % TiledBlock::rows,
                 to.tile(r / TiledBlock::rows) + k / 32);
  }
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
