#pragma once
// A small, true Llama-family file of zeros whose keys and tensors a test can change one by one.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/quant.hpp"
#include "model/gguf.hpp"
#include "tests/model/gguf_builder.hpp"

namespace sluice::model::testing {

struct TinyLlama {
  using Writer = std::function<void(GgufBuilder&)>;
  struct Tensor {
    std::vector<std::uint64_t> shape;
    kernels::Format format = kernels::Format::f32;
    std::byte fill{};
  };

  std::map<std::string, Writer> keys;
  std::map<std::string, Tensor> tensors;

  /// Two layers, 32 wide, 4 heads of 8, 2 key heads, 64 in the feed-forward, 40 tokens.
  TinyLlama() {
    text("general.architecture", "llama");
    text("general.name", "tiny");
    u32("llama.block_count", 2);
    u32("llama.context_length", 256);
    u32("llama.embedding_length", 32);
    u32("llama.feed_forward_length", 64);
    u32("llama.attention.head_count", 4);
    u32("llama.attention.head_count_kv", 2);
    f32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
    tensors["token_embd.weight"] = {{32, 40}};
    tensors["output_norm.weight"] = {{32}};
    tensors["output.weight"] = {{32, 40}};
    for (const std::string layer : {"blk.0.", "blk.1."}) {
      tensors[layer + "attn_norm.weight"] = {{32}};
      tensors[layer + "attn_q.weight"] = {{32, 32}};
      tensors[layer + "attn_k.weight"] = {{32, 16}};
      tensors[layer + "attn_v.weight"] = {{32, 16}};
      tensors[layer + "attn_output.weight"] = {{32, 32}};
      tensors[layer + "ffn_norm.weight"] = {{32}};
      tensors[layer + "ffn_gate.weight"] = {{32, 64}};
      tensors[layer + "ffn_up.weight"] = {{32, 64}};
      tensors[layer + "ffn_down.weight"] = {{64, 32}};
    }
  }

  TinyLlama& u32(const std::string& key, std::uint32_t value) {
    keys[key] = [=](GgufBuilder& file) { file.u32(key, value); };
    return *this;
  }
  TinyLlama& f32(const std::string& key, float value) {
    keys[key] = [=](GgufBuilder& file) { file.f32(key, value); };
    return *this;
  }
  TinyLlama& text(const std::string& key, const std::string& value) {
    keys[key] = [=](GgufBuilder& file) { file.text(key, value); };
    return *this;
  }
  TinyLlama& custom(const std::string& key, Writer writer) {
    keys[key] = std::move(writer);
    return *this;
  }
  TinyLlama& without(const std::string& key_or_tensor) {
    keys.erase(key_or_tensor);
    tensors.erase(key_or_tensor);
    return *this;
  }
  TinyLlama& tensor(const std::string& name, Tensor one) {
    tensors[name] = std::move(one);
    return *this;
  }

  std::vector<std::byte> bytes() const {
    GgufBuilder file;
    for (const auto& [key, write] : keys) write(file);
    for (const auto& [name, one] : tensors) {
      std::size_t size = kernels::row_bytes(one.format, one.shape[0]);
      for (std::size_t d = 1; d < one.shape.size(); ++d) size *= one.shape[d];
      const std::vector<std::byte> data(size, one.fill);
      file.tensor(name, one.shape, info(one.format).gguf_id, data);
    }
    return file.build();
  }
};

/// Seven layers of TinyLlama's shapes under another architecture's name; its own tensors are for
/// the test to add.
inline TinyLlama of_family(const std::string& architecture) {
  TinyLlama tiny;
  std::erase_if(tiny.keys, [](const auto& key) { return key.first.starts_with("llama."); });
  tiny.text("general.architecture", architecture);
  const std::string prefix = architecture + ".";
  tiny.u32(prefix + "block_count", 7).u32(prefix + "context_length", 256);
  tiny.u32(prefix + "embedding_length", 32).u32(prefix + "feed_forward_length", 64);
  tiny.u32(prefix + "attention.head_count", 4).u32(prefix + "attention.head_count_kv", 2);
  tiny.f32(prefix + "attention.layer_norm_rms_epsilon", 1e-6F);
  const auto first = tiny.tensors;
  for (const auto& [name, one] : first) {
    if (!name.starts_with("blk.0.")) continue;
    for (int layer = 2; layer < 7; ++layer) {
      tiny.tensors["blk." + std::to_string(layer) + name.substr(5)] = one;
    }
  }
  return tiny;
}

/// A parsed file together with its bytes.
struct ParsedTiny {
  std::vector<std::byte> bytes;
  std::shared_ptr<const GgufFile> file;

  explicit ParsedTiny(const TinyLlama& tiny)
      : bytes(tiny.bytes()), file(GgufFile::parse(bytes, "tiny.gguf").value()) {}
};

}  // namespace sluice::model::testing
