#include "model/weights.hpp"

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "model/digest.hpp"

namespace sluice::model {
namespace {

using Shape = std::vector<std::uint64_t>;

/// Looks tensors up one after the other; the first error stays.
class TensorFinder {
 public:
  explicit TensorFinder(const Checkpoint& file) : file_(file) {}

  const Tensor* matrix(const std::string& name, std::uint64_t columns, std::uint64_t rows) {
    return need(name, {columns, rows});
  }

  /// A vector must be float32: it is added or multiplied in, never worth quantizing.
  const Tensor* vector(const std::string& name, std::uint64_t size) {
    const Tensor* tensor = need(name, {size});
    if (tensor != nullptr && tensor->format != kernels::Format::f32) {
      refuse(ErrorCode::unsupported, "tensor '{}' is {}, vectors must be F32: convert the model "
             "again", file_.spelled(name), info(tensor->format).name);
    }
    return tensor;
  }

  LinearTensors linear(const std::string& name, std::uint64_t inputs, std::uint64_t outputs) {
    LinearTensors found;
    found.weight = matrix(name + ".weight", inputs, outputs);
    if (has(name + ".bias")) found.bias = vector(name + ".bias", outputs);
    return found;
  }

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
  void known(const Tensor* tensor) { used_.insert(tensor); }

  /// Whether anything in the file was left over: a model with more parts than this decoder has.
  void refuse_unused(const std::string& architecture) {
    for (const Tensor& tensor : file_.tensors()) {
      if (used_.contains(&tensor)) continue;
      refuse(ErrorCode::unsupported, "tensor '{}' has no part in a decoder of architecture '{}' as "
             "it is known here, so the model would compute something else; use a model without",
             file_.spelled(tensor.name), architecture);
    }
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  const Tensor* need(const std::string& name, const Shape& shape) {
    const Tensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) {
      refuse(ErrorCode::bad_file, "tensor '{}' of shape [{}] is missing: the file is incomplete, "
             "convert the model again", file_.spelled(name), fmt::join(shape, ", "));
      return nullptr;
    }
    used_.insert(tensor);
    // Trailing ones mean nothing; some writers keep them.
    Shape found = tensor->shape;
    while (found.size() > shape.size() && found.back() == 1) found.pop_back();
    if (found != shape) {
      refuse(ErrorCode::bad_file, "tensor '{}' has shape [{}], [{}] belongs there by the file's "
             "own metadata: convert the model again", file_.spelled(name),
             fmt::join(tensor->shape, ", "), fmt::join(shape, ", "));
    }
    return tensor;
  }

  template <class... Args>
  void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (error_) return;
    error_ = Error{code, file_.name() + ": " + fmt::format(text, std::forward<Args>(args)...), 0};
  }

  const Checkpoint& file_;
  std::unordered_set<const Tensor*> used_;
  std::optional<Error> error_;
};

LayerTensors find_layer(TensorFinder& in, const ModelConfig& config, std::uint32_t layer) {
  const std::string prefix = fmt::format("blk.{}.", layer);
  const std::uint64_t hidden = config.hidden;
  const std::uint64_t ff = config.feed_forward;
  const std::uint64_t q_width = std::uint64_t{config.heads.heads} * config.heads.head_dim;
  const std::uint64_t kv_width = std::uint64_t{config.heads.kv_heads} * config.heads.head_dim;
  LayerTensors found;
  found.attention_norm = in.vector(prefix + "attn_norm.weight", hidden);
  found.q = in.linear(prefix + "attn_q", hidden, q_width);
  found.k = in.linear(prefix + "attn_k", hidden, kv_width);
  found.v = in.linear(prefix + "attn_v", hidden, kv_width);
  found.attention_output = in.linear(prefix + "attn_output", q_width, hidden);
  if (config.head_norms) {
    found.q_norm = in.vector(prefix + "attn_q_norm.weight", config.heads.head_dim);
    found.k_norm = in.vector(prefix + "attn_k_norm.weight", config.heads.head_dim);
  }
  if (config.branch_norms) {
    found.attention_branch_norm = in.vector(prefix + "post_attention_norm.weight", hidden);
    found.feed_forward_branch_norm = in.vector(prefix + "post_ffw_norm.weight", hidden);
  }
  found.feed_forward_norm = in.vector(prefix + "ffn_norm.weight", hidden);
  found.gate = in.linear(prefix + "ffn_gate", hidden, ff);
  found.up = in.linear(prefix + "ffn_up", hidden, ff);
  found.down = in.linear(prefix + "ffn_down", ff, hidden);
  return found;
}

constexpr std::size_t sampled_above_bytes = std::size_t{32} << 10;
constexpr std::size_t stretch_bytes = 256;
constexpr std::size_t stretches = 8;

/// All bytes of a small tensor, else stretches at even distances, first and last bytes among them.
Result<void> add_bytes(const Tensor& tensor, Digest& digest) {
  const bool whole = tensor.data.size() <= sampled_above_bytes;
  const std::size_t size = whole ? tensor.data.size() : stretch_bytes;
  const std::size_t last = tensor.data.size() - size;
  std::vector<std::byte> copy(size);
  for (std::size_t i = 0; i < (whole ? 1 : stretches); ++i) {
    const std::size_t first = i + 1 == stretches ? last : last / (stretches - 1) * i;
    std::span<const std::byte> bytes = tensor.data.subspan(first, size);
    if (tensor.source) {
      if (auto read = tensor.source.read(bytes.data(), copy); !read) return read;
      bytes = copy;
    }
    digest.add(bytes);
  }
  return {};
}

}  // namespace

