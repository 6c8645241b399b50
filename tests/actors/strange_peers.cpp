// Shows that a node outlives what another one should never say: plans that no scheduler makes,
// results that no device gives, news of streams that were never asked for. The wire is real.

#include <boost/test/unit_test.hpp>

#include "actors/stream_ledger.hpp"
#include "tests/actors/fleet.hpp"
#include "tests/actors/hearing.hpp"

namespace {

using namespace sluice;
using fakes::Fleet;
using fakes::FleetNode;
using fakes::listen;
using fakes::World;

/// A node that says what it likes, and keeps what it is told.
class Stranger {
 public:
  explicit Stranger(Fleet& fleet) : fleet_(fleet), node_(fleet.add("stranger", "")) {}

  void join(FleetNode& victim) { fleet_.connect(node_, victim); }

  /// Opens a channel on the first link; everything that comes back is kept. With `closes`, closes
  /// it before anybody there has heard of it.
  void open(const std::string& service, std::uint32_t world = 1, bool closes = false) {
    const auto link = node_.peers->others.begin()->first;
    transport::OpenChannel what;
    what.service = service;
    what.engine = "bytes";
    what.rank = world > 1 ? 1 : 0;
    what.world = world;
    channel_ = node_.peers->open(link, what, fleet_.keep(heard, closed));
    if (closes) node_.peers->close(channel_);
    fleet_.run();
  }
  void say(const transport::NodeMessage& message) {
    node_.peers->send(channel_, message);
    fleet_.run();
  }
  template <class T>
  const T* heard_of() const {
    for (const auto& message : heard)
      if (const auto* found = std::get_if<T>(&message)) return found;
    return nullptr;
  }

  std::vector<transport::NodeMessage> heard;
  bool closed = false;

