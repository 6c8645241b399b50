// Byte-pair encoding by merge rank (Sennrich et al. 2016; on bytes, GPT-2).

#include <algorithm>
#include <queue>
#include <tuple>

#include "model/segmenter.hpp"
#include "model/unicode.hpp"

namespace sluice::model {

namespace {

/// Below this a scan over all pairs beats a heap; words of text are shorter nearly always.
constexpr std::size_t kScanSymbols = 48;
constexpr std::uint32_t kNoRank = 0xFFFFFFFF;

struct RankedMerge {
  std::uint32_t rank = kNoRank;
  Token merged = kNoToken;
};

class Bpe final : public Segmenter {
 public:
  Bpe(std::shared_ptr<const Vocabulary> vocabulary, const BpeOptions& options)
      : vocabulary_(std::move(vocabulary)), options_(options) {
    single_bytes_.fill(kNoToken);
    byte_tokens_ = byte_tokens(*vocabulary_);
    if (options_.byte_level || options_.ignore_merges) index_bytes();
  }

  Result<void> load(std::span<const Merge> merges);
  void segment(std::span<const std::string_view> pieces, std::vector<Token>& out) const override;

 private:
  void index_bytes();
  std::optional<Token> find_merged(const Merge& merge, Token guess) const;
  RankedMerge lookup(Token left, Token right) const;
  void cut_bytes(std::string_view piece, std::vector<Token>& symbols) const;
  void cut_characters(std::string_view piece, std::vector<Token>& symbols) const;
  bool push_byte_tokens(std::string_view character, std::vector<Token>& symbols) const;
  void merge_short(std::vector<Token>& symbols) const;
  void merge_long(std::vector<Token>& symbols) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  BpeOptions options_;
  KeyTable merges_;      ///< (left, right) to (rank, merged)
  StringTable by_text_;  ///< tokens by the text they stand for, where a piece may be one
  std::array<Token, 256> single_bytes_{};
  std::array<std::optional<Token>, 256> byte_tokens_;
};

std::uint64_t pack(std::uint32_t high, std::uint32_t low) {
  return (std::uint64_t{high} << 32) | low;
}

void Bpe::index_bytes() {
  if (options_.ignore_merges) by_text_.reserve(vocabulary_->size());
  for (Token id = 0; id < vocabulary_->size(); ++id) {
    if (vocabulary_->kind(id) != TokenKind::normal) continue;
    const std::string_view text =
        options_.byte_level ? vocabulary_->bytes(id) : vocabulary_->spelling(id);
    if (options_.ignore_merges) by_text_.insert(text, id);
    if (text.size() == 1) single_bytes_[static_cast<unsigned char>(text[0])] = id;
  }
}

/// Trainers number a merge's token behind the last one's: looked at before it is searched for.
std::optional<Token> Bpe::find_merged(const Merge& merge, Token guess) const {
  const auto& [left, right] = merge;
  if (guess < vocabulary_->size()) {
    const std::string_view spelling = vocabulary_->spelling(guess);
    if (spelling.size() == left.size() + right.size() && spelling.starts_with(left) &&
        spelling.ends_with(right)) {
      return guess;
    }
  }
  return vocabulary_->find(std::string(left).append(right));
}

Result<void> Bpe::load(std::span<const Merge> merges) {
  constexpr std::size_t together = 32;
  std::array<std::string_view, 2 * together> parts;
  std::array<Token, 2 * together> ids{};
  merges_.reserve(merges.size());
  std::optional<Token> merged;
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left_text, right_text] = merges[rank];
    const std::size_t at = 2 * (rank % together);
    if (at == 0) {
      const auto next = merges.subspan(rank, std::min(together, merges.size() - rank));
      for (std::size_t i = 0; i < next.size(); ++i) {
        std::tie(parts[2 * i], parts[2 * i + 1]) = next[i];
      }
      vocabulary_->find_all(std::span(parts).first(2 * next.size()), ids);
      for (std::size_t i = 0; i < next.size(); ++i) {
        merges_.prefetch(pack(ids[2 * i], ids[2 * i + 1]));
      }
    }
    const Token left = ids[at], right = ids[at + 1];
    merged = find_merged(merges[rank], merged ? *merged + 1 : 0);
    if (left == kNoToken || right == kNoToken || !merged) {
      return fail(
          ErrorCode::bad_file,
          "the tokenizer's merge {} (\"{}\" + \"{}\") names \"{}\", which is no token of its "
          "vocabulary; the file is damaged or was converted wrongly: get it again",
          rank, left_text, right_text,
          left == kNoToken    ? left_text
          : right == kNoToken ? right_text
                              : std::string(left_text).append(right_text));
    }
    // No text may turn into a token that steers the model.
    const TokenKind kind = vocabulary_->kind(*merged);
    if (kind == TokenKind::control || kind == TokenKind::unknown) continue;
    merges_.insert(pack(left, right), pack(rank, *merged));
  }
  return {};
}

