#pragma once
// Which pool block holds the keys and values of which tokens: whole blocks, found by a hash of all
// tokens up to their end. Pure, and knows nothing of who holds a block.

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::engine {

using BlockHash = std::array<std::uint8_t, 16>;

/// The hash of a block: of its parent's, its tokens, and how many of these were prompt (fewer than
/// all only where prompt and decode arithmetic differ, design section 6.6). The first block's
/// parent is a hash of whatever else decides the values: an engine's numerics id, an adapter.
/// BLAKE2b, 128 bits: no two different prefixes share one by accident or by intent.
BlockHash block_hash(const BlockHash& parent, std::span<const Token> tokens, std::uint32_t prompt);

class PrefixCache {
 public:
  explicit PrefixCache(std::uint32_t blocks);

  /// The block that holds this prefix's last tokens, if one does.
  std::optional<std::uint32_t> find(const BlockHash& hash) const;

  /// `block` has been computed. False when another holds the same already, or this block is
  /// entered: then nothing changes.
  bool insert(const BlockHash& hash, std::uint32_t block);

  /// The block is used for something else from now on. It was entered.
  void erase(std::uint32_t block);

  /// A running sequence is about to compute this prefix: whoever wants it does well to wait.
  void announce(const BlockHash& hash) { ++announced_[hash]; }
  void withdraw(const BlockHash& hash);
  bool announced(const BlockHash& hash) const { return announced_.contains(hash); }

  std::size_t size() const { return blocks_by_hash_.size(); }

 private:
  // Its first bytes are as good as any: the hash is cryptographic.
  struct FirstBytes {
    std::size_t operator()(const BlockHash& hash) const {
      std::size_t first = 0;
      std::memcpy(&first, hash.data(), sizeof first);
      return first;
    }
  };

  std::unordered_map<BlockHash, std::uint32_t, FirstBytes> blocks_by_hash_;
  std::unordered_map<BlockHash, std::uint32_t, FirstBytes> announced_;  // by how many
  std::vector<std::optional<BlockHash>> hash_by_block_;
};

}  // namespace sluice::engine
