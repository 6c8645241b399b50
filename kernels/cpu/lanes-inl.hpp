// Sixteen float32 lanes, in one AVX-512, two AVX2 or four NEON vectors. Every reduction of the
// CPU backend runs in these sixteen lanes and ends in the same tree, so that all instruction sets
// give the same bits. Included once per target (Highway's foreach_target).

#if defined(SLUICE_KERNELS_CPU_LANES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_LANES_INL
#undef SLUICE_KERNELS_CPU_LANES_INL
#else
#define SLUICE_KERNELS_CPU_LANES_INL
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/elementary.hpp"
#include "kernels/quant.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Highway's portable targets: no fused multiply-add, and half conversions that flush or saturate.
#undef SLUICE_PORTABLE
#define SLUICE_PORTABLE (HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR)

/// A lambda that always becomes part of its caller, with the caller's instruction set.
#undef SLUICE_INLINE
#define SLUICE_INLINE HWY_ATTR __attribute__((always_inline))

#if SLUICE_PORTABLE
/// body(0), body(1), ... body(N - 1). The portable target's vectors are arrays in memory, so that
/// unrolling gains nothing, and matmul_int8.cpp compiled for two minutes in the fuzzers' build.
template <std::size_t N, class Body>
HWY_INLINE void unroll(Body body) {
  for (std::size_t i = 0; i < N; ++i) body(i);
}
#else
template <class Body, std::size_t... i>
HWY_INLINE void unroll_over(Body& body, std::index_sequence<i...>) {
  (body(std::integral_constant<std::size_t, i>()), ...);
}

/// body(0), body(1), ... body(N - 1), the index a constant: only so does the compiler keep an array
/// of vectors in registers.
template <std::size_t N, class Body>
HWY_INLINE void unroll(Body body) {
  unroll_over(body, std::make_index_sequence<N>());
}
#endif

using F = hn::CappedTag<float, 16>;
using I = hn::RebindToSigned<F>;
using Part = hn::Vec<F>;

inline constexpr std::size_t part_lanes = hn::MaxLanes(F());
inline constexpr std::size_t parts = 16 / part_lanes;

struct Lanes {
  Part part[parts];
};

HWY_INLINE Lanes load(const float* from) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::LoadU(F(), from + i * part_lanes); });
  return v;
}

HWY_INLINE void store(const Lanes& v, float* to) {
  unroll<parts>([&](auto i) SLUICE_INLINE { hn::StoreU(v.part[i], F(), to + i * part_lanes); });
}

HWY_INLINE Lanes set(float value) {
  Lanes v;
  const Part all = hn::Set(F(), value);
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = all; });
  return v;
}

HWY_INLINE Part fma_part(Part a, Part b, Part c) {
#if SLUICE_PORTABLE
  float x[part_lanes], y[part_lanes], z[part_lanes];
  hn::StoreU(a, F(), x);
  hn::StoreU(b, F(), y);
  hn::StoreU(c, F(), z);
  for (std::size_t i = 0; i < part_lanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::LoadU(F(), z);
#else
  return hn::MulAdd(a, b, c);
#endif
}

/// a * b + c, rounded once
HWY_INLINE Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  Lanes v;
  unroll<parts>([&](auto i)
                    SLUICE_INLINE { v.part[i] = fma_part(a.part[i], b.part[i], c.part[i]); });
  return v;
}

HWY_INLINE Lanes operator*(const Lanes& a, const Lanes& b) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::Mul(a.part[i], b.part[i]); });
  return v;
}

HWY_INLINE Lanes operator+(const Lanes& a, const Lanes& b) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::Add(a.part[i], b.part[i]); });
  return v;
}

HWY_INLINE Lanes operator-(const Lanes& a, const Lanes& b) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::Sub(a.part[i], b.part[i]); });
  return v;
}

HWY_INLINE Lanes operator/(const Lanes& a, const Lanes& b) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::Div(a.part[i], b.part[i]); });
  return v;
}

HWY_INLINE Lanes max(const Lanes& a, const Lanes& b) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = hn::Max(a.part[i], b.part[i]); });
  return v;
}

/// Folds the sixteen lanes: lane i with i + 8, then with i + 4, i + 2, i + 1.
template <class Fold>
HWY_INLINE float fold(const Lanes& v, Fold with) {
#if HWY_CAP_GE512
  const hn::Half<F> half;
  const auto eight = with(hn::LowerHalf(half, v.part[0]), hn::UpperHalf(half, v.part[0]));
  const hn::Half<decltype(half)> quarter;
  const auto four = with(hn::LowerHalf(quarter, eight), hn::UpperHalf(quarter, eight));
#elif HWY_CAP_GE256
  const auto eight = with(v.part[0], v.part[1]);
  const hn::Half<F> quarter;
  const auto four = with(hn::LowerHalf(quarter, eight), hn::UpperHalf(quarter, eight));
#elif HWY_TARGET != HWY_SCALAR
  const auto four = with(with(v.part[0], v.part[2]), with(v.part[1], v.part[3]));
#endif
#if HWY_TARGET == HWY_SCALAR
  Lanes rest = v;
  for (std::size_t width = 8; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) rest.part[i] = with(rest.part[i], rest.part[i + width]);
  }
  return hn::GetLane(rest.part[0]);
