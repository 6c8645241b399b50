// Shows that a role on another node serves as one on this: streams are the same wherever their
// tokenizer, batcher and executor live, a lost node is heard of as a lost actor is, and what it
// offered is used again when it is back. The wire is real, the links are cut by hand.

#include <boost/test/unit_test.hpp>

#include "tests/actors/fleet.hpp"
#include "tests/actors/hearing.hpp"

namespace {

using namespace sluice;
using fakes::Fleet;
using fakes::FleetNode;
using fakes::listen;
using fakes::World;

fakes::Heard heard(FleetNode& node, const transport::Submit& submit) {
  return listen(node.outbox->sent["ann"], submit.stream);
}

/// As a client does whose stream ended with `unavailable`: goes on after what it holds.
transport::Submit resumed(transport::Submit submit, const fakes::Heard& held) {
  ++submit.epoch;
  submit.resume_tokens = {held.tokens};
  submit.resume_text_bytes = {held.text.size()};
  submit.resume_numerics = "00112233445566778899aabbccddeeff";
  return submit;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(remote_roles)

BOOST_AUTO_TEST_CASE(streams_are_the_same_wherever_roles_live) {
  struct Layout {
    const char* a;
    const char* b;
    const char* c;
    const char* d;
  };
  for (const auto& layout : {Layout{"front", "tokenizer", "engine", "executor"},
                             Layout{"front tokenizer", "engine", "executor", ""},
                             Layout{"front tokenizer", "engine executor", "", ""},
                             Layout{"front tokenizer engine", "executor", "", ""}}) {
    Fleet fleet;
    std::vector<FleetNode*> nodes;
    for (const char* roles : {layout.a, layout.b, layout.c, layout.d})
      if (*roles != 0) nodes.push_back(&fleet.add("node " + std::string(roles), roles));
    BOOST_TEST(!nodes[0]->status->now().has_value());
    for (std::size_t i = 0; i < nodes.size(); ++i)
      for (std::size_t j = i + 1; j < nodes.size(); ++j) fleet.connect(*nodes[j], *nodes[i]);
    BOOST_TEST(nodes[0]->status->now().has_value());
    for (std::uint8_t i = 1; i <= 6; ++i)
      fleet.say(*nodes[0], "ann", World::submit(i, std::string(i * 3, 'x'), 10U + i));
    for (std::uint8_t i = 1; i <= 6; ++i) {
      const auto got = heard(*nodes[0], World::submit(i, "", 1));
      BOOST_TEST(got.text == World::expected(std::string(i * 3, 'x'), i, 10U + i));
      BOOST_TEST(got.terminals == 1U);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_cancel_reaches_a_remote_batcher) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer");
  auto& engine = fleet.add("engine", "engine executor");
  fleet.connect(front, engine);
  const auto submit = World::submit(1, "hello", 100);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 5; ++i) BOOST_REQUIRE(fleet.step(engine));
  fleet.say(front, "ann", transport::Cancel{submit.stream, submit.owner, submit.epoch});
  while (fleet.step(engine)) {
  }
  const auto got = heard(front, submit);
  BOOST_REQUIRE(got.done);
  BOOST_TEST((got.done->finish.at(0) == engine::FinishReason::cancelled));
  BOOST_TEST(got.text == World::expected("hello", 1, 100).substr(0, got.text.size()));
}

BOOST_AUTO_TEST_CASE(a_refusal_comes_back_from_another_node) {
  Fleet fleet;
  auto& front = fleet.add("front", "front");
  auto& tokenizer = fleet.add("tokenizer", "tokenizer");
  auto& engine = fleet.add("engine", "engine executor");
  fleet.connect(tokenizer, front);
  fleet.connect(engine, front);
  const auto submit = World::submit(1, std::string(300, 'x'), 10);  // the context is 256
  fleet.say(front, "ann", submit);
  const auto got = heard(front, submit);
  BOOST_REQUIRE(got.failed);
  BOOST_TEST((got.failed->error.code == ErrorCode::too_long));
}

BOOST_AUTO_TEST_CASE(a_lost_engine_node_is_replaced_by_another) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer");
  auto& first = fleet.add("first", "engine executor");
  fleet.connect(front, first);
  auto submit = World::submit(1, "hello", 40);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 12; ++i) BOOST_REQUIRE(fleet.step(first));
  auto& second = fleet.add("second", "engine executor");
  fleet.connect(front, second);
  fleet.cut(front, first);
  const auto before = heard(front, submit);
  BOOST_REQUIRE(before.failed);
  BOOST_TEST((before.failed->error.code == ErrorCode::unavailable));
  BOOST_TEST(before.failed->error.retry_after_ms > 0U);
  BOOST_TEST(!before.tokens.empty());
  front.outbox->sent["ann"].clear();
  submit = resumed(submit, before);
  fleet.say(front, "ann", submit);
  while (fleet.step(second)) {
  }
  std::string text = before.text;
  for (const auto& message : front.outbox->sent["ann"])
    if (const auto* chunk = std::get_if<transport::Chunk>(&message)) text += chunk->part.text;
  BOOST_TEST(text == World::expected("hello", 1, 40));
  // The lost node dropped what nobody keeps any more.
  while (fleet.step(first)) {
  }
  BOOST_TEST(first.backend->rows() < 5U + 40U);
}

