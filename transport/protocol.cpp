#include "transport/protocol.hpp"

#include <bit>
#include <cstring>

namespace sluice::transport {

std::string_view to_string(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::none: return "none";
    case engine::FinishReason::stop: return "stop";
    case engine::FinishReason::length: return "length";
    case engine::FinishReason::cancelled: return "cancelled";
    case engine::FinishReason::error: return "error";
  }
  return "none";
}

bool valid_utf8(std::string_view text) {
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

std::string to_hex(std::span<const std::uint8_t> bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(bytes.size() * 2);
  for (const std::uint8_t byte : bytes) {
    hex.push_back(digits[byte >> 4U]);
    hex.push_back(digits[byte & 15U]);
  }
  return hex;
}

std::optional<StreamId> stream_from_hex(std::string_view hex) {
  StreamId id{};
  if (hex.size() != id.size() * 2) return std::nullopt;
  for (std::size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    int digit = 0;
    if (c >= '0' && c <= '9')
      digit = c - '0';
    else if (c >= 'a' && c <= 'f')
      digit = c - 'a' + 10;
    else if (c >= 'A' && c <= 'F')
      digit = c - 'A' + 10;
    else
      return std::nullopt;
    id[i / 2] = static_cast<std::uint8_t>(id[i / 2] << 4U | digit);
  }
  return id;
}

}  // namespace sluice::transport