#else
  const auto two = with(four, hn::Shuffle1032(four));
  return hn::GetLane(with(two, hn::Shuffle2301(two)));
#endif
}

struct AddFold {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};

struct MaxFold {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

HWY_INLINE float sum(const Lanes& v) { return fold(v, AddFold()); }
HWY_INLINE float highest(const Lanes& v) { return fold(v, MaxFold()); }

/// exp_f32 in each lane, to the bit
HWY_INLINE Lanes exp(const Lanes& x) {
  const F f;
  const I integer;
  Lanes out;
  for (std::size_t i = 0; i < parts; ++i) {
    const Part v = hn::Min(x.part[i], hn::Set(f, ExpSteps::highest));
    const Part round = hn::Set(f, ExpSteps::round);
    const Part shifted = fma_part(v, hn::Set(f, ExpSteps::log2_e), round);
    const Part n = hn::Neg(hn::Sub(shifted, round));
    Part r = fma_part(n, hn::Set(f, ExpSteps::ln2_high), v);
    r = fma_part(n, hn::Set(f, ExpSteps::ln2_low), r);
    Part p = hn::Set(f, ExpSteps::taylor[0]);
    for (int t = 1; t < 8; ++t) p = fma_part(p, r, hn::Set(f, ExpSteps::taylor[t]));
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(integer, shifted));
    const Part scaled = hn::BitCast(f, hn::Add(hn::BitCast(integer, p), exponent));
    const Part low = hn::IfThenZeroElse(hn::Lt(v, hn::Set(f, ExpSteps::lowest)), scaled);
    out.part[i] = hn::IfThenElse(hn::IsNaN(x.part[i]), x.part[i], low);  // Min may have lost it
  }
  return out;
}

/// tanh_f32 in each lane, to the bit
HWY_INLINE Lanes tanh(const Lanes& x) {
  return set(1.0F) - set(2.0F) / (set(1.0F) + exp(x + x));
}

/// Sixteen halves, widened
HWY_INLINE Lanes load_half(const std::uint16_t* from) {
  Lanes v;
  for (std::size_t i = 0; i < parts; ++i) {
#if SLUICE_PORTABLE
    float wide[part_lanes];
    for (std::size_t j = 0; j < part_lanes; ++j) {
      std::uint16_t half;
      std::memcpy(&half, from + i * part_lanes + j, sizeof half);
      wide[j] = f16_to_f32(half);
    }
    v.part[i] = hn::LoadU(F(), wide);
#else
    const hn::Rebind<std::uint16_t, F> u16;
    const hn::Rebind<hwy::float16_t, F> f16;
    v.part[i] = hn::PromoteTo(F(), hn::BitCast(f16, hn::LoadU(u16, from + i * part_lanes)));
#endif
  }
  return v;
}

/// Rounded to nearest even, as f32_to_f16
HWY_INLINE void store_half(const Lanes& v, std::uint16_t* to) {
  for (std::size_t i = 0; i < parts; ++i) {
#if SLUICE_PORTABLE
    float wide[part_lanes];
    hn::StoreU(v.part[i], F(), wide);
    for (std::size_t j = 0; j < part_lanes; ++j) to[i * part_lanes + j] = f32_to_f16(wide[j]);
#else
    const hn::Rebind<std::uint16_t, F> u16;
    const hn::Rebind<hwy::float16_t, F> f16;
    hn::StoreU(hn::BitCast(u16, hn::DemoteTo(f16, v.part[i])), u16, to + i * part_lanes);
#endif
  }
}

/// One half in every lane; `from` need not be aligned
HWY_INLINE Lanes set_half(const std::uint8_t* from) {
  std::uint16_t half;
  std::memcpy(&half, from, sizeof half);
#if SLUICE_PORTABLE
  return set(f16_to_f32(half));
#else
  const hn::Rebind<std::uint16_t, F> u16;
  const hn::Rebind<hwy::float16_t, F> f16;
  const Part all = hn::PromoteTo(F(), hn::BitCast(f16, hn::Set(u16, half)));
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE { v.part[i] = all; });
  return v;
#endif
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_LANES_INL