BOOST_AUTO_TEST_CASE(streams_spread_over_replicas) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer");
  auto& first = fleet.add("first", "engine executor");
  auto& second = fleet.add("second", "engine executor");
  fleet.connect(front, first);
  fleet.connect(front, second);
  for (std::uint8_t i = 1; i <= 4; ++i) fleet.say(front, "ann", World::submit(i, "abc", 5));
  while (fleet.step(first) || fleet.step(second)) {
  }
  BOOST_TEST(first.backend->rows() == second.backend->rows());
  for (std::uint8_t i = 1; i <= 4; ++i)
    BOOST_TEST(heard(front, World::submit(i, "", 1)).text == World::expected("abc", i, 5));
}

// Found by the simulator (--fleets, seed 1884): of two requests for two replicas that were at the
// tokenizer at once, both went to the second; when that was lost, the first was never answered.
BOOST_AUTO_TEST_CASE(a_remote_tokenizer_reads_for_several_replicas) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front");
  auto& tokenizer = fleet.add("tokenizer", "tokenizer");
  auto& first = fleet.add("first", "engine executor");
  auto& second = fleet.add("second", "engine executor");
  for (auto* node : {&tokenizer, &first, &second}) fleet.connect(front, *node);
  for (std::uint8_t i = 1; i <= 2; ++i)
    caf::anon_send(front.session, actors::inbound_atom::value,
                   actors::Inbound{"ann", World::submit(i, "abc", 5)});
  fleet.run();
  while (fleet.step(first) || fleet.step(second)) {
  }
  BOOST_TEST(first.backend->rows() > 0U);
  BOOST_TEST(first.backend->rows() == second.backend->rows());
  for (std::uint8_t i = 1; i <= 2; ++i)
    BOOST_TEST(heard(front, World::submit(i, "", 1)).text == World::expected("abc", i, 5));
}

BOOST_AUTO_TEST_CASE(a_request_waits_for_a_tokenizer_that_is_about_to_join) {
  Fleet fleet;
  auto& front = fleet.add("front", "front");
  auto& engine = fleet.add("engine", "engine executor");
  auto& tokenizer = fleet.add("tokenizer", "tokenizer");
  fleet.connect(engine, front);
  const auto early = World::submit(1, "hello", 10), late = World::submit(2, "hello", 10);
  fleet.say(front, "ann", early);
  fleet.advance(std::chrono::milliseconds(1500));
  fleet.say(front, "ann", late);
  BOOST_TEST(heard(front, early).terminals == 0U);
  fleet.advance(std::chrono::milliseconds(600));
  const auto refused = heard(front, early);  // it waited two seconds, the other one did not
  BOOST_REQUIRE(refused.failed);
  BOOST_CHECK(refused.failed->error.code == ErrorCode::unavailable);
  BOOST_TEST(heard(front, late).terminals == 0U);
  fleet.connect(tokenizer, front);
  BOOST_TEST(heard(front, late).text == World::expected("hello", 2, 10));
}

BOOST_AUTO_TEST_CASE(a_deadline_counts_from_the_front) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front");
  auto& engine = fleet.add("engine", "engine executor");
  auto& tokenizer = fleet.add("tokenizer", "tokenizer");
  fleet.connect(engine, front);
  auto submit = World::submit(1, "hello", 100);
  submit.deadline_ms = 1000;
  fleet.say(front, "ann", submit);
  fleet.advance(std::chrono::milliseconds(800));  // in which nobody reads the prompt
  fleet.connect(tokenizer, front);
  BOOST_REQUIRE(fleet.step(engine));
  BOOST_TEST(heard(front, submit).terminals == 0U);
  fleet.advance(std::chrono::milliseconds(300));
  BOOST_REQUIRE(fleet.step(engine));
  const auto got = heard(front, submit);
  BOOST_REQUIRE(got.failed);
  BOOST_CHECK(got.failed->error.code == ErrorCode::deadline);
}

