// Unigram language model segmentation (Kudo 2018): the path of the highest score.

#include <algorithm>
#include <limits>

#include "model/segmenter.hpp"
#include "model/unicode.hpp"

namespace sluice::model {

namespace {

/// SentencePiece's penalty for a character that no token covers.
constexpr double kUnknownPenalty = 10.0;

class Unigram final : public Segmenter {
 public:
  Unigram(std::shared_ptr<const Vocabulary> vocabulary, std::vector<double> scores,
          std::optional<Token> unknown, bool byte_fallback)
      : vocabulary_(std::move(vocabulary)),
        scores_(std::move(scores)),
        unknown_(unknown),
        byte_fallback_(byte_fallback) {
    bytes_ = byte_tokens(*vocabulary_);
    double lowest = std::numeric_limits<double>::infinity();
    for (Token id = 0; id < vocabulary_->size(); ++id) {
      const TokenKind kind = vocabulary_->kind(id);
      if (kind != TokenKind::normal && kind != TokenKind::user_defined &&
          kind != TokenKind::unused) {
        continue;
      }
      trie_.insert(vocabulary_->spelling(id), id);
      if (kind == TokenKind::normal) lowest = std::min(lowest, scores_[id]);
    }
    unknown_score_ =
        (lowest < std::numeric_limits<double>::infinity() ? lowest : 0.0) - kUnknownPenalty;
  }

  void segment(std::span<const std::string_view> pieces, std::vector<Token>& out) const override {
    std::vector<Node> best;
    for (const std::string_view piece : pieces) segment(piece, best, out);
  }

 private:
  /// The best way to reach a place.
  struct Node {
    double score = 0.0;
    std::size_t start = 0;
    Token id = kNoToken;  ///< kNoToken: a character that no token covers
    bool reached = false;
  };
  void segment(std::string_view piece, std::vector<Node>& best, std::vector<Token>& out) const;
  void emit_unknown(std::string_view text, std::vector<Token>& out) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<double> scores_;
  std::optional<Token> unknown_;
  bool byte_fallback_;
  double unknown_score_ = 0.0;
  ByteTrie trie_;
  std::array<std::optional<Token>, 256> bytes_;
};

void Unigram::segment(std::string_view piece, std::vector<Node>& best,
                      std::vector<Token>& out) const {
  best.assign(piece.size() + 1, Node{});
  best[0].reached = true;
  const auto offer = [&best](std::size_t from, std::size_t to, Token id, double score) {
    Node& node = best[to];
    const double total = best[from].score + score;
    if (!node.reached || total > node.score) node = {total, from, id, true};
  };
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t character = decode_utf8(piece, at).bytes;
    bool covered = false;
    trie_.each_prefix(piece, at, [&](std::size_t bytes, Token id) {
      const bool user = vocabulary_->kind(id) == TokenKind::user_defined;
      offer(at, at + bytes, id, user ? 0.0 : scores_[id]);
      covered = covered || bytes == character;
    });
    if (!covered) offer(at, at + character, kNoToken, unknown_score_);
    at += character;
  }
  std::vector<std::pair<std::size_t, std::size_t>> path;
  for (std::size_t end = piece.size(); end > 0; end = best[end].start) {
    path.emplace_back(best[end].start, end);
  }
  std::reverse(path.begin(), path.end());
  for (std::size_t i = 0; i < path.size(); ++i) {
    const auto [start, end] = path[i];
    if (best[end].id != kNoToken) {
      out.push_back(best[end].id);
      continue;
    }
    while (i + 1 < path.size() && best[path[i + 1].second].id == kNoToken) ++i;
    emit_unknown(piece.substr(start, path[i].second - start), out);
  }
}

void Unigram::emit_unknown(std::string_view text, std::vector<Token>& out) const {
  const auto has_byte = [this](char c) {
    return bytes_[static_cast<unsigned char>(c)].has_value();
  };
  if (byte_fallback_ && std::all_of(text.begin(), text.end(), has_byte)) {
    for (const char c : text) out.push_back(*bytes_[static_cast<unsigned char>(c)]);
  } else if (unknown_) {
    out.push_back(*unknown_);
  }
}

}  // namespace

std::unique_ptr<Segmenter> make_unigram(std::shared_ptr<const Vocabulary> vocabulary,
                                        std::vector<double> scores, std::optional<Token> unknown,
                                        bool byte_fallback) {
  SLUICE_ASSERT(scores.size() == vocabulary->size(), "one score a token");
  return std::make_unique<Unigram>(std::move(vocabulary), std::move(scores), unknown,
                                   byte_fallback);
}

}  // namespace sluice::model
