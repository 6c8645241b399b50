#pragma once
// Regular expressions as grammars.

#include <functional>
#include <string_view>

#include "engine/grammar.hpp"

namespace sluice::engine {

/// How a pattern's characters appear in the text, e.g. escaped in a JSON string.
using SpellChars = std::function<GrammarBuilder::Expr(GrammarBuilder&, const CharSet&)>;

enum class RegexMatch : std::uint8_t {
  whole,   ///< the pattern is the whole text; a leading ^ and a trailing $ say nothing more
  within,  ///< the text has it somewhere, but where ^ and $ bind it (JSON Schema's `pattern`)
};

/// `pattern` in the syntax that ECMAScript, PCRE and Python share, over characters: literals, `.`
/// (all but line feed), classes, \d \w \s (ASCII) and their opposites, groups, alternatives, greedy
/// and lazy counts. `bad_request` names the place of an error; `unsupported` what no such automaton
/// can do (look-around, back references, \b).
Result<GrammarBuilder::Expr> regex_grammar(GrammarBuilder& builder, std::string_view pattern,
                                           RegexMatch match, const SpellChars& spell);

/// Characters as they are.
GrammarBuilder::Expr spell_plain(GrammarBuilder& builder, const CharSet& set);

}  // namespace sluice::engine
