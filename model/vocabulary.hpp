#pragma once
// The tokens of a model: spelling, bytes and kind of each id, and the way back.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::model {

inline constexpr Token kNoToken = 0xFFFFFFFF;

/// What a token is for; the numbers are GGUF's `tokenizer.ggml.token_type`.
enum class TokenKind : std::uint8_t {
  normal = 1,
  unknown = 2,       ///< stands for what the vocabulary lacks
  control = 3,       ///< steers the model, adds no text
  user_defined = 4,  ///< text that is never cut
  unused = 5,
  byte = 6,  ///< one byte, spelled <0x0A>
};

/// Strings to numbers: open addressing over views that somebody else keeps alive.
class StringTable {
 public:
  void reserve(std::size_t count);

  /// False, and nothing changed, when `key` is there already.
  bool insert(std::string_view key, std::uint32_t value);

  std::optional<std::uint32_t> find(std::string_view key) const;

  /// Asks for the memory that inserting or finding `key` looks at first.
  void prefetch(std::string_view key) const;

  /// What is found for each key, `nothing` for one that is not there. Of a few dozen at once memory
  /// is asked for before any of it is looked at.
  void find_all(std::span<const std::string_view> keys, std::uint32_t nothing,
                std::span<std::uint32_t> values) const;

 private:
  struct Entry {
    std::string_view key;
    std::uint32_t value = 0;
  };
  /// Small, so that those of a vocabulary fit a second-level cache, and with enough of the hash
  /// that another's key is hardly ever looked at.
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t entry = 0;  ///< its number and 1; 0 in a free slot
  };
  std::size_t slot_of(std::uint32_t hash, std::string_view key) const;

  std::vector<Slot> slots_;
  std::vector<Entry> entries_;
};

/// Append-only storage whose strings never move.
class StringArena {
 public:
  std::string_view copy(std::string_view text);

 private:
  static constexpr std::size_t kChunkBytes = 64 * 1024;
  std::vector<std::unique_ptr<char[]>> chunks_;
  std::size_t left_ = 0;
  char* next_ = nullptr;
};

/// Ids run from 0 without a gap. Filled by a loader, then constant.
class Vocabulary {
 public:
  void reserve(std::size_t count);

  /// Asks for the memory that add() looks at first: for who knows what comes next.
  void prefetch(std::string_view spelling) const { ids_.prefetch(spelling); }

  /// Takes the next id; nothing if `spelling` is taken. `bytes` are what the token adds to a text.
  std::optional<Token> add(std::string_view spelling, std::string_view bytes, TokenKind kind);

  std::uint32_t size() const { return static_cast<std::uint32_t>(entries_.size()); }
  std::string_view spelling(Token id) const { return at(id).spelling; }
  std::string_view bytes(Token id) const { return at(id).bytes; }
  TokenKind kind(Token id) const { return at(id).kind; }
  std::optional<Token> find(std::string_view spelling) const { return ids_.find(spelling); }
  /// Of each spelling, kNoToken where there is none.
  void find_all(std::span<const std::string_view> spellings, std::span<Token> ids) const {
    ids_.find_all(spellings, kNoToken, ids);
  }

  void set_kind(Token id, TokenKind kind);
  void set_bytes(Token id, std::string_view bytes);

 private:
  struct Entry {
    std::string_view spelling, bytes;
    TokenKind kind = TokenKind::normal;
  };
  const Entry& at(Token id) const {
    SLUICE_ASSERT(id < entries_.size(), "token id outside the vocabulary");
    return entries_[id];
  }

  StringArena arena_;
  std::vector<Entry> entries_;
  StringTable ids_;
};

/// GPT-2's byte alphabet: every byte as one printable character. Nothing for a spelling with a
/// character outside of it.
std::optional<std::string> bytes_of_byte_level(std::string_view spelling);

/// The character of the byte alphabet that stands for `byte`, as UTF-8.
std::string byte_level_spelling(std::uint8_t byte);

/// "<0x0A>" as its byte.
std::optional<char> byte_of_hex_spelling(std::string_view spelling);

/// Ids of "<0x00>" to "<0xFF>"; nothing where the vocabulary lacks one.
std::array<std::optional<Token>, 256> byte_tokens(const Vocabulary& vocabulary);

}  // namespace sluice::model
