// Shows what a front answers: who owns a stream, which submits are the same, what epochs, drains
// and tombstones do. Message by message; time is a number.

#include "transport/session.hpp"

#include <boost/test/unit_test.hpp>
#include <set>

using namespace sluice;
using namespace sluice::transport;

namespace {

constexpr std::uint64_t hour_ns = 3600ULL * 1'000'000'000;

Submit request(std::uint8_t stream, std::uint8_t owner, std::uint64_t epoch = 0) {
  Submit submit;
  submit.stream.fill(stream);
  submit.owner.fill(owner);
  submit.epoch = epoch;
  submit.prompt = "hello";
  return submit;
}

Accepted acceptance(const Submit& submit) {
  return {submit.stream, submit.epoch, "numerics", 3, {1, 2, 3}};
}

struct Front {
  explicit Front(SessionConfig config = {}) : session(std::move(config)) {}

  std::vector<SessionAction> say(const Peer& peer, Message message) {
    return session.on_message(peer, std::move(message), now_ns);
  }
  /// A stream from submit to running.
  void run(const Peer& peer, const Submit& submit) {
    const auto actions = say(peer, submit);
    BOOST_REQUIRE(!actions.empty());
    BOOST_REQUIRE(std::holds_alternative<Start>(actions.back()));
    BOOST_REQUIRE(session.on_accepted(acceptance(submit), now_ns).empty());
  }
  void end(const Submit& submit) { session.on_finished(submit.stream, submit.epoch, now_ns); }

