#include "bench/latency.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/backends.hpp"
#include "model/config.hpp"
#include "model/decoder.hpp"
#include "model/gguf.hpp"

namespace sluice::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Steps submitted before the oldest has completed, as the service's scheduler does.
constexpr kernels::Ticket steps_ahead = 2;

/// The last completed ticket, waited for by the measuring thread.
class Progress {
 public:
  void complete(const kernels::StepResult& result) {
    const std::scoped_lock lock(mutex_);
    ticket_ = result.ticket;
    if (result.failed) error_ = result.error;
    for (const auto& slot : result.slots)
      if (slot.error) error_ = *slot.error;
    changed_.notify_all();
  }
  Result<void> wait(kernels::Ticket ticket) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ticket_ >= ticket; });
    if (error_) return tl::unexpected(*error_);
    return {};
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  kernels::Ticket ticket_ = 0;
  std::optional<Error> error_;
};

/// A model on a backend, and one slot of it.
struct Rig {
  std::shared_ptr<const model::GgufFile> file;
  model::ModelConfig config;
  Progress progress;
  std::unique_ptr<kernels::Backend> backend;
  model::Decoder decoder;
  kernels::PoolShape pool;
  kernels::Ticket ticket = 0;
  std::uint32_t generation = 0;

  /// Opens the slot anew with these tokens; every block is granted at once.
  kernels::Batch open(std::vector<Token> tokens) {
    kernels::Batch batch;
    ++generation;
    kernels::SlotOpen slot;
    slot.slot = {0, generation};
    slot.prompt_tokens = static_cast<std::uint32_t>(tokens.size());
    slot.tokens = std::move(tokens);
    slot.sampling.temperature = 0;
    batch.opens.push_back(std::move(slot));
    kernels::BlockGrant grant;
    grant.blocks.resize(pool.blocks);
    std::iota(grant.blocks.begin(), grant.blocks.end(), 0U);
    batch.grants.push_back(std::move(grant));
    return batch;
  }

  void submit(kernels::Batch batch, std::uint32_t position, std::uint32_t rows, kernels::Path path,
              bool last) {
    kernels::Segment segment;
    segment.slot = {0, generation};
    segment.position = position;
    segment.rows = rows;
    segment.path = path;
    segment.sample = true;
    batch.segments.push_back(segment);
    if (last) batch.closes.push_back(segment.slot);
    backend->submit(decoder.program, ++ticket, std::move(batch));
  }
};

Result<std::unique_ptr<Rig>> load(const LatencyOptions& options) {
  auto rig = std::make_unique<Rig>();
  auto file = model::GgufFile::open(options.model);
  if (!file) return tl::unexpected(file.error());
  rig->file = *file;
  auto config = model::read_config(**file);
  if (!config) return tl::unexpected(config.error());
  rig->config = *config;
  const auto choice = kernels::choose_backend(options.backend);
  if (!choice) return tl::unexpected(choice.error());
  auto backend = kernels::make_backend(
      choice->name, {.threads = options.threads, .device = options.device},
      [progress = &rig->progress](kernels::StepResult&& result) { progress->complete(result); });
  if (!backend) return tl::unexpected(backend.error());
  rig->backend = std::move(*backend);
  auto& pool = rig->pool;
  pool.layers = config->layers;
  pool.kv_heads = config->heads.kv_heads;
  pool.head_dim = config->heads.head_dim;
  pool.slots = 1;
  pool.context_tokens = std::max(options.prompt_tokens, options.generated_tokens + 1) + 1;
  pool.blocks = (pool.context_tokens + pool.block_tokens - 1) / pool.block_tokens;
  pool.rows_max = options.prompt_tokens;
  pool.vocabulary = config->vocabulary;
  if (auto done = rig->backend->allocate(pool); !done) return tl::unexpected(done.error());
  auto decoder = model::load_decoder(**file, *config, *rig->backend, {});
  if (!decoder) return tl::unexpected(decoder.error());
  rig->decoder = std::move(*decoder);
  return rig;
}

/// A fixed walk through the vocabulary: any tokens do, the work does not depend on them.
std::vector<Token> some_tokens(std::uint32_t count, std::uint32_t vocabulary) {
  std::vector<Token> tokens(count);
  std::uint64_t state = 1;
  for (auto& token : tokens) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    token = static_cast<Token>((state >> 33) % vocabulary);
  }
  return tokens;
}

Result<double> prompt_rate(Rig& rig, std::uint32_t tokens) {
  auto batch = rig.open(some_tokens(tokens, rig.config.vocabulary));
  const auto start = Clock::now();
  rig.submit(std::move(batch), 0, tokens, kernels::Path::prompt, true);
  if (auto done = rig.progress.wait(rig.ticket); !done) return tl::unexpected(done.error());
  return tokens / std::chrono::duration<double>(Clock::now() - start).count();
}

