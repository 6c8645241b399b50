#pragma once
// Memory that the CPU backend takes from the system.

#include <cstddef>
#include <optional>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::kernels::cpu {

/// A stretch of address space and what it shows. Moves, does not copy.
class Mapping {
 public:
  Mapping() = default;
  ~Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;

  /// Before the memory is touched, where all of it will be: fewer misses of address translation.
  void want_huge_pages();

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 protected:
  Mapping(void* data, std::size_t bytes) : data_(data), bytes_(bytes) {}

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Zeroed memory that takes no room until it is touched.
class ZeroPages : public Mapping {
 public:
  ZeroPages() = default;

  /// `out_of_memory` names `what` and the size.
  static Result<ZeroPages> make(std::size_t bytes, std::string_view what);

  /// Has the system find memory for a stretch now, as touching it would. On any thread, also while
  /// others use the stretch. False: the system cannot (Linux before 5.14), or has none left.
  bool populate(std::size_t first, std::size_t bytes) const;

 private:
  using Mapping::Mapping;
};

/// A file's bytes as the system keeps them in memory, the same for all who map them. Huge pages are
/// wanted.
class FilePages : public Mapping {
 public:
  enum class For { reading, writing };

  /// The first bytes of an open file that has as many. Empty: it cannot be mapped.
  static std::optional<FilePages> map(int descriptor, std::size_t bytes, For purpose);

  /// Reads a stretch, where it is not in memory. On any thread. False: it cannot be read, where
  /// touching it would raise SIGBUS, or the system is older than Linux 5.14.
  bool fetch(std::size_t first, std::size_t bytes) const;

  /// From now on who writes to it ends the process.
  void protect();

  /// How much is in memory and seen through huge pages, in bytes; 0 before Linux 6.7, which cannot
  /// tell.
  std::size_t huge_bytes() const;

 private:
  using Mapping::Mapping;
};

}  // namespace sluice::kernels::cpu