  Session session;
  std::uint64_t now_ns = 1;
};

/// The one thing that was asked for.
template <class Action>
Action only(std::vector<SessionAction> actions) {
  BOOST_REQUIRE_EQUAL(actions.size(), 1U);
  BOOST_REQUIRE(std::holds_alternative<Action>(actions[0]));
  return std::get<Action>(std::move(actions[0]));
}

ErrorCode refused(std::vector<SessionAction> actions) {
  const Reply reply = only<Reply>(std::move(actions));
  BOOST_REQUIRE(std::holds_alternative<Failed>(reply.message));
  BOOST_CHECK(!std::get<Failed>(reply.message).error.message.empty());
  return std::get<Failed>(reply.message).error.code;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(session)

BOOST_AUTO_TEST_CASE(greeting) {
  SessionConfig config;
  config.welcome.server = "here";
  Front front(config);
  const Reply reply = only<Reply>(front.say("a", Hello{0, 7, "test"}));
  BOOST_CHECK_EQUAL(reply.peer, "a");
  BOOST_CHECK_EQUAL(std::get<Welcome>(reply.message).server, "here");
  BOOST_CHECK(refused(front.say("a", Hello{2, 7, "test"})) == ErrorCode::unsupported);
  BOOST_CHECK(refused(front.say("a", Hello{0, 0, "test"})) == ErrorCode::unsupported);
  only<AskStats>(front.say("a", StatsRequest{}));
  only<AskHealth>(front.say("a", HealthRequest{}));
  BOOST_CHECK(refused(front.say("a", Accepted{})) == ErrorCode::bad_request);
  BOOST_CHECK(refused(front.say("a", Chunk{})) == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(the_same_submit_is_one_run) {
  Front front;
  const Submit submit = request(1, 2);
  const Start start = only<Start>(front.say("a", submit));
  BOOST_CHECK_EQUAL(start.peer, "a");
  BOOST_CHECK(start.submit == submit);
  // Undecided: whoever asks again waits, once each.
  BOOST_CHECK(front.say("a", submit).empty());
  BOOST_CHECK(front.say("b", submit).empty());
  BOOST_CHECK(front.say("b", submit).empty());
  const Reply waited = only<Reply>(front.session.on_accepted(acceptance(submit), 2));
  BOOST_CHECK_EQUAL(waited.peer, "b");
  BOOST_CHECK(std::get<Accepted>(waited.message) == acceptance(submit));
  // Running, and ended: the same answer.
  for (const bool ended : {false, true}) {
    if (ended) front.end(submit);
    const Reply again = only<Reply>(front.say("c", submit));
    BOOST_CHECK_EQUAL(again.peer, "c");
    BOOST_CHECK(std::get<Accepted>(again.message) == acceptance(submit));
    Submit other = submit;
    other.max_tokens = 9;
    BOOST_CHECK(refused(front.say("a", other)) == ErrorCode::conflict);
    BOOST_CHECK(refused(front.say("a", request(1, 3))) == ErrorCode::conflict);
    BOOST_CHECK_EQUAL(front.session.open_streams(), ended ? 0U : 1U);
  }
}

BOOST_AUTO_TEST_CASE(a_refused_stream_is_free_again) {
  Front front;
  const Submit submit = request(1, 2, 4);
  only<Start>(front.say("a", submit));
  BOOST_CHECK(front.say("b", submit).empty());
  BOOST_CHECK(front.say("c", Attach{submit.stream, {}, 0, 0, true}).empty());
  const auto replies =
      front.session.on_refused(submit.stream, 4, {ErrorCode::too_long, "too long", 0}, 2);
  std::set<Peer> told;
  for (const auto& action : replies) {
    const Failed& failed = std::get<Failed>(std::get<Reply>(action).message);
    BOOST_CHECK(failed.error.code == ErrorCode::too_long);
    BOOST_CHECK_EQUAL(failed.epoch, 4U);
    told.insert(std::get<Reply>(action).peer);
  }
  BOOST_CHECK((told == std::set<Peer>{"a", "b", "c"}));
  BOOST_CHECK_EQUAL(front.session.open_streams(), 0U);
  only<Start>(front.say("d", request(1, 9)));  // by anybody
  // Decisions about what is no longer undecided change nothing.
  BOOST_CHECK(front.session.on_refused(submit.stream, 4, {}, 2).empty());
}

BOOST_AUTO_TEST_CASE(epochs_only_rise) {
  Front front;
  front.run("a", request(1, 2, 5));
  BOOST_CHECK(refused(front.say("a", request(1, 2, 4))) == ErrorCode::conflict);
  BOOST_CHECK(refused(front.say("b", request(1, 3, 6))) == ErrorCode::conflict);
  Submit higher = request(1, 2, 6);
  higher.prompt = "hello again";
  const auto actions = front.say("b", higher);
  BOOST_REQUIRE_EQUAL(actions.size(), 2U);
  BOOST_CHECK_EQUAL(std::get<Stop>(actions[0]).epoch, 5U);
  BOOST_CHECK_EQUAL(std::get<Start>(actions[1]).submit.epoch, 6U);
  BOOST_CHECK_EQUAL(front.session.open_streams(), 1U);
  // What is still said of the old epoch is passed over.
  BOOST_CHECK(front.session.on_accepted(acceptance(request(1, 2, 5)), 2).empty());
  BOOST_CHECK(front.session.on_refused(higher.stream, 5, {}, 2).empty());
  front.end(request(1, 2, 5));
  BOOST_CHECK_EQUAL(front.session.open_streams(), 1U);
  front.session.on_accepted(acceptance(higher), 2);
  BOOST_CHECK(refused(front.say("a", Cancel{higher.stream, higher.owner, 5})) ==
              ErrorCode::conflict);
  front.end(higher);
  BOOST_CHECK_EQUAL(front.session.open_streams(), 0U);
  // An ended stream goes on under a higher epoch.
  only<Start>(front.say("a", request(1, 2, 7)));
  BOOST_CHECK_EQUAL(front.session.open_streams(), 1U);
}

BOOST_AUTO_TEST_CASE(only_the_owner_cancels) {
  Front front;
  const Submit submit = request(1, 2, 3);
  OwnerSecret other{};
  other.fill(9);
  BOOST_CHECK(refused(front.say("a", Cancel{submit.stream, submit.owner, 3})) ==
              ErrorCode::not_found);
  only<Start>(front.say("a", submit));
  BOOST_CHECK(refused(front.say("a", Cancel{submit.stream, other, 3})) == ErrorCode::unauthorized);
  BOOST_CHECK_EQUAL(only<Stop>(front.say("x", Cancel{submit.stream, submit.owner, 3})).epoch, 3U);
  front.session.on_accepted(acceptance(submit), 2);
  BOOST_CHECK(refused(front.say("a", Cancel{submit.stream, other, 3})) == ErrorCode::unauthorized);
  only<Stop>(front.say("x", Cancel{submit.stream, submit.owner, 3}));
  front.end(submit);
  BOOST_CHECK(front.say("x", Cancel{submit.stream, submit.owner, 3}).empty());
}

BOOST_AUTO_TEST_CASE(following) {
  Front front;
  const Submit submit = request(1, 2);
  OwnerSecret other{};
  other.fill(9);
  const Attach reading{submit.stream, {}, 0, 5, true};
  const Attach owning{submit.stream, submit.owner, 0, 5, true};
  BOOST_CHECK(refused(front.say("a", reading)) == ErrorCode::not_found);
  BOOST_CHECK(front.say("a", Ack{submit.stream, submit.owner, 0, 1, false}).empty());
  only<Start>(front.say("a", submit));
  BOOST_CHECK(front.say("b", reading).empty());
  const Follow waited = only<Follow>(front.session.on_accepted(acceptance(submit), 2));
  BOOST_CHECK_EQUAL(waited.peer, "b");
  BOOST_CHECK(!waited.owner);
  for (const bool ended : {false, true}) {
    if (ended) front.end(submit);  // its log is still kept: that is the keeper's business
    BOOST_CHECK(!only<Follow>(front.say("b", reading)).owner);
    BOOST_CHECK(only<Follow>(front.say("b", owning)).owner);
    BOOST_CHECK(refused(front.say("b", Attach{submit.stream, other, 0, 5, true})) ==
                ErrorCode::unauthorized);
    BOOST_CHECK(only<Follow>(front.say("b", Ack{submit.stream, submit.owner, 0, 1, true})).owner);
    BOOST_CHECK(!only<Follow>(front.say("b", Ack{submit.stream, {}, 0, 1, true})).owner);
    BOOST_CHECK(refused(front.say("b", Ack{submit.stream, other, 0, 1, true})) ==
                ErrorCode::unauthorized);
  }
}

BOOST_AUTO_TEST_CASE(as_many_as_there_is_room_for) {
  SessionConfig config;
  config.streams_max = 2;
  config.overloaded_retry_ms = 11;
  Front front(config);
  front.run("a", request(1, 1));
  front.run("a", request(2, 1));
  const Reply reply = only<Reply>(front.say("a", request(3, 1)));
  BOOST_CHECK(std::get<Failed>(reply.message).error.code == ErrorCode::overloaded);
  BOOST_CHECK_EQUAL(std::get<Failed>(reply.message).error.retry_after_ms, 11U);
  BOOST_CHECK(std::holds_alternative<Accepted>(
      only<Reply>(front.say("a", request(1, 1))).message));  // asks for no more room
  front.end(request(1, 1));
  only<Start>(front.say("a", request(3, 1)));
}

BOOST_AUTO_TEST_CASE(draining) {
  Front front;
  front.run("a", request(1, 1));
  front.session.drain();
  BOOST_CHECK(refused(front.say("a", request(2, 1))) == ErrorCode::unavailable);
  BOOST_CHECK(refused(front.say("a", request(1, 1, 1))) == ErrorCode::unavailable);
  BOOST_CHECK(std::holds_alternative<Accepted>(only<Reply>(front.say("a", request(1, 1))).message));
  only<Stop>(front.say("a", Cancel{request(1, 1).stream, request(1, 1).owner, 0}));
}

BOOST_AUTO_TEST_CASE(tombstones_are_bounded_in_number_and_time) {
  SessionConfig config;
  config.tombstones_max = 2;
  Front front(config);
  for (std::uint8_t i = 1; i <= 3; ++i) {
    front.run("a", request(i, 1));
    front.end(request(i, 1));
  }
  // The oldest is forgotten, so that its submit is a new one.
  only<Reply>(front.say("a", request(2, 1)));
  only<Reply>(front.say("a", request(3, 1)));
  front.run("a", request(1, 1));
  front.now_ns += 24 * hour_ns - 1;
  only<Reply>(front.say("a", request(3, 1)));
  front.now_ns += 1;
  only<Start>(front.say("a", request(3, 1)));
  // A running stream is never forgotten, though a tombstone of an earlier epoch was.
  front.run("a", request(4, 1));
  front.end(request(4, 1));
  front.run("a", request(4, 1, 1));
  front.now_ns += 25 * hour_ns;
  BOOST_CHECK(
      std::holds_alternative<Accepted>(only<Reply>(front.say("a", request(4, 1, 1))).message));
  // Nor is the later of two ends with the earlier.
  const std::uint64_t first_end_ns = front.now_ns;
  front.run("a", request(5, 1));
  front.end(request(5, 1));
  front.now_ns += 20 * hour_ns;
  front.run("a", request(5, 1, 1));
  front.end(request(5, 1, 1));
  front.now_ns = first_end_ns + 24 * hour_ns;
  only<Reply>(front.say("a", request(5, 1, 1)));
}

BOOST_AUTO_TEST_SUITE_END()
