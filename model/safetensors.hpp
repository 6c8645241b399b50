#pragma once
// A safetensors file, mapped and validated before anything in it is used.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core.hpp"
#include "kernels/file_source.hpp"
#include "kernels/quant.hpp"

namespace sluice::model {

/// An element type of the format.
struct SafetensorsType {
  std::string_view name;  ///< "BF16"
  std::uint32_t bits;     ///< of an element
  /// The same elements as the kernels know them, if they do.
  std::optional<kernels::Format> format;
};

struct SafetensorsTensor {
  std::string name;
  const SafetensorsType* type = nullptr;
  std::vector<std::uint64_t> shape;  ///< outermost first, as the file has it; empty for a scalar
  std::span<const std::byte> data;
};

/// Read-only, mapped; views into it live as long as it does. Any thread. Everything in it was
/// checked against the file's size: a tensor's `data` is exactly its shape's bytes, the tensors
/// fill the file without an overlap or a gap, and names are unique. Offsets need not be aligned.
class SafetensorsFile {
 public:
  /// `io` when the file cannot be opened or mapped; `bad_file` names what is truncated, oversized,
  /// overlapping or inconsistent; `unsupported` an element type that the format did not have.
  static Result<std::shared_ptr<const SafetensorsFile>> open(const std::string& path);

  /// Parses bytes that somebody else keeps alive: what tests and the fuzzer call.
  static Result<std::shared_ptr<const SafetensorsFile>> parse(std::span<const std::byte> bytes,
                                                              std::string name);

  const std::string& name() const;
  std::size_t file_bytes() const;
  kernels::FileSource source() const;  ///< none where parse() made this
  std::span<const std::pair<std::string, std::string>> metadata() const;  ///< `__metadata__`
  std::span<const SafetensorsTensor> tensors() const;  ///< in the order of their bytes
  const SafetensorsTensor* find(std::string_view name) const;

  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  struct State;

 private:
  static Result<std::shared_ptr<const SafetensorsFile>> parse(std::unique_ptr<State> state);
  explicit SafetensorsFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Which file holds which tensor, as a model.safetensors.index.json says.
struct SafetensorsIndex {
  std::vector<std::pair<std::string, std::string>> tensors;  ///< tensor, file; by tensor
  std::vector<std::string> files;                            ///< each once, in order
};

/// `bad_file` for what is no index, and for a file that would not lie beside it.
Result<SafetensorsIndex> parse_safetensors_index(std::string_view json, std::string_view name);

/// Opens every file that the index at `path` names, beside it. `io` for one that is missing;
/// `bad_file` for a tensor that is not where the index has it, or that the index does not have.
Result<std::vector<std::shared_ptr<const SafetensorsFile>>> open_safetensors_index(
    const std::string& path);

}  // namespace sluice::model
