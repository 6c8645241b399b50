#pragma once
// What a client of a World was told.

#include <boost/test/unit_test.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tests/actors/world.hpp"

namespace sluice::fakes {

inline void greet(World& world, const std::string& peer) {
  world.say(peer, transport::Hello{});
  BOOST_REQUIRE(std::holds_alternative<transport::Welcome>(world.heard(peer).back()));
  world.heard(peer).clear();
}

struct Heard {
  std::string text;
  std::vector<Token> tokens;
  bool accepted_first = false;
  std::uint32_t terminals = 0;
  std::optional<transport::Done> done;
  std::optional<transport::Failed> failed;
};

/// What a peer was told of one stream; repeats of the terminal count once.
inline Heard listen(const std::vector<transport::Message>& messages,
                    const transport::StreamId& stream) {
  Heard heard;
  bool first = true;
  for (const auto& message : messages) {
    if (const auto* accepted = std::get_if<transport::Accepted>(&message)) {
      if (accepted->stream != stream) continue;
      heard.accepted_first = first;
    } else if (const auto* chunk = std::get_if<transport::Chunk>(&message)) {
      if (chunk->stream != stream) continue;
      BOOST_TEST(chunk->part.first_index == heard.tokens.size());
      BOOST_TEST(chunk->part.text_offset == heard.text.size());
      heard.text += chunk->part.text;
      heard.tokens.insert(heard.tokens.end(), chunk->part.tokens.begin(), chunk->part.tokens.end());
    } else if (const auto* done = std::get_if<transport::Done>(&message)) {
      if (done->stream != stream) continue;
      ++heard.terminals;
      heard.done = *done;
    } else if (const auto* failed = std::get_if<transport::Failed>(&message)) {
      if (failed->stream != stream) continue;
      ++heard.terminals;
      heard.failed = *failed;
    }
    first = false;
  }
  return heard;
}

inline Heard listen(World& world, const std::string& peer, const transport::StreamId& stream) {
  return listen(world.heard(peer), stream);
}

}  // namespace sluice::fakes
