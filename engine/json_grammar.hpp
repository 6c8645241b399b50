#pragma once
// The parts of JSON as grammars: strings, numbers in a range, any value.

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/grammar.hpp"

namespace sluice::engine {

/// Inclusive unless `open_`; none: without bound.
struct NumberRange {
  std::optional<std::int64_t> low;
  std::optional<std::int64_t> high;
  bool open_low = false;
  bool open_high = false;
};

/// Rules for JSON texts (RFC 8259), made once and shared by one schema's expressions. Between
/// tokens stands nothing, a space, or a line feed and up to 20 spaces, so that a model cannot go on
/// for ever about nothing; for the same end numbers have at most 18 digits on each side of the
/// point.
class JsonGrammar {
 public:
  using Expr = GrammarBuilder::Expr;

  explicit JsonGrammar(GrammarBuilder& builder);

  Expr space() const { return builder_->use(space_); }
  Expr value() const { return builder_->use(value_); }
  Expr object() const { return builder_->use(object_); }
  Expr array() const { return builder_->use(array_); }

  /// A string of so many characters; an escape counts as one.
  Expr string(std::uint32_t min = 0, std::optional<std::uint32_t> max = std::nullopt) const;

  /// A string without escapes that is none of `others` (UTF-8).
  Expr string_but(const std::vector<std::string>& others) const;

  /// One character of the set inside a string, escaped where it must be.
  static Expr spell_char(GrammarBuilder& builder, const CharSet& set);

  /// One of these texts; beginnings that they share are shared here too.
  Expr one_of(std::vector<std::string> texts) const;

  Expr integer(const NumberRange& range) const;
  Expr number(const NumberRange& range) const;

  /// `open`, the items with commas and space between them, `close`.
  Expr listed(char open, Expr items, char close) const;
  /// `,` and space before the next item.
  Expr comma() const;

 private:
  Expr digits_between(const std::string& low, const std::string& high) const;
  Expr magnitudes(std::uint64_t low, std::optional<std::uint64_t> high) const;
  Expr fractions(bool above_zero) const;
  Expr numbers_from(const NumberRange& range) const;
  Expr merged(std::span<const std::string> texts, std::size_t at) const;
  Expr but(std::span<const std::u32string> others, std::size_t at) const;

  GrammarBuilder* builder_;
  GrammarBuilder::Rule space_, char_, value_, object_, array_;
};

}  // namespace sluice::engine
