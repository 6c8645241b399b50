#include "engine/automaton.hpp"

#include <algorithm>
#include <set>

namespace sluice::engine {
namespace {

using Kind = GrammarOp::Kind;

std::uint64_t pack(std::uint32_t a, std::uint32_t b) { return std::uint64_t{a} << 32 | b; }

// Replaces all instructions from which no rule's end can be reached by ones that take no byte.
void prune(Grammar& grammar) {
  std::vector<GrammarOp>& ops = grammar.ops;
  std::vector<bool> leads_out(ops.size(), false);
  const auto leads = [&](const GrammarOp& op, std::size_t i) -> bool {
    switch (op.kind) {
      case Kind::byte: return op.low <= op.high && leads_out[i + 1];
      case Kind::split: return leads_out[op.a] || leads_out[op.b];
      case Kind::jump: return leads_out[op.a];
      case Kind::call: return leads_out[op.a] && leads_out[i + 1];
      case Kind::done: return true;
    }
    return false;
  };
  // Up and down in turn, for rules may lie before or behind what uses them.
  bool changed = true;
  const auto look = [&](std::size_t i) {
    if (leads_out[i] || !leads(ops[i], i)) return;
    leads_out[i] = changed = true;
  };
  while (changed) {
    changed = false;
    for (std::size_t i = ops.size(); i > 0; --i) look(i - 1);
    for (std::size_t i = 0; i < ops.size(); ++i) look(i);
  }
  for (std::size_t i = 0; i < ops.size(); ++i)
    if (!leads_out[i]) ops[i] = {Kind::byte, 1, 0, 0, 0};
}

}  // namespace

Automaton::Automaton(Grammar grammar) : grammar_(std::move(grammar)) {
  prune(grammar_);
  clear();
}

void Automaton::clear() {
  states_.clear();
  by_hash_.clear();
  by_taken_.clear();
  frame_of_.clear();
  frames_.assign(1, {});
  states_.emplace_back();  // `dead`
  start_ = name(reach({{grammar_.start, 0}}));
}

Automaton::State Automaton::next(State state, std::uint8_t byte) {
  if (state == dead) return dead;
  if (!states_[state].next) {
    states_[state].next = std::make_unique<std::array<State, 256>>();
    states_[state].next->fill(unknown);
  }
  const State known = (*states_[state].next)[byte];
  if (known != unknown) return known;
  std::vector<Thread> taken = take(states_[state].threads, byte);
  auto found = by_taken_.find(taken);
  if (found == by_taken_.end()) {
    const State to = name(reach(taken));
    found = by_taken_.emplace(std::move(taken), to).first;
  }
  return (*states_[state].next)[byte] = found->second;
}

Automaton::State Automaton::after(std::string_view text) {
  Reached here = reach({{grammar_.start, 0}});
  for (const char c : text) here = reach(take(here.threads, static_cast<std::uint8_t>(c)));
  return name(std::move(here));
}

// Behind the byte: those of `threads` that take it.
std::vector<Automaton::Thread> Automaton::take(const std::vector<Thread>& threads,
                                               std::uint8_t byte) const {
  std::vector<Thread> taken;
  for (const Thread& thread : threads) {
    const GrammarOp& op = grammar_.ops[thread.op];
    if (op.low <= byte && byte <= op.high) taken.push_back({thread.op + 1, thread.stack});
  }
  return taken;
}

std::uint32_t Automaton::push(std::uint32_t stack, std::uint32_t op) {
  const auto [found, is_new] =
      frame_of_.try_emplace(pack(stack, op), static_cast<std::uint32_t>(frames_.size()));
  if (is_new) frames_.push_back({stack, op, frames_[stack].depth + 1});
  return found->second;
}

// Follows all that takes no byte. No thread and no end: dead.
Automaton::Reached Automaton::reach(std::vector<Thread> open) {
  Reached reached;
  std::set<Thread> seen(open.begin(), open.end());
  const auto visit = [&](std::uint32_t op, std::uint32_t stack) {
    if (seen.insert({op, stack}).second) open.push_back({op, stack});
  };
  while (!open.empty()) {
    const Thread thread = open.back();
    open.pop_back();
    const GrammarOp& op = grammar_.ops[thread.op];
    switch (op.kind) {
      case Kind::byte:
        if (op.low <= op.high) reached.threads.push_back(thread);
        break;
      case Kind::split:
        visit(op.a, thread.stack);
        visit(op.b, thread.stack);
        break;
      case Kind::jump: visit(op.a, thread.stack); break;
      case Kind::call:
        if (frames_[thread.stack].depth < stack_max)
          visit(op.a, push(thread.stack, thread.op + 1));
        break;
      case Kind::done:
        if (thread.stack == 0) reached.accepts = true;
        else visit(frames_[thread.stack].op, frames_[thread.stack].below);
        break;
    }
    if (seen.size() > 16 * threads_max || reached.threads.size() > threads_max) {
      too_wide_ = true;
      return {};
    }
  }
  std::ranges::sort(reached.threads);
  return reached;
}

Automaton::State Automaton::name(Reached reached) {
  if (reached.threads.empty() && !reached.accepts) return dead;
  std::uint64_t hash = reached.accepts;
  for (const Thread& thread : reached.threads) {
    hash = (hash ^ pack(thread.op, thread.stack)) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 29;
  }
  const auto [first, last] = by_hash_.equal_range(hash);
  for (auto at = first; at != last; ++at) {
    const Reached& other = states_[at->second];
    if (other.accepts == reached.accepts && other.threads == reached.threads) return at->second;
  }
  const auto state = static_cast<State>(states_.size());
  states_.push_back(std::move(reached));
  by_hash_.emplace(hash, state);
  return state;
}

}  // namespace sluice::engine
