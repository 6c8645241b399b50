#pragma once
// Who holds which block of the KV pool: a count per block, nothing of what lies in it.

#include <cstdint>
#include <vector>

namespace sluice::engine {

/// Blocks 0..total-1, each free or held by one or more sequences (a shared prefix, copy-on-write).
/// Every call is O(1) a block and allocates nothing. Misuse is an assertion.
class KvBlocks {
 public:
  explicit KvBlocks(std::uint32_t total);

  std::uint32_t total() const { return static_cast<std::uint32_t>(holders_.size()); }
  std::uint32_t free() const { return static_cast<std::uint32_t>(free_.size()); }

  /// A free block, now with one holder. There must be one: ask `free()` first.
  std::uint32_t take();

  /// One more holder of a held block.
  void share(std::uint32_t block);

  /// One holder less; the last one frees the block.
  void release(std::uint32_t block);

  std::uint32_t holders(std::uint32_t block) const { return holders_[block]; }

  /// Asserts that every block is either free, once, or held. O(total): for tests.
  void check() const;

 private:
  std::vector<std::uint32_t> holders_;  // per block
  std::vector<std::uint32_t> free_;     // a stack: the block used last is the warmest in cache
};

}  // namespace sluice::engine
