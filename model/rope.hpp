#pragma once
// How far each pair of a head turns per position, with every scaling of longer contexts.

#include <cstdint>
#include <optional>
#include <vector>

#include "model/config.hpp"

namespace sluice::model {

/// YaRN (Peng et al. 2023, arXiv:2309.00071): short wavelengths keep their frequency, long ones are
/// interpolated, and those between go over linearly by the pair's index.
struct Yarn {
  double original_context = 0;  ///< tokens
  double beta_fast = 32;        ///< turns over the original context from which a pair is kept
  double beta_slow = 1;         ///< turns up to which it is interpolated
  double extrapolation = 1;     ///< how much of the kept frequency counts
  bool whole_pairs = true;      ///< the borders are rounded to pairs, outwards
};

struct RopeScaling {
  double factor = 1;           ///< frequencies are divided by it, but for what YaRN keeps
  std::optional<Yarn> yarn;
  std::vector<float> divisors;  ///< of each pair besides; empty: none
};

/// Fills `rope.inverse_frequencies` for `rope.dimensions` and `rope.theta`.
void set_frequencies(RopeConfig& rope, const RopeScaling& scaling);

/// The paper's temperature as a magnitude: sqrt(1/t) = 0.1 m ln(s) + 1.
double yarn_magnitude(double factor, double mscale = 1);

struct Llama3Scaling {
  double factor = 1;
  double low = 1;   ///< original context / wavelength up to which a pair is divided by the factor
  double high = 1;  ///< and from which it is kept
  double original_context = 0;  ///< tokens
};

/// Llama 3's scaling by wavelength, as the divisors that GGUF files carry.
std::vector<float> llama3_divisors(const RopeConfig& rope, const Llama3Scaling& scaling);

}  // namespace sluice::model
