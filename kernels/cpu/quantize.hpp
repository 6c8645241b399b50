#pragma once
// Activations as products with packed weights read them, in int8: a block of 32 columns has a step,
// and each sixteen of it that step halved as often as its values allow, five times at most:
//   step = largest |x| of the block / 127,  x ~ step * 2^-h * q,  q rounded to nearest even
// Most engines' steps are of 32 columns: that they may be halved makes the rounding's error in
// SmolLM2's logits a fifth smaller, and costs products nothing. The sum of a dot product's integer
// and the bits of 1.5 * 2^(23 - h), read as a float, is that float and 2^-h times the integer,
// exactly: a subtraction, on units that products leave idle, both converts and scales.
// A block that is not finite becomes NaN, one below 1e-25 all zeros.

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

inline constexpr std::uint32_t step_cols = 16;
inline constexpr int halvings_max = 5;  ///< (2^5 + 1) * 16 * 128 * 127 < 2^24

/// 32 columns of a rounded row: all that a product reads of them in one line of the cache, so that
/// it needs one address a row.
struct QuantizedBlock {
  std::int8_t values[32];
  float origins[2];  ///< of each half, 1.5 * 2^(23 - h)
  /// Their bits less 8 and 128 times (sum of the half's values): where products begin with formats
  /// whose zero is 8 or 128.
  std::int32_t starts_8[2];
  std::int32_t starts_128[2];
  float sum;   ///< of both halves, step * 2^-h * (sum of values)
  float step;
};
static_assert(sizeof(QuantizedBlock) == 64);

/// The same 32 columns of sixteen rows as tiles read them: 2^-h * q in bfloat16, exactly, of each
/// four columns the third before the second.
struct TiledBlock {
  static constexpr std::size_t rows = 16;

  std::uint16_t values[rows][32];
  float sums[rows];
  float steps[rows];
};
static_assert(sizeof(TiledBlock) == 16 * (64 + 8));

/// Room for rounded rows of `cols` columns, a multiple of 32.
struct QuantizedView {
  std::byte* data = nullptr;  ///< at a multiple of 4; of 64 to be fast
  std::uint32_t cols = 0;
  /// Many rows are rounded for tiles: where Highway's target has byte dot products of 512 bits.
  bool tiles = false;

  /// From so many rows on tiles are faster.
  static constexpr std::size_t tiled_rows = 64;

  static constexpr std::size_t row_bytes(std::uint32_t cols) {
    return cols / 32 * sizeof(QuantizedBlock);
  }
  static constexpr std::size_t tile_bytes(std::uint32_t cols) {
    return cols / 32 * sizeof(TiledBlock);
  }
  /// For up to so many rows.
  static constexpr std::size_t bytes(std::size_t rows, std::uint32_t cols, bool tiles) {
    const std::size_t of_tiles = (rows + TiledBlock::rows - 1) / TiledBlock::rows;
    return tiles ? of_tiles * tile_bytes(cols) : rows * row_bytes(cols);
  }

  /// Whether of so many rows each is.
  bool tiled(std::size_t rows) const { return tiles && rows >= tiled_rows; }

  QuantizedBlock* row(std::size_t r) const {
    return reinterpret_cast<QuantizedBlock*>(data + r * row_bytes(cols));
  }
  /// Of rows [16 t, 16 t + 16).
  TiledBlock* tile(std::size_t t) const {
    return reinterpret_cast<TiledBlock*>(data + t * tile_bytes(cols));
  }
};

/// Rounds columns [first, last), multiples of 32, of row x into row r of the view, one of `rows`.
void quantize(const float* x, std::uint32_t first, std::uint32_t last, const QuantizedView& to,
              std::size_t r, std::size_t rows);

}  // namespace sluice::kernels::cpu
