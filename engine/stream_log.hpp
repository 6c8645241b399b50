#pragma once
// One stream's output so far, chained and numbered: chunks, replays, resumptions are cut from it.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/step.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

/// A link of the chain: the first 16 bytes of SHA-256 (design section 6.1).
using ChainHash = std::array<std::uint8_t, 16>;

/// The link before token 0: the first 16 bytes of SHA-256 over the following, integers and the
/// IEEE 754 bits of floats (binary32) little-endian, without padding:
///
///   "sluice-chain-1"               14 bytes
///   numerics id                    u32 length in bytes, then the bytes
///   prompt                         u32 count, then each id as u32
///   temperature f32, top_k u32, top_p f32, min_p f32,
///   repetition_penalty f32, presence_penalty f32, frequency_penalty f32
///   logit bias                     u32 count, then (token u32, bias f32), ascending by token
///   seed u64, min_tokens u32
///   stop tokens                    u32 count, then each id as u32, ascending, each once
///   with a constraint              "regex" or "json_schema", u32 length, its text
///
/// That is all that decides which token is drawn. Stop tokens are those in force, the model's end
/// tokens included unless the request ignores them; they count because `min_tokens` bans them.
/// Left out is what only cuts the sequence or is shown beside it: max tokens, stop strings and
/// logprobs. So the same request with a larger `max_tokens` continues the same chain.
ChainHash chain_start(std::string_view numerics, std::span<const Token> prompt,
                      const SamplingParams& sampling, const Constraint& constraint = {});

/// next = first 16 bytes of SHA-256(previous || token as u32 little-endian).
ChainHash chain_next(const ChainHash& previous, Token token);

/// Part of a stream: the tokens from `first_index` on and the text released up to the last of them.
struct StreamPart {
  std::uint32_t first_index = 0;
  std::vector<Token> tokens;
  std::uint64_t text_offset = 0;  ///< byte offset of `text` in the whole text
  std::string text;
  std::vector<std::vector<TokenLogprob>> logprobs;  ///< a list a token, or empty
  ChainHash chain{};              ///< after the last token
};

/// Append-only; one choice of one stream. Keeps 8.25 bytes a token besides the text itself and
/// logprobs where asked: id, where its text ends, and a link of the chain every 64 tokens (others
/// are computed anew, at most 63 hashes a read).
class StreamLog {
 public:
  explicit StreamLog(ChainHash start);

  /// Adds tokens, with the text that they released, and returns them as a part. The text counts as
  /// released by the last of them.
  StreamPart append(std::span<const Token> tokens, std::string text,
                    std::vector<std::vector<TokenLogprob>> logprobs);

  /// Adds text released without a token (the held-back tail at the end of a sequence).
  StreamPart append_text(std::string text);

  /// Up to `tokens_max` tokens from `index` on, as `append` returned them but cut anew at token
  /// borders. A part that reaches the end has all text, so `read(size(), n)` gives the tail that
  /// came without a token, if any. `gone` below the floor; `bad_request` beyond the end.
  Result<StreamPart> read(std::uint32_t index, std::uint32_t tokens_max) const;

  /// The highest index before which no more than `offset` bytes of text were released; the floor
  /// when even that has more.
  std::uint32_t index_at_text(std::uint64_t offset) const;

  /// Forgets tokens below `index` in groups of 64, with their text: `floor()` says what is left.
  /// Moves what it keeps, so call it once for many tokens.
  void trim(std::uint32_t index);

  std::uint32_t floor() const { return floor_; }  ///< lowest index held
  std::uint32_t size() const;                     ///< tokens so far: the next index
  std::uint64_t text_bytes() const { return text_floor_ + text_.size(); }
  std::size_t memory_bytes() const;
  const ChainHash& chain() const { return chain_; }

 private:
  std::uint64_t text_end(std::uint32_t index) const;
  ChainHash chain_before(std::uint32_t index) const;

  ChainHash chain_;
  std::uint32_t floor_ = 0;              // a multiple of 64
  std::uint64_t text_floor_ = 0;         // text offset at which text_ starts
  std::vector<Token> tokens_;            // from floor_ on
  std::vector<std::uint32_t> text_ends_; // text offset after each of tokens_
  std::vector<ChainHash> links_;         // before tokens floor_, floor_ + 64, ...
  std::vector<std::vector<TokenLogprob>> logprobs_;  // empty, or one a token
  std::string text_;
};

}  // namespace sluice::engine
