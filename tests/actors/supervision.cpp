// Shows what becomes of streams when an executor ends: they pause, and go on with the next as if
// nothing had happened; where that cannot be, they end with a typed error, and the node serves on
// or says why not. The device is a hash, so the right text of every stream is known in advance.

#include <boost/test/unit_test.hpp>
#include <set>

#include "actors/batcher.hpp"
#include "tests/actors/hearing.hpp"

using namespace sluice;
using fakes::greet;
using fakes::listen;
using fakes::World;

namespace {

void finish(World& world) {
  while (world.step()) {
  }
}

transport::Health health(World& world) {
  world.say("doctor", transport::HealthRequest{});
  return std::get<transport::Health>(world.heard("doctor").back());
}

void check_unavailable(World& world, const transport::Submit& submit) {
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_TEST(heard.terminals == 1U);
  BOOST_REQUIRE(heard.failed);
  BOOST_TEST(to_string(heard.failed->error.code) == "unavailable");
  BOOST_TEST(heard.failed->error.retry_after_ms > 0U);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(supervision)

BOOST_AUTO_TEST_CASE(streams_outlive_their_executor) {
  World world({.hold = true, .slots = 3, .cache = true});
  greet(world, "ann");
  const auto plain = World::submit(1, "hello", 50);
  auto digits = World::submit(2, "digits", 40);
  digits.constraint = {engine::Constraint::Kind::regex, "[0-9]{20}"};
  auto choices = World::submit(3, "several", 30);
  choices.n = 2;
  auto resumed = World::submit(7, "resumed", 30);
  const std::string held = World::expected("resumed", 7, 30).substr(0, 10);
  resumed.resume_tokens = {{held.begin(), held.end()}};
  resumed.resume_text_bytes = {held.size()};
  resumed.resume_numerics = "00112233445566778899aabbccddeeff";
  for (const auto& submit : {plain, digits, choices, resumed}) world.say("ann", submit);
  World undisturbed;  // for what the constraint lets through
  greet(undisturbed, "ann");
  undisturbed.say("ann", digits);

  for (std::uint32_t loss = 1; loss <= 3; ++loss) {
    for (int i = 0; i < 9; ++i) BOOST_REQUIRE(world.step());
    world.backend->die_next();
    while (world.loads == loss) BOOST_REQUIRE(world.step());
  }
  finish(world);
  BOOST_TEST(world.loads == 4U);
  BOOST_TEST(world.stat("engine.bytes.devices_lost") == 3);
  BOOST_TEST(health(world).ready);
  BOOST_TEST(world.status->now().has_value());
  const auto whole = listen(world, "ann", plain.stream);
  BOOST_TEST(whole.text == World::expected("hello", 1, 50));
  BOOST_TEST(whole.terminals == 1U);
  BOOST_TEST(listen(world, "ann", digits.stream).text ==
             listen(undisturbed, "ann", digits.stream).text);
  std::map<std::uint32_t, std::string> texts;
  for (const auto& message : world.heard("ann")) {
    BOOST_TEST(!std::holds_alternative<transport::Failed>(message));
    const auto* chunk = std::get_if<transport::Chunk>(&message);
    if (chunk != nullptr && chunk->stream == choices.stream)
      texts[chunk->choice] += chunk->part.text;
    if (chunk != nullptr && chunk->stream == resumed.stream) texts[9] += chunk->part.text;
  }
  BOOST_TEST(texts[0] == World::expected("several", 3, 30));
  BOOST_TEST(texts[1] == World::expected("several", 4, 30));
  BOOST_TEST(texts[9] == World::expected("resumed", 7, 30).substr(10));
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
}

// Between one executor and the next the node is not ready, and takes streams all the same.
BOOST_AUTO_TEST_CASE(health_tells_of_the_pause) {
  World world({.hold = true});
  greet(world, "ann");
  const auto running = World::submit(1, "hello", 20);
  const auto meanwhile = World::submit(2, "again", 20);
  world.say("ann", running);
  world.backend->die_next();
  BOOST_REQUIRE(world.backend->release());
  std::set<std::string> told;
  bool asked = false;
  for (int i = 0; i < 40; ++i) {
    caf::anon_send(world.session, actors::inbound_atom::value,
                   actors::Inbound{"doctor", transport::HealthRequest{}});
    for (int j = 0; j < 2 && world.coordinator().has_job(); ++j) world.coordinator().run_once();
    for (const auto& message : world.heard("doctor"))
      told.insert(std::get<transport::Health>(message).why);
    if (asked || told.size() < 2) continue;
    asked = true;
    caf::anon_send(world.session, actors::inbound_atom::value, actors::Inbound{"ann", meanwhile});
  }
  world.run();
  BOOST_TEST((told == std::set<std::string>{"", "1 of 1 engines lost, restarting"}));
  BOOST_TEST(health(world).ready);
  BOOST_TEST(asked);
  finish(world);
  BOOST_TEST(listen(world, "ann", running.stream).text == World::expected("hello", 1, 20));
  BOOST_TEST(listen(world, "ann", meanwhile.stream).text == World::expected("again", 2, 20));
}

BOOST_AUTO_TEST_CASE(other_numerics_or_a_smaller_pool_end_the_streams) {
  for (const fakes::WorldOptions& options :
       {fakes::WorldOptions{.hold = true, .other_numerics = true},
        fakes::WorldOptions{.hold = true, .other_blocks = 32}}) {
    World world(options);
    greet(world, "ann");
    const auto doomed = World::submit(1, "hello", 50);
    world.say("ann", doomed);
    for (int i = 0; i < 3; ++i) BOOST_REQUIRE(world.step());
    world.backend->die_next();
    finish(world);
    check_unavailable(world, doomed);
    BOOST_TEST(world.loads == 2U);
    const auto after = World::submit(2, "again", 10);
    world.say("ann", after);
    finish(world);
    BOOST_TEST(listen(world, "ann", after.stream).text == World::expected("again", 2, 10));
    BOOST_TEST(health(world).ready);
    BOOST_TEST(world.status->now().has_value());
  }
}

BOOST_AUTO_TEST_CASE(a_larger_pool_will_do) {
  World world({.hold = true, .other_blocks = 65});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 50);
  world.say("ann", submit);
  world.backend->die_next();
  finish(world);
  BOOST_TEST(world.loads == 2U);
  BOOST_TEST(listen(world, "ann", submit.stream).text == World::expected("hello", 1, 50));
}

// A request that kills every device is told apart before the node gives up.
BOOST_AUTO_TEST_CASE(what_kills_every_device_ends_alone) {
  World world({.hold = true, .deadly_loads = 3});
  greet(world, "ann");
  const auto deadly = World::submit(1, "hello", 50);
  world.say("ann", deadly);
  const auto heard = listen(world, "ann", deadly.stream);
  BOOST_REQUIRE(heard.failed);
  BOOST_TEST(to_string(heard.failed->error.code) == "internal");
  BOOST_TEST(world.loads == 4U);
  const auto after = World::submit(2, "again", 10);
  world.say("ann", after);
  finish(world);
  BOOST_TEST(listen(world, "ann", after.stream).text == World::expected("again", 2, 10));
  BOOST_TEST(world.status->now().has_value());
}

BOOST_AUTO_TEST_CASE(an_executor_that_keeps_dying_fails_the_node) {
  World world({.hold = true});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 200);
  world.say("ann", submit);
  for (std::uint32_t loss = 1; loss <= 4; ++loss) {
    BOOST_TEST(world.status->now().has_value());
    for (int i = 0; i < 5; ++i) BOOST_REQUIRE(world.step());
    world.backend->die_next();
    while (world.loads == loss && world.status->now()) BOOST_REQUIRE(world.step());
  }
  BOOST_TEST(world.loads == 4U);
  BOOST_REQUIRE(!world.status->now().has_value());
  BOOST_TEST(world.status->now().error().message.find("lost 4 times") != std::string::npos);
  check_unavailable(world, submit);
  BOOST_TEST(!health(world).ready);
}

