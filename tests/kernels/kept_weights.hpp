#pragma once
// What a backend with DeviceInfo::bf16_weights keeps of weights, in double.

#include <cmath>
#include <vector>

#include "kernels/cuda/unpack.cuh"
#include "tests/kernels/reference.hpp"

namespace sluice::kernels::test {

/// To eight significant bits, ties to even.
inline double rounded_bf16(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, 8 - exponent)), exponent - 8);
}

/// Of one of more than a row, in any format but float32.
inline std::vector<double> kept_weights(const Tensor& w) {
  std::vector<double> values = w.values;
  if (w.host.format == Format::f32 || w.host.rows == 1) return values;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.bytes.data());
  const std::size_t stride = row_bytes(w.host.format, w.host.cols);
  cuda::with_unpack({.format = w.host.format}, [&]<class U>(U) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if constexpr (cuda::HasCodes<U>) {
        constexpr int middle = 1 << (U::bits - 1);
        const auto column = static_cast<std::uint32_t>(i % w.host.cols);
        const cuda::Codes codes =
            cuda::codes_at<U>(bytes + i / w.host.cols * stride, column / 8 * 8);
        const float offset = codes.offset + static_cast<float>(middle - U::zero) * codes.scale;
        const auto code = static_cast<int>(codes.at.byte(static_cast<int>(column % 8)));
        values[i] = (code - middle) * rounded_bf16(codes.scale) + rounded_bf16(offset);
      }
      values[i] = rounded_bf16(values[i]);
    }
    return cudaSuccess;
  });
  return values;
}

}  // namespace sluice::kernels::test