RankedMerge Bpe::lookup(Token left, Token right) const {
  if (left == kNoToken || right == kNoToken) return {};
  const std::uint64_t* found = merges_.find(pack(left, right));
  if (!found) return {};
  return {static_cast<std::uint32_t>(*found >> 32), static_cast<Token>(*found & 0xFFFFFFFF)};
}

void Bpe::cut_bytes(std::string_view piece, std::vector<Token>& symbols) const {
  for (const char c : piece) {
    const Token id = single_bytes_[static_cast<unsigned char>(c)];
    if (id != kNoToken || options_.unknown_separates) {
      symbols.push_back(id);
    } else if (options_.unknown) {
      symbols.push_back(*options_.unknown);
    }
  }
}

bool Bpe::push_byte_tokens(std::string_view character, std::vector<Token>& symbols) const {
  for (const char c : character) {
    if (!byte_tokens_[static_cast<unsigned char>(c)]) return false;
  }
  for (const char c : character) symbols.push_back(*byte_tokens_[static_cast<unsigned char>(c)]);
  return true;
}

void Bpe::cut_characters(std::string_view piece, std::vector<Token>& symbols) const {
  bool after_unknown = false;
  for (std::size_t at = 0; at < piece.size();) {
    const std::string_view character = piece.substr(at, decode_utf8(piece, at).bytes);
    at += character.size();
    const auto id = vocabulary_->find(character);
    if (id && vocabulary_->kind(*id) == TokenKind::normal) {
      symbols.push_back(*id);
    } else if (options_.byte_fallback && push_byte_tokens(character, symbols)) {
      // An unknown before and after it is still one run for `tokenizers`; bytes leave nothing
      // unknown.
    } else if (options_.unknown) {
      if (!after_unknown || !options_.fuse_unknown) symbols.push_back(*options_.unknown);
      after_unknown = true;
      continue;
    }
    after_unknown = false;
  }
}

/// Few symbols: keeps the rank of every neighbouring pair and scans for the lowest.
void Bpe::merge_short(std::vector<Token>& symbols) const {
  std::array<RankedMerge, kScanSymbols> pairs;
  std::size_t count = symbols.size();
  for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = lookup(symbols[i], symbols[i + 1]);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].merged;
    for (std::size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i - 1] = pairs[i];
    }
    --count;
    if (best > 0) pairs[best - 1] = lookup(symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = lookup(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

/// Many symbols: a heap of candidate merges over a linked list; entries that no longer fit are
/// dropped when they come up. O(n log n).
void Bpe::merge_long(std::vector<Token>& symbols) const {
  struct Candidate {
    std::uint32_t rank, at;
    Token left, right, merged;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto count = static_cast<std::uint32_t>(symbols.size());
  constexpr std::uint32_t none = 0xFFFFFFFF;
  std::vector<std::uint32_t> next(count), previous(count);
  std::vector<bool> gone(count, false);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto offer = [&](std::uint32_t at) {
    if (at == none || next[at] == none) return;
    const Token left = symbols[at], right = symbols[next[at]];
    const RankedMerge found = lookup(left, right);
    if (found.rank != kNoRank) heap.push({found.rank, at, left, right, found.merged});
  };
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : none;
    previous[i] = i > 0 ? i - 1 : none;
  }
  for (std::uint32_t i = 0; i < count; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    if (gone[top.at] || symbols[top.at] != top.left) continue;
    const std::uint32_t right = next[top.at];
    if (right == none || symbols[right] != top.right) continue;
    symbols[top.at] = top.merged;
    gone[right] = true;
    next[top.at] = next[right];
    if (next[right] != none) previous[next[right]] = top.at;
    offer(previous[top.at]);
    offer(top.at);
  }
  std::size_t kept = 0;
  for (std::uint32_t at = 0; at != none; at = next[at]) symbols[kept++] = symbols[at];
  symbols.resize(kept);
}

void Bpe::segment(std::span<const std::string_view> pieces, std::vector<Token>& out) const {
  std::vector<Token> symbols;
  for (const std::string_view piece : pieces) {
    if (options_.ignore_merges) {
      if (const auto whole = by_text_.find(piece)) {
        out.push_back(*whole);
        continue;
      }
    }
    symbols.clear();
    options_.byte_level ? cut_bytes(piece, symbols) : cut_characters(piece, symbols);
    if (symbols.size() > kScanSymbols) {
      merge_long(symbols);
    } else if (!symbols.empty()) {
      merge_short(symbols);
    }
    for (const Token id : symbols) {
      if (id != kNoToken) out.push_back(id);
    }
  }
}

}  // namespace

Result<std::unique_ptr<Segmenter>> make_bpe(std::shared_ptr<const Vocabulary> vocabulary,
                                            std::span<const Merge> merges,
                                            const BpeOptions& options) {
  auto bpe = std::make_unique<Bpe>(std::move(vocabulary), options);
  if (auto loaded = bpe->load(merges); !loaded) return tl::unexpected(loaded.error());
  return bpe;
}

}  // namespace sluice::model
