#include "model/vocabulary.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "model/unicode.hpp"

namespace sluice::model {

namespace {

std::uint32_t hash_of(std::string_view key) {
  return static_cast<std::uint32_t>(std::hash<std::string_view>{}(key));
}

}  // namespace

void StringTable::reserve(std::size_t count) {
  const std::size_t wanted = std::bit_ceil(std::max<std::size_t>(16, count * 2));
  if (wanted <= slots_.size()) return;
  entries_.reserve(wanted / 2);
  std::vector<Slot> old(wanted);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.entry != 0) slots_[slot_of(slot.hash, entries_[slot.entry - 1].key)] = slot;
  }
}

bool StringTable::insert(std::string_view key, std::uint32_t value) {
  reserve(entries_.size() + 1);
  const std::uint32_t hash = hash_of(key);
  Slot& slot = slots_[slot_of(hash, key)];
  if (slot.entry != 0) return false;
  entries_.push_back({key, value});
  slot = {hash, static_cast<std::uint32_t>(entries_.size())};
  return true;
}

std::optional<std::uint32_t> StringTable::find(std::string_view key) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[slot_of(hash_of(key), key)];
  if (slot.entry == 0) return std::nullopt;
  return entries_[slot.entry - 1].value;
}

void StringTable::prefetch(std::string_view key) const {
  if (!slots_.empty()) __builtin_prefetch(&slots_[hash_of(key) & (slots_.size() - 1)]);
}

void StringTable::find_all(std::span<const std::string_view> keys, std::uint32_t nothing,
                           std::span<std::uint32_t> values) const {
  if (slots_.empty()) {
    std::fill_n(values.begin(), keys.size(), nothing);
    return;
  }
  constexpr std::size_t together = 64;
  std::array<std::uint32_t, together> hashes{};
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t first = 0; first < keys.size(); first += together) {
    const std::size_t count = std::min(together, keys.size() - first);
    for (std::size_t i = 0; i < count; ++i) {
      hashes[i] = hash_of(keys[first + i]);
      __builtin_prefetch(&slots_[hashes[i] & mask]);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const Slot& slot = slots_[hashes[i] & mask];
      if (slot.entry != 0) __builtin_prefetch(&entries_[slot.entry - 1]);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t entry = slots_[slot_of(hashes[i], keys[first + i])].entry;
      values[first + i] = entry == 0 ? nothing : entries_[entry - 1].value;
    }
  }
}

/// The slot that holds `key`, or the free one where it belongs. At most half of the slots are used.
std::size_t StringTable::slot_of(std::uint32_t hash, std::string_view key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = hash & mask;
  for (; slots_[at].entry != 0; at = (at + 1) & mask) {
    if (slots_[at].hash == hash && entries_[slots_[at].entry - 1].key == key) break;
  }
  return at;
}

std::string_view StringArena::copy(std::string_view text) {
  if (text.empty()) return {};
  if (text.size() > left_) {
    left_ = std::max(kChunkBytes, text.size());
    chunks_.push_back(std::make_unique_for_overwrite<char[]>(left_));
    next_ = chunks_.back().get();
  }
  std::memcpy(next_, text.data(), text.size());
  const std::string_view copied(next_, text.size());
  next_ += text.size();
  left_ -= text.size();
  return copied;
}

void Vocabulary::reserve(std::size_t count) {
  entries_.reserve(count);
  ids_.reserve(count);
}

std::optional<Token> Vocabulary::add(std::string_view spelling, std::string_view bytes,
                                     TokenKind kind) {
  const Token id = size();
  const std::string_view kept = arena_.copy(spelling);
  if (!ids_.insert(kept, id)) return std::nullopt;
  entries_.push_back({kept, bytes == spelling ? kept : arena_.copy(bytes), kind});
  return id;
}

void Vocabulary::set_kind(Token id, TokenKind kind) {
  SLUICE_ASSERT(id < entries_.size(), "token id outside the vocabulary");
  entries_[id].kind = kind;
}

void Vocabulary::set_bytes(Token id, std::string_view bytes) {
  SLUICE_ASSERT(id < entries_.size(), "token id outside the vocabulary");
  entries_[id].bytes = arena_.copy(bytes);
}

namespace {

/// Bytes that print keep their own code; the 68 others take 256 and up, in order.
struct ByteAlphabet {
  std::array<char32_t, 256> code{};
  std::array<std::int16_t, 256 + 68> byte{};

  constexpr ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      code[b] = prints ? static_cast<char32_t>(b) : next++;
      byte[code[b]] = static_cast<std::int16_t>(b);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

}  // namespace

std::optional<std::string> bytes_of_byte_level(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (std::size_t at = 0; at < spelling.size();) {
    const Utf8Char c = decode_utf8(spelling, at);
    if (!c.valid || c.code >= kAlphabet.byte.size() || kAlphabet.byte[c.code] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte[c.code]));
    at += c.bytes;
  }
  return bytes;
}

std::string byte_level_spelling(std::uint8_t byte) {
  std::string out;
  append_utf8(out, kAlphabet.code[byte]);
  return out;
}

std::optional<char> byte_of_hex_spelling(std::string_view spelling) {
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') {
    return std::nullopt;
  }
  unsigned value = 0;
  for (const char c : spelling.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'A' || c > 'F')) return std::nullopt;
    value = value * 16 + static_cast<unsigned>(digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<char>(value);
}

std::array<std::optional<Token>, 256> byte_tokens(const Vocabulary& vocabulary) {
  std::array<std::optional<Token>, 256> ids;
  for (unsigned byte = 0; byte < 256; ++byte) {
    ids[byte] = vocabulary.find(fmt::format("<0x{:02X}>", byte));
  }
  return ids;
}

}  // namespace sluice::model
