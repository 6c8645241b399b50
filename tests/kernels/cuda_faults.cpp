// Shows that the host's stand-in for a GPU reports what a GPU would leave undefined: barriers that
// not every thread reaches, lanes missing from a shuffle, shared memory beyond what was asked for.
// Also that the CUDA backend turns a failed call into a typed error of that one backend: memory
// that runs out, a launch that fails, a device that is lost in the middle of a run.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/wide.cuh"
#include "tests/kernels/cuda_host/cuda_runtime.h"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

using cuda::SharedPieces;

/// Undoes what a test did to the pretended device.
struct CleanDevice {
  ~CleanDevice() {
    cuda_host::take_complaints();
    cuda_host::set_memory_bytes(std::size_t{4} << 30);
    cuda_host::set_shared_bytes(std::size_t{227} << 10);
  }
};

/// What the shim says of a kernel of 64 threads with 64 bytes of shared memory.
std::string complaint(const std::function<void()>& kernel) {
  return cuda_host::run_grid(2, 64, 64, kernel);
}

bool says(const std::string& text, const char* part) { return text.find(part) != text.npos; }

Batch prompt_batch(const TinyModel& model, Sequence& s, Blocks& blocks) {
  std::mt19937 random(1);
  s.tokens = random_tokens(random, model, 5);
  s.prompt_tokens = 5;
  Batch batch;
  s.plan(batch, 5, true, blocks, model.traits.block_tokens);
  return batch;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cuda_faults)

BOOST_AUTO_TEST_CASE(a_sound_kernel_is_not_complained_of) {
  BOOST_TEST(complaint([] {
               SharedPieces pieces;
               auto* last = pieces.take<unsigned>(2);
               const unsigned sum = __shfl_xor_sync(0xFFFFFFFFU, threadIdx.x, 1);
               if (threadIdx.x % 32 == 31) last[threadIdx.x / 32] = sum;
               __syncthreads();
               if (last[0] != 30 || last[1] != 62) cuda_host::complain("wrong sums");
             }) == "");
}

