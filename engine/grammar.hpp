#pragma once
// Grammars over bytes: built from expressions, compiled to a small program that an Automaton runs.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/char_set.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

/// One instruction. A thread of the program is a place in it and a stack of places to return to.
struct GrammarOp {
  enum class Kind : std::uint8_t {
    byte,   ///< takes a byte from `low` to `high`, goes on behind
    split,  ///< goes on at `a` and at `b`
    jump,   ///< goes on at `a`
    call,   ///< runs the rule at `a`, then goes on behind
    done,   ///< the rule's end: returns, or with an empty stack the text is whole
  };
  Kind kind = Kind::done;
  std::uint8_t low = 0;
  std::uint8_t high = 0;
  std::uint32_t a = 0;
  std::uint32_t b = 0;
};

struct Grammar {
  std::vector<GrammarOp> ops;
  std::uint32_t start = 0;
};

/// Most instructions of a grammar: bounds what a request can cost.
inline constexpr std::size_t grammar_ops_max = 50'000;

/// Builds expressions bottom up; each may be used in many places. A rule may be used before it is
/// defined, and in itself, but only behind a byte (nothing checks that here: an automaton ends
/// such a descent at its greatest depth).
class GrammarBuilder {
 public:
  struct Expr {
    std::uint32_t index = 0;
  };
  struct Rule {
    std::uint32_t index = 0;
  };

  Expr empty() { return sequence({}); }
  Expr byte(std::uint8_t low, std::uint8_t high);
  Expr text(std::string_view bytes);
  /// One character of the set, as UTF-8. An empty set: nothing fits.
  Expr chars(const CharSet& set);
  Expr sequence(std::vector<Expr> parts);
  Expr choice(std::vector<Expr> parts);  ///< without parts: nothing fits
  /// At least `min` times; no `max`: without end.
  Expr repeat(Expr part, std::uint32_t min, std::optional<std::uint32_t> max);
  Expr optional(Expr part) { return repeat(part, 0, 1); }
  Expr use(Rule rule);

  Rule declare();
  void define(Rule rule, Expr body);

  /// `too_large` beyond grammar_ops_max. All rules in use are defined.
  Result<Grammar> compile(Expr start) const;

 private:
  enum class Form : std::uint8_t { byte, sequence, choice, repeat, rule };
  struct Node {
    Form form = Form::sequence;
    std::uint32_t low = 0;  // byte: bounds; repeat: counts; rule: its index
    std::uint32_t high = 0;
    bool endless = false;
    std::vector<Expr> parts;
  };

  Expr add(Node node);
  bool emit(Expr expr, Grammar& out, std::vector<std::uint32_t>& calls) const;
  bool emit_choice(const Node& node, Grammar& out, std::vector<std::uint32_t>& calls) const;
  bool emit_repeat(const Node& node, Grammar& out, std::vector<std::uint32_t>& calls) const;

  std::vector<Node> nodes_;
  std::vector<std::optional<Expr>> rules_;
};

}  // namespace sluice::engine
