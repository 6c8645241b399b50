#include "kernels/quant.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "kernels/core.hpp"

// The block layouts are ggml's (the GGUF specification's "tensor types"). Each value is computed by
// the same float32 operations in the same order as the Python package `gguf`: equal to the bit.

namespace sluice::kernels {
namespace {

constexpr std::array<FormatInfo, format_count> formats = {{
    {Format::f32, "F32", 0, 1, 4},
    {Format::f16, "F16", 1, 1, 2},
    {Format::bf16, "BF16", 30, 1, 2},
    {Format::q8_0, "Q8_0", 8, 32, 34},
    {Format::q4_0, "Q4_0", 2, 32, 18},
    {Format::q4_1, "Q4_1", 3, 32, 20},
    {Format::q5_0, "Q5_0", 6, 32, 22},
    {Format::q5_1, "Q5_1", 7, 32, 24},
    {Format::q4_k, "Q4_K", 12, 256, 144},
    {Format::q5_k, "Q5_K", 13, 256, 176},
    {Format::q6_k, "Q6_K", 14, 256, 210},
}};

using Bytes = const std::uint8_t*;

std::uint16_t load16(Bytes p) {
  std::uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

std::uint32_t load32(Bytes p) {
  std::uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float scale_at(Bytes p) { return f16_to_f32(load16(p)); }

void block_q8_0(Bytes block, float* out) {
  const float d = scale_at(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<std::int8_t>(block[2 + i])) * d;
  }
}

/// Element i < 16 is a low nibble, element 16 + i the high nibble of the same byte.
int nibble(Bytes q, int i) { return i < 16 ? q[i] & 0x0F : q[i - 16] >> 4; }

void block_q4_0(Bytes block, float* out) {
  const float d = scale_at(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(block + 2, i) - 8);
}

void block_q4_1(Bytes block, float* out) {
  const float d = scale_at(block);
  const float m = scale_at(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(block + 4, i)) + m;
}

/// Bit i of the 32-bit word is the fifth bit of element i.
int five_bits(Bytes q, std::uint32_t high, int i) {
  return nibble(q, i) | static_cast<int>((high >> i) & 1U) << 4;
}

void block_q5_0(Bytes block, float* out) {
  const float d = scale_at(block);
  const std::uint32_t high = load32(block + 2);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(five_bits(block + 6, high, i) - 16);
  }
}

void block_q5_1(Bytes block, float* out) {
  const float d = scale_at(block);
  const float m = scale_at(block + 2);
  const std::uint32_t high = load32(block + 4);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(five_bits(block + 8, high, i)) + m;
}

struct ScaleMin {
  int scale;
  int min;
};

/// Group j of 8: 6-bit scale and minimum. The first four lie whole in bytes 0..7; the others
/// keep their low 4 bits in bytes 8..11 and their high 2 bits on top of the first eight bytes.
ScaleMin scale_min(Bytes packed, int j) {
  if (j < 4) return {packed[j] & 0x3F, packed[j + 4] & 0x3F};
  return {(packed[j + 4] & 0x0F) | ((packed[j - 4] >> 2) & 0x30),
          (packed[j + 4] >> 4) | ((packed[j] >> 2) & 0x30)};
}

void block_q4_k(Bytes block, float* out) {
  const float d = scale_at(block);
  const float dmin = scale_at(block + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin sm = scale_min(block + 4, group);
    const float scale = d * static_cast<float>(sm.scale);
    const float min = dmin * static_cast<float>(sm.min);
    Bytes q = block + 16 + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int i = 0; i < 32; ++i) {
      out[32 * group + i] = scale * static_cast<float>((q[i] >> shift) & 0x0F) - min;
    }
  }
}

void block_q5_k(Bytes block, float* out) {
  const float d = scale_at(block);
  const float dmin = scale_at(block + 2);
  Bytes high = block + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin sm = scale_min(block + 4, group);
    const float scale = d * static_cast<float>(sm.scale);
    const float min = dmin * static_cast<float>(sm.min);
    Bytes q = block + 48 + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int i = 0; i < 32; ++i) {
      const int value = ((q[i] >> shift) & 0x0F) | ((high[i] >> group) & 1) << 4;
      out[32 * group + i] = scale * static_cast<float>(value) - min;
    }
  }
}

