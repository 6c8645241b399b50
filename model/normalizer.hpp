#pragma once
// What a tokenizer does to text before it cuts it.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/core.hpp"
#include "model/regex.hpp"

namespace sluice::model {

enum class UnicodeForm : std::uint8_t { nfc, nfd, nfkc, nfkd };

/// SentencePiece's compiled character map: a double-array trie from byte strings to replacements.
class CharacterMap {
 public:
  /// `blob` as `precompiled_charsmap` holds it; "" maps nothing. `bad_file` when it lies.
  static Result<CharacterMap> parse(std::string_view blob);
  std::string apply(std::string_view text) const;
  /// A bound on how many times longer it can make a text.
  double growth() const;

 private:
  std::pair<std::size_t, std::string_view> longest(std::string_view text, std::size_t offset) const;
  std::vector<std::uint32_t> units_;
  std::string replacements_;  ///< NUL-terminated strings
};

struct LowercaseStep {};
struct PrependStep {
  std::string text;
};
struct ReplaceStep {
  std::string find, replace;
};
struct ReplaceRegexStep {
  Regex pattern;
  std::string replace;
};
struct StripStep {
  bool left = true, right = true;
};
/// Runs of spaces become one; those at the ends go.
struct CollapseSpacesStep {};

using NormalizerStep = std::variant<UnicodeForm, LowercaseStep, PrependStep, ReplaceStep,
                                    ReplaceRegexStep, StripStep, CollapseSpacesStep, CharacterMap>;

/// Steps, each applied to the result of the one before.
class Normalizer {
 public:
  void add(NormalizerStep step);
  bool empty() const { return steps_.empty(); }
  std::string apply(std::string text, Matcher& matcher) const;

  /// A bound on how many times longer the steps can make a text.
  double growth() const { return growth_; }

 private:
  std::vector<NormalizerStep> steps_;
  double growth_ = 1.0;
};

}  // namespace sluice::model
