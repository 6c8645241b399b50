// SentencePiece's BPE (Kudo and Richardson 2018): merges by the score of what they make.

#include <queue>

#include "model/segmenter.hpp"
#include "model/unicode.hpp"

namespace sluice::model {

namespace {

class Spm final : public Segmenter {
 public:
  Spm(std::shared_ptr<const Vocabulary> vocabulary, std::vector<float> scores,
      std::optional<Token> unknown)
      : vocabulary_(std::move(vocabulary)), scores_(std::move(scores)), unknown_(unknown) {
    bytes_ = byte_tokens(*vocabulary_);
    for (Token id = 0; id < vocabulary_->size(); ++id) {
      if (mergeable(id))
        longest_bytes_ = std::max(longest_bytes_, vocabulary_->spelling(id).size());
    }
  }

  void segment(std::span<const std::string_view> pieces, std::vector<Token>& out) const override {
    for (const std::string_view piece : pieces) segment(piece, out);
  }

 private:
  bool mergeable(Token id) const {
    const TokenKind kind = vocabulary_->kind(id);
    return kind == TokenKind::normal || kind == TokenKind::user_defined ||
           kind == TokenKind::unused;
  }
  std::optional<Token> token_of(std::string_view text) const;
  void segment(std::string_view piece, std::vector<Token>& out) const;
  void emit(std::string_view symbol, std::vector<Token>& out) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<float> scores_;
  std::optional<Token> unknown_;
  std::array<std::optional<Token>, 256> bytes_;
  std::size_t longest_bytes_ = 0;
};

std::optional<Token> Spm::token_of(std::string_view text) const {
  if (text.size() > longest_bytes_) return std::nullopt;
  const auto id = vocabulary_->find(text);
  return id && mergeable(*id) ? id : std::nullopt;
}

void Spm::segment(std::string_view piece, std::vector<Token>& out) const {
  struct Symbol {
    std::size_t start, bytes;
    std::uint32_t previous, next;
  };
  struct Candidate {
    float score;
    std::uint32_t left, right;
    std::size_t bytes;
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  constexpr std::uint32_t none = 0xFFFFFFFF;
  std::vector<Symbol> symbols;
  for (std::size_t at = 0; at < piece.size(); at += symbols.back().bytes) {
    const std::size_t bytes = std::min(announced_bytes(piece[at]), piece.size() - at);
    const auto index = static_cast<std::uint32_t>(symbols.size());
    symbols.push_back({at, bytes, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = none;

  std::priority_queue<Candidate> heap;
  const auto offer = [&](std::uint32_t left, std::uint32_t right) {
    if (left == none || right == none) return;
    const std::size_t bytes = symbols[left].bytes + symbols[right].bytes;
    const auto id = token_of(piece.substr(symbols[left].start, bytes));
    if (id) heap.push({scores_[*id], left, right, bytes});
  };
  for (std::uint32_t i = 0; i < symbols.size(); ++i) offer(i, symbols[i].next);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.left];
    Symbol& right = symbols[top.right];
    if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != top.bytes) continue;
    left.bytes = top.bytes;
    right.bytes = 0;
    left.next = right.next;
    if (right.next != none) symbols[right.next].previous = top.left;
    offer(left.previous, top.left);
    offer(top.left, left.next);
  }
  for (std::uint32_t at = 0; at != none; at = symbols[at].next) {
    emit(piece.substr(symbols[at].start, symbols[at].bytes), out);
  }
}

void Spm::emit(std::string_view symbol, std::vector<Token>& out) const {
  if (const auto id = token_of(symbol)) {
    out.push_back(*id);
    return;
  }
  for (const char c : symbol) {
    if (const auto byte = bytes_[static_cast<unsigned char>(c)]) {
      out.push_back(*byte);
    } else if (unknown_) {
      out.push_back(*unknown_);
    }
  }
}

}  // namespace

std::unique_ptr<Segmenter> make_spm(std::shared_ptr<const Vocabulary> vocabulary,
                                    std::vector<float> scores, std::optional<Token> unknown) {
  SLUICE_ASSERT(scores.size() == vocabulary->size(), "one score a token");
  return std::make_unique<Spm>(std::move(vocabulary), std::move(scores), unknown);
}

}  // namespace sluice::model
