#pragma once
// Activations as products with packed weights read them: blocks of sixteen as int8 and one step,
//   step = largest |x| / 127,  q = x / step rounded to nearest even,  x ~ step * q
// Sixteen, where most engines take 32, makes the rounding's error in SmolLM2's logits a quarter
// smaller, for a tenth of the products' time. A block that is not finite becomes NaN.

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

inline constexpr std::uint32_t step_cols = 16;

/// 32 columns of a rounded row: all that a product reads of them in one line of the cache, so that
/// it needs one address a row.
struct QuantizedBlock {
  std::int8_t values[32];
  float steps[2];
  float sums[2];  ///< step * (sum of values)
  /// -8 and -128 times (sum of values), where products with Q4_0 and Q8_0 begin
  std::int32_t starts_8[2];
  std::int32_t starts_128[2];
};
static_assert(sizeof(QuantizedBlock) == 64);

/// Room for rounded rows of `cols` columns, a multiple of 32.
struct QuantizedView {
  std::byte* data = nullptr;  ///< at a multiple of 4; of 64 to be fast
  std::uint32_t cols = 0;

  static constexpr std::size_t row_bytes(std::uint32_t cols) {
    return cols / 32 * sizeof(QuantizedBlock);
  }

  QuantizedBlock* row(std::size_t r) const {
    return reinterpret_cast<QuantizedBlock*>(data + r * row_bytes(cols));
  }
};

/// Rounds columns [first, last), multiples of 32, of row x into row r of the view.
void quantize(const float* x, std::uint32_t first, std::uint32_t last, const QuantizedView& to,
              std::size_t r);

}  // namespace sluice::kernels::cpu
