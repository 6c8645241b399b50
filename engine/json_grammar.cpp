#include "engine/json_grammar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "model/unicode.hpp"

namespace sluice::engine {
namespace {

using Expr = GrammarBuilder::Expr;

constexpr std::uint32_t indent_max = 20;
constexpr std::uint32_t digits_max = 18;  // 64 bits hold any such number

const CharSet to_escape{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
constexpr std::pair<char, char> short_escapes[] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'},
                                                   {'\f', 'f'}, {'\n', 'n'},  {'\r', 'r'},
                                                   {'\t', 't'}};

Expr digit(GrammarBuilder& g, char low = '0', char high = '9') {
  return g.byte(static_cast<std::uint8_t>(low), static_cast<std::uint8_t>(high));
}

Expr hex(GrammarBuilder& g) { return g.chars({{'0', '9'}, {'A', 'F'}, {'a', 'f'}}); }

// \u of any character of the basic plane: what begins with D8 to DF is half a pair.
Expr unicode_escape(GrammarBuilder& g) {
  const CharSet others{{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}};
  const Expr any = g.sequence({g.chars(others), hex(g), hex(g), hex(g)});
  const Expr d = g.chars({{'D', 'D'}, {'d', 'd'}});
  const Expr low = g.sequence({d, digit(g, '0', '7'), hex(g), hex(g)});
  return g.sequence({g.text("u"), g.choice({any, low})});
}

}  // namespace

JsonGrammar::JsonGrammar(GrammarBuilder& builder)
    : builder_(&builder),
      space_(builder.declare()),
      char_(builder.declare()),
      value_(builder.declare()),
      object_(builder.declare()),
      array_(builder.declare()) {
  GrammarBuilder& g = builder;
  g.define(space_, g.choice({g.empty(), g.text(" "),
                             g.sequence({g.text("\n"), g.repeat(g.text(" "), 0, indent_max)})}));
  const Expr escape = g.choice({g.chars({{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'},
                                         {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}}),
                                unicode_escape(g)});
  g.define(char_, g.choice({g.chars(to_escape.complement()),
                            g.sequence({g.text("\\"), escape})}));
  const auto many = [&](Expr item) {
    return g.sequence({item, g.repeat(g.sequence({comma(), item}), 0, std::nullopt)});
  };
  const Expr member = g.sequence({string(), g.text(":"), space(), value()});
  g.define(object_, listed('{', g.optional(many(member)), '}'));
  g.define(array_, listed('[', g.optional(many(value())), ']'));
  g.define(value_, g.choice({object(), array(), string(), number({}), g.text("true"),
                             g.text("false"), g.text("null")}));
}

Expr JsonGrammar::string(std::uint32_t min, std::optional<std::uint32_t> max) const {
  GrammarBuilder& g = *builder_;
  return g.sequence({g.text("\""), g.repeat(g.use(char_), min, max), g.text("\"")});
}

Expr JsonGrammar::spell_char(GrammarBuilder& g, const CharSet& set) {
  std::vector<Expr> ways{g.chars(set.without(to_escape))};
  for (char32_t c = 0; c <= '\\'; ++c) {
    if (!to_escape.contains(c) || !set.contains(c)) continue;
    const auto found = std::ranges::find(short_escapes, static_cast<char>(c),
                                         &std::pair<char, char>::first);
    ways.push_back(g.text(found != std::end(short_escapes)
                              ? fmt::format("\\{}", found->second)
                              : fmt::format("\\u{:04x}", static_cast<unsigned>(c))));
  }
  return g.choice(std::move(ways));
}

Expr JsonGrammar::one_of(std::vector<std::string> texts) const {
  std::ranges::sort(texts);
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  return merged(texts, 0);
}

// Sorted texts that agree in their first `at` bytes.
Expr JsonGrammar::merged(std::span<const std::string> texts, std::size_t at) const {
  GrammarBuilder& g = *builder_;
  if (texts.size() == 1) return g.text(texts.front().substr(at));
  std::size_t shared = at;  // sorted: what the first and the last share, all share
  const std::string &first = texts.front(), &last = texts.back();
  while (shared < first.size() && shared < last.size() && first[shared] == last[shared]) ++shared;
  std::vector<Expr> ways;
  while (!texts.empty()) {
    std::size_t same = 1;
    if (texts[0].size() > shared) {
      while (same < texts.size() && texts[same][shared] == texts[0][shared]) ++same;
    }
    ways.push_back(merged(texts.first(same), shared));
    texts = texts.subspan(same);
  }
  return g.sequence({g.text(first.substr(at, shared - at)), g.choice(std::move(ways))});
}

Expr JsonGrammar::string_but(const std::vector<std::string>& others) const {
  std::vector<std::u32string> wide;
  for (const std::string& other : others) {
    std::u32string& text = wide.emplace_back();
    for (std::size_t i = 0; i < other.size();) {
      const model::Utf8Char c = model::decode_utf8(other, i);
      text += c.code;
      i += c.bytes;
    }
  }
  std::ranges::sort(wide);
  GrammarBuilder& g = *builder_;
  return g.sequence({g.text("\""), but(wide, 0), g.text("\"")});
}

// What may follow `at` characters that all of `others` begin with.
Expr JsonGrammar::but(std::span<const std::u32string> others, std::size_t at) const {
  GrammarBuilder& g = *builder_;
  const CharSet free = to_escape.complement();
  CharSet elsewhere = free;
  std::vector<Expr> ways;
  bool is_one = false;
  while (!others.empty()) {
    if (others[0].size() == at) {
      is_one = true;
      others = others.subspan(1);
      continue;
    }
    const char32_t c = others[0][at];
    std::size_t same = 0;
    while (same < others.size() && others[same].size() > at && others[same][at] == c) ++same;
    elsewhere = elsewhere.without({{c, c}});
    if (free.contains(c))
      ways.push_back(g.sequence({g.chars({{c, c}}), but(others.first(same), at + 1)}));
    others = others.subspan(same);
  }
  ways.push_back(g.sequence({g.chars(elsewhere), g.repeat(g.chars(free), 0, std::nullopt)}));
  const Expr more = g.choice(std::move(ways));
  return is_one ? more : g.optional(more);
}

// All numbers of one length from `low` to `high`, digit by digit.
Expr JsonGrammar::digits_between(const std::string& low, const std::string& high) const {
  GrammarBuilder& g = *builder_;
  const std::size_t n = low.size();
  if (n == 0) return g.empty();
  const std::string zeros(n - 1, '0'), nines(n - 1, '9');
  if (low[0] == high[0])
    return g.sequence({digit(g, low[0], low[0]), digits_between(low.substr(1), high.substr(1))});
  std::vector<Expr> ways;
  char from = low[0], to = high[0];
  if (low.substr(1) != zeros) {
    ways.push_back(g.sequence({digit(g, from, from), digits_between(low.substr(1), nines)}));
    ++from;
  }
  if (high.substr(1) != nines) {
    ways.push_back(g.sequence({digit(g, to, to), digits_between(zeros, high.substr(1))}));
    --to;
  }
  const auto rest = static_cast<std::uint32_t>(n - 1);
  if (from <= to) ways.push_back(g.sequence({digit(g, from, to), g.repeat(digit(g), rest, rest)}));
  return g.choice(std::move(ways));
}

// Whole numbers without sign.
Expr JsonGrammar::magnitudes(std::uint64_t low, std::optional<std::uint64_t> high) const {
  GrammarBuilder& g = *builder_;
  std::uint64_t most = 1;
  for (std::uint32_t i = 0; i < digits_max; ++i) most *= 10;
  const std::uint64_t end = std::min(high.value_or(most - 1), most - 1);
  std::vector<Expr> ways;
  if (low == 0) ways.push_back(g.text("0"));
  std::uint64_t first = 1;  // the smallest of its length
  for (std::uint32_t length = 1; length <= digits_max; ++length, first *= 10) {
    const std::uint64_t from = std::max(first, low), to = std::min(first * 10 - 1, end);
    if (from > to) continue;
    if (from == first && to == first * 10 - 1) {
      // All longer ones too, if nothing bounds them: one expression instead of one a length.
      const bool endless = end == most - 1;
      const std::uint32_t more = endless ? digits_max - 1 : length - 1;
      ways.push_back(g.sequence({digit(g, '1', '9'), g.repeat(digit(g), length - 1, more)}));
      if (endless) break;
    } else {
      ways.push_back(digits_between(std::to_string(from), std::to_string(to)));
    }
  }
  return g.choice(std::move(ways));
}

namespace {

std::uint64_t magnitude(std::int64_t value) {
  return value < 0 ? std::uint64_t{0} - static_cast<std::uint64_t>(value)
                   : static_cast<std::uint64_t>(value);
}

// Of a range, the numbers below zero with the sign turned.
NumberRange mirrored(const NumberRange& range) {
  NumberRange out;
  const auto turned = [](std::int64_t v) { return v == INT64_MIN ? INT64_MAX : -v; };
  if (range.high) out.low = turned(*range.high);
  if (range.low) out.high = turned(*range.low);
  out.open_low = range.open_high;
  out.open_high = range.open_low;
  return out;
}

}  // namespace

Expr JsonGrammar::integer(const NumberRange& range) const {
  GrammarBuilder& g = *builder_;
  std::optional<std::int64_t> low = range.low, high = range.high;
  if (low && range.open_low) low = *low + 1;
  if (high && range.open_high) high = *high - 1;
  std::vector<Expr> ways;
  if (!high || *high >= 0) {
    const std::uint64_t from = low && *low > 0 ? magnitude(*low) : 0;
    ways.push_back(magnitudes(from, high ? std::optional(magnitude(*high)) : std::nullopt));
  }
  if (!low || *low < 0) {
    const std::uint64_t from = high && *high < 0 ? magnitude(*high) : 1;
    ways.push_back(g.sequence(
        {g.text("-"), magnitudes(from, low ? std::optional(magnitude(*low)) : std::nullopt)}));
  }
  return g.choice(std::move(ways));
}

// A point and digits; `above_zero`: not all of them 0.
Expr JsonGrammar::fractions(bool above_zero) const {
  GrammarBuilder& g = *builder_;
  if (!above_zero) return g.sequence({g.text("."), g.repeat(digit(g), 1, digits_max)});
  return g.sequence({g.text("."), g.repeat(g.text("0"), 0, digits_max / 2), digit(g, '1', '9'),
                     g.repeat(digit(g), 0, digits_max / 2 - 1)});
}

// Numbers of a range that starts at 0 or above; with both bounds open and equal, none.
Expr JsonGrammar::numbers_from(const NumberRange& range) const {
  GrammarBuilder& g = *builder_;
  const std::uint64_t low = range.low && *range.low > 0 ? magnitude(*range.low) : 0;
  const bool open_low = range.open_low && range.low && *range.low >= 0;
  const auto just = [&](std::uint64_t value) { return g.text(std::to_string(value)); };
  std::vector<Expr> ways;
  std::uint64_t from = low;
  const std::uint64_t high = range.high ? magnitude(*range.high) : UINT64_MAX;
  if (open_low) {
    if (high > low) ways.push_back(g.sequence({just(low), fractions(true)}));
    ++from;
  }
  if (high > from) {
    const auto end = range.high ? std::optional(high - 1) : std::nullopt;
    ways.push_back(g.sequence({magnitudes(from, end), g.optional(fractions(false))}));
  }
  if (range.high && high >= from && !range.open_high) {
    ways.push_back(g.sequence({just(high), g.optional(g.text(".0"))}));
  }
  return g.choice(std::move(ways));
}

Expr JsonGrammar::number(const NumberRange& range) const {
  GrammarBuilder& g = *builder_;
  if (!range.low && !range.high) {
    const Expr exponent = g.sequence({g.chars({{'E', 'E'}, {'e', 'e'}}),
                                      g.optional(g.chars({{'+', '+'}, {'-', '-'}})),
                                      g.repeat(digit(g), 1, 2)});
    return g.sequence({g.optional(g.text("-")), magnitudes(0, std::nullopt),
                       g.optional(fractions(false)), g.optional(exponent)});
  }
  std::vector<Expr> ways;
  if (!range.high || *range.high >= 0) ways.push_back(numbers_from(range));
  if (!range.low || *range.low < 0) {
    NumberRange below = mirrored(range);
    if (!below.low || *below.low < 0) {
      below.low = 0;
      below.open_low = true;  // no "-0": it is 0, which the other side has or must not have
    }
    ways.push_back(g.sequence({g.text("-"), numbers_from(below)}));
  }
  return g.choice(std::move(ways));
}

Expr JsonGrammar::comma() const {
  return builder_->sequence({space(), builder_->text(","), space()});
}

Expr JsonGrammar::listed(char open, Expr items, char close) const {
  GrammarBuilder& g = *builder_;
  return g.sequence({g.text({&open, 1}), space(), items, space(), g.text({&close, 1})});
}

}  // namespace sluice::engine
