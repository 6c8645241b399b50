#include "engine/grammar.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "model/unicode.hpp"

namespace sluice::engine {
namespace {

using Expr = GrammarBuilder::Expr;
using Kind = GrammarOp::Kind;

// The bytes of all characters from `first` to `last`, whose UTF-8 has the same length: the classic
// cut into ranges of which each byte is free between its bounds.
void utf8_ranges(GrammarBuilder& g, const std::string& first, const std::string& last,
                 std::size_t at, std::vector<Expr> prefix, std::vector<Expr>& out) {
  const auto low = static_cast<std::uint8_t>(first[at]), high = static_cast<std::uint8_t>(last[at]);
  const std::size_t rest = first.size() - at - 1;
  const auto with = [&](std::uint8_t a, std::uint8_t b) {
    std::vector<Expr> longer = prefix;
    longer.push_back(g.byte(a, b));
    return longer;
  };
  if (rest == 0) {
    out.push_back(g.sequence(with(low, high)));
    return;
  }
  const std::string lowest(rest, '\x80'), highest(rest, '\xBF');
  if (low == high) {
    utf8_ranges(g, first, last, at + 1, with(low, low), out);
    return;
  }
  std::uint8_t from = low, to = high;
  if (first.substr(at + 1) != lowest) {
    utf8_ranges(g, first, first.substr(0, at + 1) + highest, at + 1, with(low, low), out);
    ++from;
  }
  const bool cut_high = last.substr(at + 1) != highest;
  if (cut_high) --to;
  if (from <= to) {
    std::vector<Expr> parts = with(from, to);
    for (std::size_t i = 0; i < rest; ++i) parts.push_back(g.byte(0x80, 0xBF));
    out.push_back(g.sequence(std::move(parts)));
  }
  if (cut_high) {
    utf8_ranges(g, last.substr(0, at + 1) + lowest, last, at + 1, with(high, high), out);
  }
}

}  // namespace

Expr GrammarBuilder::add(Node node) {
  nodes_.push_back(std::move(node));
  return {static_cast<std::uint32_t>(nodes_.size() - 1)};
}

Expr GrammarBuilder::byte(std::uint8_t low, std::uint8_t high) {
  return add({Form::byte, low, high, false, {}});
}

Expr GrammarBuilder::text(std::string_view bytes) {
  std::vector<Expr> parts;
  for (const char c : bytes) {
    const auto b = static_cast<std::uint8_t>(c);
    parts.push_back(byte(b, b));
  }
  return sequence(std::move(parts));
}

Expr GrammarBuilder::chars(const CharSet& set) {
  std::vector<Expr> parts;
  for (const auto& [first, last] : set.ranges()) {
    constexpr char32_t ends[] = {0x7F, 0x7FF, 0xFFFF, char_max};  // of each length of UTF-8
    char32_t from = first;
    for (const char32_t end : ends) {
      if (from > end || from > last) continue;
      const char32_t to = std::min(last, end);
      std::string low, high;
      model::append_utf8(low, from);
      model::append_utf8(high, to);
      utf8_ranges(*this, low, high, 0, {}, parts);
      from = to + 1;
    }
  }
  return choice(std::move(parts));
}

Expr GrammarBuilder::sequence(std::vector<Expr> parts) {
  return add({Form::sequence, 0, 0, false, std::move(parts)});
}

Expr GrammarBuilder::choice(std::vector<Expr> parts) {
  if (parts.size() == 1) return parts.front();
  return add({Form::choice, 0, 0, false, std::move(parts)});
}

Expr GrammarBuilder::repeat(Expr part, std::uint32_t min, std::optional<std::uint32_t> max) {
  return add({Form::repeat, min, max.value_or(0), !max, {part}});
}

Expr GrammarBuilder::use(Rule rule) {
  return add({Form::rule, rule.index, 0, false, {}});
}

GrammarBuilder::Rule GrammarBuilder::declare() {
  rules_.emplace_back();
  return {static_cast<std::uint32_t>(rules_.size() - 1)};
}

void GrammarBuilder::define(Rule rule, Expr body) { rules_[rule.index] = body; }

// Calls hold their rule's number until all rules have a place.
Result<Grammar> GrammarBuilder::compile(Expr start) const {
  Grammar out;
  std::vector<std::uint32_t> calls;
  std::vector<std::uint32_t> places(rules_.size());
  bool fits = emit(start, out, calls);
  out.ops.push_back({});
  for (std::size_t i = 0; i < rules_.size() && fits; ++i) {
    places[i] = static_cast<std::uint32_t>(out.ops.size());
    SLUICE_ASSERT(rules_[i], "a rule in use is defined");
    fits = emit(*rules_[i], out, calls);
    out.ops.push_back({});
  }
  if (!fits) {
    return fail(ErrorCode::too_large,
                "the constraint's grammar has more than {} steps: lower its counts",
                grammar_ops_max);
  }
  for (const std::uint32_t call : calls) {
    out.ops[call].a = places[out.ops[call].a];
    // A call right before the end need not return.
    if (out.ops[call + 1].kind == Kind::done) out.ops[call].kind = Kind::jump;
  }
  return out;
}

bool GrammarBuilder::emit(Expr expr, Grammar& out, std::vector<std::uint32_t>& calls) const {
  if (out.ops.size() > grammar_ops_max) return false;
  const Node& node = nodes_[expr.index];
  const auto here = static_cast<std::uint32_t>(out.ops.size());
  switch (node.form) {
    case Form::byte:
      out.ops.push_back({Kind::byte, static_cast<std::uint8_t>(node.low),
                         static_cast<std::uint8_t>(node.high), 0, 0});
      return true;
    case Form::sequence:
      return std::ranges::all_of(node.parts, [&](Expr part) { return emit(part, out, calls); });
    case Form::choice: return emit_choice(node, out, calls);
    case Form::repeat: return emit_repeat(node, out, calls);
    case Form::rule:
      calls.push_back(here);
      out.ops.push_back({Kind::call, 0, 0, node.low, 0});
      return true;
  }
  return false;
}

bool GrammarBuilder::emit_choice(const Node& node, Grammar& out,
                                 std::vector<std::uint32_t>& calls) const {
  if (node.parts.empty()) {
    out.ops.push_back({Kind::byte, 1, 0, 0, 0});  // no byte fits
    return true;
  }
  std::vector<std::uint32_t> jumps;
  for (std::size_t i = 0; i < node.parts.size(); ++i) {
    const auto split = static_cast<std::uint32_t>(out.ops.size());
    const bool last = i + 1 == node.parts.size();
    if (!last) out.ops.push_back({Kind::split, 0, 0, split + 1, 0});
    if (!emit(node.parts[i], out, calls)) return false;
    if (last) break;
    jumps.push_back(static_cast<std::uint32_t>(out.ops.size()));
    out.ops.push_back({Kind::jump, 0, 0, 0, 0});
    out.ops[split].b = static_cast<std::uint32_t>(out.ops.size());
  }
  for (const std::uint32_t jump : jumps)
    out.ops[jump].a = static_cast<std::uint32_t>(out.ops.size());
  return true;
}

bool GrammarBuilder::emit_repeat(const Node& node, Grammar& out,
                                 std::vector<std::uint32_t>& calls) const {
  const Expr part = node.parts.front();
  for (std::uint32_t i = 0; i < node.low; ++i) {
    const std::size_t before = out.ops.size();
    if (!emit(part, out, calls)) return false;
    if (out.ops.size() == before) break;  // nothing, however often
  }
  std::vector<std::uint32_t> splits;
  for (std::uint32_t i = node.low; node.endless ? splits.empty() : i < node.high; ++i) {
    splits.push_back(static_cast<std::uint32_t>(out.ops.size()));
    out.ops.push_back({Kind::split, 0, 0, splits.back() + 1, 0});
    if (!emit(part, out, calls)) return false;
  }
  if (node.endless) out.ops.push_back({Kind::jump, 0, 0, splits.front(), 0});
  for (const std::uint32_t split : splits)
    out.ops[split].b = static_cast<std::uint32_t>(out.ops.size());
  return true;
}

}  // namespace sluice::engine
