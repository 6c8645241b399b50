#pragma once
// Weights in their file format to float32, eight elements of a row at a time; equal to the bit to
// the scalar `dequantize` (kernels/quant.cpp has the layouts). For tensor cores they are rounded to
// bf16.

#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/numbers.cuh"

namespace sluice::kernels::cuda {

using Bytes = const std::uint8_t*;

/// Reads as wide as a block's alignment allows: blocks lie one behind the other in a row.
__device__ inline std::uint32_t load16(Bytes at) {
  return *reinterpret_cast<const std::uint16_t*>(at);
}

template <int align>
__device__ std::uint32_t load32(Bytes at) {
  if constexpr (align >= 4) {
    return *reinterpret_cast<const std::uint32_t*>(at);
  } else {
    return load16(at) | load16(at + 2) << 16;
  }
}

struct Eight {
  std::uint32_t low, high;

  __device__ std::uint32_t byte(int i) const {
    return (i < 4 ? low : high) >> (8 * (i % 4)) & 255U;
  }
};

template <int align>
__device__ Eight load_eight(Bytes at) {
  if constexpr (align >= 8) {
    const uint2 both = *reinterpret_cast<const uint2*>(at);
    return {both.x, both.y};
  } else {
    return {load32<align>(at), load32<align>(at + 4)};
  }
}

__device__ inline float scale_at(Bytes at) { return widen_f16(load16(at)); }

// Each format: `elements` and `bytes` of a block. Of plain floats, eight of which count as a block,
// eight(block, w) are its elements. Of quantized ones codes(block, e) are elements e .. e + 7 of
// the block, e a multiple of 8.

/// Eight elements in `bits` bits each: scale * (code - zero), + offset where there is one.
struct Codes {
  Eight at;
  float scale;
  float offset = 0.0F;
};

/// What a quantized format is beside its layout: `scaled` elements have a scale together.
template <std::uint32_t bits_, int zero_, bool has_offset_, std::uint32_t scaled_ = 32>
struct Quantized {
  static constexpr std::uint32_t bits = bits_, scaled = scaled_;
  static constexpr int zero = zero_;
  static constexpr bool has_offset = has_offset_;
};

template <class U>
concept HasCodes = requires { U::bits; };

template <Format format>
struct Unpack;

template <>
struct Unpack<Format::f32> {
  static constexpr int elements = 8, bytes = 32;
  static __device__ void eight(Bytes block, float w[8]) {
    const float4 a = *reinterpret_cast<const float4*>(block);
    const float4 b = *reinterpret_cast<const float4*>(block + 16);
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
    w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  }
};

template <>
struct Unpack<Format::f16> {
  static constexpr int elements = 8, bytes = 16;
  static __device__ void eight(Bytes block, float w[8]) {
    widen_eight_f16(*reinterpret_cast<const uint4*>(block), w);
  }
};

template <>
struct Unpack<Format::bf16> {
  static constexpr int elements = 8, bytes = 16;
  static __device__ void eight(Bytes block, float w[8]) {
    const uint4 all = *reinterpret_cast<const uint4*>(block);
    const std::uint32_t words[4] = {all.x, all.y, all.z, all.w};
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = float_from_bits(words[i] << 16);
      w[2 * i + 1] = float_from_bits(words[i] & 0xFFFF0000U);
    }
  }
};

template <>
struct Unpack<Format::q8_0> : Quantized<8, 128, false> {
  static constexpr int elements = 32, bytes = 34;
  static __device__ Codes codes(Bytes block, int e) {
    const Eight q = load_eight<2>(block + 2 + e);
    return {{q.low ^ 0x80808080U, q.high ^ 0x80808080U}, scale_at(block)};
  }
};

/// Nibbles e .. e + 7 of 32: elements 0..15 are the low ones of 16 bytes, 16..31 the high ones.
template <int align>
__device__ Eight split_nibbles(Bytes q, int e) {
  const Eight both = load_eight<align>(q + e % 16);
  const int shift = e < 16 ? 0 : 4;
  return {both.low >> shift & 0x0F0F0F0FU, both.high >> shift & 0x0F0F0F0FU};
}

template <>
struct Unpack<Format::q4_0> : Quantized<4, 8, false> {
  static constexpr int elements = 32, bytes = 18;
  static __device__ Codes codes(Bytes block, int e) {
    return {split_nibbles<2>(block + 2, e), scale_at(block)};
  }
};