 private:
  Fleet& fleet_;
  FleetNode& node_;
  actors::ChannelRef channel_;
};

transport::RunPlan plan_of_nothing() {
  transport::RunPlan plan;
  plan.ticket = 1;
  plan.batch.segments.push_back({{9, 9}, 0, 1, kernels::Path::decode, true});
  return plan;
}

actors::Admission admission(std::uint8_t stream, std::uint64_t epoch, std::size_t choices = 1) {
  actors::Admission out;
  out.stream = World::submit(stream, "", 1).stream;
  out.owner = "ann";
  out.choices.resize(choices);
  out.accepted.stream = out.stream;
  out.accepted.epoch = epoch;
  return out;
}

actors::StreamEvent news(const actors::Admission& of, std::uint32_t first,
                         std::vector<Token> tokens) {
  actors::StreamEvent out;
  out.stream = of.stream;
  out.epoch = of.accepted.epoch;
  out.event.first_index = first;
  out.event.tokens = std::move(tokens);
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(strange_peers)

BOOST_AUTO_TEST_CASE(a_plan_that_cannot_be_closes_the_channel) {
  Fleet fleet;
  auto& device = fleet.add("device", "executor");
  Stranger stranger(fleet);
  stranger.join(device);
  stranger.open("executor");
  BOOST_REQUIRE(stranger.heard_of<transport::ChannelOpened>());
  stranger.say(plan_of_nothing());
  const auto* failed = stranger.heard_of<transport::ChannelFailed>();
  BOOST_REQUIRE(failed);
  BOOST_CHECK(failed->error.code == ErrorCode::bad_request);
  BOOST_TEST(failed->error.message.find("slot 9") != std::string::npos);
  BOOST_TEST(stranger.closed);
  // It serves others as if nothing had been.
  auto& front = fleet.add("front", "front tokenizer engine");
  fleet.connect(front, device);
  fleet.advance(std::chrono::seconds(1));
  const auto submit = World::submit(1, "hello", 20);
  fleet.say(front, "ann", submit);
  BOOST_TEST(listen(front.outbox->sent["ann"], submit.stream).text ==
             World::expected("hello", 1, 20));
}

BOOST_AUTO_TEST_CASE(masks_that_nobody_waits_for_close_the_channel) {
  Fleet fleet;
  auto& device = fleet.add("device", "executor");
  Stranger stranger(fleet);
  stranger.join(device);
  stranger.open("executor");
  stranger.say(transport::SampleMasks{3, {}});
  BOOST_REQUIRE(stranger.heard_of<transport::ChannelFailed>());
  BOOST_TEST(stranger.closed);
}

// As it is with a leader whose other ranks do not come. The rank's own address is told at once.
BOOST_AUTO_TEST_CASE(a_rank_that_hears_of_no_others_says_so) {
  Fleet fleet;
  auto& device = fleet.add("device", "executor");
  Stranger stranger(fleet);
  stranger.join(device);
  stranger.open("executor", 2);
  BOOST_REQUIRE(stranger.heard_of<transport::RankBlob>());
  fleet.advance(std::chrono::milliseconds(999));
  BOOST_TEST(!stranger.heard_of<transport::ChannelFailed>());
  fleet.advance(std::chrono::milliseconds(1));
  const auto* failed = stranger.heard_of<transport::ChannelFailed>();
  BOOST_REQUIRE(failed);
  BOOST_CHECK(failed->error.code == ErrorCode::deadline);
  BOOST_TEST(failed->error.message.find("within 1000 ms") != std::string::npos);
}

// Found by the simulator (--fleets, seed 921 as it was then): a group fell while it was forming,
// and the rank's executor was taken for ever by a channel that was closed before it was joined.
BOOST_AUTO_TEST_CASE(a_channel_closed_at_once_takes_no_executor) {
  Fleet fleet;
  auto& device = fleet.add("device", "executor");
  Stranger stranger(fleet);
  stranger.join(device);
  stranger.open("executor", 1, true);
  auto& front = fleet.add("front", "front tokenizer engine");
  fleet.connect(front, device);
  fleet.advance(std::chrono::seconds(1));
  BOOST_TEST(front.status->now().has_value());
}

BOOST_AUTO_TEST_CASE(an_admission_without_choices_is_refused) {
  Fleet fleet;
  auto& engine = fleet.add("engine", "engine executor");
  Stranger stranger(fleet);
  stranger.join(engine);
  stranger.open("batcher");
  BOOST_REQUIRE(stranger.heard_of<transport::ChannelOpened>());
  transport::Admit admit;
  admit.stream = admit.accepted.stream = World::submit(1, "", 1).stream;
  admit.request.prompt = {1, 2, 3};
  stranger.say(admit);
  const auto* refused = stranger.heard_of<transport::RefusedNews>();
  BOOST_REQUIRE(refused);
  BOOST_CHECK(refused->error.code == ErrorCode::bad_request);
  admit.choices.resize(1);
  admit.request.prompt = {1U << 31};  // the scheduler's own check
  stranger.say(admit);
  BOOST_TEST(stranger.heard.size() >= 3U);
  BOOST_TEST(!stranger.heard_of<transport::OpenStream>());
}

/// Says something on every channel that two nodes may have.
void say_on_all(Fleet& fleet, FleetNode& speaker, const transport::NodeMessage& message) {
  for (const auto& [link, other] : speaker.peers->others)
    for (std::uint32_t channel = 1; channel < 8; ++channel)
      speaker.peers->send({link, channel}, message);
  fleet.run();
}

BOOST_AUTO_TEST_CASE(a_result_that_cannot_be_costs_the_executor_and_no_stream) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer engine");
  auto& device = fleet.add("device", "executor");
  fleet.connect(front, device);
  const auto submit = World::submit(1, "hello", 30);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 5; ++i) BOOST_REQUIRE(fleet.step(device));
  transport::StepDone done;
  done.result.ticket = 99;
  say_on_all(fleet, device, done);
  fleet.advance(std::chrono::seconds(1));
  BOOST_TEST(device.loads == 2U);
  while (fleet.step(device)) {
  }
  const auto got = listen(front.outbox->sent["ann"], submit.stream);
  BOOST_TEST(got.text == World::expected("hello", 1, 30));
  BOOST_TEST(got.terminals == 1U);
}

