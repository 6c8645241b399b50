#include "model/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sluice::model {
namespace {

/// The frequency of a pair before any scaling.
double plain_frequency(const RopeConfig& rope, std::uint32_t pair) {
  return std::pow(static_cast<double>(rope.theta), -2.0 * pair / rope.dimensions);
}

/// How much of each pair's frequency YaRN keeps.
class Kept {
 public:
  Kept(const Yarn& yarn, const RopeConfig& rope) : extrapolation_(yarn.extrapolation) {
    // The pair that turns `turns` times over the original context.
    const auto pair = [&](double turns) {
      return rope.dimensions * std::log(yarn.original_context / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(static_cast<double>(rope.theta)));
    };
    const double fast = pair(yarn.beta_fast);
    const double slow = pair(yarn.beta_slow);
    low_ = std::max(0.0, yarn.whole_pairs ? std::floor(fast) : fast);
    high_ = std::min(rope.dimensions - 1.0, yarn.whole_pairs ? std::ceil(slow) : slow);
  }

  double of(std::uint32_t pair) const {
    const double ramp = (pair - low_) / std::max(0.001, high_ - low_);
    return (1 - std::clamp(ramp, 0.0, 1.0)) * extrapolation_;
  }

 private:
  double low_ = 0;   ///< pairs up to here keep their frequency
  double high_ = 0;  ///< pairs from here on are interpolated
  double extrapolation_ = 1;
};

}  // namespace

void set_frequencies(RopeConfig& rope, const RopeScaling& scaling) {
  std::optional<Kept> kept;
  if (scaling.yarn) kept.emplace(*scaling.yarn, rope);
  rope.inverse_frequencies.resize(rope.dimensions / 2);
  for (std::uint32_t i = 0; i < rope.inverse_frequencies.size(); ++i) {
    double frequency = plain_frequency(rope, i);
    if (!scaling.divisors.empty()) frequency /= scaling.divisors[i];
    const double keeps = kept ? kept->of(i) : 0;
    rope.inverse_frequencies[i] =
        static_cast<float>(frequency / scaling.factor * (1 - keeps) + frequency * keeps);
  }
}

double yarn_magnitude(double factor, double mscale) {
  return factor > 1 ? 1 + 0.1 * mscale * std::log(factor) : 1;
}

std::vector<float> llama3_divisors(const RopeConfig& rope, const Llama3Scaling& scaling) {
  std::vector<float> divisors(rope.dimensions / 2);
  for (std::uint32_t i = 0; i < divisors.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / plain_frequency(rope, i);
    const double turns = scaling.original_context / wavelength;
    const double kept = std::clamp((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0);
    divisors[i] = static_cast<float>(1 / ((1 - kept) / scaling.factor + kept));
  }
  return divisors;
}

}  // namespace sluice::model
