#include "engine/kv_blocks.hpp"

#include <numeric>

#include "kernels/core.hpp"

namespace sluice::engine {

KvBlocks::KvBlocks(std::uint32_t total) : holders_(total, 0), free_(total) {
  std::iota(free_.rbegin(), free_.rend(), 0U);  // low blocks first
}

std::uint32_t KvBlocks::take() {
  SLUICE_ASSERT(!free_.empty(), "no free block: the caller asks free() first");
  const std::uint32_t block = free_.back();
  free_.pop_back();
  SLUICE_ASSERT(holders_[block] == 0, "a free block has no holder");
  holders_[block] = 1;
  return block;
}

void KvBlocks::share(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && holders_[block] > 0, "only a held block can be shared");
  ++holders_[block];
}

void KvBlocks::release(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && holders_[block] > 0, "only a held block can be released");
  if (--holders_[block] == 0) free_.push_back(block);
}

void KvBlocks::check() const {
  std::vector<bool> seen(total(), false);
  for (const std::uint32_t block : free_) {
    SLUICE_ASSERT(!seen[block] && holders_[block] == 0, "a block is free once, without holders");
    seen[block] = true;
  }
  for (std::uint32_t block = 0; block < total(); ++block) {
    SLUICE_ASSERT(seen[block] == (holders_[block] == 0), "a block without holders is free");
  }
}

}  // namespace sluice::engine
