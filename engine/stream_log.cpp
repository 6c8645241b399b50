#include "engine/stream_log.hpp"

#include <sodium.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <utility>

namespace sluice::engine {

namespace {

// A link is 16 bytes: every 64 tokens it adds a quarter of a byte to each.
constexpr std::uint32_t link_tokens = 64;

// SHA-256 over little-endian fields, cut to a link.
class Hasher {
 public:
  Hasher() { crypto_hash_sha256_init(&state_); }

  void add(std::string_view bytes) { add(bytes.data(), bytes.size()); }
  void add(std::uint32_t value) { add_little_endian(value, 4); }
  void add(std::uint64_t value) { add_little_endian(value, 8); }
  void add(float value) { add(std::bit_cast<std::uint32_t>(value)); }
  void add_count(std::size_t count) { add(static_cast<std::uint32_t>(count)); }
  void add(const void* bytes, std::size_t size) {
    crypto_hash_sha256_update(&state_, static_cast<const unsigned char*>(bytes), size);
  }

  ChainHash link() {
    std::array<std::uint8_t, crypto_hash_sha256_BYTES> digest;
    crypto_hash_sha256_final(&state_, digest.data());
    ChainHash link;
    std::copy_n(digest.begin(), link.size(), link.begin());
    return link;
  }

 private:
  void add_little_endian(std::uint64_t value, std::size_t size) {
    std::array<std::uint8_t, 8> bytes;
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * i));
    add(bytes.data(), size);
  }

  crypto_hash_sha256_state state_;
};

}  // namespace

ChainHash chain_start(std::string_view numerics, std::span<const Token> prompt,
                      const SamplingParams& sampling, const Constraint& constraint) {
  std::vector<std::pair<Token, float>> bias = sampling.logit_bias;
  std::ranges::sort(bias);
  std::vector<Token> stops = sampling.stop_tokens;
  std::ranges::sort(stops);
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());

  Hasher hash;
  hash.add("sluice-chain-1");
  hash.add_count(numerics.size());
  hash.add(numerics);
  hash.add_count(prompt.size());
  for (const Token token : prompt) hash.add(token);
  hash.add(sampling.temperature);
  hash.add(sampling.top_k);
  hash.add(sampling.top_p);
  hash.add(sampling.min_p);
  hash.add(sampling.repetition_penalty);
  hash.add(sampling.presence_penalty);
  hash.add(sampling.frequency_penalty);
  hash.add_count(bias.size());
  for (const auto& [token, value] : bias) {
    hash.add(token);
    hash.add(value);
  }
  hash.add(sampling.seed);
  hash.add(sampling.min_tokens);
  hash.add_count(stops.size());
  for (const Token token : stops) hash.add(token);
  if (constraint) {
    hash.add(constraint.kind == Constraint::Kind::regex ? "regex" : "json_schema");
    hash.add_count(constraint.text.size());
    hash.add(constraint.text);
  }
  return hash.link();
}

ChainHash chain_next(const ChainHash& previous, Token token) {
  Hasher hash;
  hash.add(previous.data(), previous.size());
  hash.add(token);
  return hash.link();
}

StreamLog::StreamLog(ChainHash start) : chain_(start) {}

StreamPart StreamLog::append(std::span<const Token> tokens, std::string text,
                             std::vector<std::vector<TokenLogprob>> logprobs) {
  StreamPart part;
  part.first_index = size();
  part.tokens.assign(tokens.begin(), tokens.end());
  part.text_offset = text_bytes();
  // A choice's text is bounded by the context; offsets of 32 bits halve what a token costs.
  SLUICE_ASSERT(part.text_offset + text.size() <= std::numeric_limits<std::uint32_t>::max(),
                "a choice has over 4 GiB of text");
  SLUICE_ASSERT(logprobs.empty() || logprobs.size() == tokens.size(), "a list a token, or none");

  for (const Token token : tokens) {
    if (size() % link_tokens == 0) links_.push_back(chain_);
    chain_ = chain_next(chain_, token);
    tokens_.push_back(token);
    text_ends_.push_back(static_cast<std::uint32_t>(part.text_offset));
  }
  text_ += text;
  if (!tokens.empty()) text_ends_.back() = static_cast<std::uint32_t>(text_bytes());
  if (!logprobs.empty()) {
    logprobs_.resize(tokens_.size() - tokens.size());
    logprobs_.insert(logprobs_.end(), logprobs.begin(), logprobs.end());
  } else if (!logprobs_.empty()) {
    logprobs_.resize(tokens_.size());
  }

  part.text = std::move(text);
  part.logprobs = std::move(logprobs);
  part.chain = chain_;
  return part;
}

