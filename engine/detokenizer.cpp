#include "engine/detokenizer.hpp"

#include <algorithm>
#include <utility>

namespace sluice::engine {

namespace {

std::vector<std::uint32_t> borders_of(const std::string& text) {
  std::vector<std::uint32_t> borders(text.size() + 1, 0);
  std::uint32_t border = 0;
  for (std::size_t i = 1; i < text.size(); ++i) {
    while (border > 0 && text[i] != text[border]) border = borders[border];
    if (text[i] == text[border]) ++border;
    borders[i + 1] = border;
  }
  return borders;
}

}  // namespace

TextStream::TextStream(std::shared_ptr<const model::Tokenizer> tokenizer, const Request& request)
    : tokenizer_(std::move(tokenizer)),
      stop_tokens_(request.sampling.stop_tokens),
      min_tokens_(request.sampling.min_tokens),
      drops_space_(tokenizer_->drops_leading_space() && !request.continues_text) {
  for (const std::string& stop : request.stops) {
    if (!stop.empty()) stops_.push_back({stop, borders_of(stop), 0});
  }
}

TextStream::TextStream(std::shared_ptr<const model::Tokenizer> tokenizer,
                       std::vector<std::string> stops)
    : TextStream(std::move(tokenizer), [&] {
        Request request;
        request.stops = std::move(stops);
        return request;
      }()) {}

std::string TextStream::push(Token token) {
  const std::uint32_t index = tokens_++;
  if (over_) return {};
  if (ends_sequence(stop_tokens_, min_tokens_, index, token)) {
    over_ = true;
    return {};
  }
  if (token >= tokenizer_->size()) return {};
  std::string_view bytes = tokenizer_->bytes(token);
  if (drops_space_ && !bytes.empty()) {
    drops_space_ = false;
    if (bytes.front() == ' ') bytes.remove_prefix(1);
  }
  for (const char byte : bytes) cleaner_.push(static_cast<std::uint8_t>(byte), text_);
  match();
  if (stopped_) return release(0);
  std::uint32_t held = 0;
  for (const Stop& stop : stops_) held = std::max(held, stop.matched);
  return release(held);
}

std::string TextStream::finish() {
  if (!stopped_) {
    cleaner_.finish(text_);
    match();
  }
  over_ = true;
  return release(0);
}

// Advances every stop string over the new characters; at the first that is complete, cuts the text.
void TextStream::match() {
  for (; searched_ < text_.size(); ++searched_) {
    const char byte = text_[searched_];
    std::size_t longest = 0;
    for (Stop& stop : stops_) {
      std::uint32_t& n = stop.matched;
      while (n > 0 && stop.text[n] != byte) n = stop.borders[n];
      if (stop.text[n] == byte) ++n;
      if (n < stop.text.size()) continue;
      longest = std::max(longest, stop.text.size());
      n = stop.borders[n];  // one completed before `min_tokens` does not count: go on
    }
    if (longest > 0 && tokens_ >= min_tokens_) {
      text_.resize(searched_ + 1 - longest);
      searched_ = text_.size();
      stopped_ = released_ + text_.size();
      over_ = true;
      return;
    }
  }
}

// A stop string is UTF-8, so a held-back beginning of one starts at a character.
std::string TextStream::release(std::size_t held_bytes) {
  const std::size_t free_bytes = text_.size() - held_bytes;
  std::string out = text_.substr(0, free_bytes);
  text_.erase(0, free_bytes);
  searched_ -= free_bytes;
  released_ += free_bytes;
  return out;
}

}  // namespace sluice::engine
