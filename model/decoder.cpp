#include "model/decoder.hpp"

#include <optional>
#include <utility>

namespace sluice::model {
namespace {

using kernels::Buffer;
using kernels::RowSpace;
using kernels::Weight;

/// A linear layer's weights on the device.
struct LinearWeights {
  Weight weight;
  std::optional<Weight> bias;
};

struct LayerWeights {
  Weight attention_norm;
  LinearWeights q, k, v, attention_output;
  std::optional<Weight> q_norm, k_norm, attention_branch_norm;
  Weight feed_forward_norm;
  LinearWeights gate, up, down;
  std::optional<Weight> feed_forward_branch_norm;
};

/// Loads a rank's parts of tensors one by one, counting. The first error stays, and nothing is
/// loaded after it.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& file, const ShardCut& cut, kernels::Backend& backend,
               const Progress& progress, Quantization quantization)
      : file_(file),
        cut_(cut),
        backend_(backend),
        progress_(progress),
        quantization_(quantization) {
    for (const Tensor& tensor : file.tensors()) total_bytes_ += tensor.data.size();
  }

  /// The rank's rows of a matrix with a row for each token.
  Weight load_tokens(const Tensor& tensor) {
    return load(tensor, rows_of(tensor, cut_.token, cut_.tokens));
  }

  Weight load(const Tensor& tensor) { return load(tensor, tensor.matrix()); }

  Weight load(const Tensor& tensor, const kernels::HostTensor& part) {
    if (error_) return {};
    const auto weight = backend_.load(part);
    if (!weight) {
      error_ = weight.error();
      error_->message = fmt::format("{}: tensor '{}': {}", file_.name(),
                                    file_.spelled(tensor.name),
                                    weight.error().message);
      return {};
    }
    loaded_bytes_ += part.rows * (part.as_e4m3 ? part.cols + sizeof(float)
                                               : kernels::row_bytes(part.format, part.cols));
    passed_bytes_ += tensor.data.size();
    if (progress_) progress_(passed_bytes_, total_bytes_);
    return *weight;
  }

  /// Some of the outputs: those are this rank's alone.
  LinearWeights load_rows(const LinearTensors& tensors, std::uint32_t first, std::uint32_t count) {
    LinearWeights weights;
    weights.weight = load_matrix(*tensors.weight, rows_of(*tensors.weight, first, count));
    if (tensors.bias != nullptr) {
      weights.bias = load(*tensors.bias, columns_of(*tensors.bias, first, count));
    }
    return weights;
  }

  /// Some of the inputs: the ranks' outputs add up, and one of them brings the bias.
  LinearWeights load_columns(const LinearTensors& tensors, std::uint32_t first,
                             std::uint32_t count) {
    LinearWeights weights;
    weights.weight = load_matrix(*tensors.weight, columns_of(*tensors.weight, first, count));
    if (tensors.bias != nullptr && cut_.shard.rank == 0) weights.bias = load(*tensors.bias);
    return weights;
  }

  std::optional<Weight> load_if(const Tensor* tensor) {
    return tensor == nullptr ? std::nullopt : std::optional(load(*tensor));
  }

  LayerWeights load(const LayerTensors& layer) {
    const std::uint32_t q_width = cut_.heads.heads * cut_.heads.head_dim;
    const std::uint32_t kv_width = cut_.heads.kv_heads * cut_.heads.head_dim;
    const std::uint32_t ff_row = cut_.feed_forward_row;
    return {load(*layer.attention_norm),
            load_rows(layer.q, cut_.q_row, q_width),
            load_rows(layer.k, cut_.kv_row, kv_width),
            load_rows(layer.v, cut_.kv_row, kv_width),
            load_columns(layer.attention_output, cut_.q_row, q_width),
            load_if(layer.q_norm),
            load_if(layer.k_norm),
            load_if(layer.attention_branch_norm),
            load(*layer.feed_forward_norm),
            load_rows(layer.gate, ff_row, cut_.feed_forward),
            load_rows(layer.up, ff_row, cut_.feed_forward),
            load_columns(layer.down, ff_row, cut_.feed_forward),
            load_if(layer.feed_forward_branch_norm)};
  }

  /// What no tensor of the file holds: says so in the progress too.
  void finish() {
    if (!error_ && progress_ && passed_bytes_ < total_bytes_) progress_(total_bytes_, total_bytes_);
  }