StreamPart StreamLog::append_text(std::string text) { return append({}, std::move(text), {}); }

Result<StreamPart> StreamLog::read(std::uint32_t index, std::uint32_t tokens_max) const {
  if (index < floor_) {
    return fail(ErrorCode::gone, "tokens below index {} are no longer held; {} was asked for",
                floor_, index);
  }
  if (index > size()) {
    return fail(ErrorCode::bad_request, "index {} is beyond the stream's {} tokens", index, size());
  }
  const std::uint32_t count = std::min(tokens_max, size() - index);
  const std::uint32_t end = index + count;
  StreamPart part;
  part.first_index = index;
  const auto first = tokens_.begin() + (index - floor_);
  part.tokens.assign(first, first + count);
  part.text_offset = text_end(index);
  const std::uint64_t text_stop = end == size() ? text_bytes() : text_end(end);
  part.text = text_.substr(part.text_offset - text_floor_, text_stop - part.text_offset);
  if (!logprobs_.empty()) {
    const auto first_logprobs = logprobs_.begin() + (index - floor_);
    part.logprobs.assign(first_logprobs, first_logprobs + count);
  }
  part.chain = chain_before(end);
  return part;
}

void StreamLog::trim(std::uint32_t index) {
  index = std::min(index, size()) / link_tokens * link_tokens;
  if (index <= floor_) return;
  const std::uint32_t count = index - floor_;
  const std::uint64_t text_offset = text_end(index);
  text_ = text_.substr(text_offset - text_floor_);
  text_floor_ = text_offset;
  floor_ = index;
  // Copies, because erasing would keep the memory.
  tokens_ = std::vector(tokens_.begin() + count, tokens_.end());
  text_ends_ = std::vector(text_ends_.begin() + count, text_ends_.end());
  links_ = std::vector(links_.begin() + count / link_tokens, links_.end());
  if (!logprobs_.empty()) {
    logprobs_ = std::vector(std::make_move_iterator(logprobs_.begin() + count),
                            std::make_move_iterator(logprobs_.end()));
  }
}

std::uint32_t StreamLog::size() const {
  return floor_ + static_cast<std::uint32_t>(tokens_.size());
}

std::size_t StreamLog::memory_bytes() const {
  std::size_t bytes = sizeof *this + tokens_.capacity() * sizeof(Token) +
                      text_ends_.capacity() * sizeof(std::uint32_t) +
                      links_.capacity() * sizeof(ChainHash) + text_.capacity() +
                      logprobs_.capacity() * sizeof logprobs_[0];
  for (const auto& list : logprobs_) bytes += list.capacity() * sizeof(TokenLogprob);
  return bytes;
}

std::uint32_t StreamLog::index_at_text(std::uint64_t offset) const {
  const auto beyond = std::ranges::upper_bound(text_ends_, offset);
  return floor_ + static_cast<std::uint32_t>(beyond - text_ends_.begin());
}

// Text offset before token `index`: where the one before it ends.
std::uint64_t StreamLog::text_end(std::uint32_t index) const {
  return index == floor_ ? text_floor_ : text_ends_[index - floor_ - 1];
}

ChainHash StreamLog::chain_before(std::uint32_t index) const {
  if (index == size()) return chain_;
  const std::uint32_t link = (index - floor_) / link_tokens;
  ChainHash chain = links_[link];
  for (std::uint32_t i = floor_ + link * link_tokens; i < index; ++i) {
    chain = chain_next(chain, tokens_[i - floor_]);
  }
  return chain;
}

}  // namespace sluice::engine
