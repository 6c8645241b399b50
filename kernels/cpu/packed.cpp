#include "kernels/cpu/packed.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::kernels::cpu {
namespace {

using Bytes = const std::uint8_t*;

// What a row says of 32 columns, four columns a word: the file's bits moved, never computed with.
struct BlockQuants {
  std::uint32_t low[8] = {};  ///< nibbles, or whole bytes, in every byte of a word
  std::uint32_t high[8] = {};  ///< the bits above the nibble, at bit 0 of every byte
};

constexpr std::uint32_t nibbles = 0x0F0F0F0FU;
constexpr std::uint32_t ones = 0x01010101U;

std::uint32_t word(Bytes from) {
  std::uint32_t w;
  std::memcpy(&w, from, sizeof w);
  return w;
}

/// Bits i .. i + 3 of `bits`, one in each byte.
std::uint32_t spread(std::uint32_t bits, std::uint32_t i) {
  const std::uint32_t four = bits >> i & 15U;
  return (four | four << 7 | four << 14 | four << 21) & ones;
}

/// Nibbles of sixteen bytes: low halves are columns 0..15, high halves 16..31.
void read_halves(Bytes from, BlockQuants& q) {
  for (int j = 0; j < 4; ++j) {
    q.low[j] = word(from + 4 * j) & nibbles;
    q.low[j + 4] = word(from + 4 * j) >> 4 & nibbles;
  }
}

/// Nibbles of 32 bytes, all from the low or all from the high half.
void read_half(Bytes from, std::uint32_t shift, BlockQuants& q) {
  for (int j = 0; j < 8; ++j) q.low[j] = word(from + 4 * j) >> shift & nibbles;
}

/// 32 columns of a row: a block of the file's, or group `g` of a K format's.
template <Format format>
BlockQuants read_quants(Bytes block, std::uint32_t g) {
  BlockQuants q;
  switch (format) {
    case Format::q4_0: read_halves(block + 2, q); break;
    case Format::q4_1: read_halves(block + 4, q); break;
    case Format::q5_0:
    case Format::q5_1: {
      Bytes bits = block + (format == Format::q5_0 ? 2 : 4);
      read_halves(bits + 4, q);
      for (std::uint32_t j = 0; j < 8; ++j) q.high[j] = spread(word(bits), 4 * j);
      break;
    }
    case Format::q8_0:
      for (int j = 0; j < 8; ++j) q.low[j] = word(block + 2 + 4 * j) ^ 0x80808080U;
      break;
    case Format::q4_k: read_half(block + 16 + 32 * (g / 2), 4 * (g % 2), q); break;
    case Format::q5_k:
      read_half(block + 48 + 32 * (g / 2), 4 * (g % 2), q);
      for (int j = 0; j < 8; ++j) q.high[j] = word(block + 16 + 4 * j) >> g & ones;
      break;
    case Format::q6_k:
      read_half(block + 64 * (g / 4) + 32 * (g % 2), 4 * (g % 4 / 2), q);
      for (int j = 0; j < 8; ++j) {
        q.high[j] = word(block + 128 + 32 * (g / 4) + 4 * j) >> 2 * (g % 4) & 3 * ones;
      }
      break;
    default: break;
  }
  return q;
}

void put(std::uint8_t* to, std::uint32_t w) { std::memcpy(to, &w, sizeof w); }

template <Format format>
void write_quants(const BlockQuants& q, std::uint32_t r, std::uint8_t* to) {
  if constexpr (format == Format::q8_0) {
    for (int j = 0; j < 8; ++j) put(to + 64 * j + 4 * r, q.low[j]);
    return;
  }
  for (int j = 0; j < 4; ++j) put(to + 64 * j + 4 * r, q.low[j] | q.low[j + 4] << 4);
  std::uint8_t* high = to + 256;
  if constexpr (format == Format::q6_k) {
    for (int h = 0; h < 2; ++h) {
      std::uint32_t w = 0;
      for (int f = 0; f < 4; ++f) w |= q.high[4 * h + f] << 2 * f;
      put(high + 64 * h + 4 * r, w);
    }
  } else if constexpr (packed_layout(format).quant_bytes > 256) {
    for (int j = 0; j < 8; ++j) {
      const std::uint32_t four = q.high[j] * 0x10204080U >> 28;  // bit 8 i to bit 28 + i
      high[8 * j + r / 2] |= static_cast<std::uint8_t>(four << 4 * (r % 2));
    }
  }
}

/// Their scales and, with a K format's first group, those of its block.
template <Format format>
void write_scales(Bytes block, std::uint32_t g, std::uint32_t r, std::uint8_t* scales) {
  constexpr PackedLayout layout = packed_layout(format);
  const auto half = [&](std::uint8_t* at, Bytes from) { std::memcpy(at + 2 * r, from, 2); };
  if constexpr (layout.head_bytes == 0) {
    half(scales, block);
    if (layout.scale_bytes == 64) half(scales + 32, block + 2);
  } else if constexpr (format == Format::q6_k) {
    if (g == 0) half(scales - layout.head_bytes, block + 208);
    scales[r] = block[192 + 2 * g];
    scales[16 + r] = block[193 + 2 * g];
  } else {
    if (g == 0) {
      half(scales - layout.head_bytes, block);
      half(scales - layout.head_bytes + 32, block + 2);
    }
    // Six bits each; see quant.cpp for how the file packs them.
    Bytes p = block + 4;
    const int scale = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | (p[g - 4] >> 2 & 48);
    const int minimum = g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | (p[g] >> 2 & 48);
    scales[r] = static_cast<std::uint8_t>(scale);
    scales[16 + r] = static_cast<std::uint8_t>(minimum);
  }
}

/// Row `r` of a strip, quantized.
template <Format format>
void write_row(Bytes row, std::uint32_t r, const PackedWeight& weight, std::uint8_t* to) {
  constexpr PackedLayout layout = packed_layout(format);
  constexpr std::uint32_t groups = layout.head_bytes == 0 ? 1 : 8;  // of 32 columns in a block
  // Ahead of the loop, whose bytes might be these for all that the compiler knows.
  const std::size_t block_bytes = info(format).block_bytes;
  const std::uint32_t blocks = weight.blocks();
  std::uint8_t* quants = to + weight.quants_at;
  for (std::uint32_t b = 0; b < blocks; ++b) {
    Bytes block = row + b / groups * block_bytes;
    write_scales<format>(block, b % 8, r, to + layout.scale_at(b));
    write_quants<format>(read_quants<format>(block, b % 8), r, quants + b * layout.quant_bytes);
  }
}

/// Row `r` of a strip of float32 or float16.
template <class Element>
void write_floats(Bytes row, std::uint32_t r, std::uint32_t cols, std::uint8_t* to) {
  for (std::size_t c = 0; c < cols; ++c) {
    std::memcpy(to + c * column_bytes + r * sizeof(Element), row + c * sizeof(Element),
                sizeof(Element));
  }
}

/// Row `r` of a strip of bfloat16.
void write_pairs(Bytes row, std::uint32_t r, std::uint32_t cols, std::uint8_t* to) {
  for (std::size_t c = 0; c < cols; c += 2) {
    std::memcpy(to + c / 2 * pair_bytes + r * 4, row + c * 2, c + 1 < cols ? 4 : 2);
  }
}

}  // namespace

