#include "actors/load.hpp"

#include <sodium.h>

#include <algorithm>
#include <array>
#include <future>
#include <utility>
#include <vector>

#include "kernels/program.hpp"
#include "model/chat_template.hpp"
#include "model/decoder.hpp"
#include "model/tokenizer.hpp"
#include "transport/protocol.hpp"

namespace sluice::actors {
namespace {

/// Design section 6.10: what "the same replica" means, as 32 hex digits.
std::string numerics_id(const std::string& weights, std::string_view tokenizer,
                        const kernels::DeviceInfo& device, std::uint32_t ranks) {
  const std::string text = fmt::format("{}\n{}\n{}\n{}\ntp={}\n", weights, tokenizer,
                                       device.backend, device.arithmetic, ranks);
  std::array<std::uint8_t, crypto_hash_sha256_BYTES> hash{};
  crypto_hash_sha256(hash.data(), reinterpret_cast<const unsigned char*>(text.data()), text.size());
  return transport::to_hex(std::span(hash).first(16));
}

/// What decides the keys and values of a token besides the tokens up to it.
engine::BlockHash prefix_root(const std::string& numerics) {
  const std::vector<Token> bytes(numerics.begin(), numerics.end());
  return engine::block_hash({}, bytes, 0);
}

void recognise_chat(const EngineConfig& config, const model::Checkpoint& file, EngineFacts& facts) {
  if (!config.chat_format.empty()) {
    auto named = model::named_chat_template(config.chat_format);
    if (named)
      facts.chat = std::move(*named);
    else
      facts.chat_refusal = named.error();
    return;
  }
  const auto jinja = file.chat_template();
  if (!jinja) {
    facts.chat_refusal = jinja.error();
    return;
  }
  if (!*jinja) {
    facts.chat_refusal = {ErrorCode::unsupported,
                          fmt::format("'{}' carries no chat template: set chat_format in the "
                                      "configuration, or send a plain prompt",
                                      facts.name)};
    return;
  }
  auto recognised = model::recognise_chat_template(**jinja);
  if (recognised)
    facts.chat = std::move(*recognised);
  else
    facts.chat_refusal = recognised.error();
}

std::string name_of(const EngineConfig& config, const model::Checkpoint& file) {
  return !config.name.empty() ? config.name : file.title();
}

Result<std::shared_ptr<EngineFacts>> facts_of(const EngineConfig& config, const SiteConfig& site,
                                              const model::Checkpoint& file) {
  auto facts = std::make_shared<EngineFacts>();
  facts->name = name_of(config, file);
  facts->site = site;
  const auto model_config = file.config();
  if (!model_config) return tl::unexpected(model_config.error());
  auto tokenizer = file.tokenizer();
  if (!tokenizer) return tl::unexpected(tokenizer.error());
  if ((*tokenizer)->size() > model_config->vocabulary)
    return fail(ErrorCode::bad_file, "{}: the tokenizer has {} tokens, the weights only {}",
                config.model, (*tokenizer)->size(), model_config->vocabulary);
  facts->tokenizer = std::move(*tokenizer);
  facts->vocabulary = model_config->vocabulary;
  recognise_chat(config, file, *facts);
  return facts;
}

/// What ranks must have in common, or agree on.
struct RankFacts {
  std::array<char, 32> numerics{};
  std::uint32_t slots = 0;
  std::uint32_t rows_max = 0;
  std::uint32_t blocks = 0;          ///< the smallest counts
  std::uint32_t context_tokens = 0;  ///< likewise
};

Result<void> agree(kernels::Communicator& group, const std::string& numerics,
                   kernels::PoolShape& pool) {
  const kernels::Shard shard = group.shard();
  RankFacts own{{}, pool.slots, pool.rows_max, pool.blocks, pool.context_tokens};
  SLUICE_ASSERT(numerics.size() == own.numerics.size(), "a numerics id has 32 digits");
  std::copy(numerics.begin(), numerics.end(), own.numerics.begin());
  std::vector<RankFacts> all(shard.size);
  if (auto done = group.all_gather(std::as_bytes(std::span(&own, 1)),
                                   std::as_writable_bytes(std::span(all)));
      !done)
    return done;
  for (std::uint32_t rank = 0; rank < shard.size; ++rank) {
    const RankFacts& other = all[rank];
    if (other.numerics != own.numerics)
      return fail(ErrorCode::bad_request,
                  "rank {} has another model, backend or processor than rank {}: every rank needs "
                  "the same files and the same kind of device",
                  rank, shard.rank);
    if (other.slots != own.slots || other.rows_max != own.rows_max)
      return fail(ErrorCode::bad_request,
                  "rank {} has {} slots and {} rows a step, rank {} has {} and {}: give every rank "
                  "the same",
                  rank, other.slots, other.rows_max, shard.rank, own.slots, own.rows_max);
    pool.blocks = std::min(pool.blocks, other.blocks);
    pool.context_tokens = std::min(pool.context_tokens, other.context_tokens);
  }
  return {};
}

/// The model as the pool sees it: with this rank's heads.
Result<model::ModelConfig> pool_config(const model::Checkpoint& file,
                                       const model::ModelConfig& config,
                                       const kernels::Shard& shard) {
  if (shard.size == 1) return config;
  const auto tensors = model::find_tensors(file, config);
  if (!tensors) return tl::unexpected(tensors.error());
  const auto cut = model::cut_model(file, config, *tensors, shard);
  if (!cut) return tl::unexpected(cut.error());
  model::ModelConfig part = config;
  part.heads = cut->heads;
  return part;
}

/// Memory for keys and values where nobody said how much.
std::uint64_t pool_room(const model::ModelConfig& model, const kernels::PoolShape& pool,
                        const kernels::DeviceInfo& device, std::size_t weight_bytes) {
  const std::uint64_t free = device.memory_free_bytes;
  if (!device.dedicated_memory) return free / 4;
  // Rows of the decoder's buffers, in float32 and once more in bf16; and of each slot its logits
  // as computed, adjusted and held, and the uses of its tokens.
  const std::uint64_t q = std::uint64_t{model.heads.heads} * model.heads.head_dim;
  const std::uint64_t kv = std::uint64_t{model.heads.kv_heads} * model.heads.head_dim;
  const std::uint64_t row = 4ULL * model.hidden + 2 * q + 2 * kv + 3ULL * model.feed_forward;
  const std::uint64_t activations = 6 * row * pool.rows_max + 16ULL * pool.vocabulary * pool.slots;
  const std::uint64_t taken = weight_bytes + activations;
  return taken >= free ? 0 : (free - taken) / 20 * 19;
}

}  // namespace

Result<kernels::PoolShape> plan_pool(const EngineConfig& config, const model::ModelConfig& model,
                                     const kernels::DeviceInfo& device, std::size_t weight_bytes) {
  kernels::PoolShape pool;
  const auto kv_format = kernels::find_kv_format(config.kv_cache_dtype);
  if (!kv_format) return tl::unexpected(kv_format.error());
  pool.kv_format = *kv_format;
  pool.layers = model.layers;
  pool.kv_heads = model.heads.kv_heads;
  pool.head_dim = model.heads.head_dim;
  pool.slots = std::max(1U, config.slots);
  pool.vocabulary = model.vocabulary;
  // A step holds at least one row of every slot, so that no running sequence ever waits for
  // another.
  pool.rows_max = std::max(config.step_rows, pool.slots);
  pool.context_tokens = config.context_tokens == 0
                            ? model.context_tokens
                            : std::min(config.context_tokens, model.context_tokens);
  const std::uint64_t sequence_blocks =
      (pool.context_tokens + pool.block_tokens - 1) / pool.block_tokens;
  const std::uint64_t full_bytes = sequence_blocks * pool.slots * kv_block_bytes(pool);
  const std::uint64_t bytes = config.kv_bytes != 0
                                  ? config.kv_bytes
                                  : std::min<std::uint64_t>(
                                        full_bytes, pool_room(model, pool, device, weight_bytes));
  const std::uint64_t blocks =
      std::min<std::uint64_t>(bytes / kv_block_bytes(pool), sequence_blocks * pool.slots);
  if (blocks < 2)
    return fail(ErrorCode::bad_request,
                "a KV pool of {} bytes holds {} blocks of {} bytes, fewer than 2: raise kv_bytes",
                bytes, blocks, kv_block_bytes(pool));
  pool.blocks = static_cast<std::uint32_t>(blocks);
  pool.context_tokens = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(pool.context_tokens, blocks * pool.block_tokens));
  return pool;
}

