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

#include "kernels/backend.hpp"
#include "kernels/core.hpp"

namespace sluice::model {

/// An array of metadata; strings point into the mapping.
using GgufArray =
    std::variant<std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>,
                 std::vector<bool>, std::vector<std::string_view>>;

using GgufValue =
    std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, GgufArray>;

struct GgufTensor {
  std::string_view name;
  kernels::Format format = kernels::Format::f32;
  std::vector<std::uint64_t> shape;  ///< innermost (row) first, as the file has it
  std::span<const std::byte> data;

  /// As a matrix of `shape[0]` columns.
  kernels::HostTensor matrix() const;
};

/// Read-only, mapped; views into it live as long as it does. Any thread. Everything in it was
/// checked against the file's size: a tensor's `data` is exactly its shape's bytes, aligned to at
/// least 8 within the file, apart from every other's; `shape` has 1 to 4 dimensions, none zero,
/// whole blocks in a row, rows and columns below 2^32. Keys and names are unique and not empty.
/// A mapped file that somebody truncates later raises SIGBUS where it is read: replace a model
/// file by renaming, never by writing into it.
class GgufFile {
 public:
  /// `io` when the file cannot be opened or mapped; `bad_file` names what is truncated, oversized,
  /// overlapping, misaligned or inconsistent; `unsupported` names a version, byte order or format.
  static Result<std::shared_ptr<const GgufFile>> open(const std::string& path);

  /// Parses bytes that somebody else keeps alive: what tests and the fuzzer call.
  static Result<std::shared_ptr<const GgufFile>> parse(std::span<const std::byte> bytes,
                                                       std::string name);

  const std::string& name() const;
  std::uint32_t version() const;
  std::size_t file_bytes() const;

  struct Entry {
    std::string_view key;
    GgufValue value;
  };
  std::span<const Entry> metadata() const;
  std::span<const GgufTensor> tensors() const;

  const GgufValue* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  /// Typed look-ups: absent is `bad_file` naming the key; the wrong type too. A signed integer that
  /// is not negative passes as unsigned.
  Result<std::uint64_t> unsigned_value(std::string_view key) const;
  Result<double> float_value(std::string_view key) const;
  Result<std::string_view> string_value(std::string_view key) const;

  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

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
