#include "model/pipeline.hpp"

#include <algorithm>
#include <array>
#include <deque>

#include "model/unicode.hpp"

namespace sluice::model {

namespace {

/// A stretch of a text: one added token, or text that is still to be cut.
struct Section {
  std::size_t start = 0, end = 0;
  Token id = kNoToken;
};

/// Where a text may be believed: ranges in order that do not touch.
using TrustedRanges = std::vector<std::pair<std::size_t, std::size_t>>;

/// Whether the character before `offset` or the one at it belongs to a word.
bool word_before(std::string_view text, std::size_t offset) {
  if (offset == 0) return false;
  std::size_t at = offset - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  const Utf8Char c = decode_utf8(text, at);
  return c.valid && is_word(c.code);
}
bool word_at(std::string_view text, std::size_t offset) {
  const Utf8Char c = decode_utf8(text, offset);
  return c.valid && is_word(c.code);
}

/// Finds added tokens: the leftmost, of those the longest.
class AddedMatcher {
 public:
  void add(std::string_view spelling, const AddedToken& token) {
    if (spelling.empty()) return;
    trie_.insert(spelling, static_cast<Token>(tokens_.size()));
    starts_[static_cast<unsigned char>(spelling[0])] = true;
    tokens_.push_back(token);
  }
  bool empty() const { return tokens_.empty(); }

  std::vector<Section> split(std::string_view text, const TrustedRanges& trusted) const;

 private:
  /// The longest acceptable token at `at`: its bytes (0: none) and itself.
  std::pair<std::size_t, const AddedToken*> longest(std::string_view text, std::size_t at,
                                                    std::size_t trusted_end) const;

  ByteTrie trie_;
  std::array<bool, 256> starts_{};
  std::vector<AddedToken> tokens_;
};

std::pair<std::size_t, const AddedToken*> AddedMatcher::longest(std::string_view text,
                                                                std::size_t at,
                                                                std::size_t trusted_end) const {
  std::pair<std::size_t, const AddedToken*> best{0, nullptr};
  trie_.each_prefix(text, at, [&](std::size_t bytes, Token index) {
    const AddedToken& token = tokens_[index];
    const std::size_t end = at + bytes;
    if (token.special && end > trusted_end) return;
    if (token.single_word && (word_before(text, at) || word_at(text, end))) return;
    best = {bytes, &token};
  });
  return best;
}

std::vector<Section> AddedMatcher::split(std::string_view text,
                                         const TrustedRanges& trusted) const {
  std::vector<Section> sections;
  std::size_t done = 0, range = 0;
  const auto text_until = [&](std::size_t end) {
    if (end > done) sections.push_back({done, end, kNoToken});
  };
  for (std::size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    while (range < trusted.size() && trusted[range].second <= at) ++range;
    const bool believed = range < trusted.size() && trusted[range].first <= at;
    const auto [bytes, token] = longest(text, at, believed ? trusted[range].second : 0);
    if (!token) {
      ++at;
      continue;
    }
    std::size_t start = at, end = at + bytes;
    if (token->strip_left) {
      while (start > done && is_space(static_cast<unsigned char>(text[start - 1]))) --start;
    }
    if (token->strip_right) {
      while (end < text.size() && is_space(static_cast<unsigned char>(text[end]))) ++end;
    }
    text_until(start);
    sections.push_back({start, end, token->id});
    at = done = end;
  }
  text_until(text.size());
  return sections;
}

class Pipeline final : public Tokenizer {
 public:
  explicit Pipeline(PipelineParts parts) : parts_(std::move(parts)) {
    Matcher matcher;
    for (const AddedToken& token : parts_.added) {
      const std::string_view spelling = parts_.vocabulary->spelling(token.id);
      if (token.normalized) {
        normalized_added_.add(parts_.normalizer.apply(std::string(spelling), matcher), token);
      } else {
        added_.add(spelling, token);
      }
    }
  }

  std::vector<Token> encode(std::string_view text, bool parse_special) const override {
    TrustedRanges trusted;
    if (parse_special) trusted.emplace_back(0, text.size());
    return encode_trusted(text, trusted);
  }
  std::vector<Token> encode_parts(std::span<const TextPart> parts) const override;

