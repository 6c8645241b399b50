#include "engine/utf8.hpp"

namespace sluice::engine {

namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";

}  // namespace

void Utf8Cleaner::push(std::uint8_t byte, std::string& out) {
  if (length_ > 0 && (byte < low_ || byte > high_)) finish(out);  // broken off; judge `byte` anew
  if (length_ > 0) {
    low_ = 0x80;
    high_ = 0xBF;
    bytes_[length_++] = static_cast<char>(byte);
    if (length_ == needed_) {
      out.append(bytes_.data(), length_);
      length_ = 0;
    }
    return;
  }
  if (byte < 0x80) {
    out.push_back(static_cast<char>(byte));
    return;
  }
  if (byte < 0xC2 || byte > 0xF4) {
    out.append(replacement);
    return;
  }
  // The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and what lies
  // beyond U+10FFFF (F4): Unicode 15, table 3-7.
  low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
  high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  needed_ = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  bytes_[0] = static_cast<char>(byte);
  length_ = 1;
}

void Utf8Cleaner::finish(std::string& out) {
  if (length_ > 0) out.append(replacement);
  length_ = 0;
  low_ = 0x80;
  high_ = 0xBF;
}

}  // namespace sluice::engine
