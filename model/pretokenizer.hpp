#pragma once
// Cutting text into pieces that no token spans.

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/core.hpp"
#include "model/regex.hpp"

namespace sluice::model {

/// What becomes of a match.
enum class SplitBehavior : std::uint8_t {
  isolated,  ///< a piece of its own
  removed,
  contiguous,            ///< one piece with the matches beside it
  merged_with_previous,  ///< the end of the piece before it
  merged_with_next,      ///< the start of the piece after it
};

/// Cuts at each match of a pattern, or of what lies between matches if `invert`.
struct SplitStep {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;
};

/// SentencePiece's way: spaces become a visible mark, with one more in front.
struct MetaspaceStep {
  enum class Prepend : std::uint8_t { never, first, always };
  std::string mark = "\u2581";
  Prepend prepend = Prepend::always;
  bool split = true;
};

/// A space in front of a piece that has none.
struct PrefixSpaceStep {};

using PretokenizerStep = std::variant<SplitStep, MetaspaceStep, PrefixSpaceStep>;

/// Steps, each applied to the pieces of the one before.
class Pretokenizer {
 public:
  void add(PretokenizerStep step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }

  /// The pieces of `text` (valid UTF-8, but for surrogates); `first` when a text starts with it.
  /// The pieces point into `text` or into `storage`.
  std::vector<std::string_view> split(std::string_view text, bool first, Matcher& matcher,
                                      std::deque<std::string>& storage) const;

 private:
  std::vector<PretokenizerStep> steps_;
};

/// By `tokenizer.ggml.pre`. `unsupported` with the name, if it is not known.
Result<Pretokenizer> named_pretokenizer(std::string_view name);

/// The pattern of GPT-2, which Hugging Face's ByteLevel brings along.
std::string_view gpt2_pattern();

/// Whether the merges of a named pre-tokenizer's models are skipped for pieces that are tokens.
bool ignores_merges(std::string_view pretokenizer_name);

/// Whether such models start texts with begin-of-text unless the file says otherwise.
bool adds_begin_by_default(std::string_view pretokenizer_name);

}  // namespace sluice::model