  std::size_t loaded_bytes() const { return loaded_bytes_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  /// A matrix of a layer, or some of it, as it is to be kept.
  Weight load_matrix(const Tensor& tensor, kernels::HostTensor part) {
    part.as_e4m3 = is_narrowed(tensor, quantization_);
    return load(tensor, part);
  }

  const Checkpoint& file_;
  const ShardCut& cut_;
  kernels::Backend& backend_;
  const Progress& progress_;
  const Quantization quantization_;
  std::size_t loaded_bytes_ = 0;
  std::size_t passed_bytes_ = 0;  ///< of whole tensors, this rank's or not
  std::size_t total_bytes_ = 0;
  std::optional<Error> error_;
};

/// Writes a rank's forward pass down, operation by operation. What every rank has whole, the
/// residual above all, is the same to the bit on all of them.
class Recorder {
 public:
  Recorder(const ModelConfig& config, const ShardCut& cut) : config_(config), cut_(cut) {
    const std::uint32_t q_width = cut.heads.heads * cut.heads.head_dim;
    const std::uint32_t kv_width = cut.heads.kv_heads * cut.heads.head_dim;
    qkv_ = buffer(RowSpace::batch, q_width + 2 * kv_width);
    all_ = layer_buffers(RowSpace::batch, q_width);
    sampled_ = layer_buffers(RowSpace::sampled, q_width);
    logits_ = buffer(RowSpace::sampled, config.vocabulary);
    own_logits_ = several() ? buffer(RowSpace::sampled, cut.tokens) : logits_;
  }

  /// Of several ranks, the one that has a token's row brings it, and the others zeros.
  void embed(Weight table) {
    kernels::Embed embed{table, all_.residual, config_.embedding_scale};
    if (several()) embed.first_token = cut_.token;
    steps_.ops.push_back(embed);
    add_up(all_.residual);
  }

  /// Only sampled rows get logits: of a prompt's other rows the last layer makes keys and values,
  /// and ends with its attention.
  void layer(std::uint32_t index, const LayerWeights& weights, Weight inverse_frequencies) {
    const kernels::HeadShape& heads = cut_.heads;
    const std::uint32_t k_column = heads.heads * heads.head_dim;
    const std::uint32_t v_column = k_column + heads.kv_heads * heads.head_dim;
    norm(all_.residual, weights.attention_norm, all_.normed);
    linear(all_.normed, weights.q, qkv_);
    linear(all_.normed, weights.k, qkv_, k_column);
    linear(all_.normed, weights.v, qkv_, v_column);
    const bool local = config_.local[index];
    const RopeConfig& rope = local ? config_.local_rope : config_.rope;
    kernels::RopeStore turn{qkv_, heads, index, inverse_frequencies, rope.pairs, rope.magnitude};
    if (config_.head_norms) {
      turn.norms = {*weights.q_norm, *weights.k_norm, config_.norm_epsilon};
    }
    steps_.ops.push_back(turn);
    steps_.ops.push_back(kernels::Attention{qkv_, heads, index, config_.attention_scale,
                                            local ? config_.window : 0, all_.attended,
                                            config_.attention_soft_cap});
    const bool last = index + 1 == config_.layers;
    if (last) {
      steps_.ops.push_back(kernels::Select{all_.attended, sampled_.attended});
      steps_.ops.push_back(kernels::Select{all_.residual, sampled_.residual});
    }
    const LayerBuffers& rows = last ? sampled_ : all_;
    add_branch(rows.attended, weights.attention_output, weights.attention_branch_norm, rows);
    norm(rows.residual, weights.feed_forward_norm, rows.normed);
    linear(rows.normed, weights.gate, rows.gate_up);
    linear(rows.normed, weights.up, rows.gate_up, cut_.feed_forward);
    steps_.ops.push_back(kernels::Gate{rows.gate_up, config_.activation, rows.gated});
    add_branch(rows.gated, weights.down, weights.feed_forward_branch_norm, rows);
  }

  void finish(Weight output_norm, Weight output) {
    norm(sampled_.residual, output_norm, sampled_.normed);
    kernels::Linear logits{sampled_.normed, output, std::nullopt, own_logits_};
    logits.float_input = true;
    steps_.ops.push_back(logits);
    if (config_.logit_soft_cap > 0) {
      steps_.ops.push_back(kernels::SoftCap{own_logits_, config_.logit_soft_cap});
    }
    if (several()) steps_.ops.push_back(kernels::AllGather{own_logits_, logits_});
    steps_.ops.push_back(kernels::Sample{logits_});
  }

  kernels::StepProgram take() { return std::move(steps_); }
  Buffer logits() const { return logits_; }

 private:
  /// What a layer keeps of each row.
  struct LayerBuffers {
    Buffer residual, normed, attended, gate_up, gated, branch;
  };

  LayerBuffers layer_buffers(RowSpace rows, std::uint32_t q_width) {
    LayerBuffers of;
    of.residual = buffer(rows, config_.hidden);
    of.normed = buffer(rows, config_.hidden);
    of.attended = buffer(rows, q_width);
    of.gate_up = buffer(rows, 2 * cut_.feed_forward);
    of.gated = buffer(rows, cut_.feed_forward);
    if (config_.branch_norms) of.branch = buffer(rows, config_.hidden);
    return of;
  }

