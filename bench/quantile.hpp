#pragma once
// What the benches say of many samples.

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sluice::bench {

/// The sample that a share q, of 0 to 1, of the others are below; 0 if there is none.
inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

}  // namespace sluice::bench
