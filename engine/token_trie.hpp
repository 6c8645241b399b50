#pragma once
// A vocabulary as a tree of bytes, to find all tokens that an automaton lets follow in one walk.

#include <cstdint>
#include <vector>

#include "engine/automaton.hpp"
#include "model/tokenizer.hpp"

namespace sluice::engine {

/// Bit t of word t / 64: token t may be drawn.
using TokenBits = std::vector<std::uint64_t>;

/// Immutable. Control tokens and tokens without bytes are not in it.
class TokenTrie {
 public:
  explicit TokenTrie(const model::Tokenizer& tokenizer);

  /// Tokens all of whose bytes may follow `state`. With `drops_space` a leading space of a token
  /// adds no text: what is left of it counts, and a lone space is left out. O(nodes reached).
  TokenBits allowed(Automaton& automaton, Automaton::State state, bool drops_space) const;

 private:
  /// Preorder: a node's children follow it, up to `end`.
  struct Node {
    std::uint8_t byte = 0;
    std::uint32_t depth = 0;  ///< bytes from the root
    std::uint32_t end = 0;    ///< the first node behind its own
    std::uint32_t token = 0;  ///< in `tokens_`: its first
    std::uint32_t tokens = 0;
  };

  std::vector<Node> nodes_;
  std::vector<Token> tokens_;
  std::uint32_t vocabulary_ = 0;
  std::uint32_t longest_ = 0;  ///< bytes of a token
};

}  // namespace sluice::engine