Result<double> generation_rate(Rig& rig, std::uint32_t tokens) {
  auto batch = rig.open(some_tokens(1, rig.config.vocabulary));
  const auto start = Clock::now();
  for (std::uint32_t i = 0; i < tokens; ++i) {
    rig.submit(std::exchange(batch, {}), i, 1,
               i == 0 ? kernels::Path::prompt : kernels::Path::decode, i + 1 == tokens);
    if (rig.ticket <= steps_ahead) continue;
    if (auto done = rig.progress.wait(rig.ticket - steps_ahead); !done)
      return tl::unexpected(done.error());
  }
  if (auto done = rig.progress.wait(rig.ticket); !done) return tl::unexpected(done.error());
  return tokens / std::chrono::duration<double>(Clock::now() - start).count();
}

Rate summarise(const std::vector<double>& samples) {
  const auto count = static_cast<double>(samples.size());
  const double mean = std::accumulate(samples.begin(), samples.end(), 0.0) / count;
  double squares = 0;
  for (const double sample : samples) squares += (sample - mean) * (sample - mean);
  return {mean, samples.size() > 1 ? std::sqrt(squares / (count - 1)) : 0.0};
}

}  // namespace

Result<LatencyResult> measure_latency(const LatencyOptions& options) {
  if (options.prompt_tokens == 0 || options.generated_tokens == 0 || options.repetitions == 0)
    return fail(ErrorCode::bad_request, "tokens and repetitions must be at least 1");
  auto loaded = load(options);
  if (!loaded) return tl::unexpected(loaded.error());
  auto& rig = **loaded;
  std::vector<double> prompt, generated;
  for (std::uint32_t i = 0; i <= options.repetitions; ++i) {
    const auto p = prompt_rate(rig, options.prompt_tokens);
    if (!p) return tl::unexpected(p.error());
    const auto g = generation_rate(rig, options.generated_tokens);
    if (!g) return tl::unexpected(g.error());
    if (i == 0) continue;  // pages in, caches and clocks up
    prompt.push_back(*p);
    generated.push_back(*g);
  }
  const auto& device = rig.backend->device();
  LatencyResult result;
  result.prompt_tokens = options.prompt_tokens;
  result.generated_tokens = options.generated_tokens;
  result.prompt_tok_s = summarise(prompt);
  result.generated_tok_s = summarise(generated);
  const auto kv_token_bytes = static_cast<double>(kv_block_bytes(rig.pool)) / rig.pool.block_tokens;
  result.bytes_per_token = static_cast<double>(rig.decoder.weight_bytes) +
                           kv_token_bytes * (options.generated_tokens + 1) / 2;
  result.threads = device.threads;
  result.backend = device.backend;
  result.device = device.device;
  const auto bandwidth =
      rig.backend->read_bandwidth(static_cast<std::size_t>(result.bytes_per_token));
  if (!bandwidth) return tl::unexpected(bandwidth.error());
  result.read_bandwidth_gb_s = *bandwidth / 1e9;
  result.limit_tok_s = result.read_bandwidth_gb_s * 1e9 / result.bytes_per_token;
  result.ratio_to_limit = result.generated_tok_s.mean / result.limit_tok_s;
  return result;
}

std::string to_json(const LatencyResult& result) {
  const auto prompt = fmt::format("pp{}_tok_s", result.prompt_tokens);
  const auto generated = fmt::format("tg{}_tok_s", result.generated_tokens);
  const nlohmann::ordered_json json{{prompt, result.prompt_tok_s.mean},
                                    {prompt + "_sd", result.prompt_tok_s.sd},
                                    {generated, result.generated_tok_s.mean},
                                    {generated + "_sd", result.generated_tok_s.sd},
                                    {"bytes_per_token", result.bytes_per_token},
                                    {"read_bandwidth_gb_s", result.read_bandwidth_gb_s},
                                    {"limit_tok_s", result.limit_tok_s},
                                    {"ratio_to_limit", result.ratio_to_limit},
                                    {"threads", result.threads},
                                    {"backend", result.backend},
                                    {"device", result.device}};
  return json.dump();
}

std::string to_text(const LatencyResult& result) {
  return fmt::format(
      "pp{:<6} {:9.1f} tok/s ± {:.1f}\n"
      "tg{:<6} {:9.1f} tok/s ± {:.1f}\n"
      "limit    {:9.1f} tok/s, {:.1f} MB a token at {:.1f} GB/s read bandwidth\n"
      "ratio    {:9.3f}\n"
      "{}, {} threads: {}\n",
      result.prompt_tokens, result.prompt_tok_s.mean, result.prompt_tok_s.sd,
      result.generated_tokens, result.generated_tok_s.mean, result.generated_tok_s.sd,
      result.limit_tok_s, result.bytes_per_token / 1e6, result.read_bandwidth_gb_s,
      result.ratio_to_limit, result.backend, result.threads, result.device);
}

}  // namespace sluice::bench
