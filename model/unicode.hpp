#pragma once
// UTF-8 as tokenizers see it: decoding that survives bad input, and the few properties they ask
// for.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::model {

/// One decoded character: `bytes` is 0 at the end, and `valid` false for a byte that starts none.
struct Utf8Char {
  char32_t code = 0;
  std::size_t bytes = 0;
  bool valid = false;
};

/// Decodes at `offset`. Strict: overlong forms, surrogates and codes above U+10FFFF are not valid.
Utf8Char decode_utf8(std::string_view text, std::size_t offset);

void append_utf8(std::string& out, char32_t code);

/// Bytes of the character that `lead` announces; 1 for a byte that announces none. What follows is
/// not looked at: SPM tokenizers cut text by this alone.
std::size_t announced_bytes(char lead);

/// Whether `text` is well-formed: no overlong forms, surrogates or codes above U+10FFFF.
bool is_valid_utf8(std::string_view text);

/// Replaces each byte that is no UTF-8 by U+FFFD. As llama.cpp does, an overlong form becomes the
/// character it means, and a surrogate stays as its three bytes.
std::string repair_utf8(std::string_view text);

/// Unicode's White_Space property.
bool is_space(char32_t code);

/// Letters, marks, numbers and connecting punctuation.
bool is_word(char32_t code);

/// As Python's str.strip(), which Jinja's `trim` is too. Bytes that are no UTF-8 are kept.
std::string_view strip(std::string_view text);

}  // namespace sluice::model