template <>
struct Unpack<Format::q4_1> : Quantized<4, 0, true> {
  static constexpr int elements = 32, bytes = 20;
  static __device__ Codes codes(Bytes block, int e) {
    return {split_nibbles<4>(block + 4, e), scale_at(block), scale_at(block + 2)};
  }
};

/// Four nibbles and their fifth bits, the lowest four of `fifth`.
__device__ inline std::uint32_t with_fifth(std::uint32_t nibbles, std::uint32_t fifth) {
  for (std::uint32_t i = 0; i < 4; ++i) nibbles |= (fifth >> i & 1U) << (8 * i + 4);
  return nibbles;
}

__device__ inline Eight with_fifths(const Eight& nibbles, std::uint32_t fifths) {
  return {with_fifth(nibbles.low, fifths), with_fifth(nibbles.high, fifths >> 4)};
}

template <>
struct Unpack<Format::q5_0> : Quantized<5, 16, false> {
  static constexpr int elements = 32, bytes = 22;
  static __device__ Codes codes(Bytes block, int e) {
    return {with_fifths(split_nibbles<2>(block + 6, e), load32<2>(block + 2) >> e),
            scale_at(block)};
  }
};

template <>
struct Unpack<Format::q5_1> : Quantized<5, 0, true> {
  static constexpr int elements = 32, bytes = 24;
  static __device__ Codes codes(Bytes block, int e) {
    return {with_fifths(split_nibbles<8>(block + 8, e), load32<4>(block + 4) >> e),
            scale_at(block), scale_at(block + 2)};
  }
};

/// Of group g of a Q4_K or Q5_K block.
__device__ inline Codes group_codes(Bytes block, int g, const Eight& q) {
  Bytes packed = block + 4;
  const int scale = g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | ((packed[g - 4] >> 2) & 48);
  const int min = g < 4 ? packed[g + 4] & 63 : (packed[g + 4] >> 4) | ((packed[g] >> 2) & 48);
  return {q, scale_at(block) * static_cast<float>(scale),
          -(scale_at(block + 2) * static_cast<float>(min))};
}

/// Of a group of 32: low nibbles for even groups, high ones for odd; 32 bytes serve two.
__device__ inline Eight group_nibbles(Eight both, int g) {
  const int shift = 4 * (g % 2);
  return {both.low >> shift & 0x0F0F0F0FU, both.high >> shift & 0x0F0F0F0FU};
}

/// Nibbles and what lies above them: of each byte of `high` the bits of `mask`, `shift` up.
__device__ inline Eight with_high(const Eight& nibbles, const Eight& high, int shift,
                                  std::uint32_t mask) {
  return {nibbles.low | (high.low >> shift & mask) << 4,
          nibbles.high | (high.high >> shift & mask) << 4};
}

template <>
struct Unpack<Format::q4_k> : Quantized<4, 0, true> {
  static constexpr int elements = 256, bytes = 144;
  static __device__ Codes codes(Bytes block, int e) {
    const int g = e / 32;
    return group_codes(block, g,
                       group_nibbles(load_eight<8>(block + 16 + 32 * (g / 2) + e % 32), g));
  }
};

template <>
struct Unpack<Format::q5_k> : Quantized<5, 0, true> {
  static constexpr int elements = 256, bytes = 176;
  static __device__ Codes codes(Bytes block, int e) {
    const int g = e / 32;
    const Eight q = group_nibbles(load_eight<8>(block + 48 + 32 * (g / 2) + e % 32), g);
    return group_codes(block, g,
                       with_high(q, load_eight<8>(block + 16 + e % 32), g, 0x01010101U));
  }
};

template <>
struct Unpack<Format::q6_k> : Quantized<6, 32, false, 16> {
  static constexpr int elements = 256, bytes = 210;
  static __device__ Codes codes(Bytes block, int e) {
    const int g = e / 32;
    const auto raw = static_cast<std::int8_t>(block[192 + e / 16]);
    const Eight low = load_eight<2>(block + 64 * (g / 4) + 32 * (g % 2) + e % 32);
    const Eight high = load_eight<2>(block + 128 + 32 * (g / 4) + e % 32);
    return {with_high(group_nibbles(low, g % 4 / 2), high, 2 * (g % 4), 0x03030303U),
            scale_at(block + 208) * static_cast<float>(raw)};
  }
};

