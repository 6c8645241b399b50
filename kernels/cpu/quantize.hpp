#pragma once
// Activations as products with packed weights read them: blocks of sixteen as int8 and one step,
//   step = largest |x| / 127,  q = x / step rounded to nearest even,  x ~ step * q
// Sixteen, where most engines take 32, makes the rounding's error in SmolLM2's logits a quarter
// smaller, for a tenth of the products' time. A block that is not finite becomes NaN.

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

inline constexpr std::uint32_t step_cols = 16;

/// One rounded row of `cols` (a multiple of 32) activations.
struct QuantizedRow {
  const std::int8_t* values = nullptr;   ///< [cols]
  const float* steps = nullptr;          ///< [cols / 16]
  const float* sums = nullptr;           ///< [cols / 16]: step * (sum of values)
  const float* pair_sums = nullptr;      ///< [cols / 32]: of two blocks
  /// [cols / 16]: -8 and -128 times (sum of values), where products with Q4_0 and Q8_0 begin
  const std::int32_t* starts_8 = nullptr;
  const std::int32_t* starts_128 = nullptr;
};

/// Room for rounded rows of `cols` columns.
struct QuantizedView {
  std::byte* data = nullptr;
  std::uint32_t cols = 0;

  /// 1 + 4 (4 / 16 + 1 / 32) bytes a column
  static constexpr std::size_t row_bytes(std::uint32_t cols) { return std::size_t{cols} / 8 * 17; }

  QuantizedRow row(std::size_t r) const {
    const std::byte* at = data + r * row_bytes(cols);
    QuantizedRow row;
    row.values = reinterpret_cast<const std::int8_t*>(at);
    row.steps = reinterpret_cast<const float*>(at + cols);
    row.sums = row.steps + cols / 16;
    row.pair_sums = row.sums + cols / 16;
    row.starts_8 = reinterpret_cast<const std::int32_t*>(row.pair_sums + cols / 32);
    row.starts_128 = row.starts_8 + cols / 16;
    return row;
  }
};

/// Rounds columns [first, last), multiples of 32, of row x into row r of the view.
void quantize(const float* x, std::uint32_t first, std::uint32_t last, const QuantizedView& to,
              std::size_t r);

}  // namespace sluice::kernels::cpu