BOOST_AUTO_TEST_CASE(barriers_that_not_all_threads_reach) {
  const std::string early = complaint([] {
    if (threadIdx.x == 7) return;
    __syncthreads();
  });
  BOOST_TEST(says(early, "barrier"), early);
  const std::string apart = complaint([] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  BOOST_TEST(says(apart, "different barriers"), apart);
}

BOOST_AUTO_TEST_CASE(shuffles_that_lanes_miss) {
  const std::string missing = complaint([] {
    if (threadIdx.x % 32 < 31) __shfl_xor_sync(0xFFFFFFFFU, 1, 1);
  });
  BOOST_TEST(says(missing, "no thread can go on"), missing);
  const std::string outside = complaint([] {
    if (threadIdx.x % 32 < 16) __shfl_sync(0x0000FFFFU, 1, 20);
  });
  BOOST_TEST(says(outside, "not in its mask"), outside);
}

BOOST_AUTO_TEST_CASE(products_of_a_warp_by_different_columns) {
  const std::string mixed = complaint([] {
    static const std::uint16_t halves[2] = {};
    float sums[32] = {};
    cuda::multiply_async(sums, {}, cuda::wide_columns(halves + threadIdx.x % 2), 0);
  });
  BOOST_TEST(says(mixed, "different columns"), mixed);
}

BOOST_AUTO_TEST_CASE(shared_memory_that_was_not_asked_for) {
  const std::string taken = complaint([] {
    SharedPieces pieces;
    pieces.take<float>(17);
  });
  BOOST_TEST(says(taken, "bytes of shared memory"), taken);
#if !defined(__SANITIZE_ADDRESS__)  // which ends the program at once
  const std::string written = complaint([] { cuda_host::dynamic_shared()[64 + threadIdx.x] = 1; });
  BOOST_TEST(says(written, "beside its 64 bytes"), written);
#endif
}

BOOST_AUTO_TEST_CASE(clusters) {
  const auto complaint_of = [](const std::function<void()>& kernel) {
    return cuda_host::run_grid(4, 32, 64, kernel, {}, 2);
  };
  const auto barrier = [] { return SharedPieces().take<std::uint64_t>(1); };
  // Each block waits for the other's threads, and for its own.
  BOOST_TEST(complaint_of([&] {
               if (threadIdx.x == 0) cuda_host::init_barrier(barrier(), 64);
               cuda_host::meet_cluster(cuda_host::Where::current());
               for (const unsigned rank : {0U, 1U}) cuda_host::arrive_at(barrier(), rank);
               cuda_host::await_phase(barrier(), 0);
               cuda_host::meet_cluster(cuda_host::Where::current());
             }) == "");
  const std::string ended = complaint_of([&] {
    if (threadIdx.x == 0) cuda_host::init_barrier(barrier(), 1);
    cuda_host::meet_cluster(cuda_host::Where::current());
    if (cuda_host::cluster_rank() == 1) return;
    cuda_host::await_phase(barrier(), 0);  // the other has nothing to wait for
  });
  BOOST_TEST(says(ended, "no thread can go on"), ended);
  const std::string reached = complaint_of([&] {
    if (threadIdx.x == 0) cuda_host::init_barrier(barrier(), 32);
    cuda_host::meet_cluster(cuda_host::Where::current());
    cuda_host::arrive_at(barrier(), 0);
    if (cuda_host::cluster_rank() == 1) return;
    cuda_host::await_phase(barrier(), 1);
    __syncthreads();
    cuda_host::arrive_at(barrier(), 1);
  });
  BOOST_TEST(says(reached, "that has ended"), reached);
  const std::string missing = complaint_of([&] {
    if (blockIdx.x == 1) return;
    cuda_host::meet_cluster(cuda_host::Where::current());
  });
  BOOST_TEST(says(missing, "its cluster"), missing);
}

/// Threads that read a neighbour's value without a barrier see it or not by the order they run in,
/// which odd blocks turn round.
BOOST_AUTO_TEST_CASE(a_missing_barrier_shows_in_the_result) {
  const std::string found = complaint([] {
    SharedPieces pieces;
    auto* values = pieces.take<unsigned char>(64);
    values[threadIdx.x] = 1;
    const unsigned from = threadIdx.x == 0 ? 0 : threadIdx.x - 1;
    if (values[from] != 1) cuda_host::complain("not yet written");
  });
  BOOST_TEST(says(found, "block (1, 0, 0)"), found);
}

BOOST_AUTO_TEST_CASE(launches_that_a_device_refuses) {
  const CleanDevice clean;
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cuda::LaunchChain chain(stream);
  const auto nothing = +[](int) { cuda::take_turn(); };
  BOOST_TEST(cuda::launch(nothing, 1, 1025, 0, chain, 0) == cudaErrorInvalidConfiguration);
  BOOST_TEST(cuda::launch(nothing, 0, 32, 0, chain, 0) == cudaErrorInvalidConfiguration);
  BOOST_TEST(cuda::launch(nothing, dim3(1, 65536), 32, 0, chain, 0) ==
             cudaErrorInvalidConfiguration);
  BOOST_TEST(cuda::launch(nothing, 1, 32, 60000, chain, 0) == cudaErrorInvalidValue);
  BOOST_TEST(cuda::allow_shared(nothing, 60000) == cudaSuccess);
  BOOST_TEST(cuda::launch(nothing, 1, 32, 60000, chain, 0) == cudaSuccess);
  cudaStreamDestroy(stream);
}

BOOST_AUTO_TEST_CASE(memory_that_runs_out_is_a_typed_error) {
  const CleanDevice clean;
  cuda_host::set_memory_bytes(std::size_t{8} << 20);
  const TinyModel model = tiny_model({.layers = 1});
  Results results;
  const auto backend = on_cuda_host()(results.completion());
  PoolShape pool = model.pool();
  pool.blocks = 1 << 14;
  const auto allocated = backend->allocate(pool);
  BOOST_REQUIRE(!allocated.has_value());
  BOOST_CHECK(allocated.error().code == ErrorCode::out_of_memory);
  BOOST_TEST(says(allocated.error().message, "the KV pool needs 128 MiB"),
             allocated.error().message);
  cuda_host::fail_call("cudaMalloc", 1, cudaErrorMemoryAllocation);
  const auto loaded = backend->load(model.tensors[0].host);
  BOOST_REQUIRE(!loaded.has_value());
  BOOST_CHECK(loaded.error().code == ErrorCode::out_of_memory);
}

BOOST_AUTO_TEST_CASE(heads_that_no_kernel_is_made_for) {
  for (const std::uint32_t elements : {258U, 7U}) {
    const TinyModel model =
        tiny_model({.format = Format::f32, .heads = {1, 1, elements}, .layers = 1, .pairs = 2});
    Results results;
    const auto backend = on_cuda_host()(results.completion());
    for (const Tensor& tensor : model.tensors) require(backend->load(tensor.host));
    BOOST_REQUIRE(backend->allocate(model.pool()).has_value());
    const auto program = backend->record(model.program);
    BOOST_REQUIRE(!program.has_value());
    BOOST_CHECK(program.error().code == ErrorCode::unsupported);
    BOOST_TEST(says(program.error().message, "use the cpu backend"), program.error().message);
  }
}

BOOST_AUTO_TEST_CASE(options_and_devices_out_of_range) {
  const auto refused = [](const CudaOptions& options, ErrorCode code) {
    const auto backend = make_cuda_backend(options, [](StepResult&&) {});
    BOOST_REQUIRE(!backend.has_value());
    BOOST_CHECK(backend.error().code == code);
  };
  refused({.device = 1}, ErrorCode::bad_request);
  for (const std::uint32_t tokens : {0U, 96U, 320U}) {
    refused({.split_tokens = tokens}, ErrorCode::bad_request);
  }
  const CleanDevice clean;
  cuda_host::fail_call("cudaGetDeviceCount", 1, cudaErrorInvalidDevice);
  refused({}, ErrorCode::unavailable);
  cuda_host::set_shared_bytes(std::size_t{99} << 10);  // as on sm_86 and sm_89
  refused({}, ErrorCode::unavailable);
  cuda_host::set_shared_bytes(std::size_t{163} << 10);
  BOOST_TEST(make_cuda_backend({}, [](StepResult&&) {}).has_value());
}

/// Whatever call fails, the step's result says so, and no step after it pretends to run.
BOOST_AUTO_TEST_CASE(a_failed_call_fails_its_step_and_those_behind) {
  const CleanDevice clean;
  const TinyModel model = tiny_model({.layers = 1});
  for (const char* call : {"cudaMemcpyAsync", "cudaLaunchKernel", "cudaEventRecord",
                           "cudaEventSynchronize", "cudaEventElapsedTime"}) {
    BOOST_TEST_CONTEXT(call) {
      std::mt19937 random(1);
      Device device(on_cuda_host(), model);
      Blocks blocks(model, random);
      Sequence s;
      const Batch batch = prompt_batch(model, s, blocks);
      cuda_host::fail_call(call, 1, cudaErrorLaunchFailure);
      const StepResult failed = device.run(batch);
      BOOST_TEST(failed.failed);
      BOOST_CHECK(failed.error.code == ErrorCode::internal);
      BOOST_TEST(says(failed.error.message, "the device is lost"), failed.error.message);
      Batch next;
      next.segments.push_back({s.slot, 5, 1, Path::decode, true});
      BOOST_TEST(device.run(next).failed);
      std::vector<float> logits(1);
      BOOST_TEST(!device.backend->read(device.program, model.logits, logits).has_value());
    }
    cuda_host::take_complaints();
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
