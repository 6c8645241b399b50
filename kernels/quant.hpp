#pragma once
// Element formats of weights: one table that every dispatch reads, and the scalar meaning of each.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/elementary.hpp"

namespace sluice::kernels {

/// Element formats as GGUF stores them. Quantized ones come in blocks along a row.
enum class Format : std::uint8_t {
  f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k,
};

inline constexpr std::size_t format_count = 11;

struct FormatInfo {
  Format format;
  std::string_view name;         ///< as GGUF tools print it: "Q4_1"
  std::uint32_t gguf_id;         ///< ggml_type in a GGUF tensor record
  std::uint32_t block_elements;  ///< elements a block; 1 for plain floats
  std::uint32_t block_bytes;
};

const FormatInfo& info(Format format);

/// The format with this ggml_type id, or nullptr.
const FormatInfo* find_format(std::uint32_t gguf_id);

/// Bytes of one row of `elements` (a multiple of the block).
std::size_t row_bytes(Format format, std::size_t elements);

/// Writes the row's values as float32. The scalar definition of each format, equal to the bit to
/// the reference package `gguf`; kernels are tested against it.
void dequantize(Format format, std::span<const std::byte> row, std::span<float> out);

/// Elements of keys and values as the KV pool keeps them: 16 bits (a CPU's pool has bfloat16 for
/// float16 where weights are quantized), or 8-bit floats with 4 bits of exponent and 3 of fraction.
enum class KvFormat : std::uint8_t { f16, e4m3 };

SLUICE_HOST_DEVICE constexpr std::uint32_t element_bytes(KvFormat format) {
  return format == KvFormat::f16 ? 2 : 1;
}

/// The greatest finite half.
inline constexpr float largest_f16 = 65504.0F;

/// A key's or a value's element as the KV pool keeps it, before its rounding to half precision: an
/// infinity there would reach, by way of 0 times it, rows that do not see its position. No number
/// stays none.
SLUICE_HOST_DEVICE inline float within_halves(float value) {
  return value > largest_f16 ? largest_f16 : value < -largest_f16 ? -largest_f16 : value;
}

float f16_to_f32(std::uint16_t half);
std::uint16_t f32_to_f16(float value);  ///< round to nearest even
float bf16_to_f32(std::uint16_t value);
std::uint16_t f32_to_bf16(float value);  ///< round to nearest even

}  // namespace sluice::kernels
