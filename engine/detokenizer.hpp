#pragma once
// Tokens to text, piece by piece: never half a character, never past a stop string.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/step.hpp"
#include "engine/utf8.hpp"
#include "model/tokenizer.hpp"

namespace sluice::engine {

/// The text of one sequence as a pure function of its request and tokens (design section 6.1). The
/// scheduler uses it to decide stop strings, the streamer to cut chunks; both see the same.
///
/// Text is always whole UTF-8 characters; bytes that can never become one come out as U+FFFD
/// (Utf8Cleaner says how many). Among stop strings the one completed first wins, and of those
/// completed by the same byte the longest. Costs O(bytes x stop strings), whatever they are.
class TextStream {
 public:
  /// What the text depends on besides the tokens: `stops`, `continues_text`, and of the sampling
  /// parameters `stop_tokens` and `min_tokens`. Empty stop strings are ignored.
  TextStream(std::shared_ptr<const model::Tokenizer> tokenizer, const Request& request);

  /// As for a request with these stop strings and nothing else.
  TextStream(std::shared_ptr<const model::Tokenizer> tokenizer, std::vector<std::string> stops);

  /// Takes one token; returns the text that is now certain. Held back: bytes that may yet become
  /// a character, and a tail that may yet become a stop string. A token that ends the sequence
  /// adds no text, nor does anything after the end. Ids beyond the vocabulary have no bytes.
  std::string push(Token token);

  /// The sequence is over: returns what was held back.
  std::string finish();

  /// Bytes of text before the stop string, once one was completed.
  std::optional<std::uint64_t> stopped() const { return stopped_; }

  /// Bytes released so far.
  std::uint64_t released_bytes() const { return released_; }

 private:
  // Knuth, Morris and Pratt: `borders[n]` is how much of the string still matches when its first
  // n bytes did and the next does not.
  struct Stop {
    std::string text;
    std::vector<std::uint32_t> borders;
    std::uint32_t matched = 0;
  };

  void match();
  std::string release(std::size_t held_bytes);

  std::shared_ptr<const model::Tokenizer> tokenizer_;
  std::vector<Stop> stops_;
  std::vector<Token> stop_tokens_;
  std::uint32_t min_tokens_ = 0;
  bool drops_space_ = false;       // the first byte, if a space, is a dummy prefix
  bool over_ = false;
  std::uint32_t tokens_ = 0;
  Utf8Cleaner cleaner_;
  std::string text_;               // characters not yet released
  std::size_t searched_ = 0;       // bytes of text_ the stop strings have seen
  std::uint64_t released_ = 0;
  std::optional<std::uint64_t> stopped_;
};

}  // namespace sluice::engine