PackedWeight PackedWeight::of(const WeightShape& shape) {
  const PackedLayout layout = packed_layout(shape.format);
  PackedWeight weight;
  weight.format = shape.format;
  weight.rows = shape.rows;
  weight.cols = shape.cols;
  const std::size_t blocks = weight.blocks();
  if (layout.scale_bytes != 0) {
    weight.quants_at = (layout.scale_at(blocks - 1) + layout.scale_bytes + 63) / 64 * 64;
  }
  weight.strip_bytes = weight.quants_at + blocks * layout.quant_bytes;
  return weight;
}

void PackedWeight::fill(std::uint32_t index, const std::byte* rows_in_file,
                        std::size_t row_stride) {
  std::uint8_t* to = data + strip_at(index);
  for (std::uint32_t r = 0; r < std::min(strip_rows, rows - index * strip_rows); ++r) {
    Bytes row = reinterpret_cast<Bytes>(rows_in_file) + r * row_stride;
    switch (format) {
      case Format::f32: write_floats<std::uint32_t>(row, r, cols, to); break;
      case Format::f16: write_floats<std::uint16_t>(row, r, cols, to); break;
      case Format::bf16: write_pairs(row, r, cols, to); break;
      case Format::q4_0: write_row<Format::q4_0>(row, r, *this, to); break;
      case Format::q4_1: write_row<Format::q4_1>(row, r, *this, to); break;
      case Format::q5_0: write_row<Format::q5_0>(row, r, *this, to); break;
      case Format::q5_1: write_row<Format::q5_1>(row, r, *this, to); break;
      case Format::q8_0: write_row<Format::q8_0>(row, r, *this, to); break;
      case Format::q4_k: write_row<Format::q4_k>(row, r, *this, to); break;
      case Format::q5_k: write_row<Format::q5_k>(row, r, *this, to); break;
      case Format::q6_k: write_row<Format::q6_k>(row, r, *this, to); break;
    }
  }
}

}  // namespace sluice::kernels::cpu
