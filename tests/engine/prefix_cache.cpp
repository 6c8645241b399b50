// Which blocks are used again, by whom, and when not: on the fake device, which checks that what
// lies in a block is what its new user would have computed.
#include "engine/prefix_cache.hpp"

#include <boost/test/unit_test.hpp>

#include "tests/engine/driver.hpp"

using namespace sluice;
using namespace sluice::engine;
using namespace sluice::engine::test;

namespace {

SchedulerConfig cached() {
  SchedulerConfig config;
  config.slots = 4;
  config.blocks = 16;
  config.block_tokens = 4;
  config.context_tokens = 48;
  config.rows_max = 16;
  config.prefix_root = BlockHash{};
  config.paths_equal = true;
  return config;
}

/// Prompt tokens first, first + 1, ...
Request request(SequenceId id, Token first, std::uint32_t prompt, std::uint32_t max_tokens) {
  Request request;
  request.id = id;
  for (Token token = first; token < first + prompt; ++token) request.prompt.push_back(token);
  request.max_tokens = max_tokens;
  request.sampling.seed = id;
  return request;
}

std::uint32_t cached_tokens(Engine& engine, Request request) {
  const SequenceId id = request.id;
  const Alone alone = run_alone(request, engine.config.context_tokens);
  BOOST_REQUIRE(engine.scheduler.submit(std::move(request), ++engine.now));
  engine.drain();
  BOOST_CHECK(engine.ended.at(id).tokens == alone.tokens);
  return engine.ended.at(id).timing.cached_tokens;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(prefix_cache)

BOOST_AUTO_TEST_CASE(hashes_tell_prefixes_apart) {
  const std::vector<Token> one = {1, 2, 3, 4}, two = {1, 2, 3, 5};
  const BlockHash root{}, other{1};
  BOOST_CHECK(block_hash(root, one, 4) == block_hash(root, one, 4));
  BOOST_CHECK(block_hash(root, one, 4) != block_hash(root, two, 4));
  BOOST_CHECK(block_hash(root, one, 4) != block_hash(other, one, 4));
  BOOST_CHECK(block_hash(root, one, 4) != block_hash(root, one, 3));
}

BOOST_AUTO_TEST_CASE(a_prefix_is_computed_once) {
  Engine engine(cached());
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(1, 50, 11, 2)), 0U);
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(2, 50, 11, 2)), 8U);
  // The last token's row yields the logits, so its block is computed though it is known.
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(3, 50, 8, 2)), 4U);
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(4, 51, 11, 2)), 0U);
  BOOST_CHECK_EQUAL(engine.scheduler.stats().cached_tokens, 12U);
  BOOST_CHECK_EQUAL(engine.scheduler.stats().prompt_tokens, 41U);
}

BOOST_AUTO_TEST_CASE(without_a_root_nothing_is_kept) {
  SchedulerConfig config = cached();
  config.prefix_root.reset();
  Engine engine(config);
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(1, 50, 11, 2)), 0U);
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(2, 50, 11, 2)), 0U);
  BOOST_CHECK_EQUAL(engine.scheduler.stats().blocks_cached, 0U);
}

BOOST_AUTO_TEST_CASE(a_conversation_goes_on_from_its_answers_if_the_paths_are_equal) {
  for (const bool equal : {true, false}) {
    SchedulerConfig config = cached();
    config.paths_equal = equal;
    Engine engine(config);
    Request first = request(1, 50, 10, 11);
    BOOST_CHECK_EQUAL(cached_tokens(engine, first), 0U);
    Request next = request(2, 50, 10, 2);
    const auto& answer = engine.ended.at(1).tokens;
    next.prompt.insert(next.prompt.end(), answer.begin(), answer.end());
    // Of 21 tokens 20 have been computed; without equal paths only what was all prompt is the same.
    BOOST_CHECK_EQUAL(cached_tokens(engine, next), equal ? 20U : 8U);
  }
}