  Buffer buffer(RowSpace rows, std::uint32_t width) {
    steps_.buffers.push_back({rows, width});
    return Buffer{static_cast<std::uint32_t>(steps_.buffers.size() - 1)};
  }

  void norm(Buffer in, Weight gain, Buffer out) {
    steps_.ops.push_back(kernels::Norm{in, gain, config_.norm_epsilon, out});
  }

  void linear(Buffer in, const LinearWeights& weights, Buffer out, std::uint32_t column = 0,
              bool accumulate = false) {
    steps_.ops.push_back(
        kernels::Linear{in, weights.weight, weights.bias, out, column, accumulate});
  }

  bool several() const { return cut_.shard.size > 1; }

  void add_up(Buffer buffer) {
    if (several()) steps_.ops.push_back(kernels::AllReduce{buffer});
  }

  /// The residual connection. Each rank has part of the branch; rank 0 adds its own to the
  /// residual, so that the sum over ranks is residual and branch.
  void add_branch(Buffer in, const LinearWeights& weights, std::optional<Weight> gain,
                  const LayerBuffers& rows) {
    if (!gain) {
      linear(in, weights, rows.residual, 0, cut_.shard.rank == 0);
      return add_up(rows.residual);
    }
    linear(in, weights, rows.branch);
    add_up(rows.branch);
    steps_.ops.push_back(
        kernels::Norm{rows.branch, *gain, config_.norm_epsilon, rows.residual, true});
  }

  const ModelConfig& config_;
  const ShardCut& cut_;
  kernels::StepProgram steps_;
  Buffer qkv_;
  LayerBuffers all_, sampled_;
  Buffer own_logits_, logits_;
};

Result<Weight> load_vector(kernels::Backend& backend, std::span<const float> values) {
  return backend.load({kernels::Format::f32, 1, static_cast<std::uint32_t>(values.size()),
                       std::as_bytes(values)});
}

}  // namespace

Result<Decoder> load_decoder(const Checkpoint& file, const ModelConfig& config,
                             kernels::Backend& backend, const Progress& progress,
                             const Shard& shard, Quantization quantization) {
  const auto tensors = find_tensors(file, config);
  if (!tensors) return tl::unexpected<Error>(tensors.error());
  const auto cut = cut_model(file, config, *tensors, shard);
  if (!cut) return tl::unexpected<Error>(cut.error());

  Decoder decoder;
  // Of layers that see everything, and of local ones: one weight where they are equal, so that the
  // backend makes one table of angles.
  const std::vector<float>& all = config.rope.inverse_frequencies;
  const std::vector<float>& local = config.local_rope.inverse_frequencies;
  std::vector<float> frequencies = all;
  if (local != all) frequencies.insert(frequencies.end(), local.begin(), local.end());
  decoder.inverse_frequencies = std::make_shared<const std::vector<float>>(std::move(frequencies));
  const std::span both(*decoder.inverse_frequencies);
  const auto rotation = load_vector(backend, both.first(all.size()));
  if (!rotation) return tl::unexpected<Error>(rotation.error());
  const auto local_rotation =
      local == all ? rotation : load_vector(backend, both.last(local.size()));
  if (!local_rotation) return tl::unexpected<Error>(local_rotation.error());

  WeightLoader loader(file, *cut, backend, progress, quantization);
  Recorder recorder(config, *cut);
  const Weight embedding = loader.load_tokens(*tensors->embedding);
  recorder.embed(embedding);
  for (std::uint32_t layer = 0; layer < config.layers; ++layer) {
    recorder.layer(layer, loader.load(tensors->layers[layer]),
                   config.local[layer] ? *local_rotation : *rotation);
  }
  const Weight output_norm = loader.load(*tensors->output_norm);
  const Weight output = config.tied_embeddings ? embedding : loader.load_tokens(*tensors->output);
  recorder.finish(output_norm, output);
  loader.finish();
  if (loader.error()) return tl::unexpected<Error>(named(file, *loader.error()));

  const kernels::HostTensor table = rows_of(*tensors->embedding, cut->token, cut->tokens);
  decoder.weight_bytes = loader.loaded_bytes() + table.data.size() / table.rows -
                         (config.tied_embeddings ? 0 : table.data.size());
  decoder.logits = recorder.logits();
  decoder.steps = recorder.take();
  const auto program = backend.record(decoder.steps);
  if (!program) return tl::unexpected<Error>(named(file, program.error()));
  decoder.program = *program;
  return decoder;
}

}  // namespace sluice::model
