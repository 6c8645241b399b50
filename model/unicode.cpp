#include "model/unicode.hpp"

#include <utf8proc.h>

#include <bit>
#include <cstring>

namespace sluice::model {

namespace {

bool continues(std::string_view text, std::size_t offset) {
  return offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80;
}

/// Decodes by structure alone: a lead byte and as many continuation bytes as it announces.
Utf8Char decode_structure(std::string_view text, std::size_t offset) {
  if (offset >= text.size()) return {};
  const auto lead = static_cast<unsigned char>(text[offset]);
  if (lead < 0x80) return {lead, 1, true};
  if (lead < 0xC0 || lead >= 0xF8) return {lead, 1, false};
  const std::size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if (!continues(text, offset + i)) return {lead, 1, false};
    code = (code << 6) | (static_cast<unsigned char>(text[offset + i]) & 0x3FU);
  }
  if (code > 0x10FFFF) return {lead, 1, false};
  return {code, bytes, true};
}

/// Python also strips the four information separators, which Unicode does not call white space.
bool is_python_space(char32_t code) { return is_space(code) || (code >= 0x1C && code <= 0x1F); }

}  // namespace

Utf8Char decode_utf8(std::string_view text, std::size_t offset) {
  Utf8Char got = decode_structure(text, offset);
  if (!got.valid) return got;
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = got.code >= 0xD800 && got.code <= 0xDFFF;
  if (got.code < least[got.bytes] || surrogate) {
    return {static_cast<unsigned char>(text[offset]), 1, false};
  }
  return got;
}

void append_utf8(std::string& out, char32_t code) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

std::size_t announced_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

bool is_valid_utf8(std::string_view text) {
  const auto* byte = reinterpret_cast<const std::uint8_t*>(text.data());
  const auto* const end = byte + text.size();
  while (byte != end) {
    if (end - byte >= 8) {  // most text is ASCII: eight bytes at a time
      std::uint64_t word = 0;
      std::memcpy(&word, byte, 8);
      if ((word & 0x8080808080808080ULL) == 0) {
        byte += 8;
        continue;
      }
    }
    const std::uint32_t first = *byte++;
    if (first < 0x80) continue;
    // The count of leading ones is the length; 1 is a stray continuation, 5 and more never valid.
    const int length = std::countl_one(static_cast<std::uint8_t>(first));
    if (length < 2 || length > 4 || end - byte < length - 1) return false;
    std::uint32_t point = first & (0x7fU >> length);
    for (int i = 1; i < length; ++i) {
      if ((*byte & 0xc0U) != 0x80U) return false;
      point = point << 6U | (*byte++ & 0x3fU);
    }
    constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < least[length] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
      return false;
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char got = decode_structure(text, at);
    append_utf8(out, got.valid ? got.code : 0xFFFD);
    at += got.bytes;
  }
  return out;
}

bool is_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word(char32_t code) {
  const auto category = utf8proc_category(static_cast<std::int32_t>(code));
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO) ||
         category == UTF8PROC_CATEGORY_PC;
}

std::string_view strip(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char first = decode_utf8(text, 0);
    if (!first.valid || !is_python_space(first.code)) break;
    text.remove_prefix(first.bytes);
  }
  while (!text.empty()) {
    std::size_t start = text.size() - 1;
    while (start > 0 && text.size() - start < 4 && continues(text, start)) --start;
    const Utf8Char last = decode_utf8(text, start);
    if (!last.valid || start + last.bytes != text.size() || !is_python_space(last.code)) break;
    text.remove_suffix(last.bytes);
  }
  return text;
}

}  // namespace sluice::model
