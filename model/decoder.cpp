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

/// Loads tensors one by one, counting. The first error stays, and nothing is loaded after it.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& file, kernels::Backend& backend, const Progress& progress)
      : file_(file), backend_(backend), progress_(progress) {
    for (const Tensor& tensor : file.tensors()) total_bytes_ += tensor.data.size();
  }

  Weight load(const Tensor& tensor) {
    if (error_) return {};
    const auto weight = backend_.load(tensor.matrix());
    if (!weight) {
      error_ = weight.error();
      error_->message = fmt::format("{}: tensor '{}': {}", file_.name(),
                                    file_.spelled(tensor.name),
                                    weight.error().message);
      return {};
    }
    loaded_bytes_ += tensor.data.size();
    if (progress_) progress_(loaded_bytes_, total_bytes_);
    return *weight;
  }

  LinearWeights load(const LinearTensors& tensors) {
    LinearWeights weights;
    weights.weight = load(*tensors.weight);
    if (tensors.bias != nullptr) weights.bias = load(*tensors.bias);
    return weights;
  }

  std::optional<Weight> load_if(const Tensor* tensor) {
    return tensor == nullptr ? std::nullopt : std::optional(load(*tensor));
  }

  LayerWeights load(const LayerTensors& layer) {
    return {load(*layer.attention_norm), load(layer.q), load(layer.k), load(layer.v),
            load(layer.attention_output), load_if(layer.q_norm), load_if(layer.k_norm),
            load_if(layer.attention_branch_norm), load(*layer.feed_forward_norm), load(layer.gate),
            load(layer.up), load(layer.down), load_if(layer.feed_forward_branch_norm)};
  }

  /// What no tensor of the file holds: says so in the progress too.
  void finish() {
    if (!error_ && progress_ && loaded_bytes_ < total_bytes_) progress_(total_bytes_, total_bytes_);
  }

  std::size_t loaded_bytes() const { return loaded_bytes_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  const Checkpoint& file_;
  kernels::Backend& backend_;
  const Progress& progress_;
  std::size_t loaded_bytes_ = 0;
  std::size_t total_bytes_ = 0;
  std::optional<Error> error_;
};

/// Writes the forward pass down, operation by operation.
class Recorder {
 public:
  explicit Recorder(const ModelConfig& config) : config_(config) {
    const std::uint32_t q_width = config.heads.heads * config.heads.head_dim;
    const std::uint32_t kv_width = config.heads.kv_heads * config.heads.head_dim;
    residual_ = buffer(RowSpace::batch, config.hidden);
    normed_ = buffer(RowSpace::batch, config.hidden);
    qkv_ = buffer(RowSpace::batch, q_width + 2 * kv_width);
    attended_ = buffer(RowSpace::batch, q_width);
    gate_up_ = buffer(RowSpace::batch, 2 * config.feed_forward);
    gated_ = buffer(RowSpace::batch, config.feed_forward);
    if (config.branch_norms) branch_ = buffer(RowSpace::batch, config.hidden);
    selected_ = buffer(RowSpace::sampled, config.hidden);
    last_ = buffer(RowSpace::sampled, config.hidden);
    logits_ = buffer(RowSpace::sampled, config.vocabulary);
  }

  void embed(Weight table) {
    steps_.ops.push_back(kernels::Embed{table, residual_, config_.embedding_scale});
  }

