#pragma once
// Activations as products with bfloat16 weights read them: rounded to bfloat16, nearest even, as
// f32_to_bf16. Two columns are a word, the even one below: what the weights' word of a row, which
// holds the same two columns, is multiplied with (matmul_bf16.cpp).

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

/// Room for rounded rows of `cols` columns, a multiple of 32.
struct NarrowView {
  std::uint16_t* data = nullptr;  ///< at a multiple of 4
  std::uint32_t cols = 0;

  std::uint16_t* row(std::size_t r) const { return data + r * cols; }
};

/// Rounds columns [first, last), multiples of 32, of row x into row r of the view.
void narrow(const float* x, std::uint32_t first, std::uint32_t last, const NarrowView& to,
            std::size_t r);

}  // namespace sluice::kernels::cpu
