#include "bench/collectives/steps.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "bench/quantile.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/decoder.hpp"

namespace sluice::bench {
namespace {

constexpr std::uint32_t prompt_tokens = 8;

struct Inbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<kernels::StepResult> results;

  kernels::StepResult take() {
    std::unique_lock lock(mutex);
    arrived.wait(lock, [this] { return !results.empty(); });
    auto result = std::move(results.front());
    results.pop_front();
    return result;
  }
};

}  // namespace

Result<double> measure_steps(const std::string& model,
                             const std::shared_ptr<kernels::Communicator>& group,
                             std::uint32_t rows, std::uint32_t steps,
                             const kernels::SamplingParams& sampling) {
  auto file = model::open_checkpoint(model);
  if (!file) return tl::unexpected(file.error());
  auto config = (*file)->config();
  if (!config) return tl::unexpected(config.error());
  Inbox inbox;
  auto backend = kernels::make_cpu_backend({.threads = 1}, [&](kernels::StepResult&& result) {
    const std::lock_guard lock(inbox.mutex);
    inbox.results.push_back(std::move(result));
    inbox.arrived.notify_one();
  });
  if (!backend) return tl::unexpected(backend.error());
  kernels::PoolShape pool;
  pool.layers = config->layers;
  pool.kv_heads = model::shard_heads(config->heads, group->shard()).kv_heads;
  pool.head_dim = config->heads.head_dim;
  pool.context_tokens = prompt_tokens + steps + 1;
  const std::uint32_t blocks = pool.context_tokens / pool.block_tokens + 1;
  pool.blocks = rows * blocks;
  pool.slots = rows;
  pool.rows_max = rows * prompt_tokens;
  pool.vocabulary = config->vocabulary;
  if (auto joined = (*backend)->join(group); !joined) return tl::unexpected(joined.error());
  if (auto made = (*backend)->allocate(pool); !made) return tl::unexpected(made.error());
  const auto decoder = model::load_decoder(**file, *config, **backend, {}, group->shard());
  if (!decoder) return tl::unexpected(decoder.error());

  std::vector<double> times_us;
  for (std::uint32_t step = 0; step <= steps; ++step) {
    kernels::Batch batch;
    for (std::uint32_t slot = 0; slot < rows; ++slot) {
      if (step == 0) {
        kernels::SlotOpen open{{slot, 1}, {}, prompt_tokens, sampling};
        open.sampling.seed = slot;
        for (Token t = 0; t < prompt_tokens; ++t) open.tokens.push_back(100 + 31 * t + slot);
        batch.opens.push_back(std::move(open));
        kernels::BlockGrant grant{slot, 0, {}};
        for (std::uint32_t b = 0; b < blocks; ++b) grant.blocks.push_back(slot * blocks + b);
        batch.grants.push_back(std::move(grant));
        batch.segments.push_back({{slot, 1}, 0, prompt_tokens, kernels::Path::prompt, true});
      } else {
        batch.segments.push_back(
            {{slot, 1}, prompt_tokens + step - 1, 1, kernels::Path::decode, true});
      }
    }
    (*backend)->submit(decoder->program, step + 1, std::move(batch));
    const kernels::StepResult result = inbox.take();
    if (result.failed) return tl::unexpected(result.error);
    if (step > 0) times_us.push_back(static_cast<double>(result.device_ns) * 1e-3);
  }
  return quantile(std::move(times_us), 0.5);
}

}  // namespace sluice::bench
