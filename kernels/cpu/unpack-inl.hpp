// Weights in their file format to float32 lanes: 32 elements at a time, equal to the bit to the
// scalar `dequantize`. Included once per target.

#if defined(SLUICE_KERNELS_CPU_UNPACK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_UNPACK_INL
#undef SLUICE_KERNELS_CPU_UNPACK_INL
#else
#define SLUICE_KERNELS_CPU_UNPACK_INL
#endif

#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using Bytes = const std::uint8_t*;

/// Sixteen small integers on their way to float.
struct Integers {
  hn::Vec<I> part[parts];
};

HWY_INLINE Integers load_bytes(Bytes from) {
  const hn::Rebind<std::uint8_t, F> u8;
  Integers v;
  for (std::size_t i = 0; i < parts; ++i) {
    v.part[i] = hn::PromoteTo(I(), hn::LoadU(u8, from + i * part_lanes));
  }
  return v;
}

HWY_INLINE Integers load_signed_bytes(Bytes from) {
  const hn::Rebind<std::int8_t, F> i8;
  Integers v;
  for (std::size_t i = 0; i < parts; ++i) {
    const auto* at = reinterpret_cast<const std::int8_t*>(from) + i * part_lanes;
    v.part[i] = hn::PromoteTo(I(), hn::LoadU(i8, at));
  }
  return v;
}

template <class Map>
HWY_INLINE Integers map(const Integers& v, Map f) {
  Integers out;
  for (std::size_t i = 0; i < parts; ++i) out.part[i] = f(v.part[i]);
  return out;
}

struct LowNibble {
  template <class V>
  HWY_INLINE V operator()(V v) const {
    return hn::And(v, hn::Set(I(), 15));
  }
};

/// Of bytes: nothing above the nibble to mask.
struct HighNibble {
  template <class V>
  HWY_INLINE V operator()(V v) const {
    return hn::ShiftRight<4>(v);
  }
};

HWY_INLINE Integers operator|(const Integers& a, const Integers& b) {
  Integers out;
  for (std::size_t i = 0; i < parts; ++i) out.part[i] = hn::Or(a.part[i], b.part[i]);
  return out;
}

HWY_INLINE Lanes to_float(const Integers& v) {
  Lanes out;
  for (std::size_t i = 0; i < parts; ++i) out.part[i] = hn::ConvertTo(F(), v.part[i]);
  return out;
}

/// (v >> shift) & mask, moved up to bit 4: the bits above a nibble
HWY_INLINE Integers bits_above(const Integers& v, int shift, int mask) {
  Integers out;
  for (std::size_t i = 0; i < parts; ++i) {
    out.part[i] = hn::ShiftLeft<4>(
        hn::And(hn::ShiftRightSame(v.part[i], shift), hn::Set(I(), mask)));
  }
  return out;
}

/// Bits first..first + 15 of a word, one a lane, at bit 4
HWY_INLINE Integers spread_bits(std::uint32_t word, int first) {
  Integers out;
  for (std::size_t i = 0; i < parts; ++i) {
    const auto lane = hn::Iota(I(), first + static_cast<int>(i * part_lanes));
    const auto bit = hn::Shr(hn::Set(I(), static_cast<std::int32_t>(word)), lane);
    out.part[i] = hn::ShiftLeft<4>(hn::And(bit, hn::Set(I(), 1)));
  }
  return out;
}

/// 0, 1, ... 15
HWY_INLINE Lanes count_up() {
  Lanes v;
  for (std::size_t i = 0; i < parts; ++i) {
    v.part[i] = hn::Iota(F(), static_cast<float>(i * part_lanes));
  }
  return v;
}

