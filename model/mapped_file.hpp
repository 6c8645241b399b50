#pragma once
// A file in memory, as the system pages it in.

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "kernels/core.hpp"
#include "kernels/descriptor.hpp"
#include "kernels/file_source.hpp"

namespace sluice::model {

/// A regular file, mapped read-only for as long as this lives. Any thread. A mapped file that
/// somebody truncates raises SIGBUS where it is read: replace a model file by renaming, never by
/// writing into it.
class MappedFile {
 public:
  MappedFile() = default;

  /// `io` when it cannot be opened or mapped, or is no regular file; `bad_file` when it is empty or
  /// larger than `bytes_max`.
  static Result<MappedFile> open(const std::string& path,
                                 std::size_t bytes_max = std::numeric_limits<std::size_t>::max());

  std::span<const std::byte> bytes() const { return bytes_; }
  kernels::FileSource source() const { return {descriptor_.get(), bytes_.data()}; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }

  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

 private:
  std::span<const std::byte> bytes_;
  kernels::Descriptor descriptor_;
};

/// A name from a file, fit for a message: in quotes, short, and printable whatever it holds.
std::string shown(std::string_view text);

}  // namespace sluice::model
