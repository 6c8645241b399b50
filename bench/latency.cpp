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

#include "bench/quantile.hpp"
#include "bench/random_model.hpp"
#include "kernels/backends.hpp"
#include "kernels/program.hpp"
#include "model/checkpoint.hpp"
#include "model/config.hpp"
#include "model/decoder.hpp"

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
    steps_ms_.push_back(static_cast<double>(result.device_ns) * 1e-6);
    if (!first_token_ && !result.slots.empty()) first_token_ = Clock::now();
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
  /// The device's time in each step since the last call.
  std::vector<double> take_steps_ms() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(steps_ms_, {});
  }
  /// When the first token of all was there.
  std::optional<Clock::time_point> first_token() {
    const std::scoped_lock lock(mutex_);
    return first_token_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  kernels::Ticket ticket_ = 0;
  std::vector<double> steps_ms_;
  std::optional<Clock::time_point> first_token_;
  std::optional<Error> error_;
};

/// Rows of a batch that reads what precedes generation.
constexpr std::uint32_t depth_rows_max = 512;

/// A model on a backend, and a slot of it for each stream.
struct Rig {
  std::shared_ptr<const model::Checkpoint> file;
  model::ModelConfig config;
  Progress progress;
  std::unique_ptr<kernels::Backend> backend;
  model::Decoder decoder;
  kernels::PoolShape pool;
  kernels::Ticket ticket = 0;
  std::uint32_t generation = 0;

  /// Opens the first `count` slots anew with these tokens, each with a share of the blocks.
  kernels::Batch open(std::uint32_t count, const std::vector<Token>& tokens) {
    kernels::Batch batch;
    ++generation;
    const std::uint32_t blocks_each = pool.blocks / pool.slots;
    for (kernels::SlotIndex i = 0; i < count; ++i) {
      kernels::SlotOpen slot;
      slot.slot = {i, generation};
      slot.prompt_tokens = static_cast<std::uint32_t>(tokens.size());
      slot.tokens = tokens;
      slot.sampling.temperature = 0;
      batch.opens.push_back(std::move(slot));
      kernels::BlockGrant grant;
      grant.slot = i;
      grant.blocks.resize(blocks_each);
      std::iota(grant.blocks.begin(), grant.blocks.end(), i * blocks_each);
      batch.grants.push_back(std::move(grant));
    }
    return batch;
  }

  kernels::Segment segment(kernels::SlotIndex slot, std::uint32_t position, std::uint32_t rows,
                           kernels::Path path) const {
    kernels::Segment segment;
    segment.slot = {slot, generation};
    segment.position = position;
    segment.rows = rows;
    segment.path = path;
    segment.sample = true;
    return segment;
  }

  void submit(kernels::Batch batch) {
    backend->submit(decoder.program, ++ticket, std::move(batch));
  }

  /// Until all that was submitted has completed.
  Result<void> wait() { return progress.wait(ticket); }
};

Result<std::unique_ptr<Rig>> load(const LatencyOptions& options) {
  auto rig = std::make_unique<Rig>();
  auto file = options.shape.empty() ? model::open_checkpoint(options.model)
                                    : random_checkpoint(options.shape);
  if (!file) return tl::unexpected(file.error());
  rig->file = *file;
  auto config = (*file)->config();
  if (!config) return tl::unexpected(config.error());
  rig->config = *config;
  const auto choice = kernels::choose_backend(options.backend);
  if (!choice) return tl::unexpected(choice.error());
  auto backend = kernels::make_backend(
      choice->name,
      {.threads = options.threads,
       .device = options.device,
       .early_launches = options.early_launches},
      [progress = &rig->progress](kernels::StepResult&& result) { progress->complete(result); });
  if (!backend) return tl::unexpected(backend.error());
  rig->backend = std::move(*backend);
  auto& pool = rig->pool;
  pool.layers = config->layers;
  pool.kv_heads = config->heads.kv_heads;
  pool.head_dim = config->heads.head_dim;
  pool.slots = options.streams;
  pool.context_tokens =
      std::max(options.prompt_tokens, options.depth + options.generated_tokens + 1) + 1;
  pool.blocks = (pool.context_tokens + pool.block_tokens - 1) / pool.block_tokens * options.streams;
  pool.rows_max =
      std::max({options.prompt_tokens, options.streams, std::min(options.depth, depth_rows_max)});
  pool.vocabulary = config->vocabulary;
  const auto kv_format = kernels::find_kv_format(options.kv_cache_dtype);
  if (!kv_format) return tl::unexpected(kv_format.error());
  pool.kv_format = *kv_format;
  if (auto done = rig->backend->allocate(pool); !done) return tl::unexpected(done.error());
  const auto quantization = model::find_quantization(options.quantization);
  if (!quantization) return tl::unexpected(quantization.error());
  auto decoder = model::load_decoder(**file, *config, *rig->backend, {}, {}, *quantization);
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
  auto batch = rig.open(1, some_tokens(tokens, rig.config.vocabulary));
  const auto start = Clock::now();
  batch.segments.push_back(rig.segment(0, 0, tokens, kernels::Path::prompt));
  batch.closes.push_back(batch.segments.back().slot);
  rig.submit(std::move(batch));
  if (auto done = rig.wait(); !done) return tl::unexpected(done.error());
  return tokens / std::chrono::duration<double>(Clock::now() - start).count();
}

