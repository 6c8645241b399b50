// Kernels that start while those before them end (kernels/cuda/chain.hpp). The host runs them one
// after the other, so what it can show is the rule: that a kernel which misses its wait is refused,
// on a path of one thread too, and one that touches closed memory before it; that the project's
// kernels do neither, where activations are closed; which launches of a step may start early; and
// where none may.

#include <boost/test/unit_test.hpp>
#include <random>
#include <string>

#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/device.hpp"
#include "tests/kernels/harness.hpp"

namespace sluice::kernels::test {
namespace {

/// A pretended device that goes back to a sound and new one.
struct CleanDevice {
  ~CleanDevice() {
    cuda_host::take_complaints();
    cuda_host::set_versions(9, 13000);
    cuda_host::close_memory(false);
  }
};

struct Launches {
  std::uint64_t all = 0, early = 0;

  static Launches so_far() {
    return {cuda_host::calls("cudaLaunchKernel"), cuda_host::calls("early launch")};
  }
  Launches since() const {
    const Launches now = so_far();
    return {now.all - all, now.early - early};
  }
};

/// What the shim says of a kernel of 64 threads.
std::string complaint(const std::function<void()>& kernel) {
  return cuda_host::run_grid(2, 64, 0, kernel, {.owed = true});
}

bool says(const std::string& text, const char* part) { return text.find(part) != text.npos; }

Factory with(const CudaOptions& options) {
  return [options](Completion done) {
    return require(make_cuda_backend(options, std::move(done)));
  };
}

CudaOptions options(bool early, bool graphs) {
  return {.reserve_bytes = 0, .graphs = graphs, .early_launches = early, .nccl = ""};
}

/// A prompt and two tokens, where activations are closed to kernels that have not waited. Rows wide
/// enough that products ask for something before.
void run_closed(const TinyModel& model) {
  std::mt19937 random(1);
  Results results;
  const auto backend = with(options(true, false))(results.completion());
  for (const Tensor& tensor : model.tensors) require(backend->load(tensor.host));
  BOOST_REQUIRE(backend->allocate(model.pool()).has_value());
  cuda_host::close_memory(true);
  const ProgramId program = require(backend->record(model.program));
  Blocks blocks(model, random);
  Sequence s;
  s.tokens = random_tokens(random, model, 20);
  s.prompt_tokens = 20;
  for (Ticket ticket = 1; ticket <= 3; ++ticket) {
    Batch batch;
    s.plan(batch, ticket == 1 ? 20 : 1, true, blocks, model.traits.block_tokens);
    backend->submit(program, ticket, batch);
    const StepResult result = results.take();
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
  }
}

/// Launches of a prompt's step, with a slot to open and blocks to grant, and of four behind it.
Launches run_steps(const CudaOptions& options, const TinyModel& model) {
  std::mt19937 random(1);
  Device device(with(options), model);
  Blocks blocks(model, random);
  Sequence s;
  s.tokens = random_tokens(random, model, 5);
  s.prompt_tokens = 5;
  const Launches before = Launches::so_far();
  for (std::uint32_t i = 0; i < 5; ++i) {
    Batch batch;
    s.plan(batch, i == 0 ? 5 : 1, true, blocks, model.traits.block_tokens);
    const StepResult result = device.run(batch);
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
  }
  return before.since();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(early_launches)

BOOST_AUTO_TEST_CASE(a_kernel_that_misses_its_turn_is_refused) {
  BOOST_TEST(complaint([] { cuda::take_turn(); }) == "");
  const std::string never = complaint([] { cuda::start_next(); });
  BOOST_TEST(says(never, "had not waited"), never);
  const std::string some = complaint([] {
    if (threadIdx.x == 40) return;
    cuda::take_turn();
  });
  BOOST_TEST(says(some, "thread 40: a thread ended and had not waited"), some);
  const std::string blocked = complaint([] { cuda::await_previous(); });
  BOOST_TEST(says(blocked, "never let the next kernel start"), blocked);
}

BOOST_AUTO_TEST_CASE(a_launched_kernel_that_does_not_wait_loses_the_device) {
  const CleanDevice clean;
  const cuda::Stream stream = require(cuda::make_stream());
  cuda::LaunchChain chain(stream.get());
  BOOST_TEST(cuda::launch(+[](int) { cuda::start_next(); }, 1, 32, 0, chain, 0) == cudaSuccess);
  BOOST_TEST(cudaStreamSynchronize(stream.get()) == cudaErrorLaunchFailure);
  BOOST_TEST(cuda_host::take_complaints().size() == 1U);
}

BOOST_AUTO_TEST_CASE(memory_that_is_touched_before_the_wait) {
  const CleanDevice clean;
  const cuda::DeviceMemory weight = require(cuda::DeviceMemory::make(64, "a weight"));
  cuda_host::close_memory(true);
  const cuda::DeviceMemory other = require(cuda::DeviceMemory::make(64, "activations"));
  const auto said = [&](auto kernel) {
    const cuda::Stream stream = require(cuda::make_stream());
    cuda::LaunchChain chain(stream.get());
    cuda::launch(+kernel, 2, 64, 0, chain, weight.as<int>(), other.as<int>());
    cudaStreamSynchronize(stream.get());
    const auto all = cuda_host::take_complaints();
    return all.empty() ? std::string() : all.at(0);
  };
  BOOST_TEST(said([](const int* w, int* x) {
               cuda::start_next();
               const int from = w[threadIdx.x % 16];
               cuda::await_previous();
               x[threadIdx.x % 16] = from;
             }) == "");
  const std::string read = said([](const int*, int* x) {
    cuda::start_next();
    const int from = threadIdx.x == 50 ? x[3] : 0;
    cuda::await_previous();
    x[0] = from;
  });
  BOOST_TEST(says(read, "what was closed"), read);
  const std::string written = said([](const int*, int* x) {
    cuda::start_next();
    x[threadIdx.x % 16] = 1;
    cuda::await_previous();
  });
  BOOST_TEST(says(written, "what was closed"), written);
}

BOOST_AUTO_TEST_CASE(only_a_kernel_right_behind_a_kernel_starts_early) {
  const CleanDevice clean;
  const cuda::Stream stream = require(cuda::make_stream());
  const auto nothing = +[](int) { cuda::take_turn(); };
  const auto early = [&](cuda::LaunchChain& chain) {
    const Launches before = Launches::so_far();
    BOOST_TEST(cuda::launch(nothing, 1, 32, 0, chain, 0) == cudaSuccess);
    return before.since().early == 1;
  };
  cuda::LaunchChain chain(stream.get(), true);
  BOOST_TEST(!early(chain));  // who knows what is on the stream
  BOOST_TEST(early(chain));
  BOOST_TEST(early(chain));
  int from = 0, to = 0;
  cudaMemcpyAsync(&to, &from, sizeof to, cudaMemcpyHostToDevice, chain.interrupted());
  BOOST_TEST(!early(chain));
  BOOST_TEST(early(chain));
  cuda::LaunchChain plain(stream.get());
  BOOST_TEST(!early(plain));
  BOOST_TEST(!early(plain));
  // The shim sees one that was forgotten.
  cudaMemcpyAsync(&to, &from, sizeof to, cudaMemcpyHostToDevice, stream.get());
  BOOST_TEST(cuda::launch(nothing, 1, 32, 0, chain, 0) == cudaErrorInvalidValue);
}

BOOST_AUTO_TEST_CASE(no_kernel_touches_activations_before_its_wait) {
  const CleanDevice clean;
  for (std::size_t f = 0; f <= format_count; ++f) {
    const bool as_e4m3 = f == format_count;
    const Format format = as_e4m3 ? Format::bf16 : static_cast<Format>(f);
    BOOST_TEST_CONTEXT(info(format).name << (as_e4m3 ? " in 8 bits" : "")) {
      cuda_host::close_memory(false);
      TinyModel model = tiny_model({.format = format,
                                    .hidden = as_e4m3 ? 2048U : 1024U,
                                    .heads = {1, 1, 256},
                                    .feed_forward = 256,
                                    .vocabulary = 40,
                                    .layers = 1,
                                    .pairs = 128,
                                    .head_norms = true,
                                    .kv_format = as_e4m3 ? KvFormat::e4m3 : KvFormat::f16});
      for (const Op& op : model.program.ops) {
        const auto* linear = std::get_if<Linear>(&op);
        if (linear != nullptr) model.tensors[linear->weight.index].host.as_e4m3 = as_e4m3;
      }
      run_closed(model);
    }
  }
}

BOOST_AUTO_TEST_CASE(all_kernels_of_a_step_but_its_first_start_early) {
  const TinyModel model = tiny_model({.layers = 2});
  const Launches apart = run_steps(options(true, false), model);
  // A step's first is behind the copy of its metadata, and what comes behind opened slots waits.
  BOOST_TEST(apart.early == apart.all - 6);
  const Launches late = run_steps(options(false, false), model);
  BOOST_TEST(late.all == apart.all);
  BOOST_TEST(late.early == 0U);
  // Prompt and first token kernel by kernel, then one capture for three steps.
  const Launches captured = run_steps(options(true, true), model);
  BOOST_TEST(captured.all < apart.all);
  BOOST_TEST(captured.early == captured.all - 4);
}

BOOST_AUTO_TEST_CASE(older_devices_and_drivers_get_plain_launches) {
  const CleanDevice clean;
  const TinyModel model = tiny_model({.layers = 1});
  for (const auto& [major, driver] : {std::pair{8, 13000}, std::pair{9, 12020}}) {
    cuda_host::set_versions(major, driver);
    BOOST_TEST(run_steps(options(true, true), model).early == 0U);
  }
  cuda_host::set_versions(10, 12030);
  BOOST_TEST(run_steps(options(true, true), model).early > 0U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
