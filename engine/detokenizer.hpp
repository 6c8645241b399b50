#pragma once
// Tokens to text, piece by piece: never half a character, never past a stop string.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/tokenizer.hpp"

namespace sluice::engine {

/// The text of one sequence as a pure function of its tokens. The scheduler uses it to decide stop
/// strings, the streamer to cut chunks; both see the same.
class TextStream {
 public:
  TextStream(std::shared_ptr<const model::Tokenizer> tokenizer, std::vector<std::string> stops);

  /// Takes one token; returns the text that is now certain. Held back: bytes that may yet become
  /// a character, and a tail that may yet become a stop string. Bytes that can never become a
  /// character come out as U+FFFD.
  std::string push(Token token);

  /// The sequence is over: returns what was held back.
  std::string finish();

  /// Bytes of text before the stop string, once one was completed.
  std::optional<std::uint64_t> stopped() const;

  /// Bytes released so far.
  std::uint64_t released_bytes() const;
};

}  // namespace sluice::engine