/// Opens every stream and reads the `depth` tokens that precede generation. The batch returned is
/// what the first step has to carry besides its rows.
Result<kernels::Batch> open_streams(Rig& rig, std::uint32_t depth) {
  auto batch = rig.open(rig.pool.slots, some_tokens(depth + 1, rig.config.vocabulary));
  for (kernels::SlotIndex slot = 0; slot < rig.pool.slots; ++slot)
    for (std::uint32_t position = 0; position < depth; position += depth_rows_max) {
      const auto rows = std::min(depth_rows_max, depth - position);
      batch.segments.push_back(rig.segment(slot, position, rows, kernels::Path::prompt));
      batch.segments.back().sample = false;
      rig.submit(std::exchange(batch, {}));
    }
  if (auto done = rig.wait(); !done) return tl::unexpected(done.error());
  return batch;
}

struct Generation {
  double tok_s = 0;
  double s = 0;  ///< that passed
  std::vector<double> steps_ms;
};

Result<Generation> generate(Rig& rig, std::uint32_t depth, std::uint32_t tokens) {
  auto opened = open_streams(rig, depth);
  if (!opened) return tl::unexpected(opened.error());
  const auto start = Clock::now();
  rig.progress.take_steps_ms();
  const auto before = rig.ticket;
  for (std::uint32_t i = 0; i < tokens; ++i) {
    auto batch = std::exchange(*opened, {});
    const auto path = i == 0 ? kernels::Path::prompt : kernels::Path::decode;
    for (kernels::SlotIndex slot = 0; slot < rig.pool.slots; ++slot) {
      batch.segments.push_back(rig.segment(slot, depth + i, 1, path));
      if (i + 1 == tokens) batch.closes.push_back(batch.segments.back().slot);
    }
    rig.submit(std::move(batch));
    if (rig.ticket <= before + steps_ahead) continue;
    if (auto done = rig.progress.wait(rig.ticket - steps_ahead); !done)
      return tl::unexpected(done.error());
  }
  if (auto done = rig.wait(); !done) return tl::unexpected(done.error());
  Generation took;
  took.s = std::chrono::duration<double>(Clock::now() - start).count();
  took.steps_ms = rig.progress.take_steps_ms();
  took.tok_s = rig.pool.slots * tokens / took.s;
  return took;
}

Rate summarise(const std::vector<double>& samples) {
  const auto count = static_cast<double>(samples.size());
  const double mean = std::accumulate(samples.begin(), samples.end(), 0.0) / count;
  double squares = 0;
  for (const double sample : samples) squares += (sample - mean) * (sample - mean);
  return {mean, samples.size() > 1 ? std::sqrt(squares / (count - 1)) : 0.0};
}

/// A device reads more of its own memory no faster, and many sequences leave no room for as much.
constexpr double probe_bytes_max = 8e9;

/// What generation is held against: a step's bytes, and how fast the device reads so many.
Result<void> set_limit(Rig& rig, LatencyResult& result) {
  const auto kv_token_bytes = static_cast<double>(kv_block_bytes(rig.pool)) / rig.pool.block_tokens;
  const double kv_bytes = kv_token_bytes * (result.depth + (result.generated_tokens + 1) / 2.0);
  const double weight_bytes = static_cast<double>(rig.decoder.weight_bytes);
  result.bytes_per_token = weight_bytes / result.streams + kv_bytes;
  const double bytes = result.bytes_per_token * result.streams;
  const bool own_memory = rig.backend->device().dedicated_memory;
  const auto bandwidth = rig.backend->read_bandwidth(
      static_cast<std::size_t>(own_memory ? std::min(bytes, probe_bytes_max) : bytes));
  if (!bandwidth) return tl::unexpected(bandwidth.error());
  result.read_bandwidth_gb_s = *bandwidth / 1e9;
  result.limit_tok_s = *bandwidth / result.bytes_per_token;
  result.ratio_to_limit = result.generated_tok_s.mean / result.limit_tok_s;
  return {};
}

}  // namespace

