#pragma once
// What the decoder knows of a model's files, whatever their format.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"
#include "model/config.hpp"

namespace sluice::model {

class Tokenizer;
struct FileContents;

struct Tensor {
  std::string_view name;  ///< of the part it plays, as GGUF names it: "blk.0.attn_q.weight"
  kernels::Format format = kernels::Format::f32;
  std::vector<std::uint64_t> shape;  ///< innermost (row) first; 1 to 4 dimensions, none zero
  std::span<const std::byte> data;
  kernels::FileSource source;  ///< of `data`, unless it was made while the file was read

  /// As a matrix of `shape[0]` columns.
  kernels::HostTensor matrix() const;
};

/// A model's files, open and validated; views into it live as long as it does. Any thread. A
/// tensor's `data` is exactly its shape's bytes, aligned for its elements; whole blocks in a row,
/// rows and columns below 2^32; names are unique and not empty.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  /// The path it was opened by: what messages begin with.
  virtual const std::string& name() const = 0;

  /// What to call the model where nobody says.
  virtual std::string title() const = 0;

  virtual std::span<const Tensor> tensors() const = 0;
  virtual const Tensor* find_tensor(std::string_view name) const = 0;

  /// A tensor's name as the files spell it, for messages; it need not be there.
  virtual std::string spelled(std::string_view name) const = 0;

  /// `unsupported` names an architecture or a feature that the decoder lacks; `bad_file` what is
  /// missing or contradicts itself.
  virtual Result<ModelConfig> config() const = 0;

  /// Every id below it is an id of the model. `bad_file`, `unsupported` as the tokenizer's loaders.
  virtual Result<std::shared_ptr<const Tokenizer>> tokenizer() const = 0;

  /// The chat template's Jinja source, if the files have one.
  virtual Result<std::optional<std::string>> chat_template() const = 0;

  /// Bytes that differ wherever the files' settings let the same tensors compute something else.
  virtual std::string settings() const = 0;

  /// For people: everything as the files have it.
  virtual FileContents contents() const = 0;

 protected:
  Checkpoint() = default;
};

/// Says whose bytes could not be read (`io`); other errors stay as they are.
Error named(const Checkpoint& file, Error error);

/// Opens the model at `path`: a folder as transformers saves one, its .safetensors file or the
/// .safetensors.index.json over several; anything else is a GGUF file. The errors of its reader.
Result<std::shared_ptr<const Checkpoint>> open_checkpoint(const std::string& path);

}  // namespace sluice::model
