#pragma once
// What a CPU backend keeps between steps: the KV pool and the slots.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/cpu/memory.hpp"

namespace sluice::kernels::cpu {

/// Where a position's keys and values of a head go: element d at keys[d * key_stride] and
/// values[d]; paired, and rounded to bfloat16, at keys[d / 2 * key_stride + d % 2] and
/// values[2 * d].
struct KvPlace {
  bool paired = false;
  std::uint16_t* keys = nullptr;
  std::size_t key_stride = 0;
  std::uint16_t* values = nullptr;
};

/// Keys and values of 16 bits: [layer][block][kv_head][keys | values]. In float16, keys lie as
/// [head_dim, block_tokens], so that one vector holds one element of sixteen positions; values as
/// [block_tokens, head_dim]. In bfloat16 they lie in pairs, as the processors' dot products read
/// them: keys as [block_tokens / 16, head_dim / 2, 16, 2], values as [block_tokens / 2, head_dim,
/// 2].
///
/// Its memory is found as blocks are first written, in all layers at once: 90 pages a block of
/// SmolLM2-135M, which a stream's every sixteenth token waits for. Blocks are taken the lowest
/// first, so that a backend with nothing to do can have memory found ahead. All of that is one
/// thread's.
class KvPool {
 public:
  /// So much is found ahead of the highest block in use.
  static constexpr std::size_t ahead_bytes = std::size_t{64} << 20;

  Result<void> allocate(const PoolShape& shape);

  const PoolShape& shape() const { return shape_; }

  /// Whether keys and values can lie in pairs.
  bool can_pair() const { return shape_.head_dim % 16 == 0 && shape_.block_tokens % 16 == 0; }

  /// Before anything is in it.
  void pair(bool in_pairs) { paired_ = in_pairs; }
  bool paired() const { return paired_; }

  /// A sequence writes these from now on.
  void use(std::span<const std::uint32_t> blocks);

  /// Whether there is memory to be found ahead.
  bool lags() const { return backed_ < std::min(shape_.blocks, used_ + ahead_); }

  /// Finds some: one layer's part of a few blocks, some 64 KiB. Not found: never lags again.
  void find_memory();

  std::uint16_t* keys(std::uint32_t layer, std::uint32_t block, std::uint32_t kv_head) const {
    const std::size_t head =
        (std::size_t{layer} * shape_.blocks + block) * shape_.kv_heads + kv_head;
    return pages_.as<std::uint16_t>() + head * 2 * half_;
  }
  std::uint16_t* values(std::uint32_t layer, std::uint32_t block, std::uint32_t kv_head) const {
    return keys(layer, block, kv_head) + half_;
  }

  /// Of a block's token.
  KvPlace place(std::uint32_t layer, std::uint32_t block, std::uint32_t kv_head,
                std::uint32_t token) const;

 private:
  std::size_t block_bytes() const { return kv_block_bytes(shape_) / shape_.layers; }  ///< a layer's

  PoolShape shape_;
  bool paired_ = false;
  std::size_t half_ = 0;  ///< elements of one head's keys in a block
  ZeroPages pages_;
  std::uint32_t used_ = 0;    ///< no block from here on was ever
  std::uint32_t ahead_ = 0;   ///< blocks of `ahead_bytes`
  std::uint32_t backed_ = 0;  ///< blocks below have memory in all layers
  std::uint32_t layer_ = 0;   ///< the next ones have in the layers below
};

/// One sequence's state, where the next step's rows find their tokens.
struct Slot {
  SlotRef ref;
  bool open = false;
  bool held = false;  ///< `held_logits` wait for a mask
  std::span<Token> tokens;  ///< room for context_tokens + 1
  std::uint32_t token_count = 0;
  std::uint32_t prompt_tokens = 0;
  SamplingParams sampling;
  std::vector<std::uint32_t> blocks;
  std::span<std::uint32_t> uses;  ///< per vocabulary entry, only with penalties; see `in_prompt`
  std::vector<Token> used;        ///< tokens whose entry in `uses` is not 0
  float* held_logits = nullptr;
  std::optional<Error> error;     ///< the slot yields nothing more

  static constexpr std::uint32_t in_prompt = 0x80000000U;  ///< flag above the output count

  bool penalized() const {
    return sampling.repetition_penalty != 1.0F || sampling.presence_penalty != 0.0F ||
           sampling.frequency_penalty != 0.0F;
  }

  /// The token a row at this position reads; 0 where the slot failed before drawing it.
  Token input(std::uint32_t position) const;

  void append(Token token);
  void count(Token token, bool prompt);
};

class SlotTable {
 public:
  Result<void> allocate(const PoolShape& shape);

  void open(const SlotOpen& open);
  void grant(const BlockGrant& grant);
  void close(SlotRef ref);
  void close_all();

  /// Asserts that the reference is of the current tenant.
  Slot& at(SlotRef ref);

  /// Null when the slot has another tenant or none.
  Slot* find(SlotRef ref);

 private:
  void close(Slot& slot);

  PoolShape shape_;
  std::vector<Slot> slots_;
  ZeroPages tokens_, uses_, logits_;
};

}  // namespace sluice::kernels::cpu
