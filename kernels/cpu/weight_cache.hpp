#pragma once
// Packed weights kept in files, so that a start maps what an earlier one packed: it neither reads
// the model file nor packs, and processes that map the same file share its memory.
//
// A file is named by what it was made of: the model file (device, inode, size, and the times at
// which it last changed), where in it each weight lies, its shape, some of its bytes, and
// packed_version. Behind the weights stands a hash of them, which whoever maps the file compares:
// what a crash left of one is thrown away. It is used only through huge pages, for with small ones
// decoding takes 7% longer: where the system cannot tell (Linux before 6.7) or the folder's file
// system has none for files (ext4 before Linux 6.16), nothing is kept. Nor in a folder that others
// may write to.
//
// Mapped, these are pages of a file: the system may drop those that are not read, and read them
// again; who cuts the file short then, or whose disk fails, ends the process by SIGBUS, as with a
// mapped model file. Files are replaced by linking new ones, never written into.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/memory.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/descriptor.hpp"

namespace sluice::kernels::cpu {

/// What the file with these weights, one behind the other, is called; empty: one of them is in no
/// file, or cannot be read.
std::string weight_file_name(std::span<CpuWeight* const> weights);

/// A folder of such files, which other processes may use at the same time. One thread at a time.
class WeightCache {
 public:
  /// A file that is being filled.
  struct Draft {
    Descriptor file;
    FilePages pages;
  };

  /// `bytes_max`: of all files in the folder; the longest unused go first. An empty folder, or 0:
  /// keeps nothing.
  WeightCache(std::string folder, std::uint64_t bytes_max)
      : folder_(std::move(folder)), bytes_max_(bytes_max) {}

  bool keeps() const { return !folder_.empty() && bytes_max_ > 0; }

  struct Found {
    std::optional<FilePages> pages;  ///< whole, and through huge pages
    bool is_there = false;           ///< if without pages, not to be made again
  };
  /// What was kept under a name; the pool is idle.
  Found find(const std::string& name, std::size_t bytes, ThreadPool& pool) const;

  /// Zeroed memory of a file to be, which is added to what the folder may hold until it is kept.
  /// Empty: weights are to be packed elsewhere.
  std::optional<Draft> begin(std::size_t bytes) const;

  /// Keeps a filled one under a name, if it can. False: it came to lie in small pages; its memory
  /// is not to be used. The pool is idle.
  bool keep(Draft& draft, const std::string& name, ThreadPool& pool) const;

 private:
  Descriptor open_folder() const;

  std::string folder_;
  std::uint64_t bytes_max_ = 0;
};

}  // namespace sluice::kernels::cpu