BOOST_AUTO_TEST_CASE(a_model_that_no_longer_loads_fails_the_node) {
  World world({.hold = true, .fail_loads = 1});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 200);
  world.say("ann", submit);
  world.backend->die_next();
  while (world.status->now()) BOOST_REQUIRE(world.step());
  BOOST_TEST(world.loads == 2U);
  BOOST_TEST(to_string(world.status->now().error().code) == "bad_file");
  check_unavailable(world, submit);
}

BOOST_AUTO_TEST_CASE(an_executor_that_ends_while_it_loads_fails_the_node) {
  World world({.throw_first_load = true});
  BOOST_REQUIRE(!world.status->now().has_value());
  BOOST_TEST(world.status->now().error().message.find("ended while it loaded") !=
             std::string::npos);
}

namespace {

using Plans = std::shared_ptr<std::vector<engine::StepPlan>>;
using Ends = std::shared_ptr<std::vector<engine::SequenceEvent>>;

actors::ExecutorActor::behavior_type keeps_plans(actors::ExecutorActor::pointer, Plans plans) {
  return {[plans](actors::run_atom, engine::StepPlan& plan) { plans->push_back(std::move(plan)); },
          [](actors::sample_atom, engine::StepMasks&) {}};
}

actors::StreamSink::behavior_type keeps_events(actors::StreamSink::pointer, Ends ends) {
  return {[](actors::open_atom, actors::StreamOpen&) {},
          [ends](actors::events_atom, actors::StepEvents& step) {
            for (auto& event : step.events) ends->push_back(std::move(event.event));
          }};
}

actors::FrontNews::behavior_type hears_nothing(actors::FrontNews::pointer) {
  return {[](actors::accepted_atom, transport::Accepted&) {},
          [](actors::refused_atom, actors::Refusal&) {}};
}

}  // namespace