BOOST_AUTO_TEST_CASE(who_wants_what_is_being_computed_waits_for_it) {
  Engine engine(cached());
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 50, 24, 4), 1));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 50, 24, 4), 2));
  BOOST_REQUIRE(engine.scheduler.submit(request(3, 90, 8, 4), 3));
  // Another passes the one that waits.
  const auto plan = engine.step();
  BOOST_REQUIRE(plan);
  BOOST_REQUIRE_EQUAL(plan->batch.opens.size(), 1U);
  const auto next = engine.step();
  BOOST_REQUIRE(next);
  BOOST_REQUIRE_EQUAL(next->batch.opens.size(), 1U);
  BOOST_CHECK_EQUAL(next->batch.opens[0].tokens[0], 90U);
  engine.apply(engine.device.run(*plan));
  engine.apply(engine.device.run(*next));
  engine.drain();
  BOOST_CHECK_EQUAL(engine.ended.at(2).timing.cached_tokens, 20U);
}

BOOST_AUTO_TEST_CASE(no_more_are_passed_over_than_there_are_slots) {
  for (const SequenceId alike : {4U, 5U}) {
    Engine engine(cached());
    SequenceId id = 0;
    for (; id <= alike; ++id) BOOST_REQUIRE(engine.scheduler.submit(request(id, 50, 24, 4), 1));
    BOOST_REQUIRE(engine.step());  // the first begins to compute what the others want
    BOOST_REQUIRE(engine.scheduler.submit(request(id, 90, 8, 4), 2));
    const auto plan = engine.step();
    BOOST_REQUIRE(plan);
    BOOST_CHECK_EQUAL(plan->batch.opens.size(), alike == 4 ? 1U : 0U);
  }
}

BOOST_AUTO_TEST_CASE(who_waits_for_one_that_ends_computes_by_itself) {
  Engine engine(cached());
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 50, 24, 4), 1));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 50, 24, 4), 2));
  const auto plan = engine.step();
  engine.scheduler.cancel(1, FinishReason::cancelled, {}, 3);
  const auto next = engine.step();
  BOOST_REQUIRE(plan && next);
  BOOST_CHECK_EQUAL(next->batch.opens.size(), 1U);
  engine.apply(engine.device.run(*plan));
  engine.apply(engine.device.run(*next));
  engine.drain();
  BOOST_CHECK_EQUAL(engine.ended.at(2).timing.cached_tokens, 0U);
  BOOST_CHECK_EQUAL(engine.ended.at(2).tokens.size(), 4U);
}

BOOST_AUTO_TEST_CASE(the_longest_unused_goes_first_and_from_its_end) {
  Engine engine(cached());                        // 16 blocks
  cached_tokens(engine, request(1, 50, 29, 2));   // keeps 7
  cached_tokens(engine, request(2, 100, 29, 2));  // keeps 7
  BOOST_CHECK_EQUAL(engine.scheduler.stats().blocks_cached, 14U);
  cached_tokens(engine, request(3, 150, 17, 2));  // takes 2 free ones and 3 of the first's
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(4, 100, 29, 2)), 28U);
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(5, 50, 29, 2)), 16U);
}

BOOST_AUTO_TEST_CASE(what_a_bad_slot_computed_is_forgotten) {
  Engine engine(cached());
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 50, 24, 4), 1));
  const auto first = engine.step();
  const auto second = engine.step();
  BOOST_REQUIRE(first && second);
  engine.apply(engine.device.run(*first));
  BOOST_CHECK_EQUAL(engine.scheduler.stats().blocks_cached, 0U);  // held, not idle
  engine.apply(engine.device.run(*second, false, {first->batch.opens[0].slot.slot}));
  BOOST_CHECK(engine.ended.at(1).last.finish == FinishReason::error);
  BOOST_CHECK_EQUAL(engine.scheduler.stats().blocks_cached, 0U);
  engine.drain();
  BOOST_CHECK_EQUAL(cached_tokens(engine, request(2, 50, 24, 4)), 0U);
}

BOOST_AUTO_TEST_SUITE_END()