  void layer(std::uint32_t index, const LayerWeights& weights, Weight inverse_frequencies) {
    const kernels::HeadShape& heads = config_.heads;
    const std::uint32_t k_column = heads.heads * heads.head_dim;
    const std::uint32_t v_column = k_column + heads.kv_heads * heads.head_dim;
    norm(residual_, weights.attention_norm, normed_);
    linear(normed_, weights.q, qkv_);
    linear(normed_, weights.k, qkv_, k_column);
    linear(normed_, weights.v, qkv_, v_column);
    const bool local = config_.local[index];
    const RopeConfig& rope = local ? config_.local_rope : config_.rope;
    kernels::RopeStore turn{qkv_, heads, index, inverse_frequencies, rope.pairs, rope.magnitude};
    if (config_.head_norms) {
      turn.norms = {*weights.q_norm, *weights.k_norm, config_.norm_epsilon};
    }
    steps_.ops.push_back(turn);
    steps_.ops.push_back(kernels::Attention{qkv_, heads, index, config_.attention_scale,
                                            local ? config_.window : 0, attended_,
                                            config_.attention_soft_cap});
    add_branch(attended_, weights.attention_output, weights.attention_branch_norm);
    norm(residual_, weights.feed_forward_norm, normed_);
    linear(normed_, weights.gate, gate_up_);
    linear(normed_, weights.up, gate_up_, config_.feed_forward);
    steps_.ops.push_back(kernels::Gate{gate_up_, config_.activation, gated_});
    add_branch(gated_, weights.down, weights.feed_forward_branch_norm);
  }

  /// Only sampled rows get logits: a prompt's other rows end at the last layer.
  void finish(Weight output_norm, Weight output) {
    steps_.ops.push_back(kernels::Select{residual_, selected_});
    norm(selected_, output_norm, last_);
    linear(last_, {output, std::nullopt}, logits_);
    if (config_.logit_soft_cap > 0) {
      steps_.ops.push_back(kernels::SoftCap{logits_, config_.logit_soft_cap});
    }
    steps_.ops.push_back(kernels::Sample{logits_});
  }

  kernels::StepProgram take() { return std::move(steps_); }
  Buffer logits() const { return logits_; }

 private:
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

  /// The residual connection.
  void add_branch(Buffer in, const LinearWeights& weights, std::optional<Weight> gain) {
    if (!gain) return linear(in, weights, residual_, 0, true);
    linear(in, weights, branch_);
    steps_.ops.push_back(
        kernels::Norm{branch_, *gain, config_.norm_epsilon, residual_, true});
  }

  const ModelConfig& config_;
  kernels::StepProgram steps_;
  Buffer residual_, normed_, qkv_, attended_, gate_up_, gated_, branch_, selected_, last_, logits_;
};

Result<Weight> load_vector(kernels::Backend& backend, std::span<const float> values) {
  return backend.load({kernels::Format::f32, 1, static_cast<std::uint32_t>(values.size()),
                       std::as_bytes(values)});
}

}  // namespace

Result<Decoder> load_decoder(const Checkpoint& file, const ModelConfig& config,
                             kernels::Backend& backend, const Progress& progress) {
  const auto tensors = find_tensors(file, config);
  if (!tensors) return tl::unexpected<Error>(tensors.error());

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

  WeightLoader loader(file, backend, progress);
  Recorder recorder(config);
  const Weight embedding = loader.load(*tensors->embedding);
  recorder.embed(embedding);
  for (std::uint32_t layer = 0; layer < config.layers; ++layer) {
    recorder.layer(layer, loader.load(tensors->layers[layer]),
                   config.local[layer] ? *local_rotation : *rotation);
  }
  const Weight output_norm = loader.load(*tensors->output_norm);
  const Weight output = config.tied_embeddings ? embedding : loader.load(*tensors->output);
  recorder.finish(output_norm, output);
  loader.finish();
  if (loader.error()) return tl::unexpected<Error>(*loader.error());

  const kernels::HostTensor table = tensors->embedding->matrix();
  decoder.weight_bytes = loader.loaded_bytes() + table.data.size() / table.rows -
                         (config.tied_embeddings ? 0 : table.data.size());
  decoder.logits = recorder.logits();
  decoder.steps = recorder.take();
  const auto program = backend.record(decoder.steps);
  if (!program) return tl::unexpected<Error>(program.error());
  decoder.program = *program;
  return decoder;
}

}  // namespace sluice::model
