#pragma once
// Text to token ids and back, as the checkpoint's own tokenizer does it.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::model {

class GgufFile;

/// A stretch of text; in trusted ones the spellings of special tokens are those tokens.
struct TextPart {
  std::string_view text;
  bool trusted = false;
};

/// Immutable after loading; every method may be called from any thread at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of `text`. Special tokens' spellings are recognised only when `parse_special`; user text
  /// is encoded without, templates with. No begin-of-text token is added. Bytes that are no UTF-8
  /// are encoded as the reference implementations do.
  virtual std::vector<Token> encode(std::string_view text, bool parse_special) const = 0;

  /// Ids of the parts as one text: a token may span a border between parts, a special token lies in
  /// trusted ones alone.
  virtual std::vector<Token> encode_parts(std::span<const TextPart> parts) const;

  /// The bytes this token adds to a text: may be part of a UTF-8 character. Control tokens give "".
  /// `id` must be below `size()`.
  virtual std::string_view bytes(Token id) const = 0;

  /// The token's name as the vocabulary spells it, "<|im_end|>" for control tokens.
  virtual std::string_view spelling(Token id) const = 0;

  virtual bool is_control(Token id) const = 0;
  virtual std::uint32_t size() const = 0;

  /// Whether the first token's leading space is dropped on decoding (SPM's dummy prefix).
  virtual bool drops_leading_space() const = 0;

  virtual std::optional<Token> begin_of_text() const = 0;
  virtual bool adds_begin_of_text() const = 0;

  /// Ids that end a generation: end-of-text, end-of-turn. The first is the one the file names.
  virtual std::span<const Token> end_tokens() const = 0;

  /// The id with exactly this spelling, control tokens included.
  virtual std::optional<Token> find(std::string_view spelling) const = 0;

  /// A Digest of everything that decides ids, as hex; part of the numerics id.
  virtual std::string_view fingerprint() const = 0;
};

/// From GGUF metadata (`tokenizer.ggml.*`). `bad_file` for a vocabulary that lies, `unsupported`
/// with the name of a kind or pre-tokenizer that is not known.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const GgufFile& file);

/// What the files beside a tokenizer.json say and it does not.
struct JsonTokenizerHints {
  std::optional<std::string> begin;  ///< spelling of begin-of-text, for templates
  std::optional<std::string> end;    ///< spelling of end-of-text: the first of `end_tokens`
  std::vector<std::uint64_t> end_ids;
  std::uint32_t size_min = 0;  ///< ids up to here exist, of tokens that add no text if need be
};

/// From the text of a Hugging Face tokenizer.json. Without hints, what ends a text is guessed by
/// well-known spellings.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer_json(std::string_view json,
                                                             const JsonTokenizerHints& hints = {});

}  // namespace sluice::model
