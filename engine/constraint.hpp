#pragma once
// Structured output: which tokens may come next so that the text fits a pattern or a JSON schema.
// All of it is a function of (constraint, tokens so far), so a resumed sequence goes on with it.

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>

#include "engine/automaton.hpp"
#include "engine/step.hpp"
#include "engine/token_trie.hpp"
#include "kernels/core.hpp"
#include "model/tokenizer.hpp"

namespace sluice::engine {

/// Compiles; the errors of regex_grammar and json_schema_grammar, or `bad_request` when no text
/// fits. Nothing for no constraint.
Result<Grammar> constraint_grammar(const Constraint& constraint);

/// One constraint, compiled: shared by all sequences that have it. Not for several threads at once.
class CompiledConstraint {
 public:
  CompiledConstraint(Grammar grammar, std::shared_ptr<const TokenTrie> trie);

 private:
  friend class ConstrainedText;

  /// What is kept is bounded: beyond that it is made anew.
  void trim();

  Automaton automaton_;
  std::shared_ptr<const TokenTrie> trie_;
  std::unordered_map<Automaton::State, TokenBits> allowed_;
  std::uint32_t age_ = 0;  ///< how often all was forgotten
};

/// What one sequence's text may go on with.
class ConstrainedText {
 public:
  /// `drops_space`: a space that begins the text is dropped (Tokenizer::drops_leading_space).
  ConstrainedText(std::shared_ptr<CompiledConstraint> constraint,
                  std::shared_ptr<const model::Tokenizer> tokenizer, bool drops_space);

  /// Takes a token. Ids that end the sequence do not come here.
  void push(Token token);

  /// A token came that was not allowed.
  bool failed() { return state() == Automaton::dead; }

  /// Where nothing may follow although the text may not end, the constraint has too many ways at
  /// once (Automaton::threads_max), or the vocabulary lacks a byte.
  bool too_wide() const { return constraint_->automaton_.too_wide(); }

  /// The text so far fits.
  bool may_end();

  /// It fits and nothing may follow: the sequence is complete.
  bool complete();

  /// The tokens that may come as number `index` of the output: what the text may go on with, and
  /// stop tokens where it may end and is not too short.
  TokenBits allowed(const SamplingParams& sampling, std::uint32_t index);

 private:
  Automaton::State state();

  std::shared_ptr<CompiledConstraint> constraint_;
  std::shared_ptr<const model::Tokenizer> tokenizer_;
  std::string text_;
  bool drops_space_ = false;
  Automaton::State state_ = Automaton::dead;
  std::uint32_t age_ = 0;
};

/// Compiled constraints by their text, the least recently used given up first.
class ConstraintCache {
 public:
  explicit ConstraintCache(std::shared_ptr<const model::Tokenizer> tokenizer);

  /// See constraint_grammar. The vocabulary's tree is made at the first call.
  Result<std::shared_ptr<CompiledConstraint>> get(const Constraint& constraint);

 private:
  struct Entry {
    Constraint constraint;
    std::shared_ptr<CompiledConstraint> compiled;
  };

  std::shared_ptr<const model::Tokenizer> tokenizer_;
  std::shared_ptr<const TokenTrie> trie_;
  std::list<Entry> entries_;  ///< the latest used first
};

}  // namespace sluice::engine
