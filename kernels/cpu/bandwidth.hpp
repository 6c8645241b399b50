#pragma once
// How fast this machine reads memory.

#include <cstddef>
#include <cstdint>

namespace sluice::kernels::cpu {

/// Bytes a second: the best of several passes over `bytes` of memory by `threads` threads of its
/// own, each on its share.
double read_bandwidth(std::size_t bytes, std::uint32_t threads);

}  // namespace sluice::kernels::cpu