BOOST_AUTO_TEST_CASE(a_lost_executor_node_is_used_again_when_it_is_back) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer engine");
  auto& device = fleet.add("device", "executor");
  fleet.connect(device, front);
  const auto submit = World::submit(1, "hello", 30);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 6; ++i) BOOST_REQUIRE(fleet.step(device));
  fleet.cut(device, front);
  fleet.connect(device, front);
  fleet.advance(std::chrono::seconds(1));
  BOOST_TEST(device.loads == 2U);
  const auto again = World::submit(2, "hello", 30);
  fleet.say(front, "ann", again);
  while (fleet.step(device)) {
  }
  BOOST_TEST(heard(front, again).text == World::expected("hello", 2, 30));
}

// A bug once: whoever fails to start offers itself again at once, and was taken again at once,
// hundreds of times a second while two ranks could not reach each other.
BOOST_AUTO_TEST_CASE(an_executor_that_fails_to_start_is_let_rest) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer engine");
  auto& device = fleet.add("device", "executor");
  device.failing_loads = 100;
  fleet.connect(device, front);
  BOOST_TEST(device.loads == 1U);
  for (int i = 0; i < 100; ++i) fleet.advance(std::chrono::milliseconds(50));
  BOOST_TEST(device.loads >= 5U);
  BOOST_TEST(device.loads <= 12U);
  device.failing_loads = 0;
  for (int i = 0; i < 10; ++i) fleet.advance(std::chrono::milliseconds(50));
  const auto submit = World::submit(1, "hello", 20);
  fleet.say(front, "ann", submit);
  while (fleet.step(device)) {
  }
  BOOST_TEST(heard(front, submit).text == World::expected("hello", 1, 20));
}

BOOST_AUTO_TEST_CASE(an_executor_whose_step_hangs_is_given_up) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer engine");
  auto& device = fleet.add("device", "executor");
  fleet.connect(device, front);
  const auto submit = World::submit(1, "hello", 20);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 6; ++i) BOOST_REQUIRE(fleet.step(device));
  for (int i = 0; i < 38; ++i) fleet.advance(std::chrono::milliseconds(250));  // of ten seconds
  BOOST_TEST(device.loads == 1U);
  for (int i = 0; i < 20; ++i) fleet.advance(std::chrono::milliseconds(250));
  BOOST_TEST(device.loads == 2U);
  while (fleet.step(device)) {
  }
  BOOST_TEST(heard(front, submit).text == World::expected("hello", 1, 20));
}

BOOST_AUTO_TEST_CASE(two_fronts_share_a_batcher_and_one_may_be_lost) {
  Fleet fleet(true);
  auto& engine = fleet.add("engine", "engine executor");
  auto& one = fleet.add("one", "front tokenizer");
  auto& two = fleet.add("two", "front tokenizer");
  fleet.connect(one, engine);
  fleet.connect(two, engine);
  fleet.say(one, "ann", World::submit(1, "hello", 60));
  fleet.say(two, "ann", World::submit(2, "hello", 30));
  for (int i = 0; i < 4; ++i) BOOST_REQUIRE(fleet.step(engine));
  fleet.cut(one, engine);
  while (fleet.step(engine)) {
  }
  BOOST_TEST(heard(two, World::submit(2, "", 1)).text == World::expected("hello", 2, 30));
  BOOST_TEST(engine.backend->rows() < 2U * 5 + 30 + 20);  // nothing more for the lost front
}

BOOST_AUTO_TEST_CASE(a_taken_executor_is_not_offered_to_another) {
  Fleet fleet;
  auto& device = fleet.add("device", "executor");
  auto& one = fleet.add("one", "front tokenizer engine");
  auto& two = fleet.add("two", "front tokenizer engine");
  fleet.connect(device, one);
  fleet.connect(device, two);
  fleet.advance(std::chrono::seconds(1));
  BOOST_TEST(one.status->now().has_value());
  BOOST_TEST(!two.status->now().has_value());
  fleet.cut(device, one);
  fleet.advance(std::chrono::seconds(1));
  BOOST_TEST(two.status->now().has_value());
}

BOOST_AUTO_TEST_SUITE_END()
