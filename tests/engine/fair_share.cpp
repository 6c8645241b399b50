// Shows that tenants who want more than there is get equal shares of tokens, that who asks for
// little hardly waits, and that a tenant alone is served in order.
#include "engine/fair_share.hpp"

#include <boost/test/unit_test.hpp>

#include "tests/engine/driver.hpp"

using namespace sluice;
using namespace sluice::engine;
using namespace sluice::engine::test;

namespace {

Request request_of(SequenceId id, std::string tenant, std::uint32_t prompt, std::uint32_t output) {
  Request request;
  request.id = id;
  request.prompt.assign(prompt, static_cast<Token>('a' + id % 26));
  request.max_tokens = output;
  request.tenant = std::move(tenant);
  return request;
}

SchedulerConfig two_slots() {
  SchedulerConfig config;
  config.slots = 2;
  config.blocks = 64;
  config.context_tokens = 256;
  config.rows_max = 64;
  config.queue_max = 300;
  return config;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(fair_share)

BOOST_AUTO_TEST_CASE(tags_follow_the_clock) {
  FairShare shares;
  BOOST_TEST(shares.next("a") == 0);
  shares.enter("a", 100);
  shares.enter("a", 100);
  BOOST_TEST(shares.next("a") == 200);
  BOOST_TEST(shares.next("b") == 0);
  shares.begin(100);
  BOOST_TEST(shares.next("b") == 100);  // who comes later starts where the others are
  shares.settle("a", 100, 20);          // took less than it said
  BOOST_TEST(shares.next("a") == 120);
}

BOOST_AUTO_TEST_CASE(who_is_behind_the_clock_is_forgotten) {
  FairShare shares;
  for (int i = 0; i < 10'000; ++i) {
    shares.begin(shares.next("tenant " + std::to_string(i)));
    shares.enter("tenant " + std::to_string(i), 1);
    shares.begin(i + 2);
  }
  BOOST_TEST(shares.tenants() < 200U);
}

BOOST_AUTO_TEST_CASE(a_flood_does_not_delay_another) {
  Engine engine(two_slots());
  for (SequenceId id = 0; id < 200; ++id)
    BOOST_REQUIRE(engine.scheduler.submit(request_of(id, "flood", 8, 8), engine.now));
  for (int i = 0; i < 5; ++i) engine.apply(engine.device.run(*engine.step()));
  BOOST_REQUIRE(engine.scheduler.submit(request_of(1000, "other", 8, 8), engine.now));
  engine.drain();
  std::size_t before = 0;
  for (const auto& [id, ended] : engine.ended)
    before += ended.timing.finished < engine.ended.at(1000).timing.finished;
  BOOST_TEST(before <= 4U);  // those that ran already, and at most one slot's next
  for (SequenceId id = 1; id < 200; ++id)  // the flood itself is served in order
    BOOST_TEST(engine.ended.at(id - 1).timing.started <= engine.ended.at(id).timing.started);
}

BOOST_AUTO_TEST_CASE(shares_are_equal_in_tokens_not_in_requests) {
  Engine engine(two_slots());
  SequenceId id = 0;
  for (int i = 0; i < 40; ++i)
    BOOST_REQUIRE(engine.scheduler.submit(request_of(id++, "long", 40, 40), engine.now));
  const SequenceId first_short = id;
  for (int i = 0; i < 160; ++i)
    BOOST_REQUIRE(engine.scheduler.submit(request_of(id++, "short", 10, 10), engine.now));
  std::uint64_t tokens[2] = {0, 0};
  while (engine.scheduler.stats().tokens < 1600) engine.apply(engine.device.run(*engine.step()));
  for (const auto& [which, ended] : engine.ended)
    tokens[which >= first_short] += ended.tokens.size();
  BOOST_TEST(tokens[0] > 600U);
  BOOST_TEST(tokens[1] > 600U);
}

BOOST_AUTO_TEST_CASE(a_queue_full_of_one_has_room_for_others) {
  SchedulerConfig config = two_slots();
  config.queue_max = 3;
  Engine engine(config);
  SequenceId id = 0;
  const auto submit = [&](const std::string& tenant) {
    return engine.scheduler.submit(request_of(id++, tenant, 4, 4), engine.now);
  };
  for (int i = 0; i < 3; ++i) BOOST_REQUIRE(submit("a"));
  const auto refused = submit("a");
  BOOST_REQUIRE(!refused);
  BOOST_TEST((refused.error().code == ErrorCode::overloaded));
  BOOST_TEST(refused.error().message == "3 sequences of the same tenant wait already");
  for (const char* tenant : {"b", "c", "d"})
    for (int i = 0; i < 3; ++i) BOOST_REQUIRE(submit(tenant));
  const auto full = submit("e");
  BOOST_REQUIRE(!full);
  BOOST_TEST(full.error().message == "12 sequences wait already");
  BOOST_TEST(full.error().retry_after_ms > 0U);
  engine.drain();
  BOOST_TEST(engine.ended.size() == 12U);
}

BOOST_AUTO_TEST_SUITE_END()
