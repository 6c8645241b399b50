#pragma once
// Weights in the order in which tensor cores take them, for devices with the kernels for that. A
// panel of 16 rows is cut into units of 32 columns, two tensor-core steps, from its first columns
// to its last; of a unit, what a lane holds of the steps' first operands lies together. So a warp
// reads whole lines, one behind the other, and what it reads needs no shuffling. Rows are filled up
// to whole panels and columns to padded() ones, with zeros.
//
// How a unit is written when a weight is loaded, and how it becomes bf16 again:
//   bf16        as it is; f16 is rounded
//   e4m3        exact; the bits lie so that few instructions move them to where bf16 has its own
//   quantized   code, scale and offset of the file's format, the last two rounded to bf16:
//               bf16((code - middle) * scale + offset), rounded once, `middle` half of all codes
// The offset is that from the middle, so that what its rounding costs is small. Formats with a
// middle of their own have none. A unit takes the bytes of the file's blocks but for K formats,
// whose scales take 6 bits there (Q4_K 5 bits a weight for 4.5, Q5_K 6 for 5.5, Q6_K 7 for 6.56).

#include <type_traits>

#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/unpack.cuh"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t unit_columns = 32;
inline constexpr std::uint32_t unit_tiles = unit_columns / 16;

/// A lane's part of a unit, `count` words, which lie together, up to 16 bytes of them.
template <std::uint32_t count>
struct LaneWords {
  std::uint32_t at[count];

  using Piece = std::conditional_t<count % 4 == 0, uint4, uint2>;
  static constexpr std::uint32_t pieces = count * sizeof(std::uint32_t) / sizeof(Piece);
  static constexpr std::uint32_t bytes = count * sizeof(std::uint32_t) * warp_lanes;

  static __device__ LaneWords read(const void* unit, std::uint32_t lane) {
    LaneWords words;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < pieces; ++i) {
      const Piece piece = static_cast<const Piece*>(unit)[i * warp_lanes + lane];
      std::uint32_t* to = words.at + i * (count / pieces);
      to[0] = piece.x, to[1] = piece.y;
      if constexpr (count % 4 == 0) to[2] = piece.z, to[3] = piece.w;
    }
    return words;
  }
  __device__ void write(void* unit, std::uint32_t lane) const {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < pieces; ++i) {
      const std::uint32_t* from = at + i * (count / pieces);
      Piece& piece = static_cast<Piece*>(unit)[i * warp_lanes + lane];
      piece.x = from[0], piece.y = from[1];
      if constexpr (count % 4 == 0) piece.z = from[2], piece.w = from[3];
    }
  }
};

/// Of eight columns of a row, of which a lane has two: the `eight`-th of a unit, and whether the
/// row is one of a panel's last eight. They are pair `pair()` of step `step()`.
struct LanePlace {
  std::uint32_t eight, lower;

  __device__ std::uint32_t step() const { return eight / 2; }
  __device__ std::uint32_t pair() const { return eight % 2 * 2 + lower; }
};

/// Those columns, before they are packed.
struct EightFloats {
  float at[8];
};

struct PackedBf16 {
  struct Lane {
    LaneWords<8> words;
  };
  static constexpr std::uint32_t unit_bytes = LaneWords<8>::bytes;

  static __device__ Lane read(const void* unit, std::uint32_t lane) {
    return {LaneWords<8>::read(unit, lane)};
  }
  static __device__ void unpack(const Lane& lane, TileA (&out)[unit_tiles]) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) out[i / 4].pairs[i % 4] = lane.words.at[i];
  }

  static __device__ void put(Lane& lane, const LanePlace& place, std::uint32_t first,
                             const EightFloats& w) {
    lane.words.at[place.step() * 4 + place.pair()] = pack_bf16(w.at[first], w.at[first + 1]);
  }
  static __device__ void write(void* unit, std::uint32_t lane, const Lane& part) {
    part.words.write(unit, lane);
  }
};

/// A word has two pairs, of rows g and g + 8. The bits of the first lie where those of a pair of
/// bf16 do; the second's are parted by them: what belongs 4 to the right, and 4 to the left.
struct PackedE4m3 {
  struct Lane {
    LaneWords<4> words;
  };
  static constexpr std::uint32_t unit_bytes = LaneWords<4>::bytes;
  static constexpr std::uint32_t first_bits = 0x87F087F0U;
  static constexpr std::uint32_t right_bits = 0x07000700U, left_bits = 0x80F080F0U;
  static_assert((right_bits | left_bits) == first_bits);
  static_assert(((right_bits << 4 | left_bits >> 4) & first_bits) == 0);