Result<LatencyResult> measure_latency(const LatencyOptions& options) {
  if (options.prompt_tokens == 0 && options.generated_tokens == 0)
    return fail(ErrorCode::bad_request, "prompt or generated tokens must be at least 1");
  if (options.repetitions == 0 || options.streams == 0)
    return fail(ErrorCode::bad_request, "repetitions and streams must be at least 1");
  const auto start = Clock::now();
  auto loaded = load(options);
  if (!loaded) return tl::unexpected(loaded.error());
  auto& rig = **loaded;
  std::vector<double> prompt, generated;
  Generation all;
  for (std::uint32_t i = 0; i <= options.repetitions; ++i) {
    // The first is not counted: pages in, caches and clocks up.
    if (options.prompt_tokens > 0) {
      const auto rate = prompt_rate(rig, options.prompt_tokens);
      if (!rate) return tl::unexpected(rate.error());
      if (i > 0) prompt.push_back(*rate);
    }
    if (options.generated_tokens > 0) {
      const auto took = generate(rig, options.depth, options.generated_tokens);
      if (!took) return tl::unexpected(took.error());
      if (i == 0) continue;
      generated.push_back(took->tok_s);
      all.s += took->s;
      all.steps_ms.insert(all.steps_ms.end(), took->steps_ms.begin(), took->steps_ms.end());
    }
  }
  const auto& device = rig.backend->device();
  LatencyResult result;
  result.prompt_tokens = options.prompt_tokens;
  result.generated_tokens = options.generated_tokens;
  result.streams = options.streams;
  result.depth = options.depth;
  result.threads = device.threads;
  result.backend = device.backend;
  result.device = device.device;
  if (!prompt.empty()) result.prompt_tok_s = summarise(prompt);
  if (const auto first = rig.progress.first_token())
    result.first_token_s = std::chrono::duration<double>(*first - start).count();
  if (!generated.empty()) {
    result.generated_tok_s = summarise(generated);
    const double device_s =
        std::accumulate(all.steps_ms.begin(), all.steps_ms.end(), 0.0) * 1e-3;
    result.device_busy = device_s / all.s;
    result.idle_step_us =
        (all.s - device_s) * 1e6 / (options.repetitions * options.generated_tokens);
    result.step_p50_ms = quantile(all.steps_ms, 0.5);
    result.step_p99_ms = quantile(all.steps_ms, 0.99);
    if (auto done = set_limit(rig, result); !done) return tl::unexpected(done.error());
  }
  return result;
}

std::string to_json(const LatencyResult& result) {
  nlohmann::ordered_json json;
  if (result.prompt_tokens > 0) {
    const auto name = fmt::format("pp{}_tok_s", result.prompt_tokens);
    json[name] = result.prompt_tok_s.mean;
    json[name + "_sd"] = result.prompt_tok_s.sd;
  }
  if (result.generated_tokens > 0) {
    const auto name = fmt::format("tg{}_tok_s", result.generated_tokens);
    json[name] = result.generated_tok_s.mean;
    json[name + "_sd"] = result.generated_tok_s.sd;
    json["bytes_per_token"] = result.bytes_per_token;
    json["read_bandwidth_gb_s"] = result.read_bandwidth_gb_s;
    json["limit_tok_s"] = result.limit_tok_s;
    json["ratio_to_limit"] = result.ratio_to_limit;
    json["device_busy"] = result.device_busy;
    json["idle_step_us"] = result.idle_step_us;
    json["step_p50_ms"] = result.step_p50_ms;
    json["step_p99_ms"] = result.step_p99_ms;
    json["streams"] = result.streams;
    json["depth"] = result.depth;
  }
  json["first_token_s"] = result.first_token_s;
  json["threads"] = result.threads;
  json["backend"] = result.backend;
  json["device"] = result.device;
  return json.dump();
}

std::string to_text(const LatencyResult& result) {
  std::string text;
  if (result.prompt_tokens > 0)
    text += fmt::format("pp{:<6} {:9.1f} tok/s ± {:.1f}\n", result.prompt_tokens,
                        result.prompt_tok_s.mean, result.prompt_tok_s.sd);
  if (result.generated_tokens > 0) {
    text += fmt::format("tg{:<6} {:9.1f} tok/s ± {:.1f}", result.generated_tokens,
                        result.generated_tok_s.mean, result.generated_tok_s.sd);
    if (result.streams > 1) text += fmt::format(", {} streams together", result.streams);
    if (result.depth > 0) text += fmt::format(", after {} tokens", result.depth);
    text += fmt::format(
        "\nlimit    {:9.1f} tok/s, {:.1f} MB a token at {:.1f} GB/s read bandwidth\n"
        "ratio    {:9.3f}\n"
        "busy     {:9.3f}, {:.1f} us a step that the device rests\n"
        "step     {:9.3f} ms p50, {:.3f} ms p99\n",
        result.limit_tok_s, result.bytes_per_token / 1e6, result.read_bandwidth_gb_s,
        result.ratio_to_limit, result.device_busy, result.idle_step_us, result.step_p50_ms,
        result.step_p99_ms);
  }
  text += fmt::format("start    {:9.3f} s to the first token\n", result.first_token_s);
  return text + fmt::format("{}, {} threads: {}\n", result.backend, result.threads, result.device);
}

}  // namespace sluice::bench
