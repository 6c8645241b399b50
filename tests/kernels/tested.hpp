#pragma once
// The backends that this machine can run tests against.

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cuda/backend.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/wanted.hpp"

namespace sluice::kernels::test {

struct Tested {
  std::string name;
  Factory make;
  bool emulated = false;  ///< a device's threads are fibers of one

  /// How many of `full` rounds a test with many runs here: two at least, where it has them.
  int rounds(int full) const {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    constexpr int slower = 8;
#else
    constexpr int slower = 4;
#endif
    return emulated ? std::max(std::min(full, 2), full / slower) : full;
  }
};

inline Factory on_cpu(std::uint32_t threads) {
  return [threads](Completion done) {
    return require(make_cpu_backend({.threads = threads}, std::move(done)));
  };
}

/// The CUDA backend's own sources over tests/kernels/cuda_host. Splits as short as they can be, so
/// that short sequences have several.
inline Factory on_cuda_host(std::uint32_t split_tokens = 64) {
  return [split_tokens](Completion done) {
    return require(make_cuda_backend({.reserve_bytes = 0, .split_tokens = split_tokens, .nccl = ""},
                                     std::move(done)));
  };
}

/// The CPU, CUDA on the host, and CUDA on a device where the plugin finds one; of them those that
/// are wanted.
inline std::vector<Tested> tested_backends() {
  std::vector<Tested> tested{{"cpu", on_cpu(3)}, {"cuda-host", on_cuda_host(), true}};
  if (choose_backend("cuda")) {
    tested.push_back({"cuda", [](Completion done) {
                        return require(make_backend("cuda", {}, std::move(done)));
                      }});
  }
  std::erase_if(tested, [](const Tested& backend) { return !tests::wanted(backend.name); });
  BOOST_REQUIRE_MESSAGE(!tested.empty(), "SLUICE_TEST_BACKENDS names none that is here");
  return tested;
}

/// Calls check(backend) for each, naming it in failures.
template <class Check>
void on_every_backend(Check check) {
  for (const Tested& backend : tested_backends()) {
    BOOST_TEST_CONTEXT(backend.name) { check(backend); }
  }
}

/// For each that can keep keys and values in 8 bits.
template <class Check>
void on_backends_of_8_bit_keys(Check check) {
  on_every_backend([&](const Tested& backend) {
    if (backend.name != "cpu") check(backend);
  });
}

}  // namespace sluice::kernels::test
