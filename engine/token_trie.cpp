#include "engine/token_trie.hpp"

#include <algorithm>
#include <string_view>

namespace sluice::engine {

TokenTrie::TokenTrie(const model::Tokenizer& tokenizer) : vocabulary_(tokenizer.size()) {
  for (Token token = 0; token < vocabulary_; ++token) {
    if (tokenizer.is_control(token) || tokenizer.bytes(token).empty()) continue;
    tokens_.push_back(token);
    longest_ = std::max(longest_, static_cast<std::uint32_t>(tokenizer.bytes(token).size()));
  }
  std::ranges::sort(tokens_, {}, [&](Token token) {
    return std::pair(tokenizer.bytes(token), token);
  });
  std::vector<std::uint32_t> path;  // nodes from the root to the latest
  std::string_view before;
  for (std::uint32_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view bytes = tokenizer.bytes(tokens_[i]);
    std::size_t shared = 0;
    while (shared < before.size() && shared < bytes.size() && before[shared] == bytes[shared])
      ++shared;
    const auto close = [&](std::size_t depth) {
      for (; path.size() > depth; path.pop_back())
        nodes_[path.back()].end = static_cast<std::uint32_t>(nodes_.size());
    };
    close(shared);
    for (std::size_t depth = shared; depth < bytes.size(); ++depth) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({static_cast<std::uint8_t>(bytes[depth]),
                        static_cast<std::uint32_t>(depth + 1), 0, i, 0});
    }
    ++nodes_[path.back()].tokens;
    before = bytes;
  }
  const auto end = static_cast<std::uint32_t>(nodes_.size());
  for (const std::uint32_t node : path) nodes_[node].end = end;
}

TokenBits TokenTrie::allowed(Automaton& automaton, Automaton::State state,
                             bool drops_space) const {
  TokenBits bits((vocabulary_ + 63) / 64, 0);
  std::vector<Automaton::State> states(longest_ + 1, Automaton::dead);  // by depth
  states[0] = state;
  for (std::uint32_t i = 0; i < nodes_.size();) {
    const Node& node = nodes_[i];
    const bool dropped = drops_space && node.depth == 1 && node.byte == ' ';
    const Automaton::State reached =
        dropped ? state : automaton.next(states[node.depth - 1], node.byte);
    if (reached == Automaton::dead) {
      i = node.end;
      continue;
    }
    states[node.depth] = reached;
    if (!dropped) {
      for (std::uint32_t t = node.token; t < node.token + node.tokens; ++t)
        bits[tokens_[t] / 64] |= std::uint64_t{1} << (tokens_[t] % 64);
    }
    ++i;
  }
  return bits;
}

}  // namespace sluice::engine
