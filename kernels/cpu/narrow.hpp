#pragma once
// Activations as products with bfloat16 weights read them: rounded to bfloat16, nearest even, as
// f32_to_bf16. Two columns are a word, the even one below: what the weights' word of a row, which
// holds the same two columns, is multiplied with (matmul_bf16.cpp). Or for tiles: there a word has
// the columns that a block's two chains take at once (matmul_bf16_tiles.cpp).

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

/// 32 columns of sixteen rows as tiles read them: word k of a row has columns k ^ 1 and, above,
/// 16 + (k ^ 1).
struct NarrowBlock {
  static constexpr std::size_t rows = 16;

  std::uint16_t values[rows][32];
};
static_assert(sizeof(NarrowBlock) == 1024);

/// Room for rounded rows of `cols` columns, a multiple of 32.
struct NarrowView {
  std::uint16_t* data = nullptr;  ///< at a multiple of 4; of 64 to be fast
  std::uint32_t cols = 0;
  bool tiles = false;  ///< many rows are rounded for tiles

  /// From so many rows on tiles are faster.
  static constexpr std::size_t tiled_rows = 9;

  /// For up to so many rows.
  static constexpr std::size_t bytes(std::size_t rows, std::uint32_t cols, bool tiles) {
    constexpr std::size_t together = NarrowBlock::rows;
    const std::size_t room = tiles ? (rows + together - 1) / together * together : rows;
    return room * cols * sizeof(std::uint16_t);
  }

  /// Whether of so many rows each is.
  bool tiled(std::size_t rows) const { return tiles && rows >= tiled_rows; }

  std::uint16_t* row(std::size_t r) const { return data + r * cols; }
  /// Of rows [16 t, 16 t + 16).
  NarrowBlock* tile(std::size_t t) const {
    return reinterpret_cast<NarrowBlock*>(row(t * NarrowBlock::rows));
  }
};

/// Rounds columns [first, last), multiples of 32, of row x into row r of the view, one of `rows`.
void narrow(const float* x, std::uint32_t first, std::uint32_t last, const NarrowView& to,
            std::size_t r, std::size_t rows);

}  // namespace sluice::kernels::cpu
