// Blocks of packed weights (packed.hpp) in registers, and dot products of their bytes. Included
// once per target.

#if defined(SLUICE_KERNELS_CPU_PACKED_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_PACKED_INL
#undef SLUICE_KERNELS_CPU_PACKED_INL
#else
#define SLUICE_KERNELS_CPU_PACKED_INL
#endif

#include "kernels/core.hpp"
#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/packed.hpp"
#include "kernels/cpu/quantize.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using Bytes = const std::uint8_t*;

/// Sixteen rows' four columns: a byte each, four in a lane.
struct Quants {
  hn::Vec<I> part[parts];
};

/// Sixteen sums, one a row.
struct Sums {
  hn::Vec<I> part[parts];
};

HWY_INLINE hn::Vec<I> all_bytes(int byte) { return hn::Set(I(), byte * 0x01010101); }

HWY_INLINE Quants load_quants(Bytes from) {
  Quants v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    v.part[i] = hn::LoadU(I(), reinterpret_cast<const std::int32_t*>(from) + i * part_lanes);
  });
  return v;
}

/// Vector j of a block: 0..3 are the low halves of the bytes, 4..7 the high ones.
HWY_INLINE Quants load_nibbles(Bytes from, std::size_t j) {
  const auto mask = all_bytes(15);
  Quants q = load_quants(from + 64 * (j % 4));
  unroll<parts>([&](auto i) SLUICE_INLINE {
    q.part[i] = hn::And(j < 4 ? q.part[i] : hn::ShiftRight<4>(q.part[i]), mask);
  });
  return q;
}

/// 16 in each byte of lanes part_lanes * i and up whose bit is set.
HWY_INLINE hn::Vec<I> fifth_bits(Bytes bits, std::size_t i) {
#if SLUICE_PORTABLE
  std::int32_t lanes[part_lanes];
  for (std::size_t l = 0; l < part_lanes; ++l) {
    const std::size_t lane = i * part_lanes + l;
    const std::uint32_t four = bits[lane / 2] >> 4 * (lane % 2) & 15U;
    const std::uint32_t spread = four | four << 7 | four << 14 | four << 21;
    lanes[l] = static_cast<std::int32_t>((spread & 0x01010101U) << 4);
  }
  return hn::LoadU(I(), lanes);
#else
  const hn::Repartition<std::uint8_t, I> u8;
  const auto set = hn::LoadMaskBits(u8, bits + i * part_lanes / 2);
  return hn::BitCast(I(), hn::IfThenElseZero(set, hn::Set(u8, 16)));
#endif
}

/// Vector j with 16 added where the bit of the byte is set.
HWY_INLINE Quants load_fives(Bytes from, std::size_t j) {
  Quants q = load_nibbles(from, j);
  unroll<parts>([&](auto i) SLUICE_INLINE {
    q.part[i] = hn::Or(q.part[i], fifth_bits(from + 256 + 8 * j, i));
  });
  return q;
}

/// Vector j with the two bits above each nibble.
HWY_INLINE Quants load_sixes(Bytes from, std::size_t j) {
  const auto mask = all_bytes(48);
  Quants q = load_nibbles(from, j);
  const Quants four = load_quants(from + 256 + 64 * (j / 4));
  unroll<parts>([&](auto i) SLUICE_INLINE {
    auto two = four.part[i];
    if (j % 4 == 0) two = hn::ShiftLeft<4>(two);
    if (j % 4 == 1) two = hn::ShiftLeft<2>(two);
    if (j % 4 == 3) two = hn::ShiftRight<2>(two);
    q.part[i] = hn::Or(q.part[i], hn::And(two, mask));
  });
  return q;
}

#if HWY_CAP_GE512
/// sums[r] += q[r][0..3] . x[0..3] with x in every lane, exactly. `small`: no quant is above 63.
template <bool small>
HWY_INLINE void add_dots(const Quants& q, hn::Vec<I> x, Sums& sums) {
#if HWY_TARGET == HWY_AVX3
  const __m512i w = q.part[0].raw;
  const __m512i v = x.raw;
  __m512i dots;
  if constexpr (small) {  // 2 * 63 * 127 fits 16 bits
    dots = _mm512_madd_epi16(_mm512_maddubs_epi16(w, v), _mm512_set1_epi16(1));
  } else {  // even and odd bytes apart
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8));
    dots = _mm512_add_epi32(
        even, _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(v, 8)));
  }
  sums.part[0].raw = _mm512_add_epi32(sums.part[0].raw, dots);
#else
  // As assembly, because this Highway compiles the target for AVX-VNNI, which has no 512 bits.
  asm("vpdpbusd %2, %1, %0" : "+v"(sums.part[0].raw) : "v"(q.part[0].raw), "v"(x.raw));
#endif
}
#endif

/// The same with x where it lies.
template <bool small>
HWY_INLINE void add_dots(const Quants& q, const std::int8_t* x, Sums& sums) {
#if HWY_TARGET == HWY_AVX3_DL
  struct Four {
    std::int8_t bytes[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sums.part[0].raw)
      : "v"(q.part[0].raw), "m"(*reinterpret_cast<const Four*>(x)));
#else
  std::int32_t four;
  std::memcpy(&four, x, sizeof four);
#if HWY_TARGET == HWY_AVX3
  add_dots<small>(q, hn::Set(I(), four), sums);
#elif HWY_TARGET == HWY_AVX2
  const __m256i v = _mm256_set1_epi32(four);
  unroll<2>([&](auto i) SLUICE_INLINE {
    const __m256i w = q.part[i].raw;
    __m256i dots;
    if constexpr (small) {
      dots = _mm256_madd_epi16(_mm256_maddubs_epi16(w, v), _mm256_set1_epi16(1));
    } else {
      const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                             _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
      dots = _mm256_add_epi32(
          even, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(v, 8)));
    }
    sums.part[i].raw = _mm256_add_epi32(sums.part[i].raw, dots);
  });
