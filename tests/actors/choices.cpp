// Shows that a stream of several choices is what the same prompt yields with consecutive seeds,
// that its prompt is computed once, and that it has one end whatever becomes of a choice.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <map>

#include "tests/actors/hearing.hpp"

using namespace sluice;
using fakes::greet;
using fakes::World;

namespace {

transport::Submit three(const std::string& prompt, std::uint32_t max_tokens) {
  auto submit = World::submit(1, prompt, max_tokens);
  submit.n = 3;
  return submit;
}

struct Told {
  std::map<std::uint32_t, std::string> text;
  std::map<std::uint32_t, engine::ChainHash> chain;
  std::optional<transport::Accepted> accepted;
  std::vector<transport::Message> terminals;
};

Told told(World& world, const std::string& peer) {
  Told out;
  for (const auto& message : world.heard(peer)) {
    if (const auto* accepted = std::get_if<transport::Accepted>(&message)) {
      out.accepted = *accepted;
      for (std::uint32_t i = 0; i < 3; ++i) out.chain[i] = accepted->chain;
    } else if (const auto* chunk = std::get_if<transport::Chunk>(&message)) {
      BOOST_TEST(out.terminals.empty());
      out.text[chunk->choice] += chunk->part.text;
      for (const Token token : chunk->part.tokens)
        out.chain[chunk->choice] = engine::chain_next(out.chain[chunk->choice], token);
      BOOST_TEST((out.chain[chunk->choice] == chunk->part.chain));
    } else {
      out.terminals.push_back(message);
    }
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(choices)

BOOST_AUTO_TEST_CASE(each_is_what_its_seed_gives_alone) {
  World world({.slots = 2});  // the third waits for a slot
  greet(world, "ann");
  auto submit = three("hello", 20);
  submit.stops = {World::expected("hello", 2, 20).substr(8, 3)};
  world.say("ann", submit);
  const Told out = told(world, "ann");
  BOOST_REQUIRE_EQUAL(out.terminals.size(), 1U);
  const auto& done = std::get<transport::Done>(out.terminals[0]);
  BOOST_REQUIRE_EQUAL(done.finish.size(), 3U);
  std::uint32_t tokens = 0;
  for (std::uint32_t i = 0; i < 3; ++i) {
    const std::string whole = World::expected("hello", 1 + i, 20);
    const std::size_t stop = whole.find(submit.stops[0]);
    BOOST_TEST(out.text.at(i) == whole.substr(0, stop));
    BOOST_TEST((done.finish[i] == (stop == std::string::npos ? engine::FinishReason::length
                                                             : engine::FinishReason::stop)));
    BOOST_TEST(done.text_bytes[i] == out.text.at(i).size());
    tokens += done.tokens[i];
  }
  BOOST_TEST((done.finish[1] == engine::FinishReason::stop));
  BOOST_TEST(done.receipt.prompt_tokens == 5U);
  BOOST_TEST(done.receipt.completion_tokens == tokens);
}

BOOST_AUTO_TEST_CASE(the_prompt_is_computed_once) {
  World world({.cache = true});
  greet(world, "ann");
  const std::string prompt(100, 'p');
  world.say("ann", three(prompt, 10));
  for (std::uint32_t i = 0; i < 3; ++i)
    BOOST_TEST(told(world, "ann").text.at(i) == World::expected(prompt, 1 + i, 10));
  // Six blocks of 16 are shared; the other two choices compute the 4 tokens behind them, and each
  // choice has 9 rows for tokens after its first, with up to two too many before its end is known.
  const std::uint64_t needed = 100 + 2 * 4 + 3 * 9;
  BOOST_TEST(world.backend->rows() >= needed);
  BOOST_TEST(world.backend->rows() <= needed + 6);
}

BOOST_AUTO_TEST_CASE(it_goes_on_after_what_its_owner_holds_of_each) {
  World world;
  greet(world, "ann");
  auto submit = three("hello", 20);
  submit.resume_numerics = "00112233445566778899aabbccddeeff";
  const std::size_t held[] = {0, 7, 20};
  for (std::uint32_t i = 0; i < 3; ++i) {
    std::vector<Token> tokens;
    for (const char c : World::expected("hello", 1 + i, 20).substr(0, held[i]))
      tokens.push_back(static_cast<unsigned char>(c));
    submit.resume_text_bytes.push_back(tokens.size());
    submit.resume_tokens.push_back(std::move(tokens));
  }
  world.say("ann", submit);
  std::map<std::uint32_t, std::string> text;
  for (const auto& message : world.heard("ann"))
    if (const auto* chunk = std::get_if<transport::Chunk>(&message))
      text[chunk->choice] += chunk->part.text;
  for (std::uint32_t i = 0; i < 3; ++i)
    BOOST_TEST(text[i] == World::expected("hello", 1 + i, 20).substr(held[i]));
  const auto& done = std::get<transport::Done>(world.heard("ann").back());
  BOOST_TEST(done.receipt.completion_tokens == 60U);
}

BOOST_AUTO_TEST_CASE(cancel_ends_all_of_them) {
  World world({.hold = true});
  greet(world, "ann");
  auto submit = three("hello", 100);
  submit.stops = {World::expected("hello", 1, 100).substr(0, 2)};  // the first ends by itself
  world.say("ann", submit);
  for (int i = 0; i < 6; ++i) BOOST_REQUIRE(world.step());
  world.say("ann", transport::Cancel{submit.stream, submit.owner, submit.epoch});
  while (world.step()) {
  }
  const Told out = told(world, "ann");
  BOOST_REQUIRE_EQUAL(out.terminals.size(), 1U);
  const auto& done = std::get<transport::Done>(out.terminals[0]);
  using enum engine::FinishReason;
  BOOST_TEST((done.finish == std::vector{stop, cancelled, cancelled}));
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
}

BOOST_AUTO_TEST_CASE(all_or_none_is_admitted) {
  World world({.hold = true, .slots = 1, .queue_max = 2});
  greet(world, "ann");
  world.say("ann", World::submit(9, "busy", 30));
  world.say("ann", three("hello", 5));  // three do not fit into a queue of two
  BOOST_REQUIRE(std::holds_alternative<transport::Failed>(world.heard("ann").back()));
  const auto failed = std::get<transport::Failed>(world.heard("ann").back());
  BOOST_TEST((failed.error.code == ErrorCode::overloaded));
  BOOST_TEST(world.stat("engine.bytes.waiting") == 0);
  while (world.step()) {
  }
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
}

BOOST_AUTO_TEST_CASE(a_failed_step_ends_the_stream_once) {
  World world({.hold = true});
  greet(world, "ann");
  world.backend->fail_next();
  world.say("ann", three("hello", 30));
  while (world.step()) {
  }
  const Told out = told(world, "ann");
  BOOST_REQUIRE_EQUAL(out.terminals.size(), 1U);
  BOOST_TEST((std::get<transport::Failed>(out.terminals[0]).error.code == ErrorCode::internal));
  BOOST_TEST(world.stat("engine.bytes.running") == 0);
}

BOOST_AUTO_TEST_SUITE_END()
