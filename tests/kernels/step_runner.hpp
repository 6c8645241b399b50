#pragma once
// Steps of one sequence on the emulated device, by programs that launches are compared of: what is
// one launch there, and what several.

#include <random>
#include <utility>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "tests/kernels/cuda_host/cuda_runtime.h"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/reference.hpp"

namespace sluice::kernels::test {

inline Factory on_cuda_host_with(CudaOptions options) {
  options.reserve_bytes = 0;
  options.graphs = false;
  options.nccl = "";
  return [options](Completion done) {
    return require(make_cuda_backend(options, std::move(done)));
  };
}

/// A pool for one sequence of at most `rows` tokens, all in one block.
inline PoolShape pool_of_one(const TinyModel& model, std::uint32_t rows) {
  PoolShape shape = model.pool();
  shape.context_tokens = shape.block_tokens = shape.rows_max = rows;
  shape.blocks = 1;
  return shape;
}

class StepRunner {
 public:
  /// `left`: buffers whose values run() gives.
  StepRunner(const TinyModel& model, const CudaOptions& options, std::uint32_t rows_most,
             std::vector<Buffer> left)
      : device_(on_cuda_host_with(options), model, pool_of_one(model, rows_most)),
        left_(std::move(left)) {
    device_.record();
    std::mt19937 random(5);
    tokens_ = random_tokens(random, model, rows_most);
  }

  /// The first `rows` tokens in a step.
  std::vector<float> run(std::uint32_t rows) {
    const std::uint64_t before = cuda_host::calls("cudaLaunchKernel");
    const StepResult result = device_.run(whole_sequence(tokens_, rows, ++generation_));
    launches = cuda_host::calls("cudaLaunchKernel") - before;
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    std::vector<float> all;
    for (const Buffer buffer : left_) {
      const std::vector<float> values = device_.read(buffer, rows);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  bool keeps(Buffer buffer) {
    float value = 0;
    const auto done = device_.backend->read(device_.program, buffer, {&value, 1});
    if (!done) BOOST_CHECK(done.error().code == ErrorCode::unsupported);
    return done.has_value();
  }

  std::uint64_t launches = 0;  ///< of the last step

 private:
  LoadedDevice device_;
  std::vector<Buffer> left_;
  std::vector<Token> tokens_;
  std::uint32_t generation_ = 0;
};

}  // namespace sluice::kernels::test
