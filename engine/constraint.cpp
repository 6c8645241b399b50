#include "engine/constraint.hpp"

#include <algorithm>
#include <utility>

#include "engine/json_schema.hpp"
#include "engine/regex_grammar.hpp"

namespace sluice::engine {
namespace {

// A state with its transitions takes about 1.5 KiB, a mask 6 KiB for 49,152 tokens: together some
// 20 MiB a constraint at most.
constexpr std::size_t states_max = 10'000;
constexpr std::size_t masks_max = 1'000;
constexpr std::size_t constraints_max = 32;

Result<Grammar> pattern_grammar(std::string_view pattern) {
  GrammarBuilder builder;
  auto expr = regex_grammar(builder, pattern, RegexMatch::whole, spell_plain);
  if (!expr) return tl::unexpected(expr.error());
  return builder.compile(*expr);
}

}  // namespace

Result<Grammar> constraint_grammar(const Constraint& constraint) {
  auto grammar = constraint.kind == Constraint::Kind::regex ? pattern_grammar(constraint.text)
                                                            : json_schema_grammar(constraint.text);
  if (!grammar) return grammar;
  if (const Automaton automaton(*grammar); automaton.start() == Automaton::dead) {
    return fail(ErrorCode::bad_request,
                "no text fits the constraint, or too many ways lead to one");
  }
  return grammar;
}

CompiledConstraint::CompiledConstraint(Grammar grammar, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(grammar)), trie_(std::move(trie)) {}

void CompiledConstraint::trim() {
  if (automaton_.size() <= states_max && allowed_.size() <= masks_max) return;
  allowed_.clear();
  automaton_.clear();
  ++age_;
}

ConstrainedText::ConstrainedText(std::shared_ptr<CompiledConstraint> constraint,
                                 std::shared_ptr<const model::Tokenizer> tokenizer,
                                 bool drops_space)
    : constraint_(std::move(constraint)),
      tokenizer_(std::move(tokenizer)),
      drops_space_(drops_space),
      state_(constraint_->automaton_.start()),
      age_(constraint_->age_) {}

Automaton::State ConstrainedText::state() {
  if (age_ == constraint_->age_) return state_;
  age_ = constraint_->age_;
  return state_ = constraint_->automaton_.after(text_);
}

void ConstrainedText::push(Token token) {
  Automaton::State reached = state();
  std::string_view bytes = tokenizer_->bytes(token);
  if (drops_space_ && !bytes.empty()) {
    drops_space_ = false;
    if (bytes.front() == ' ') bytes.remove_prefix(1);
  }
  for (const char c : bytes)
    reached = constraint_->automaton_.next(reached, static_cast<std::uint8_t>(c));
  text_ += bytes;
  state_ = reached;
}

bool ConstrainedText::may_end() { return constraint_->automaton_.accepts(state()); }

bool ConstrainedText::complete() { return may_end() && constraint_->automaton_.ends(state_); }

TokenBits ConstrainedText::allowed(const SamplingParams& sampling, std::uint32_t index) {
  constraint_->trim();
  const Automaton::State here = state();
  TokenBits bits;
  if (drops_space_) {  // only a first token's
    bits = constraint_->trie_->allowed(constraint_->automaton_, here, true);
  } else {
    auto found = constraint_->allowed_.find(here);
    if (found == constraint_->allowed_.end()) {
      found = constraint_->allowed_
                  .emplace(here, constraint_->trie_->allowed(constraint_->automaton_, here, false))
                  .first;
    }
    bits = found->second;
  }
  const bool ends = may_end() && index >= sampling.min_tokens;
  for (const Token end : sampling.stop_tokens) {
    const std::uint64_t bit = std::uint64_t{1} << (end % 64);
    if (ends) bits[end / 64] |= bit;
    else bits[end / 64] &= ~bit;
  }
  return bits;
}

ConstraintCache::ConstraintCache(std::shared_ptr<const model::Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)) {}

Result<std::shared_ptr<CompiledConstraint>> ConstraintCache::get(const Constraint& constraint) {
  const auto found = std::ranges::find(entries_, constraint, &Entry::constraint);
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front().compiled;
  }
  auto grammar = constraint_grammar(constraint);
  if (!grammar) return tl::unexpected(grammar.error());
  if (!trie_) trie_ = std::make_shared<const TokenTrie>(*tokenizer_);
  entries_.push_front(
      {constraint, std::make_shared<CompiledConstraint>(std::move(*grammar), trie_)});
  if (entries_.size() > constraints_max) entries_.pop_back();
  return entries_.front().compiled;
}

}  // namespace sluice::engine