#else
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const auto w = q.part[i];
    const auto byte = hn::Set(I(), 255);
    auto& sum = sums.part[i];
    const auto of = [&](int c) SLUICE_INLINE { return hn::Set(I(), x[c]); };
    sum = hn::Add(sum, hn::Mul(hn::And(w, byte), of(0)));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<8>(w), byte), of(1)));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<16>(w), byte), of(2)));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<24>(w), byte), of(3)));
  });
#endif
#endif
}

/// Sixteen small integers from bytes.
template <class Byte>
HWY_INLINE Lanes load_small(Bytes from) {
  const hn::Rebind<Byte, F> narrow;
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const auto* at = reinterpret_cast<const Byte*>(from) + i * part_lanes;
    v.part[i] = hn::ConvertTo(F(), hn::PromoteTo(I(), hn::LoadU(narrow, at)));
  });
  return v;
}

HWY_INLINE Lanes load_halves(Bytes from) {
  return load_half(reinterpret_cast<const std::uint16_t*>(from));
}

/// What a block's rows multiply with: weight = d * (q - zero) + m, for each half of the block.
/// There is an m only where all of the block has one d, and zero is 0.
template <std::size_t halves>
struct Scales {
  Lanes d[halves];
  Lanes m;
};

// Each format: its `largest` quant, whether its bits lie `apart`, its zero, vector j of a block's
// quants, how many scales a block's row has, and how to read them. `head` is what eight blocks
// share.

template <class Kind>
constexpr bool has_small_quants = Kind::largest < 64;

struct PackedQ4_0 {
  static constexpr Format format = Format::q4_0;
  static constexpr int largest = 15;
  static constexpr bool apart = false;
  static constexpr int zero = 8;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_nibbles(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes) { return {{load_halves(at)}, {}}; }
};

struct PackedQ4_1 {
  static constexpr Format format = Format::q4_1;
  static constexpr int largest = 15;
  static constexpr bool apart = false;
  static constexpr int zero = 0;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_nibbles(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes) {
    return {{load_halves(at)}, load_halves(at + 32)};
  }
};

struct PackedQ5_0 {
  static constexpr Format format = Format::q5_0;
  static constexpr int largest = 31;
  static constexpr bool apart = true;
  static constexpr int zero = 16;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_fives(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes) {
    return {{load_halves(at)}, {}};
  }
};

struct PackedQ5_1 {
  static constexpr Format format = Format::q5_1;
  static constexpr int largest = 31;
  static constexpr bool apart = true;
  static constexpr int zero = 0;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_fives(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes head) { return PackedQ4_1::scales(at, head); }
};

struct PackedQ8_0 {
  static constexpr Format format = Format::q8_0;
  static constexpr int largest = 255;
  static constexpr bool apart = false;
  static constexpr int zero = 128;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_quants(from + 64 * j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes) { return {{load_halves(at)}, {}}; }
};

struct PackedQ4_K {
  static constexpr Format format = Format::q4_k;
  static constexpr int largest = 15;
  static constexpr bool apart = false;
  static constexpr int zero = 0;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_nibbles(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes head) {
    return {{load_halves(head) * load_small<std::uint8_t>(at)},
            set(0.0F) - load_halves(head + 32) * load_small<std::uint8_t>(at + 16)};
  }
};

struct PackedQ5_K {
  static constexpr Format format = Format::q5_k;
  static constexpr int largest = 31;
  static constexpr bool apart = true;
  static constexpr int zero = 0;
  static constexpr std::size_t halves = 1;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_fives(from, j); }
  static HWY_INLINE Scales<1> scales(Bytes at, Bytes head) { return PackedQ4_K::scales(at, head); }
};

struct PackedQ6_K {
  static constexpr Format format = Format::q6_k;
  static constexpr int largest = 63;
  static constexpr bool apart = true;
  static constexpr int zero = 32;
  static constexpr std::size_t halves = 2;
  static HWY_INLINE Quants quants(Bytes from, std::size_t j) { return load_sixes(from, j); }
  static HWY_INLINE Scales<2> scales(Bytes at, Bytes head) {
    const Lanes d = load_halves(head);
    return {{d * load_small<std::int8_t>(at), d * load_small<std::int8_t>(at + 16)}, {}};
  }
};

/// Calls f with a packed format's type: the one place that dispatches on it.
template <class Call>
HWY_INLINE void with_packed(Format format, Call f) {
  switch (format) {
    case Format::q4_0: return f(PackedQ4_0());
    case Format::q4_1: return f(PackedQ4_1());
    case Format::q5_0: return f(PackedQ5_0());
    case Format::q5_1: return f(PackedQ5_1());
    case Format::q8_0: return f(PackedQ8_0());
    case Format::q4_k: return f(PackedQ4_K());
    case Format::q5_k: return f(PackedQ5_K());
    case Format::q6_k: return f(PackedQ6_K());
    default: SLUICE_ASSERT(false, "a format that is not quantized");
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_PACKED_INL