  static __device__ Lane read(const void* unit, std::uint32_t lane) {
    return {LaneWords<4>::read(unit, lane)};
  }
  static __device__ void unpack(const Lane& lane, TileA (&out)[unit_tiles]) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t word = lane.words.at[i];
      std::uint32_t* const to = out[i / 2].pairs + i % 2 * 2;
      to[0] = scale_bf16(word & first_bits, UnpackE4m3::scale);
      to[1] = scale_bf16(mask_and_set(word >> 4, right_bits, word << 4 & left_bits),
                         UnpackE4m3::scale);
    }
  }

  static __device__ void put(Lane& lane, const LanePlace& place, std::uint32_t first,
                             const Eight& q) {
    const auto one = [&](std::uint32_t i) {
      const std::uint32_t byte = q.byte(static_cast<int>(first + i));
      return (byte & 0x80U) << 8 | (byte & 0x7FU) << 4;
    };
    const std::uint32_t both = one(0) | one(1) << 16;
    lane.words.at[place.eight] |=
        place.lower == 0 ? both : (both & right_bits) << 4 | (both & left_bits) >> 4;
  }
  static __device__ void write(void* unit, std::uint32_t lane, const Lane& part) {
    part.words.write(unit, lane);
  }
};

/// Codes of `bits` bits, of which `scales` stretches of a unit have a scale each, and an offset, if
/// any. A unit has every lane's codes, or of such of more than four bits and less than eight their
/// lowest four; then every lane's other bits; then factors of rows g and g + 8, for g from 0 to 7.
template <std::uint32_t bits_, bool has_offset_, std::uint32_t scales_ = 1>
struct PackedCodes {
  static constexpr std::uint32_t bits = bits_, scales = scales_;
  static constexpr bool has_offset = has_offset_;
  static constexpr int middle = 1 << (bits - 1);

  using Words = LaneWords<bits == 8 ? 4 : 2>;
  static constexpr std::uint32_t factors = scales + (has_offset ? 1 : 0);  ///< pairs of a row's
  struct Lane {
    Words words;
    /// Bits above the lowest four of a code, in a half of the word those of a pair's first, in the
    /// other those of its second, by step and pair.
    std::uint32_t high;
    std::uint32_t factors[PackedCodes::factors];  ///< bf16, of the upper row and of the lower
  };
  static constexpr std::uint32_t high_bits = bits == 8 ? 0 : bits - 4;
  static constexpr std::uint32_t high_bytes = high_bits * 2 * warp_lanes;
  static constexpr std::uint32_t unit_bytes =
      Words::bytes + high_bytes + factors * sizeof(std::uint32_t) * 8;
  static_assert(unit_bytes % 16 == 0 && factors <= 2 && (high_bits <= 2));

  static __device__ Lane read(const void* unit, std::uint32_t lane) {
    const auto* bytes = static_cast<const std::uint8_t*>(unit);
    Lane part{Words::read(unit, lane), 0, {}};
    bytes += Words::bytes;
    if constexpr (high_bits == 1) {
      const std::uint32_t both = reinterpret_cast<const std::uint16_t*>(bytes)[lane];
      part.high = (both & 0xFFU) | (both & 0xFF00U) << 8;
    } else if constexpr (high_bits == 2) {
      part.high = reinterpret_cast<const std::uint32_t*>(bytes)[lane];
    }
    bytes += high_bytes;
    if constexpr (factors == 1) {
      part.factors[0] = reinterpret_cast<const std::uint32_t*>(bytes)[lane / 4];
    } else {
      const uint2 both = reinterpret_cast<const uint2*>(bytes)[lane / 4];
      part.factors[0] = both.x, part.factors[1] = both.y;
    }
    return part;
  }

  static __device__ void unpack(const Lane& lane, TileA (&out)[unit_tiles]) {
    SLUICE_UNROLL
    for (std::uint32_t step = 0; step < unit_tiles; ++step) {
      SLUICE_UNROLL
      for (std::uint32_t pair = 0; pair < 4; ++pair) {
        const auto of_row = [pair](std::uint32_t both) {
          return pair % 2 == 0 ? twice_low(both) : twice_high(both);
        };
        const std::uint32_t scale = of_row(lane.factors[scales == 1 ? 0 : step]);
        std::uint32_t offset = negative_zeros_bf16;
        if constexpr (has_offset) offset = of_row(lane.factors[1]);
        out[step].pairs[pair] = fma_bf16(centred(lane, step, pair), scale, offset);
      }
    }
  }