void block_q6_k(Bytes block, float* out) {
  const float d = scale_at(block + 208);
  for (int group = 0; group < 8; ++group) {  // 32 elements a group; four groups share 64 low bytes
    const int half = group / 4;
    Bytes low = block + 64 * half + 32 * (group % 2);
    Bytes high = block + 128 + 32 * half;
    const int low_shift = 4 * ((group % 4) / 2);
    const int high_shift = 2 * (group % 4);
    for (int i = 0; i < 32; ++i) {
      const auto raw = static_cast<std::int8_t>(block[192 + 2 * group + i / 16]);
      const float scale = d * static_cast<float>(raw);
      const int value = ((low[i] >> low_shift) & 0x0F) | ((high[i] >> high_shift) & 3) << 4;
      out[32 * group + i] = scale * static_cast<float>(value - 32);
    }
  }
}

template <class Block>
void each_block(const FormatInfo& format, Bytes row, std::span<float> out, Block block) {
  for (std::size_t at = 0; at < out.size(); at += format.block_elements) {
    block(row, out.data() + at);
    row += format.block_bytes;
  }
}

}  // namespace

const FormatInfo& info(Format format) {
  const auto index = static_cast<std::size_t>(format);
  SLUICE_ASSERT(index < format_count, "an element format out of the table");
  return formats[index];
}

const FormatInfo* find_format(std::uint32_t gguf_id) {
  for (const FormatInfo& format : formats) {
    if (format.gguf_id == gguf_id) return &format;
  }
  return nullptr;
}

std::size_t row_bytes(Format format, std::size_t elements) {
  const FormatInfo& f = info(format);
  SLUICE_ASSERT(elements % f.block_elements == 0, "a row must be whole blocks");
  return elements / f.block_elements * f.block_bytes;
}

void dequantize(Format format, std::span<const std::byte> row, std::span<float> out) {
  SLUICE_ASSERT(row.size() == row_bytes(format, out.size()), "row and output differ in length");
  const auto bytes = reinterpret_cast<Bytes>(row.data());
  const FormatInfo& f = info(format);
  switch (format) {
    case Format::f32:
      if (!out.empty()) std::memcpy(out.data(), bytes, row.size());
      return;
    case Format::f16:
      return each_block(f, bytes, out, [](Bytes p, float* y) { *y = f16_to_f32(load16(p)); });
    case Format::bf16:
      return each_block(f, bytes, out, [](Bytes p, float* y) { *y = bf16_to_f32(load16(p)); });
    case Format::q8_0: return each_block(f, bytes, out, block_q8_0);
    case Format::q4_0: return each_block(f, bytes, out, block_q4_0);
    case Format::q4_1: return each_block(f, bytes, out, block_q4_1);
    case Format::q5_0: return each_block(f, bytes, out, block_q5_0);
    case Format::q5_1: return each_block(f, bytes, out, block_q5_1);
    case Format::q4_k: return each_block(f, bytes, out, block_q4_k);
    case Format::q5_k: return each_block(f, bytes, out, block_q5_k);
    case Format::q6_k: return each_block(f, bytes, out, block_q6_k);
  }
}

float f16_to_f32(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t fraction = half & 0x3FFU;
  if (exponent == 0x1F) {  // infinity, or a NaN, made quiet as the hardware's conversion does
    const std::uint32_t quiet = fraction != 0 ? 0x400000U : 0U;
    return std::bit_cast<float>(sign | 0x7F800000U | quiet | (fraction << 13));
  }
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in float32
    const float value = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

std::uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {  // NaN: quiet, upper payload kept
    return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  }
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // >= 65536
  if (magnitude < 0x38800000U) {  // below the smallest normal half, 2^-14
    // Adding 0.5 puts the subnormal half's bits, rounded to nearest even, at the fraction's end.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3F000000U));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1U;  // ties go to the even neighbour
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + odd) >> 13));
}

float bf16_to_f32(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return 0x7FFF;  // not a number, as the device writes it
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace sluice::kernels