/// The values of 32 nibbles, q[0..15] low ones first: `value` maps sixteen quants to floats.
/// With sixteen values in one register a look-up replaces conversion, product and sum.
template <class Value>
HWY_INLINE void nibble_values(const Integers& low, const Integers& high, Value value, Lanes w[2]) {
#if HWY_CAP_GE512
  const Part table = value(count_up()).part[0];
  w[0].part[0] = hn::TableLookupLanes(table, hn::IndicesFromVec(F(), low.part[0]));
  w[1].part[0] = hn::TableLookupLanes(table, hn::IndicesFromVec(F(), high.part[0]));
#else
  w[0] = value(to_float(low));
  w[1] = value(to_float(high));
#endif
}

struct ScaleTimes {  ///< scale * (q - offset)
  Lanes scale;
  float offset;
  HWY_INLINE Lanes operator()(const Lanes& q) const { return scale * (q - set(offset)); }
};

struct ScalePlus {  ///< scale * q + minimum, rounded twice as the reference does
  Lanes scale;
  Lanes minimum;
  HWY_INLINE Lanes operator()(const Lanes& q) const { return scale * q + minimum; }
};

struct ScaleMinus {
  Lanes scale;
  Lanes minimum;
  HWY_INLINE Lanes operator()(const Lanes& q) const { return scale * q - minimum; }
};

// Each format: `elements` and `bytes` of a block, and group(block, g, w), which unpacks elements
// 32 g .. 32 g + 31 of the block. Plain floats count 32 elements as a block.

struct UnpackF32 {
  static constexpr std::size_t elements = 32, bytes = 128;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    float copy[32];  // the file need not align them
    std::memcpy(copy, block, sizeof copy);
    w[0] = load(copy);
    w[1] = load(copy + 16);
  }
};

struct UnpackF16 {
  static constexpr std::size_t elements = 32, bytes = 64;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    w[0] = load_half(reinterpret_cast<const std::uint16_t*>(block));
    w[1] = load_half(reinterpret_cast<const std::uint16_t*>(block) + 16);
  }
};

struct UnpackBF16 {
  static constexpr std::size_t elements = 32, bytes = 64;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    const hn::Rebind<std::uint16_t, F> u16;
    const auto* from = reinterpret_cast<const std::uint16_t*>(block);
    for (std::size_t i = 0; i < 2 * parts; ++i) {
      const auto wide = hn::PromoteTo(I(), hn::LoadU(u16, from + i * part_lanes));
      w[i / parts].part[i % parts] = hn::BitCast(F(), hn::ShiftLeft<16>(wide));
    }
  }
};

struct UnpackQ8_0 {
  static constexpr std::size_t elements = 32, bytes = 34;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    const Lanes d = set_half(block);
    w[0] = to_float(load_signed_bytes(block + 2)) * d;
    w[1] = to_float(load_signed_bytes(block + 18)) * d;
  }
};

struct UnpackQ4_0 {
  static constexpr std::size_t elements = 32, bytes = 18;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    const Integers q = load_bytes(block + 2);
    nibble_values(map(q, LowNibble()), map(q, HighNibble()), ScaleTimes{set_half(block), 8}, w);
  }
};

struct UnpackQ4_1 {
  static constexpr std::size_t elements = 32, bytes = 20;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    const Integers q = load_bytes(block + 4);
    nibble_values(map(q, LowNibble()), map(q, HighNibble()),
                  ScalePlus{set_half(block), set_half(block + 2)}, w);
  }
};

/// q4 nibbles with a fifth bit each from a 32-bit word.
HWY_INLINE void five_bits(Bytes high, Bytes nibbles, Lanes q[2]) {
  std::uint32_t word;
  std::memcpy(&word, high, sizeof word);
  const Integers bytes = load_bytes(nibbles);
  q[0] = to_float(map(bytes, LowNibble()) | spread_bits(word, 0));
  q[1] = to_float(map(bytes, HighNibble()) | spread_bits(word, 16));
}

struct UnpackQ5_0 {
  static constexpr std::size_t elements = 32, bytes = 22;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    five_bits(block + 2, block + 6, w);
    const ScaleTimes value{set_half(block), 16};
    for (int i = 0; i < 2; ++i) w[i] = value(w[i]);
  }
};