/// Rows narrowed at load. An element's bits, moved to where bf16 has its own, are its value times
/// 2^-120: what is a multiple of 2^-9 here and at most 448 is exact there, subnormals too.
struct UnpackE4m3 {
  static constexpr int elements = 8, bytes = 8;
  static constexpr std::uint16_t scale = 0x7B80;  ///< 2^120

  static __device__ std::uint32_t two(std::uint32_t q) {
    const std::uint32_t bits = (q & 0x7FU) << 4 | (q & 0x80U) << 8;
    const std::uint32_t next = (q >> 8 & 0x7FU) << 4 | (q & 0x8000U);
    return scale_bf16(bits | next << 16, scale);
  }
  static __device__ uint4 packed(const Eight& q) {
    return {two(q.low), two(q.low >> 16), two(q.high), two(q.high >> 16)};
  }
};

/// The block of a row that has a column's element.
template <class U>
__device__ Bytes block_at(Bytes row, std::uint32_t column) {
  return row + std::size_t{column / static_cast<std::uint32_t>(U::elements)} * U::bytes;
}

/// Elements column .. column + 7 of a row, column a multiple of 8, as codes.
template <HasCodes U>
__device__ Codes codes_at(Bytes row, std::uint32_t column) {
  return U::codes(block_at<U>(row, column),
                  static_cast<int>(column % static_cast<std::uint32_t>(U::elements)));
}

/// And widened.
template <class U>
__device__ void unpack_eight(Bytes row, std::uint32_t column, float w[8]) {
  if constexpr (HasCodes<U>) {
    const Codes codes = codes_at<U>(row, column);
    for (int i = 0; i < 8; ++i) {
      const float centred = static_cast<float>(static_cast<int>(codes.at.byte(i)) - U::zero);
      w[i] = U::has_offset ? codes.scale * centred + codes.offset : codes.scale * centred;
    }
  } else {
    U::eight(block_at<U>(row, column), w);
  }
}

/// Eight elements as `load_packed` leaves them on their way to bf16: so that many can be under way
/// at once, nothing is made larger, or waited for, before it must be.
template <class U>
using Raw = std::conditional_t<std::is_same_v<U, UnpackE4m3>, Eight, uint4>;

template <class U>
__device__ Raw<U> load_packed(Bytes row, std::uint32_t column) {
  if constexpr (std::is_same_v<U, UnpackE4m3>) {
    return load_eight<8>(row + column);
  } else if constexpr (std::is_same_v<U, Unpack<Format::bf16>>) {
    return *reinterpret_cast<const uint4*>(row + 2 * std::size_t{column});
  } else {
    float w[8];
    unpack_eight<U>(row, column, w);
    return {pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]), pack_bf16(w[4], w[5]),
            pack_bf16(w[6], w[7])};
  }
}

/// Rounded to bf16, two in a word.
template <class U>
__device__ uint4 packed(const Raw<U>& raw) {
  if constexpr (std::is_same_v<U, UnpackE4m3>) {
    return U::packed(raw);
  } else {
    return raw;
  }
}

/// Calls f(Unpack...()) for how the weight lies on the device.
template <class F>
cudaError_t with_unpack(const DeviceWeight& weight, F f) {
  if (weight.scales != nullptr) return f(UnpackE4m3());
  switch (weight.format) {
    case Format::f32: return f(Unpack<Format::f32>());
    case Format::f16: return f(Unpack<Format::f16>());
    case Format::bf16: return f(Unpack<Format::bf16>());
    case Format::q8_0: return f(Unpack<Format::q8_0>());
    case Format::q4_0: return f(Unpack<Format::q4_0>());
    case Format::q4_1: return f(Unpack<Format::q4_1>());
    case Format::q5_0: return f(Unpack<Format::q5_0>());
    case Format::q5_1: return f(Unpack<Format::q5_1>());
    case Format::q4_k: return f(Unpack<Format::q4_k>());
    case Format::q5_k: return f(Unpack<Format::q5_k>());
    case Format::q6_k: return f(Unpack<Format::q6_k>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace sluice::kernels::cuda