BOOST_AUTO_TEST_CASE(news_that_cannot_be_costs_the_engine_and_not_the_front) {
  Fleet fleet(true);
  auto& front = fleet.add("front", "front tokenizer");
  auto& engine = fleet.add("engine", "engine executor");
  fleet.connect(front, engine);
  const auto submit = World::submit(1, "hello", 30);
  fleet.say(front, "ann", submit);
  for (int i = 0; i < 5; ++i) BOOST_REQUIRE(fleet.step(engine));
  transport::StepEvents events;
  auto& event = events.events.emplace_back();
  event.stream = submit.stream;
  event.epoch = submit.epoch;
  event.event.first_index = 20;
  event.event.tokens = {'x'};
  say_on_all(fleet, engine, events);
  const auto got = listen(front.outbox->sent["ann"], submit.stream);
  BOOST_REQUIRE(got.failed);
  BOOST_CHECK(got.failed->error.code == ErrorCode::unavailable);
  BOOST_TEST(got.text == World::expected("hello", 1, 30).substr(0, got.text.size()));
}

BOOST_AUTO_TEST_CASE(an_engine_speaks_of_its_own_streams_alone) {
  actors::StreamLedger ledger(256);
  const auto one = admission(1, 4), two = admission(2, 1);
  ledger.admit(one);
  BOOST_TEST(!ledger.open(two.stream, 1));  // never asked for
  BOOST_TEST(!ledger.open(one.stream, 3));  // another epoch
  BOOST_TEST(!ledger.take(news(two, 0, {1})).value());
  const auto opened = ledger.open(one.stream, 4);
  BOOST_REQUIRE(opened);
  BOOST_TEST(opened->owner == "ann");          // as the front knows it
  BOOST_TEST(!ledger.open(one.stream, 4));     // once
  BOOST_TEST(!ledger.refused(one.stream, 4));  // it took it
  BOOST_TEST(ledger.take(news(one, 0, {1, 2})).value());
  ledger.admit(admission(1, 6));  // the client tries again
  BOOST_REQUIRE(ledger.open(one.stream, 6));
  BOOST_TEST(!ledger.take(news(one, 2, {3})).value());  // its place is taken
  BOOST_TEST(ledger.size() == 1U);
}

// Found by the simulator (--fleets, seed 3568): a stream was submitted under a higher epoch, which
// the engine refused; the end of the lower one was dropped, and its keeper held it for ever.
BOOST_AUTO_TEST_CASE(a_refused_epoch_takes_no_place) {
  actors::StreamLedger ledger(256);
  const auto one = admission(1, 4);
  ledger.admit(one);
  BOOST_REQUIRE(ledger.open(one.stream, 4));
  ledger.admit(admission(1, 5));
  auto end = news(one, 0, {1});
  end.event.finish = engine::FinishReason::cancelled;
  BOOST_TEST(ledger.take(end).value());
  BOOST_TEST(ledger.refused(one.stream, 5));
  BOOST_TEST(ledger.size() == 0U);
}

BOOST_AUTO_TEST_CASE(news_that_cannot_be_is_an_error) {
  const auto stream = admission(1, 1, 2);
  const auto check = [&](actors::StreamEvent event, std::string_view part) {
    actors::StreamLedger ledger(256);
    ledger.admit(stream);
    ledger.open(stream.stream, 1);
    BOOST_REQUIRE(ledger.take(news(stream, 0, {1})).value());
    const auto taken = ledger.take(event);
    BOOST_REQUIRE(!taken);
    BOOST_TEST_CONTEXT(taken.error().message)
    BOOST_CHECK(taken.error().message.find(part) != std::string::npos);
  };
  check(news(stream, 2, {1}), "token 2 came where 1 was due");
  check(news(stream, 0, {1}), "token 0 came where 1 was due");
  check(news(stream, 1, {256}), "beyond the vocabulary");
  auto event = news(stream, 0, {1});
  event.choice = 2;
  check(event, "no such choice");
  event = news(stream, 1, {1});
  event.event.logprobs.resize(2);
  check(event, "logprobs");
  actors::StreamLedger ledger(256);
  ledger.admit(stream);
  BOOST_CHECK(!ledger.take(news(stream, 0, {1})));  // it never said that it took it
  ledger.open(stream.stream, 1);
  event = news(stream, 0, {1});
  event.event.finish = engine::FinishReason::length;
  BOOST_CHECK(ledger.take(event).value());
  BOOST_CHECK(!ledger.take(news(stream, 1, {1})));  // behind its end
  event.choice = 1;
  BOOST_CHECK(ledger.take(event).value());
  BOOST_TEST(ledger.size() == 0U);
}

BOOST_AUTO_TEST_SUITE_END()
