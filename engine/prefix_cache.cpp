#include "engine/prefix_cache.hpp"

#include <sodium.h>

namespace sluice::engine {

BlockHash block_hash(const BlockHash& parent, std::span<const Token> tokens, std::uint32_t prompt) {
  crypto_generichash_state state;
  BlockHash hash;
  const auto add = [&](const void* bytes, std::size_t size) {
    crypto_generichash_update(&state, static_cast<const unsigned char*>(bytes), size);
  };
  crypto_generichash_init(&state, nullptr, 0, hash.size());
  add(parent.data(), parent.size());
  add(&prompt, sizeof prompt);
  add(tokens.data(), tokens.size_bytes());
  crypto_generichash_final(&state, hash.data(), hash.size());
  return hash;
}

PrefixCache::PrefixCache(std::uint32_t blocks) : hash_by_block_(blocks) {
  blocks_by_hash_.reserve(blocks);
}

std::optional<std::uint32_t> PrefixCache::find(const BlockHash& hash) const {
  const auto found = blocks_by_hash_.find(hash);
  if (found == blocks_by_hash_.end()) return std::nullopt;
  return found->second;
}

bool PrefixCache::insert(const BlockHash& hash, std::uint32_t block) {
  if (hash_by_block_[block] || !blocks_by_hash_.emplace(hash, block).second) return false;
  hash_by_block_[block] = hash;
  return true;
}

void PrefixCache::erase(std::uint32_t block) {
  SLUICE_ASSERT(hash_by_block_[block].has_value(), "only what was entered can be erased");
  blocks_by_hash_.erase(*hash_by_block_[block]);
  hash_by_block_[block].reset();
}

void PrefixCache::withdraw(const BlockHash& hash) {
  const auto found = announced_.find(hash);
  SLUICE_ASSERT(found != announced_.end(), "only what was announced can be withdrawn");
  if (--found->second == 0) announced_.erase(found);
}

}  // namespace sluice::engine