Result<std::shared_ptr<EngineFacts>> load_facts(const EngineConfig& config,
                                                const SiteConfig& site) {
  auto file = model::open_checkpoint(config.model);
  if (!file) return tl::unexpected(file.error());
  return facts_of(config, site, **file);
}

namespace {

Result<LoadedEngine> load(const EngineConfig& config, const SiteConfig& site,
                          const BackendFactory& make_backend, kernels::Completion completion,
                          const LoadProgress& progress,
                          const std::shared_ptr<kernels::Communicator>& group) {
  const kernels::Shard shard = group ? group->shard() : kernels::Shard{};
  LoadedEngine loaded;
  auto file = model::open_checkpoint(config.model);
  if (!file) return tl::unexpected(file.error());
  loaded.file = *file;
  auto model_config = (*file)->config();
  if (!model_config) return tl::unexpected(model_config.error());
  // Made while the weights are packed: a quarter of a small model's start.
  auto making =
      std::async(std::launch::async, [&] { return facts_of(config, site, *loaded.file); });
  // Likewise; from a file that has yet to be read its samples, here and there, take longest.
  const auto fingerprint =
      std::async(std::launch::async, [&] { return model::weights_fingerprint(*loaded.file); })
          .share();
  auto part = pool_config(**file, *model_config, shard);
  if (!part) return tl::unexpected(part.error());

  auto backend = make_backend(config, std::move(completion));
  if (!backend) return tl::unexpected(backend.error());
  loaded.backend = std::move(*backend);
  const auto& device = loaded.backend->device();
  const auto quantization = model::find_quantization(config.quantization);
  if (!quantization) return tl::unexpected(quantization.error());
  const auto tensors = model::find_tensors(**file, *model_config);
  if (!tensors) return tl::unexpected(tensors.error());
  auto pool = plan_pool(config, *part, device,
                        model::device_bytes(*tensors, **file, *quantization) / shard.size);
  if (!pool) return tl::unexpected(pool.error());
  const std::string kept_as =
      config.quantization + (pool->kv_format == kernels::KvFormat::f16 ? "" : "-kv-fp8");
  if (group) {
    const auto& weights = fingerprint.get();
    if (!weights) return tl::unexpected(weights.error());
    const std::string id = numerics_id(*weights + kept_as, "", device, shard.size);
    if (auto agreed = agree(*group, id, *pool); !agreed) return tl::unexpected(agreed.error());
    if (auto joined = loaded.backend->join(group); !joined) return tl::unexpected(joined.error());
  }
  if (auto allocated = loaded.backend->allocate(*pool); !allocated)
    return tl::unexpected(allocated.error());
  const std::string name = name_of(config, **file);
  auto decoder = model::load_decoder(
      **file, *model_config, *loaded.backend,
      [&](std::size_t done, std::size_t total) {
        if (progress) progress(name, done, total);
      },
      shard, *quantization);
  if (!decoder) return tl::unexpected(decoder.error());
  auto read = making.get();
  if (!read) return tl::unexpected(read.error());
  const auto& weights = fingerprint.get();
  if (!weights) return tl::unexpected(weights.error());
  const auto facts = std::move(*read);
  facts->numerics =
      numerics_id(*weights + kept_as, facts->tokenizer->fingerprint(), device, shard.size);
  loaded.program = decoder->program;
  loaded.decoder = std::move(*decoder);

  facts->backend = device.backend;
  facts->scheduler = {.slots = pool->slots,
                      .blocks = pool->blocks,
                      .block_tokens = pool->block_tokens,
                      .context_tokens = pool->context_tokens,
                      .rows_max = pool->rows_max,
                      .itl_target = engine::Nanoseconds{config.itl_target_ms} * 1'000'000,
                      .prompt_rows_min = device.prompt_rows_min,
                      .queue_max = config.queue,
                      .paths_equal = device.paths_equal};
  if (config.prefix_cache) facts->scheduler.prefix_root = prefix_root(facts->numerics);
  loaded.facts = facts;
  loaded.pool = *pool;
  return loaded;
}

}  // namespace

Result<LoadedEngine> load_engine(const EngineConfig& config, const SiteConfig& site,
                                 const BackendFactory& make_backend, kernels::Completion completion,
                                 const LoadProgress& progress,
                                 const std::shared_ptr<kernels::Communicator>& group) {
  auto loaded = load(config, site, make_backend, std::move(completion), progress, group);
  // The others wait for this rank.
  if (!loaded && group) group->abort(loaded.error().message);
  return loaded;
}

}  // namespace sluice::actors