// Message by message: nothing is planned for a device that is gone, and deadlines hold meanwhile.
BOOST_AUTO_TEST_CASE(a_batcher_without_executor_waits) {
  World world;
  auto facts = std::make_shared<actors::EngineFacts>();
  facts->name = "alone";
  facts->tokenizer = std::make_shared<fakes::ByteTokenizer>();
  facts->scheduler = {.slots = 4, .blocks = 16, .context_tokens = 64};
  const auto plans = std::make_shared<std::vector<engine::StepPlan>>();
  const auto later = std::make_shared<std::vector<engine::StepPlan>>();
  const auto ends = std::make_shared<std::vector<engine::SequenceEvent>>();
  auto& system = world.system();
  const auto batcher = system.spawn(actors::batcher, facts, system.spawn(keeps_plans, plans));
  const auto front = std::make_shared<actors::Front>();
  front->session = system.spawn(hears_nothing);
  front->streamers = {system.spawn(keeps_events, ends)};
  const auto admit = [&](std::uint8_t name, std::uint32_t deadline_ms) {
    auto submit = World::submit(name, "hello", 20);
    submit.deadline_ms = deadline_ms;
    const auto now = system.clock().now().time_since_epoch().count();
    caf::anon_send(batcher, actors::admit_atom::value, actors::FrontPtr(front),
                   *actors::admit(facts, "ann", submit, static_cast<std::uint64_t>(now)));
    world.run();
  };
  admit(1, 0);
  admit(2, 1000);
  BOOST_REQUIRE_EQUAL(plans->size(), 2U);
  caf::anon_send(batcher, actors::lost_atom::value);
  world.run();
  admit(3, 0);
  BOOST_TEST(plans->size() == 2U);
  BOOST_TEST(ends->empty());
  for (int i = 0; i < 12; ++i) world.advance(std::chrono::milliseconds(100));
  BOOST_REQUIRE_EQUAL(ends->size(), 1U);
  BOOST_TEST(to_string(ends->front().error.code) == "deadline");

  caf::anon_send(batcher, actors::engine_atom::value, system.spawn(keeps_plans, later));
  world.run();
  BOOST_TEST(plans->size() == 2U);
  BOOST_REQUIRE_EQUAL(later->size(), 2U);
  BOOST_TEST(later->front().ticket == 3U);
  BOOST_TEST(later->front().batch.opens.size() == 2U);  // of 1 and 3
  engine::StepResult stale;
  stale.ticket = 2;
  caf::anon_send(batcher, stale);  // from the executor that is gone
  world.run();
  BOOST_TEST(later->size() == 2U);
  caf::anon_send_exit(batcher, caf::exit_reason::kill);
  caf::anon_send_exit(front->session, caf::exit_reason::kill);
  caf::anon_send_exit(front->streamers[0], caf::exit_reason::kill);
  world.run();
}

BOOST_AUTO_TEST_SUITE_END()
