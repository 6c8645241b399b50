#pragma once
// A GGUF file, mapped and validated before anything in it is used.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/core.hpp"
#include "model/checkpoint.hpp"

namespace sluice::model {

/// An array of metadata; strings point into the mapping.
using GgufArray =
    std::variant<std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>,
                 std::vector<bool>, std::vector<std::string_view>>;

using GgufValue =
    std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, GgufArray>;

/// Read-only, mapped. Everything in it was checked against the file's size; tensors are aligned to
/// at least 8 within the file, each apart from every other. Keys are unique and not empty.
class GgufFile final : public Checkpoint {
 public:
  /// `io` when the file cannot be opened or mapped; `bad_file` names what is truncated, oversized,
  /// overlapping, misaligned or inconsistent; `unsupported` names a version, byte order or format.
  static Result<std::shared_ptr<const GgufFile>> open(const std::string& path);

  /// Parses bytes that somebody else keeps alive: what tests and the fuzzer call.
  static Result<std::shared_ptr<const GgufFile>> parse(std::span<const std::byte> bytes,
                                                       std::string name);

  const std::string& name() const override;
  std::string title() const override;
  std::span<const Tensor> tensors() const override;
  const Tensor* find_tensor(std::string_view name) const override;
  std::string spelled(std::string_view name) const override { return std::string(name); }
  Result<ModelConfig> config() const override;
  Result<std::shared_ptr<const Tokenizer>> tokenizer() const override;
  Result<std::optional<std::string>> chat_template() const override;
  std::string settings() const override;
  FileContents contents() const override;

  std::uint32_t version() const;
  std::size_t file_bytes() const;

  struct Entry {
    std::string_view key;
    GgufValue value;
  };
  std::span<const Entry> metadata() const;

  const GgufValue* find(std::string_view key) const;

  /// Typed look-ups: absent is `bad_file` naming the key; the wrong type too. A signed integer that
  /// is not negative passes as unsigned.
  Result<std::uint64_t> unsigned_value(std::string_view key) const;
  Result<double> float_value(std::string_view key) const;
  Result<std::string_view> string_value(std::string_view key) const;

  ~GgufFile() override;

  struct State;

 private:
  static Result<std::shared_ptr<const GgufFile>> parse(std::unique_ptr<State> state);
  Result<const GgufValue*> need(std::string_view key, std::string_view expected) const;
  tl::unexpected<Error> wrong_type(std::string_view key, const GgufValue& value,
                                   std::string_view expected) const;
  explicit GgufFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::model
