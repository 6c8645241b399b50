#pragma once
// The algorithms that cut a piece of text into tokens: BPE by merge rank, SPM's BPE by score, and
// Unigram's best path.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core.hpp"
#include "model/vocabulary.hpp"

namespace sluice::model {

/// Immutable after it was made; any thread.
class Segmenter {
 public:
  virtual ~Segmenter() = default;

  /// Appends the ids of each piece, in order. No token spans two pieces.
  virtual void segment(std::span<const std::string_view> pieces, std::vector<Token>& out) const = 0;
};

/// 64-bit keys to 64-bit values, open addressing. The key of all ones is taken.
class KeyTable {
 public:
  void reserve(std::size_t count);
  /// False, and nothing changed, when `key` is there already.
  bool insert(std::uint64_t key, std::uint64_t value);
  const std::uint64_t* find(std::uint64_t key) const;
  /// Asks for the memory that inserting or finding `key` looks at first.
  void prefetch(std::uint64_t key) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[home_of(key)]);
  }

 private:
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kFree, value = 0;
  };
  std::size_t home_of(std::uint64_t key) const;
  std::size_t slot_of(std::uint64_t key) const;

  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

/// Strings by their bytes, to find every one that starts at a place.
class ByteTrie {
 public:
  ByteTrie();
  /// The last of equal strings wins. Empty strings are ignored.
  void insert(std::string_view text, Token id);

  /// Calls `found(bytes, id)` for each string that starts at `offset`, shortest first.
  template <class Found>
  void each_prefix(std::string_view text, std::size_t offset, Found&& found) const {
    std::uint32_t node = 0;
    for (std::size_t at = offset; at < text.size(); ++at) {
      node = child(node, static_cast<unsigned char>(text[at]));
      if (node == 0) return;
      if (ids_[node] != kNoToken) found(at + 1 - offset, ids_[node]);
    }
  }

 private:
  std::uint32_t child(std::uint32_t node, unsigned char byte) const;

  std::array<std::uint32_t, 256> first_{};  ///< the root's children, for speed
  KeyTable children_;
  std::vector<Token> ids_;  ///< of the string that ends at each node
};

struct BpeOptions {
  bool byte_level = false;     ///< pieces are cut into bytes, else into characters
  bool ignore_merges = false;  ///< a piece that is a token stays whole
  bool byte_fallback = false;  ///< a character that is no token becomes <0x..> tokens
  bool fuse_unknown = false;
  /// What no token spells keeps its neighbours apart (llama.cpp) or is as if never there
  /// (`tokenizers`).
  bool unknown_separates = false;
  std::optional<Token> unknown;
};

using Merge = std::pair<std::string_view, std::string_view>;

/// Merges the pair of lowest rank, leftmost first, until none is left. `bad_file` for a merge whose
/// parts or result the vocabulary lacks.
Result<std::unique_ptr<Segmenter>> make_bpe(std::shared_ptr<const Vocabulary> vocabulary,
                                            std::span<const Merge> merges,
                                            const BpeOptions& options);

/// Merges the neighbours whose concatenation has the highest score, leftmost first; what is no
/// token in the end becomes byte tokens, else `unknown`. `scores` has one entry a token.
std::unique_ptr<Segmenter> make_spm(std::shared_ptr<const Vocabulary> vocabulary,
                                    std::vector<float> scores, std::optional<Token> unknown);

/// The path of the highest sum of scores. A character that no token covers costs 10 more than the
/// worst token; neighbours of that kind become bytes if `byte_fallback`, else one `unknown`.
std::unique_ptr<Segmenter> make_unigram(std::shared_ptr<const Vocabulary> vocabulary,
                                        std::vector<double> scores, std::optional<Token> unknown,
                                        bool byte_fallback);

}  // namespace sluice::model
