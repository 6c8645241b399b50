#pragma once
// Data of which a group's sums are known exactly, and differ for every order of adding.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/core.hpp"
#include "tests/kernels/ranks.hpp"

namespace sluice::kernels::test {

/// A rank's values: large and small ones that cancel, so that each order of adding rounds anew.
inline std::vector<float> values_of(std::uint32_t rank, std::size_t count) {
  std::mt19937 random(977 * rank + static_cast<std::uint32_t>(count));
  std::vector<float> values(count);
  for (float& value : values) {
    const float mantissa = static_cast<float>(static_cast<std::int32_t>(random())) * 0x1p-31F;
    value = std::ldexp(mantissa, static_cast<int>(random() % 30));
  }
  return values;
}

inline std::vector<float> sum_in(const std::vector<std::uint32_t>& order, std::size_t count) {
  std::vector<float> sum = values_of(order.front(), count);
  for (std::size_t i = 1; i < order.size(); ++i) {
    const std::vector<float> next = values_of(order[i], count);
    for (std::size_t k = 0; k < count; ++k) sum[k] += next[k];
  }
  return sum;
}

inline std::vector<std::uint32_t> ranks_in_order(std::uint32_t size) {
  std::vector<std::uint32_t> order(size);
  for (std::uint32_t r = 0; r < size; ++r) order[r] = r;
  return order;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline std::string said(const Result<void>& result) {
  return result ? "ok"
                : fmt::format("{}: {}", to_string(result.error().code), result.error().message);
}

}  // namespace sluice::kernels::test
