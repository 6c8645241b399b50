#include "engine/regex_grammar.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/unicode.hpp"

namespace sluice::engine {
namespace {

using Expr = GrammarBuilder::Expr;

constexpr std::uint32_t depth_max = 100;
constexpr std::uint32_t count_max = 10'000;

const CharSet digits{{'0', '9'}};
const CharSet word{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CharSet space{{'\t', '\r'}, {' ', ' '}};

class Parser {
 public:
  Parser(GrammarBuilder& builder, std::u32string pattern, RegexMatch match, const SpellChars& spell)
      : g_(builder), text_(std::move(pattern)), match_(match), spell_(spell) {}

  Result<Expr> whole() {
    auto expr = alternatives(0);
    if (expr && at_ < text_.size()) return error("a ')' without its '('");
    return expr;
  }

 private:
  bool more() const { return at_ < text_.size(); }
  bool next_is(char32_t c) const { return more() && text_[at_] == c; }
  bool take(char32_t c) { return next_is(c) && ++at_ > 0; }

  tl::unexpected<Error> error(std::string_view what) const {
    return fail(ErrorCode::bad_request, "the pattern has {} at character {}", what, at_);
  }
  tl::unexpected<Error> beyond(std::string_view what) const {
    return fail(ErrorCode::unsupported,
                "the pattern has {} at character {}, which no automaton can follow", what, at_);
  }

  Result<Expr> alternatives(std::uint32_t depth) {
    if (depth > depth_max) return error("too many nested groups");
    std::vector<Expr> parts;
    do {
      auto part = sequence(depth);
      if (!part) return part;
      parts.push_back(*part);
    } while (take('|'));
    return g_.choice(std::move(parts));
  }

  // Anchors may stand at the ends of an outermost alternative, where they mean something.
  Result<Expr> sequence(std::uint32_t depth) {
    std::vector<Expr> parts;
    const bool from_start = depth == 0 && take('^');
    bool to_end = false;
    while (more() && !next_is('|') && !next_is(')')) {
      if (depth == 0 && next_is('$') && (at_ + 1 == text_.size() || text_[at_ + 1] == '|')) {
        ++at_;
        to_end = true;
        break;
      }
      auto part = piece(depth);
      if (!part) return part;
      parts.push_back(*part);
    }
    if (depth == 0 && match_ == RegexMatch::within) {
      const Expr any = g_.repeat(spell_(g_, CharSet::all()), 0, std::nullopt);
      if (!from_start) parts.insert(parts.begin(), any);
      if (!to_end) parts.push_back(any);
    }
    return g_.sequence(std::move(parts));
  }

  Result<Expr> piece(std::uint32_t depth) {
    auto part = atom(depth);
    if (!part) return part;
    Expr expr = *part;
    for (bool counted = false; more(); counted = true) {
      std::uint32_t min = 0;
      std::optional<std::uint32_t> max;
      if (take('*')) {
      } else if (take('+')) {
        min = 1;
      } else if (take('?')) {
        max = 1;
      } else if (next_is('{')) {
        if (auto ok = count(min, max); !ok) return tl::unexpected(ok.error());
      } else {
        break;
      }
      if (counted) return error("a count of a count");
      if (next_is('+')) return beyond("a possessive count");
      take('?');  // lazy: the same texts
      expr = g_.repeat(expr, min, max);
    }
    return expr;
  }

  Result<std::uint32_t> number() {
    std::uint32_t value = 0;
    const std::size_t first = at_;
    for (; more() && digits.contains(text_[at_]); ++at_) {
      value = value * 10 + (text_[at_] - '0');
      if (value > count_max) return error("a count above 10000");
    }
    if (at_ == first) return error("a '{' that begins no count (write \\{ for the character)");
    return value;
  }

  Result<void> count(std::uint32_t& min, std::optional<std::uint32_t>& max) {
    ++at_;
    auto low = number();
    if (!low) return tl::unexpected(low.error());
    min = *low;
    max = min;
    if (take(',')) {
      max.reset();
      if (!next_is('}')) {
        auto high = number();
        if (!high) return tl::unexpected(high.error());
        max = *high;
      }
    }
    if (!take('}')) return error("a count without its '}'");
    if (max && *max < min) return error("a count whose bounds are the wrong way round");
    return {};
  }

  Result<Expr> atom(std::uint32_t depth) {
    const char32_t c = text_[at_];
    switch (c) {
      case '(': return group(depth);
      case '[': {
        auto set = char_class();
        if (!set) return tl::unexpected(set.error());
        return spell_(g_, *set);
      }
      case '.': ++at_; return spell_(g_, CharSet{{'\n', '\n'}}.complement());
      case '*':
      case '+':
      case '?':
      case '{': return error("a count of nothing");
      case '^':
      case '$': return beyond("an anchor inside");
      case '\\': {
        CharSet set;
        if (auto ok = escape(set, false); !ok) return tl::unexpected(ok.error());
        return spell_(g_, set);
      }
      default: ++at_; return spell_(g_, {{c, c}});
    }
  }

  Result<Expr> group(std::uint32_t depth) {
    ++at_;
    if (take('?')) {
      if (take('P') || next_is('<')) {
        if (at_ + 1 < text_.size() && (text_[at_ + 1] == '=' || text_[at_ + 1] == '!'))
          return beyond("look-behind");
        const std::size_t end = text_.find(U'>', at_);
        if (!next_is('<') || end == std::u32string::npos) return error("a group of unknown kind");
        at_ = end + 1;
      } else if (next_is('=') || next_is('!')) {
        return beyond("look-ahead");
      } else if (!take(':')) {
        return error("a group of unknown kind");
      }
    }
    auto inside = alternatives(depth + 1);
    if (!inside) return inside;
    if (!take(')')) return error("a '(' without its ')'");
    return inside;
  }

  Result<CharSet> char_class() {
    ++at_;
    const bool negated = take('^');
    CharSet set;
    for (bool first = true; !next_is(']') || first; first = false) {
      if (!more()) return error("a '[' without its ']'");
      if (first && next_is(']')) return error("an empty class (write \\] for the character)");
      CharSet low;
      if (auto ok = member(low); !ok) return tl::unexpected(ok.error());
      const bool range = next_is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (!range) {
        set.add(low);
        continue;
      }
      ++at_;
      CharSet high;
      if (auto ok = member(high); !ok) return tl::unexpected(ok.error());
      const auto single = [](const CharSet& s) {
        return s.ranges().size() == 1 && s.ranges()[0].first == s.ranges()[0].second;
      };
      if (!single(low) || !single(high) || low.ranges()[0].first > high.ranges()[0].first)
        return error("a range in a class with wrong ends");
      set.add(low.ranges()[0].first, high.ranges()[0].first);
    }
    ++at_;
    return negated ? set.complement() : set;
  }

  Result<void> member(CharSet& set) {
    if (!more()) return error("a '[' without its ']'");
    if (next_is('\\')) return escape(set, true);
    if (next_is('[') && at_ + 1 < text_.size() && text_[at_ + 1] == ':')
      return error("a POSIX class (write \\d, \\w or ranges)");
    set.add(text_[at_], text_[at_]);
    ++at_;
    return {};
  }

  Result<void> escape(CharSet& set, bool in_class) {
    ++at_;
    if (!more()) return error("a '\\' at its end");
    const char32_t c = text_[at_++];
    const auto one = [&](char32_t value) { set.add(value, value); };
    switch (c) {
      case 'd': set.add(digits); return {};
      case 'D': set.add(digits.complement()); return {};
      case 'w': set.add(word); return {};
      case 'W': set.add(word.complement()); return {};
      case 's': set.add(space); return {};
      case 'S': set.add(space.complement()); return {};
      case 'n': one('\n'); return {};
      case 'r': one('\r'); return {};
      case 't': one('\t'); return {};
      case 'f': one('\f'); return {};
      case 'v': one('\v'); return {};
      case '0': one(0); return {};
      case 'x': return hex(set, 2);
      case 'u': return hex(set, 4);
      default: break;
    }
    if (c == 'b' && in_class) {
      one('\b');
      return {};
    }
    if (digits.contains(c)) return beyond("a back reference");
    if (c == 'b' || c == 'B' || c == 'A' || c == 'Z' || c == 'z') return beyond("an assertion");
    if (word.contains(c)) return error("an unknown escape");
    one(c);
    return {};
  }

  Result<void> hex(CharSet& set, int count) {
    char32_t value = 0;
    for (int i = 0; i < count; ++i, ++at_) {
      if (!more()) return error("a character code that is cut short");
      const char32_t c = text_[at_];
      const char32_t low = c | 0x20;
      if (digits.contains(c)) value = value * 16 + (c - '0');
      else if (low >= 'a' && low <= 'f') value = value * 16 + (low - 'a' + 10);
      else return error("a character code with a digit that is not hexadecimal");
    }
    if (value >= 0xD800 && value <= 0xDFFF) return error("half of a surrogate pair");
    set.add(value, value);
    return {};
  }

  GrammarBuilder& g_;
  std::u32string text_;
  RegexMatch match_;
  const SpellChars& spell_;
  std::size_t at_ = 0;
};

}  // namespace

Expr spell_plain(GrammarBuilder& builder, const CharSet& set) { return builder.chars(set); }

Result<Expr> regex_grammar(GrammarBuilder& builder, std::string_view pattern, RegexMatch match,
                           const SpellChars& spell) {
  if (!model::is_valid_utf8(pattern)) {
    return fail(ErrorCode::bad_request, "the pattern is not valid UTF-8");
  }
  std::u32string characters;
  for (std::size_t at = 0; at < pattern.size();) {
    const model::Utf8Char c = model::decode_utf8(pattern, at);
    characters += c.code;
    at += c.bytes;
  }
  return Parser(builder, std::move(characters), match, spell).whole();
}

}  // namespace sluice::engine