  std::string_view bytes(Token id) const override {
    const TokenKind kind = parts_.vocabulary->kind(id);
    const bool silent = kind == TokenKind::control || kind == TokenKind::unknown;
    return silent ? std::string_view{} : parts_.vocabulary->bytes(id);
  }
  std::string_view spelling(Token id) const override { return parts_.vocabulary->spelling(id); }
  bool is_control(Token id) const override {
    return parts_.vocabulary->kind(id) == TokenKind::control;
  }
  std::uint32_t size() const override { return parts_.vocabulary->size(); }
  bool drops_leading_space() const override { return parts_.drops_leading_space; }
  std::optional<Token> begin_of_text() const override { return parts_.begin_of_text; }
  bool adds_begin_of_text() const override { return parts_.adds_begin_of_text; }
  std::span<const Token> end_tokens() const override { return parts_.end_tokens; }
  std::optional<Token> find(std::string_view spelling) const override {
    return parts_.vocabulary->find(spelling);
  }
  std::string_view fingerprint() const override { return parts_.fingerprint; }

 private:
  std::vector<Token> encode_trusted(std::string_view text, const TrustedRanges& trusted) const;
  void encode_section(std::string_view text, bool first, bool trusted, Matcher& matcher,
                      std::vector<Token>& out) const;

  PipelineParts parts_;
  AddedMatcher added_, normalized_added_;
};

std::vector<Token> Pipeline::encode_parts(std::span<const TextPart> parts) const {
  std::string text;
  TrustedRanges trusted;
  for (const TextPart& part : parts) {
    const std::size_t start = text.size();
    text.append(part.text);
    if (!part.trusted || part.text.empty()) continue;
    if (!trusted.empty() && trusted.back().second == start) {
      trusted.back().second = text.size();
    } else {
      trusted.emplace_back(start, text.size());
    }
  }
  return encode_trusted(text, trusted);
}

std::vector<Token> Pipeline::encode_trusted(std::string_view text,
                                            const TrustedRanges& trusted) const {
  std::vector<Token> out;
  out.reserve(text.size() / 3 + 4);
  Matcher matcher;
  std::size_t range = 0;
  for (const Section& section : added_.split(text, trusted)) {
    if (section.id != kNoToken) {
      out.push_back(section.id);
      continue;
    }
    while (range < trusted.size() && trusted[range].second < section.end) ++range;
    const bool believed = range < trusted.size() && trusted[range].first <= section.start;
    encode_section(text.substr(section.start, section.end - section.start), section.start == 0,
                   believed, matcher, out);
  }
  return out;
}

void Pipeline::encode_section(std::string_view text, bool first, bool trusted, Matcher& matcher,
                              std::vector<Token>& out) const {
  std::string changed;
  if (parts_.repairs_utf8 && !is_valid_utf8(text)) {
    changed = repair_utf8(text);
    text = changed;
  }
  if (!parts_.normalizer.empty()) {
    changed = parts_.normalizer.apply(std::string(text), matcher);
    text = changed;
  }
  std::vector<Section> sections{{0, text.size(), kNoToken}};
  if (!normalized_added_.empty()) {
    TrustedRanges all;
    if (trusted) all.emplace_back(0, text.size());
    sections = normalized_added_.split(text, all);
  }
  std::deque<std::string> storage;
  for (const Section& section : sections) {
    if (section.id != kNoToken) {
      out.push_back(section.id);
    } else if (section.end > section.start) {
      const auto pieces =
          parts_.pretokenizer.split(text.substr(section.start, section.end - section.start),
                                    first && section.start == 0, matcher, storage);
      parts_.segmenter->segment(pieces, out);
    }
  }
}

}  // namespace

std::vector<Token> Tokenizer::encode_parts(std::span<const TextPart> parts) const {
  std::vector<Token> out;
  for (const TextPart& part : parts) {
    const std::vector<Token> ids = encode(part.text, part.trusted);
    out.insert(out.end(), ids.begin(), ids.end());
  }
  return out;
}

std::shared_ptr<const Tokenizer> make_pipeline(PipelineParts parts) {
  SLUICE_ASSERT(parts.vocabulary && parts.segmenter, "a tokenizer has both");
  return std::make_shared<const Pipeline>(std::move(parts));
}

void add_known_end_tokens(const Vocabulary& vocabulary, std::vector<Token>& end_tokens) {
  constexpr std::string_view spellings[] = {
      "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
      "<|eom_id|>", "<EOT>", "_<EOT>", "< EOT >", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
      "<|return|>", "<|call|>",
      // A model that goes on to another file of a repository has ended its answer too.
      "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "<|fim_repo|>", "<|repo_name|>",
      "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"};
  for (const std::string_view spelling : spellings) {
    const auto id = vocabulary.find(spelling);
    if (!id || std::count(end_tokens.begin(), end_tokens.end(), *id) > 0) continue;
    const TokenKind kind = vocabulary.kind(*id);
    if (kind == TokenKind::control || kind == TokenKind::user_defined) end_tokens.push_back(*id);
  }
}

}  // namespace sluice::model