struct UnpackQ5_1 {
  static constexpr std::size_t elements = 32, bytes = 24;
  static HWY_INLINE void group(Bytes block, std::size_t, Lanes w[2]) {
    five_bits(block + 4, block + 8, w);
    const ScalePlus value{set_half(block), set_half(block + 2)};
    for (int i = 0; i < 2; ++i) w[i] = value(w[i]);
  }
};

/// Scale and minimum of group g of a Q4_K or Q5_K block; see quant.cpp for the packing.
HWY_INLINE ScaleMinus k_scales(Bytes block, std::size_t g) {
  Bytes packed = block + 4;
  const int scale = g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | ((packed[g - 4] >> 2) & 48);
  const int min = g < 4 ? packed[g + 4] & 63 : (packed[g + 4] >> 4) | ((packed[g] >> 2) & 48);
  return {set_half(block) * set(static_cast<float>(scale)),
          set_half(block + 2) * set(static_cast<float>(min))};
}

/// Low nibbles for even groups, high ones for odd: 32 bytes serve two groups.
HWY_INLINE Integers group_nibbles(Bytes q, std::size_t g) {
  const Integers bytes = load_bytes(q);
  return g % 2 == 0 ? map(bytes, LowNibble()) : map(bytes, HighNibble());
}

struct UnpackQ4_K {
  static constexpr std::size_t elements = 256, bytes = 144;
  static HWY_INLINE void group(Bytes block, std::size_t g, Lanes w[2]) {
    Bytes q = block + 16 + 32 * (g / 2);
    nibble_values(group_nibbles(q, g), group_nibbles(q + 16, g), k_scales(block, g), w);
  }
};

struct UnpackQ5_K {
  static constexpr std::size_t elements = 256, bytes = 176;
  static HWY_INLINE void group(Bytes block, std::size_t g, Lanes w[2]) {
    const ScaleMinus value = k_scales(block, g);
    for (std::size_t i = 0; i < 2; ++i) {
      const Integers high = bits_above(load_bytes(block + 16 + 16 * i), static_cast<int>(g), 1);
      w[i] = value(to_float(group_nibbles(block + 48 + 32 * (g / 2) + 16 * i, g) | high));
    }
  }
};

struct UnpackQ6_K {
  static constexpr std::size_t elements = 256, bytes = 210;
  static HWY_INLINE void group(Bytes block, std::size_t g, Lanes w[2]) {
    Bytes low = block + 64 * (g / 4) + 32 * (g % 2);
    Bytes high = block + 128 + 32 * (g / 4);
    const Lanes d = set_half(block + 208);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto scale = static_cast<std::int8_t>(block[192 + 2 * g + i]);
      const Integers bits = bits_above(load_bytes(high + 16 * i), static_cast<int>(2 * (g % 4)), 3);
      const Integers nibbles = group_nibbles(low + 16 * i, (g % 4) / 2);
      const Lanes q = to_float(nibbles | bits) - set(32.0F);
      w[i] = d * set(static_cast<float>(scale)) * q;
    }
  }
};

/// Calls f with the unpacker of a format: the one place that dispatches on formats.
template <class Call>
HWY_INLINE void with_unpacker(Format format, Call f) {
  switch (format) {
    case Format::f32: return f(UnpackF32());
    case Format::f16: return f(UnpackF16());
    case Format::bf16: return f(UnpackBF16());
    case Format::q8_0: return f(UnpackQ8_0());
    case Format::q4_0: return f(UnpackQ4_0());
    case Format::q4_1: return f(UnpackQ4_1());
    case Format::q5_0: return f(UnpackQ5_0());
    case Format::q5_1: return f(UnpackQ5_1());
    case Format::q4_k: return f(UnpackQ4_K());
    case Format::q5_k: return f(UnpackQ5_K());
    case Format::q6_k: return f(UnpackQ6_K());
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_UNPACK_INL
