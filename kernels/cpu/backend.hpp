#pragma once
// The CPU backend: products with quantized weights in int8 (matmul.hpp), everything else in
// float32, each with one reduction order (attention.hpp), so that a row's bits depend
// on nothing but its sequence. Steps run on a driver thread and a pool.

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.hpp"

namespace sluice::kernels {

struct CpuConfig {
  std::uint32_t threads = 0;  ///< 0: one for each core this process may use
  std::string weight_cache = {};  ///< folder of packed weights, cpu/weight_cache.hpp; empty: none
  std::uint64_t weight_cache_bytes = 0;  ///< most that it may hold
};

/// `completion` is called on the backend's driver thread. `bad_request` for a senseless number of
/// threads, `unavailable` when the system refuses to start them.
Result<std::unique_ptr<Backend>> make_cpu_backend(CpuConfig config, Completion completion);

/// "AMD EPYC, AVX3": the processor, and the instructions that the kernels choose on it.
std::string cpu_device_name();

}  // namespace sluice::kernels
