// Pairs of bfloat16 in sixteen lanes, and their products. Included once per target.
//
// The instruction (AVX512_BF16) multiplies and adds twice, first the odd element, then the even,
// rounding to nearest even each time, with zeros for denormals: so what else processors have gives
// the same bits in this order, with denormals flushed (denormals.hpp). (ARM's flush looks at a
// result before it is rounded: there one in the last half step below 2^-126 becomes 0 and elsewhere
// 2^-126. So do the other results of code that flushes for these.)

#if defined(SLUICE_KERNELS_CPU_PAIRS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_PAIRS_INL
#undef SLUICE_KERNELS_CPU_PAIRS_INL
#else
#define SLUICE_KERNELS_CPU_PAIRS_INL
#endif

#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// A pair in each lane.
struct Pairs {
  hn::Vec<I> part[parts];
};

HWY_INLINE Pairs load_pairs(const void* from) {
  Pairs v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    v.part[i] = hn::LoadU(I(), static_cast<const std::int32_t*>(from) + i * part_lanes);
  });
  return v;
}

/// One pair in every lane of a part.
HWY_INLINE hn::Vec<I> set_pair(const std::uint16_t* from) {
  std::int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return hn::Set(I(), pair);
}

HWY_INLINE Part odd_part(hn::Vec<I> pairs) {
  return hn::BitCast(F(), hn::And(pairs, hn::Set(I(), static_cast<std::int32_t>(0xFFFF0000U))));
}
HWY_INLINE Part even_part(hn::Vec<I> pairs) { return hn::BitCast(F(), hn::ShiftLeft<16>(pairs)); }

// How a pair is added, `Weight` being sixteen lanes' pairs and `Input` one pair, each as the sum
// wants it.

/// By two multiply-adds.
struct PairsByParts {
  static constexpr bool twice = true;  ///< as many registers for operands
  struct Weight {
    Lanes odd;
    Lanes even;
  };
  struct Input {
    Part odd;
    Part even;
  };
  static HWY_INLINE Weight weight(const Pairs& pairs) {
    Weight w;
    unroll<parts>([&](auto i) SLUICE_INLINE {
      w.odd.part[i] = odd_part(pairs.part[i]);
      w.even.part[i] = even_part(pairs.part[i]);
    });
    return w;
  }
  static HWY_INLINE Input input(const std::uint16_t* pair) {
    return {odd_part(set_pair(pair)), even_part(set_pair(pair))};
  }
  static HWY_INLINE void add(const Weight& w, const Input& x, Lanes& sum) {
    unroll<parts>([&](auto i) SLUICE_INLINE {
      sum.part[i] = fma_part(w.even.part[i], x.even,
                             fma_part(w.odd.part[i], x.odd, sum.part[i]));
    });
  }
};

#if HWY_TARGET == HWY_AVX3_DL
/// By the instruction, as assembly: this Highway has no target with it.
struct PairsByDots {
  static constexpr bool twice = false;
  using Weight = Pairs;
  using Input = hn::Vec<I>;
  static HWY_INLINE const Weight& weight(const Pairs& pairs) { return pairs; }
  static HWY_INLINE Input input(const std::uint16_t* pair) { return set_pair(pair); }
  static HWY_INLINE void add(const Weight& w, const Input& x, Lanes& sum) {
    auto to = sum.part[0].raw;  // a copy: GCC keeps in memory what assembly writes of an array
    asm("vdpbf16ps %2, %1, %0" : "+v"(to) : "v"(w.part[0].raw), "v"(x.raw));
    sum.part[0].raw = to;
  }
};
#endif

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_PAIRS_INL
