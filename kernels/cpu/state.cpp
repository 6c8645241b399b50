#include "kernels/cpu/state.hpp"

#include <algorithm>
#include <utility>

#include "kernels/cpu/machine.hpp"

namespace sluice::kernels::cpu {
namespace {

// Of a layer at a time: microseconds, which a step that comes meanwhile waits for.
constexpr std::size_t populated_bytes = std::size_t{64} << 10;

}  // namespace

Result<void> KvPool::allocate(const PoolShape& shape) {
  const std::size_t bytes = kv_block_bytes(shape) * shape.blocks;
  const std::size_t available = available_memory_bytes();
  if (bytes > available) {
    return fail(ErrorCode::out_of_memory,
                "a KV pool of {} blocks of {} bytes needs {} MiB, and {} MiB are free: "
                "ask for fewer blocks",
                shape.blocks, kv_block_bytes(shape), bytes >> 20, available >> 20);
  }
  auto pages = ZeroPages::make(bytes, "the KV pool");
  if (!pages) return tl::unexpected(pages.error());
  shape_ = shape;
  half_ = std::size_t{shape.head_dim} * shape.block_tokens;
  pages_ = std::move(*pages);
  ahead_ = static_cast<std::uint32_t>(
      std::min<std::size_t>(shape.blocks, ahead_bytes / kv_block_bytes(shape) + 1));
  return {};
}

void KvPool::use(std::span<const std::uint32_t> blocks) {
  for (const std::uint32_t block : blocks) used_ = std::max(used_, block + 1);
  if (used_ <= backed_) return;
  backed_ = used_;
  layer_ = 0;
}

void KvPool::find_memory() {
  const auto count = static_cast<std::uint32_t>(
      std::min<std::size_t>(shape_.blocks - backed_, populated_bytes / block_bytes() + 1));
  const std::size_t first = (std::size_t{layer_} * shape_.blocks + backed_) * block_bytes();
  if (!pages_.populate(first, count * block_bytes())) {
    backed_ = shape_.blocks;
  } else if (++layer_ == shape_.layers) {
    backed_ += count;
    layer_ = 0;
  }
}

KvPlace KvPool::place(std::uint32_t layer, std::uint32_t block, std::uint32_t kv_head,
                      std::uint32_t token) const {
  const std::size_t head_dim = shape_.head_dim;
  KvPlace place{paired_, keys(layer, block, kv_head), shape_.block_tokens,
                values(layer, block, kv_head)};
  if (paired_) {
    place.keys += token / 16 * 16 * head_dim + token % 16 * 2;
    place.key_stride = 32;
    place.values += token / 2 * 2 * head_dim + token % 2;
  } else {
    place.keys += token;
    place.values += token * head_dim;
  }
  return place;
}

Token Slot::input(std::uint32_t position) const {
  if (position < token_count) return tokens[position];
  SLUICE_ASSERT(error.has_value(), "a row reads a token that no step has drawn");
  return 0;
}

void Slot::count(Token token, bool prompt) {
  if (token >= uses.size()) return;
  std::uint32_t& use = uses[token];
  if (use == 0) used.push_back(token);
  use = prompt ? use | in_prompt : use + 1;
}

void Slot::append(Token token) {
  SLUICE_ASSERT(token_count < tokens.size(), "a slot grew beyond its context");
  tokens[token_count++] = token;
  if (penalized()) count(token, false);
}

Result<void> SlotTable::allocate(const PoolShape& shape) {
  const std::size_t slots = shape.slots;
  const std::size_t capacity = std::size_t{shape.context_tokens} + 1;
  const std::size_t vocabulary = shape.vocabulary;
  auto tokens = ZeroPages::make(slots * capacity * sizeof(Token), "the slots' tokens");
  if (!tokens) return tl::unexpected(tokens.error());
  auto uses = ZeroPages::make(slots * vocabulary * sizeof(std::uint32_t), "the slots' penalties");
  if (!uses) return tl::unexpected(uses.error());
  auto logits = ZeroPages::make(slots * vocabulary * sizeof(float), "the slots' held logits");
  if (!logits) return tl::unexpected(logits.error());
  shape_ = shape;
  tokens_ = std::move(*tokens);
  uses_ = std::move(*uses);
  logits_ = std::move(*logits);
  const std::size_t blocks = (shape.context_tokens + shape.block_tokens - 1) / shape.block_tokens;
  slots_.resize(slots);
  for (std::size_t i = 0; i < slots; ++i) {
    Slot& slot = slots_[i];
    slot.tokens = {tokens_.as<Token>() + i * capacity, capacity};
    slot.uses = {uses_.as<std::uint32_t>() + i * vocabulary, vocabulary};
    slot.held_logits = logits_.as<float>() + i * vocabulary;
    slot.blocks.assign(blocks, shape.blocks);
  }
  return {};
}

void SlotTable::open(const SlotOpen& open) {
  SLUICE_ASSERT(open.slot.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[open.slot.slot];
  SLUICE_ASSERT(!slot.open, "a slot opened twice");
  SLUICE_ASSERT(open.tokens.size() < slot.tokens.size(), "a sequence longer than the context");
  SLUICE_ASSERT(open.prompt_tokens <= open.tokens.size(), "more prompt than tokens");
  slot.ref = open.slot;
  slot.open = true;
  slot.held = false;
  slot.error.reset();
  slot.sampling = open.sampling;
  slot.prompt_tokens = open.prompt_tokens;
  slot.token_count = static_cast<std::uint32_t>(open.tokens.size());
  std::copy(open.tokens.begin(), open.tokens.end(), slot.tokens.begin());
  if (!slot.penalized()) return;
  for (std::size_t i = 0; i < open.tokens.size(); ++i) {
    slot.count(open.tokens[i], i < open.prompt_tokens);
  }
}

void SlotTable::grant(const BlockGrant& grant) {
  SLUICE_ASSERT(grant.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[grant.slot];
  SLUICE_ASSERT(grant.first_block + grant.blocks.size() <= slot.blocks.size(),
                "a grant beyond the context");
  for (const std::uint32_t block : grant.blocks) {
    SLUICE_ASSERT(block < shape_.blocks, "a block out of range");
  }
  std::copy(grant.blocks.begin(), grant.blocks.end(), slot.blocks.begin() + grant.first_block);
}

void SlotTable::close(SlotRef ref) { close(at(ref)); }

void SlotTable::close_all() {
  for (Slot& slot : slots_) {
    if (slot.open) close(slot);
  }
}

void SlotTable::close(Slot& slot) {
  slot.open = false;
  slot.held = false;
  for (const Token token : slot.used) slot.uses[token] = 0;
  slot.used.clear();
  std::fill(slot.blocks.begin(), slot.blocks.end(), shape_.blocks);
}

Slot& SlotTable::at(SlotRef ref) {
  Slot* slot = find(ref);
  SLUICE_ASSERT(slot != nullptr, "a slot that is not open, or of another generation");
  return *slot;
}

Slot* SlotTable::find(SlotRef ref) {
  SLUICE_ASSERT(ref.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[ref.slot];
  return slot.open && slot.ref == ref ? &slot : nullptr;
}

}  // namespace sluice::kernels::cpu
