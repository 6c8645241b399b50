#pragma once
// Bytes to well-formed UTF-8, one at a time.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::engine {

/// Passes characters on when they are whole. What can never become one comes out as U+FFFD, one for
/// each maximal subpart (Unicode 15, section 3.9, "U+FFFD substitution of maximal subparts"; the
/// decoder of the WHATWG Encoding standard does the same): a byte that no character starts with, or
/// a character's beginning up to the byte that breaks it off.
class Utf8Cleaner {
 public:
  void push(std::uint8_t byte, std::string& out);

  /// The text is over: a character begun and not ended becomes one U+FFFD.
  void finish(std::string& out);

  /// No character is begun: what came out is all that went in.
  bool at_border() const { return length_ == 0; }

 private:
  std::array<char, 4> bytes_{};  // of the character begun
  std::uint8_t length_ = 0;      // bytes of it so far
  std::uint8_t needed_ = 0;      // bytes it has in all
  std::uint8_t low_ = 0x80;      // its next byte lies in [low_, high_]
  std::uint8_t high_ = 0xBF;
};

}  // namespace sluice::engine
