#pragma once
// How fast this machine multiplies and adds: the limit of reading a prompt, as memory's bandwidth
// is of decoding.

#include <cstdint>
#include <string_view>
#include <vector>

namespace sluice::kernels::cpu {

/// What one kind of arithmetic reaches out of registers, all threads together.
struct ArithmeticPeak {
  std::string_view values;  ///< "f32", "bf16" (pairs, summed in f32), "int8" (fours, in int32)
  std::string_view instructions;  ///< "AVX-512 FMA"
  double ops_per_s = 0;           ///< a multiplication and an addition are two
};

/// One for each kind that this processor has instructions for, by the widest of them; empty where
/// none are known, as on anything but x86-64. The best of several passes by `threads` threads of
/// its own; takes a tenth of a second for each.
std::vector<ArithmeticPeak> arithmetic_peaks(std::uint32_t threads);

}  // namespace sluice::kernels::cpu
