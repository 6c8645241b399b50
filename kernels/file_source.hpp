#pragma once
// Weights in a file: mapped, and to be read.

#include <cstddef>
#include <span>

#include "kernels/core.hpp"

namespace sluice::kernels {

/// The file whose bytes memory shows. Who wants all of them, once, reads: a copy costs less than
/// having pages mapped and unmapped, takes no memory beside its target, and a file that cannot be
/// read, or was cut short, is an error where a mapping would raise SIGBUS.
struct FileSource {
  int descriptor = -1;               ///< below 0: the memory is no file's
  const std::byte* begin = nullptr;  ///< where the file's first byte is mapped

  explicit operator bool() const { return descriptor >= 0; }

  /// Reads what the mapping shows from `from` on. Any thread. `io` says why not.
  Result<void> read(const std::byte* from, std::span<std::byte> to) const;
};

}  // namespace sluice::kernels
