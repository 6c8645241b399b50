#pragma once
// Memory that the CPU backend takes from the system.

#include <cstddef>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::kernels::cpu {

/// Zeroed memory that takes no room until it is touched. Moves, does not copy.
class ZeroPages {
 public:
  ZeroPages() = default;
  ~ZeroPages();
  ZeroPages(ZeroPages&& other) noexcept;
  ZeroPages& operator=(ZeroPages&& other) noexcept;

  /// `out_of_memory` names `what` and the size.
  static Result<ZeroPages> make(std::size_t bytes, std::string_view what);

  /// Before the memory is touched, where all of it will be: fewer misses of address translation.
  void want_huge_pages();

  /// Has the system find memory for a stretch now, as touching it would. On any thread, also while
  /// others use the stretch. False: the system cannot (Linux before 5.14), or has none left.
  bool populate(std::size_t first, std::size_t bytes) const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace sluice::kernels::cpu