  static __device__ void put(Lane& lane, const LanePlace& place, std::uint32_t first,
                             const Codes& codes, int zero) {
    const std::uint32_t step = place.step(), pair = place.pair();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t code = codes.at.byte(static_cast<int>(first + i));
      if constexpr (bits == 8) {
        lane.words.at[step * 2 + pair / 2] |= (code ^ 0x80U) << (pair % 2 * 8 + i * 16);
      } else {
        lane.words.at[step] |= (code & 15U) << (pair * 4 + i * 16);
        lane.high |= code >> 4 << (high_place(step, pair) + i * 16);
      }
    }
    const std::uint32_t shift = place.lower * 16;
    const auto put_factor = [&](std::uint32_t& word, float value) {
      word = (word & ~(0xFFFFU << shift)) | std::uint32_t{narrow_bf16(value)} << shift;
    };
    put_factor(lane.factors[scales == 1 ? 0 : step], codes.scale);
    if constexpr (has_offset) {
      put_factor(lane.factors[1], codes.offset + static_cast<float>(middle - zero) * codes.scale);
    }
  }
  static __device__ void write(void* unit, std::uint32_t lane, const Lane& part) {
    auto* bytes = static_cast<std::uint8_t*>(unit);
    part.words.write(unit, lane);
    bytes += Words::bytes;
    if constexpr (high_bits == 1) {
      reinterpret_cast<std::uint16_t*>(bytes)[lane] =
          static_cast<std::uint16_t>((part.high & 0xFFU) | (part.high >> 8 & 0xFF00U));
    } else if constexpr (high_bits == 2) {
      reinterpret_cast<std::uint32_t*>(bytes)[lane] = part.high;
    }
    bytes += high_bytes;
    if (lane % 4 != 0) return;  // the four of a row know the same
    auto* to = reinterpret_cast<std::uint32_t*>(bytes) + lane / 4 * factors;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < factors; ++i) to[i] = part.factors[i];
  }

 private:
  static __host__ __device__ constexpr std::uint32_t high_place(std::uint32_t step,
                                                                std::uint32_t pair) {
    return (step * 4 + pair) * high_bits;
  }

  /// A pair of codes - middle as bf16. A code of seven bits or less, in the last bits of 128's, is
  /// 128 + code; of eight, which lie as signed numbers, that of the first seven, less 256 where
  /// the last is set, and 128 where not.
  static __device__ std::uint32_t centred(const Lane& lane, std::uint32_t step,
                                          std::uint32_t pair) {
    constexpr std::uint32_t base = 0x43004300U, ones = 0x3F803F80U, negative_ones = 0xBF80BF80U;
    if constexpr (bits == 8) {
      const std::uint32_t word = lane.words.at[step * 2 + pair / 2] >> (pair % 2 * 8);
      return fma_bf16(mask_and_set(word, 0x00800080U, base), negative_ones,
                      mask_and_set(word, 0x007F007FU, base));
    } else {
      constexpr std::uint32_t less = 0xC300C300U | std::uint32_t{middle} * 0x10001U;
      std::uint32_t code = mask_and_set(lane.words.at[step] >> (4 * pair), 0x000F000FU, base);
      if constexpr (high_bits > 0) {
        constexpr std::uint32_t mask = ((1U << high_bits) - 1) * 0x00100010U;
        const std::uint32_t place = high_place(step, pair);
        code = mask_and_set(place < 4 ? lane.high << (4 - place) : lane.high >> (place - 4), mask,
                            code);
      }
      return fma_bf16(code, ones, less);
    }
  }
};

/// How weights that lie as U says are packed.
template <class U>
struct PackedBy {
  using Type = PackedCodes<U::bits, U::has_offset || (1 << (U::bits - 1)) != U::zero,
                           unit_columns / U::scaled>;
};
template <>
struct PackedBy<Unpack<Format::f16>> {
  using Type = PackedBf16;
};
template <>
struct PackedBy<Unpack<Format::bf16>> {
  using Type = PackedBf16;
};
template <>
struct PackedBy<UnpackE4m3> {
  using Type = PackedE4m3;
};

/// Calls f(P()) for how a weight that is not float32 is packed.
template <class F>
cudaError_t with_packed(const DeviceWeight& weight, F f) {
  return with_unpack(weight, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return f(typename PackedBy<U>::Type());
    }
  });
}

/// The unit of a packed weight that has an element.
template <class P>
__device__ Bytes unit_at(const DeviceWeight& weight, std::uint32_t row, std::uint32_t column) {
  return weight.data + row / panel_rows * weight.stride +
         std::size_t{column / unit_columns} * P::unit_bytes;
}

}  // namespace sluice::kernels::cuda
