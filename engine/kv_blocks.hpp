#pragma once
// Who holds which block of the KV pool: a count per block, nothing of what lies in it.

#include <cstdint>
#include <vector>

namespace sluice::engine {

/// Blocks 0..total-1, each held by one or more sequences (a shared prefix), or idle (nobody's, but
/// its content is kept), or free. Every call is O(1) a block and allocates nothing. Misuse is an
/// assertion.
class KvBlocks {
 public:
  explicit KvBlocks(std::uint32_t total);

  std::uint32_t total() const { return static_cast<std::uint32_t>(blocks_.size()); }

  /// Blocks that `take` can hand out: free ones, then idle ones.
  std::uint32_t free() const { return static_cast<std::uint32_t>(free_.size()) + idle_count_; }
  std::uint32_t idle() const { return idle_count_; }

  struct Taken {
    std::uint32_t block = 0;
    bool was_idle = false;  ///< what it kept is given up: it was idle the longest
  };
  /// A block, now with one holder. There must be one: ask `free()` first.
  Taken take();

  /// One more holder of a held or idle block.
  void share(std::uint32_t block);

  /// One holder less. Without any, a kept block becomes idle, another free.
  void release(std::uint32_t block);

  /// From now on a held block's content is kept beyond its last holder.
  void keep(std::uint32_t block);

  /// The content is of no use any more: an idle block becomes free.
  void give_up(std::uint32_t block);

  std::uint32_t holders(std::uint32_t block) const { return blocks_[block].holders; }
  bool kept(std::uint32_t block) const { return blocks_[block].kept; }

  /// Asserts that every block is held, or idle once, or free once. O(total): for tests.
  void check() const;

 private:
  struct Block {
    std::uint32_t holders = 0;
    bool kept = false;
    // Neighbours in the list of idle blocks, oldest first; meaningful for those only.
    std::uint32_t older = 0;
    std::uint32_t younger = 0;
  };

  void append_idle(std::uint32_t block);
  void unlink_idle(std::uint32_t block);

  std::vector<Block> blocks_;
  std::vector<std::uint32_t> free_;  // a stack: the block used last is the warmest in cache
  std::uint32_t oldest_;
  std::uint32_t youngest_;
  std::uint32_t idle_count_ = 0;
};

}  // namespace sluice::engine
