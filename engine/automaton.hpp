#pragma once
// Runs a grammar over bytes, one state at a time; states are made when they are first reached.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/grammar.hpp"

namespace sluice::engine {

/// A pushdown automaton made deterministic as it goes: a state is the set of all ways in which the
/// grammar can have read the bytes so far, each a place and a stack of places to return to. From
/// every live state the text can be brought to an end, but where that needs a deeper stack than
/// `stack_max`. A state that would hold more than `threads_max` ways is dead too: so no request
/// costs much, and what is allowed is a function of the bytes alone.
class Automaton {
 public:
  using State = std::uint32_t;
  static constexpr State dead = 0;
  static constexpr std::uint32_t stack_max = 256;
  static constexpr std::size_t threads_max = 1024;

  explicit Automaton(Grammar grammar);

  State start() const { return start_; }
  State next(State state, std::uint8_t byte);

  /// The state behind `text`; makes none on the way.
  State after(std::string_view text);

  /// The bytes so far are a text of the grammar.
  bool accepts(State state) const { return states_[state].accepts; }

  /// No byte may follow.
  bool ends(State state) const { return states_[state].threads.empty(); }

  /// A state was dead for having too many ways.
  bool too_wide() const { return too_wide_; }

  /// States made so far.
  std::size_t size() const { return states_.size(); }

  /// Forgets all states; those held outside mean nothing any more.
  void clear();

 private:
  /// Before a byte instruction, with a stack by its number.
  struct Thread {
    std::uint32_t op = 0;
    std::uint32_t stack = 0;
    auto operator<=>(const Thread&) const = default;
  };
  struct Frame {
    std::uint32_t below = 0;  ///< the stack under it
    std::uint32_t op = 0;     ///< where to return to
    std::uint32_t depth = 0;
  };
  static constexpr State unknown = UINT32_MAX;
  struct Reached {
    std::vector<Thread> threads;  ///< sorted
    bool accepts = false;
    std::unique_ptr<std::array<State, 256>> next;
  };

  std::uint32_t push(std::uint32_t stack, std::uint32_t op);
  Reached reach(std::vector<Thread> open);
  std::vector<Thread> take(const std::vector<Thread>& threads, std::uint8_t byte) const;
  State name(Reached reached);

  Grammar grammar_;
  State start_ = dead;
  bool too_wide_ = false;
  std::vector<Reached> states_;
  std::unordered_multimap<std::uint64_t, State> by_hash_;
  std::map<std::vector<Thread>, State> by_taken_;  ///< most bytes move the same threads
  std::vector<Frame> frames_;  ///< 0: the empty stack
  std::unordered_map<std::uint64_t, std::uint32_t> frame_of_;
};

}  // namespace sluice::engine
