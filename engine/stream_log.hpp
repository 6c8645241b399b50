#pragma once
// One stream's output so far, chained and numbered: chunks, replays, resumptions are cut from it.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/step.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

/// A link of the chain: the first 16 bytes of SHA-256 (design section 6.1).
using ChainHash = std::array<std::uint8_t, 16>;

/// The link before token 0: binds numerics id, prompt ids, sampling parameters and seed.
/// docs/protocol.md gives the exact bytes, so that any client can compute it.
ChainHash chain_start(std::string_view numerics, std::span<const Token> prompt,
                      const SamplingParams& sampling);

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

/// Append-only; one choice of one stream.
class StreamLog {
 public:
  explicit StreamLog(ChainHash start);

  /// Adds tokens, with the text that they released, and returns them as a part.
  StreamPart append(std::span<const Token> tokens, std::string text,
                    std::vector<std::vector<TokenLogprob>> logprobs);

  /// Adds text released without a token (the held-back tail at the end of a sequence).
  StreamPart append_text(std::string text);

  /// Up to `tokens_max` tokens from `index` on, as `append` returned them but cut anew at token
  /// borders. `gone` below the floor; `bad_request` beyond the end.
  Result<StreamPart> read(std::uint32_t index, std::uint32_t tokens_max) const;

  std::uint32_t size() const;      ///< tokens so far: the next index
  std::uint64_t text_bytes() const;
  std::size_t memory_bytes() const;
  const ChainHash& chain() const;
};

}  // namespace sluice::engine