Result<ModelTensors> find_tensors(const Checkpoint& file, const ModelConfig& config) {
  TensorFinder in(file);
  ModelTensors found;
  found.embedding = in.matrix("token_embd.weight", config.hidden, config.vocabulary);
  for (std::uint32_t layer = 0; layer < config.layers && !in.error(); ++layer) {
    found.layers.push_back(find_layer(in, config, layer));
  }
  found.output_norm = in.vector("output_norm.weight", config.hidden);
  found.output = config.tied_embeddings
                     ? found.embedding
                     : in.matrix("output.weight", config.hidden, config.vocabulary);
  in.known(file.find_tensor("rope_freqs.weight"));  // in the configuration's frequencies already
  if (!in.error()) in.refuse_unused(config.architecture);
  if (in.error()) return tl::unexpected<Error>(*in.error());
  return found;
}

Result<Quantization> find_quantization(std::string_view name) {
  if (name.empty()) return Quantization::none;
  if (name == "fp8") return Quantization::fp8;
  return fail(ErrorCode::bad_request, "there is no quantization '{}': write fp8, or leave it out",
              name);
}

bool is_narrowed(const Tensor& matrix, Quantization quantization) {
  return quantization == Quantization::fp8 &&
         kernels::info(matrix.format).block_elements == 1;
}

std::size_t device_bytes(const ModelTensors& tensors, const Checkpoint& file,
                         Quantization quantization) {
  std::size_t bytes = 0;
  for (const Tensor& tensor : file.tensors()) bytes += tensor.data.size();
  for (const LayerTensors& layer : tensors.layers) {
    for (const LinearTensors& linear : {layer.q, layer.k, layer.v, layer.attention_output,
                                        layer.gate, layer.up, layer.down}) {
      const kernels::HostTensor matrix = linear.weight->matrix();
      if (!is_narrowed(*linear.weight, quantization)) continue;
      bytes -= linear.weight->data.size();
      bytes += matrix.rows * (matrix.cols + sizeof(float));
    }
  }
  return bytes;
}

Result<std::string> weights_fingerprint(const Checkpoint& file) {
  std::vector<const Tensor*> tensors;
  for (const Tensor& tensor : file.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(),
            [](const Tensor* a, const Tensor* b) { return a->name < b->name; });
  const std::string settings = file.settings();
  Digest digest;
  digest.add(std::as_bytes(std::span(settings)));
  for (const Tensor* tensor : tensors) {
    digest.add(tensor->name);
    digest.add(info(tensor->format).name);
    digest.add(tensor->shape.size());
    for (const std::uint64_t size : tensor->shape) digest.add(size);
    if (auto added = add_bytes(*tensor, digest); !added)
      return tl::unexpected(named(file, added.error()));
  }
  return digest.hexadecimal();
}

}  // namespace sluice::model
