#include "bench/random_model.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "kernels/quant.hpp"
#include "model/contents.hpp"
#include "model/rope.hpp"
#include "model/tokenizer.hpp"

namespace sluice::bench {
namespace {

using kernels::Format;

struct Shape {
  std::string_view name;
  std::uint32_t layers, hidden, feed_forward, heads, kv_heads, head_dim, vocabulary, context;
  float theta;
  bool tied;
};

constexpr std::array shapes{
    Shape{"llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 500000.0F, false},
    Shape{"llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 500000.0F, true},
    Shape{"tinyllama-1.1b", 22, 2048, 5632, 32, 4, 64, 32000, 2048, 10000.0F, false},
    Shape{"smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, 8192, 100000.0F, true},
};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::string format_names() {
  std::string names;
  for (std::size_t i = 0; i < kernels::format_count; ++i) {
    names += (i == 0 ? "" : ", ") + lower(kernels::info(static_cast<Format>(i)).name);
  }
  return names;
}

std::optional<Format> find_format(std::string_view name) {
  for (std::size_t i = 0; i < kernels::format_count; ++i) {
    const auto format = static_cast<Format>(i);
    if (lower(kernels::info(format).name) == lower(name)) return format;
  }
  return std::nullopt;
}

/// Where a block has its float16 scales; its other bytes may be anything.
std::vector<std::size_t> scales_of(Format format) {
  switch (format) {
    case Format::q4_1:
    case Format::q5_1:
    case Format::q4_k:
    case Format::q5_k:
      return {0, 2};
    case Format::q6_k:
      return {208};
    default:
      return {0};
  }
}

/// Bytes of weights between 1/128 and 1/64 of either sign, or of blocks with scales of 1/4096.
std::vector<std::byte> random_bytes(Format format, std::size_t bytes, std::uint64_t seed) {
  std::vector<std::byte> out(bytes);
  std::mt19937_64 random(seed);
  std::uint64_t keep = ~0ULL, set = 0;
  if (format == Format::f32) keep = 0x807FFFFF807FFFFFULL, set = 0x3C0000003C000000ULL;
  if (format == Format::bf16) keep = 0x807F807F807F807FULL, set = 0x3C003C003C003C00ULL;
  if (format == Format::f16) keep = 0x83FF83FF83FF83FFULL, set = 0x2000200020002000ULL;
  for (std::size_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
    const std::uint64_t word = (random() & keep) | set;
    std::memcpy(&out[at], &word, std::min(sizeof word, bytes - at));
  }
  const auto& f = kernels::info(format);
  if (f.block_elements == 1) return out;
  const std::uint16_t scale = kernels::f32_to_f16(0x1p-12F);
  for (std::size_t at = 0; at < bytes; at += f.block_bytes) {
    for (const std::size_t offset : scales_of(format)) {
      std::memcpy(&out[at + offset], &scale, sizeof scale);
    }
  }
  return out;
}

class RandomCheckpoint final : public model::Checkpoint {
 public:
  RandomCheckpoint(const Shape& shape, Format format, std::uint64_t seed)
      : shape_(shape), format_(format), name_(shape.name) {
    const std::uint64_t q = std::uint64_t{shape.heads} * shape.head_dim;
    const std::uint64_t kv = std::uint64_t{shape.kv_heads} * shape.head_dim;
    const std::uint64_t hidden = shape.hidden, wide = shape.feed_forward;
    add("token_embd.weight", {hidden, shape.vocabulary});
    for (std::uint32_t i = 0; i < shape.layers; ++i) {
      const std::string layer = fmt::format("blk.{}.", i);
      add(layer + "attn_norm.weight", {hidden});
      add(layer + "attn_q.weight", {hidden, q});
      add(layer + "attn_k.weight", {hidden, kv});
      add(layer + "attn_v.weight", {hidden, kv});
      add(layer + "attn_output.weight", {q, hidden});
      add(layer + "ffn_norm.weight", {hidden});
      add(layer + "ffn_gate.weight", {hidden, wide});
      add(layer + "ffn_up.weight", {hidden, wide});
      add(layer + "ffn_down.weight", {wide, hidden});
    }
    add("output_norm.weight", {hidden});
    if (!shape.tied) add("output.weight", {hidden, shape.vocabulary});
    fill(seed);
  }

  const std::string& name() const override { return name_; }
  std::string title() const override { return name_; }
  std::span<const model::Tensor> tensors() const override { return tensors_; }

  const model::Tensor* find_tensor(std::string_view name) const override {
    const auto found = std::ranges::find(tensors_, name, &model::Tensor::name);
    return found == tensors_.end() ? nullptr : &*found;
  }

  std::string spelled(std::string_view name) const override { return std::string(name); }

  Result<model::ModelConfig> config() const override {
    model::ModelConfig config;
    config.architecture = "llama";
    config.name = name_;
    config.layers = shape_.layers;
    config.hidden = shape_.hidden;
    config.feed_forward = shape_.feed_forward;
    config.heads = {shape_.heads, shape_.kv_heads, shape_.head_dim};
    config.vocabulary = shape_.vocabulary;
    config.context_tokens = shape_.context;
    config.rope.dimensions = shape_.head_dim;
    config.rope.theta = shape_.theta;
    model::set_frequencies(config.rope, {});
    config.local_rope = config.rope;
    config.local.assign(shape_.layers, false);
    config.attention_scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
    config.tied_embeddings = shape_.tied;
    return config;
  }

  Result<std::shared_ptr<const model::Tokenizer>> tokenizer() const override {
    return fail(ErrorCode::unsupported, "{}: a shape has no tokenizer: use a model's file", name_);
  }
  Result<std::optional<std::string>> chat_template() const override { return std::nullopt; }
  std::string settings() const override { return name_; }
  model::FileContents contents() const override { return {}; }

 private:
  void add(std::string name, std::vector<std::uint64_t> shape) {
    model::Tensor tensor;
    tensor.name = names_.emplace_back(std::move(name));
    tensor.format = shape.size() == 1 ? Format::f32 : format_;
    tensor.shape = std::move(shape);
    tensors_.push_back(std::move(tensor));
  }

  /// Each matrix has another stretch of the block, in whole rows.
  void fill(std::uint64_t seed) {
    norms_.assign(shape_.hidden, 1.0F);
    const auto row_of = [this](const model::Tensor& t) {
      return kernels::row_bytes(format_, static_cast<std::uint32_t>(t.shape[0]));
    };
    std::size_t most = 0;
    for (const model::Tensor& t : tensors_) {
      if (t.shape.size() == 2) most = std::max(most, row_of(t) * t.shape[1]);
    }
    bytes_ = random_bytes(format_, most, seed);
    std::mt19937_64 random(seed);
    for (model::Tensor& t : tensors_) {
      if (t.shape.size() == 1) {
        t.data = std::as_bytes(std::span(norms_));
        continue;
      }
      const std::size_t row = row_of(t), bytes = row * t.shape[1];
      const std::size_t first = random() % ((most - bytes) / row + 1);
      t.data = std::span(bytes_).subspan(first * row, bytes);
    }
  }

  const Shape shape_;
  const Format format_;
  const std::string name_;
  std::deque<std::string> names_;
  std::vector<model::Tensor> tensors_;
  std::vector<std::byte> bytes_;
  std::vector<float> norms_;
};

}  // namespace

std::string shape_names() {
  std::string names;
  for (const Shape& shape : shapes) {
    names += names.empty() ? "" : ", ";
    names += shape.name;
  }
  return names;
}

Result<std::shared_ptr<const model::Checkpoint>> random_checkpoint(std::string_view shape,
                                                                   std::uint64_t seed) {
  const std::size_t colon = std::min(shape.find(':'), shape.size());
  const std::string_view name = shape.substr(0, colon);
  const auto found = std::ranges::find(shapes, name, &Shape::name);
  if (found == shapes.end())
    return fail(ErrorCode::bad_request, "there is no shape '{}': {} are, each with a format, as {}",
                name, shape_names(), "llama-3.2-1b:bf16");
  const auto format = find_format(shape.substr(std::min(colon + 1, shape.size())));
  if (!format)
    return fail(ErrorCode::bad_request,
                "'{}' names no format of weights: add one of {}, as {}:bf16", shape, format_names(),
                name);
  const std::uint32_t block = kernels::info(*format).block_elements;
  for (const std::uint32_t row : {found->hidden, found->feed_forward}) {
    if (row % block != 0)
      return fail(ErrorCode::bad_request, "{} has rows of {}, and a block of {} is {} elements",
                  name, row, kernels::info(*format).name, block);
  }
  return std::make_shared<const RandomCheckpoint>(*found, *format, seed);
}

}  // namespace sluice::bench
