#include "engine/kv_blocks.hpp"

#include <numeric>

#include "kernels/core.hpp"

namespace sluice::engine {
namespace {

constexpr std::uint32_t none = UINT32_MAX;

}  // namespace

KvBlocks::KvBlocks(std::uint32_t total)
    : blocks_(total), free_(total), oldest_(none), youngest_(none) {
  std::iota(free_.rbegin(), free_.rend(), 0U);  // low blocks first
}

KvBlocks::Taken KvBlocks::take() {
  SLUICE_ASSERT(free() > 0, "no free block: the caller asks free() first");
  Taken taken;
  if (!free_.empty()) {
    taken.block = free_.back();
    free_.pop_back();
  } else {
    taken = {oldest_, true};
    unlink_idle(oldest_);
    blocks_[taken.block].kept = false;
  }
  SLUICE_ASSERT(blocks_[taken.block].holders == 0, "a free block has no holder");
  blocks_[taken.block].holders = 1;
  return taken;
}

void KvBlocks::share(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && (blocks_[block].holders > 0 || blocks_[block].kept),
                "only a held or idle block can be shared");
  if (blocks_[block].holders++ == 0) unlink_idle(block);
}

void KvBlocks::release(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && blocks_[block].holders > 0, "only a held block can be released");
  if (--blocks_[block].holders > 0) return;
  if (blocks_[block].kept)
    append_idle(block);
  else
    free_.push_back(block);
}

void KvBlocks::keep(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && blocks_[block].holders > 0, "only a held block can be kept");
  blocks_[block].kept = true;
}

void KvBlocks::give_up(std::uint32_t block) {
  SLUICE_ASSERT(block < total() && blocks_[block].kept, "only what is kept can be given up");
  blocks_[block].kept = false;
  if (blocks_[block].holders > 0) return;
  unlink_idle(block);
  free_.push_back(block);
}

void KvBlocks::append_idle(std::uint32_t block) {
  blocks_[block].older = youngest_;
  blocks_[block].younger = none;
  (youngest_ == none ? oldest_ : blocks_[youngest_].younger) = block;
  youngest_ = block;
  ++idle_count_;
}

void KvBlocks::unlink_idle(std::uint32_t block) {
  const Block& gone = blocks_[block];
  (gone.older == none ? oldest_ : blocks_[gone.older].younger) = gone.younger;
  (gone.younger == none ? youngest_ : blocks_[gone.younger].older) = gone.older;
  --idle_count_;
}

void KvBlocks::check() const {
  std::vector<bool> seen(total(), false);
  for (const std::uint32_t block : free_) {
    SLUICE_ASSERT(!seen[block] && blocks_[block].holders == 0 && !blocks_[block].kept,
                  "a block is free once, without holders, and keeps nothing");
    seen[block] = true;
  }
  std::uint32_t idle = 0;
  for (std::uint32_t block = oldest_; block != none; block = blocks_[block].younger) {
    SLUICE_ASSERT(!seen[block] && blocks_[block].holders == 0 && blocks_[block].kept,
                  "a block is idle once, without holders, and keeps something");
    seen[block] = true;
    ++idle;
  }
  SLUICE_ASSERT(idle == idle_count_, "idle blocks are counted");
  for (std::uint32_t block = 0; block < total(); ++block) {
    SLUICE_ASSERT(seen[block] == (blocks_[block].holders == 0), "a block without holders is free");
  }
}

}  // namespace sluice::engine
