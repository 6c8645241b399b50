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

  /// `client` is the key that the connection proved.
  std::vector<SessionAction> say(const Peer& peer, Message message, const CurveKey& client = {}) {
    return session.on_message(peer, std::move(message), now_ns, client);
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

BOOST_AUTO_TEST_CASE(a_key_owns_what_it_submitted) {
  SessionConfig config;
  config.clients = {{"key-a", {"ann", "lab"}}, {"key-b", {"bob", "lab"}}};
  Front front(config);
  Submit submit = request(1, 2);
  submit.tenant = "somebody else's";
  const Start start = only<Start>(front.say("a", submit, "key-a"));
  BOOST_CHECK_EQUAL(start.submit.tenant, "lab");  // the allow list's, whatever was said
  front.session.on_accepted(acceptance(submit), 2);
  // The secret opens nothing for another key, and is not asked of the same one.
  Submit unknowing = submit;
  unknowing.owner.fill(7);
  only<Reply>(front.say("elsewhere", unknowing, "key-a"));
  BOOST_CHECK(refused(front.say("b", submit, "key-b")) == ErrorCode::conflict);
  BOOST_CHECK(refused(front.say("b", Cancel{submit.stream, submit.owner, 0}, "key-b")) ==
              ErrorCode::unauthorized);
  BOOST_CHECK(refused(front.say("b", Ack{submit.stream, submit.owner, 0, 1, true}, "key-b")) ==
              ErrorCode::unauthorized);
  BOOST_CHECK(refused(front.say("b", Attach{submit.stream, submit.owner, 0, 0, true}, "key-b")) ==
              ErrorCode::unauthorized);
  BOOST_CHECK(!only<Follow>(front.say("b", Attach{submit.stream, {}, 0, 0, true}, "key-b")).owner);
  BOOST_CHECK(
      only<Follow>(front.say("x", Attach{submit.stream, unknowing.owner, 0, 0, true}, "key-a"))
          .owner);
  // Nor for somebody without a key, should there ever be one.
  BOOST_CHECK(refused(front.say("c", Cancel{submit.stream, submit.owner, 0})) ==
              ErrorCode::unauthorized);
  only<Stop>(front.say("x", Cancel{submit.stream, unknowing.owner, 0}, "key-a"));
  // The tenant is not part of what was asked.
  front.session.set_clients({{"key-a", {"ann", "another"}}});
  BOOST_CHECK(
      std::holds_alternative<Accepted>(only<Reply>(front.say("a", submit, "key-a")).message));
}

BOOST_AUTO_TEST_CASE(a_removed_client_is_refused_and_its_streams_stop) {
  SessionConfig config;
  config.clients = {{"key-a", {"ann", ""}}, {"key-b", {"bob", ""}}};
  Front front(config);
  only<Start>(front.say("a", request(1, 1), "key-a"));
  only<Start>(front.say("a", request(2, 1, 4), "key-a"));
  front.session.on_accepted(acceptance(request(2, 1, 4)), 2);
  only<Start>(front.say("a", request(3, 1), "key-a"));
  front.session.on_accepted(acceptance(request(3, 1)), 2);
  front.end(request(3, 1));
  only<Start>(front.say("b", request(4, 1), "key-b"));
  const auto actions = front.session.set_clients({{"key-b", {"bob", ""}}});
  std::map<StreamId, std::uint64_t> stopped;
  for (const auto& action : actions)
    stopped[std::get<Stop>(action).stream] = std::get<Stop>(action).epoch;
  BOOST_CHECK((stopped == std::map<StreamId, std::uint64_t>{{request(1, 1).stream, 0},
                                                            {request(2, 1).stream, 4}}));
  for (const Message& message : {Message(Hello{1, 1, ""}), Message(request(9, 1)),
                                 Message(StatsRequest{}), Message(HealthRequest{})})
    BOOST_CHECK(refused(front.say("a", message, "key-a")) == ErrorCode::unauthorized);
  only<Stop>(front.say("b", Cancel{request(4, 1).stream, {}, 0}, "key-b"));
}

BOOST_AUTO_TEST_CASE(a_client_has_so_many_streams_open) {
  SessionConfig config;
  config.overloaded_retry_ms = 11;
  config.clients = {{"key-a", {"ann", "", 0, 2}}, {"key-b", {"bob", "", 0, 0}}};
  Front front(config);
  front.run("b", request(8, 1));  // without a key: nobody's grant
  const auto begin = [&](std::uint8_t stream, const CurveKey& key) {
    return front.say("x", request(stream, 1), key);
  };
  only<Start>(begin(1, "key-a"));
  only<Start>(begin(2, "key-a"));
  for (int connection = 0; connection < 2; ++connection) {
    const Reply reply = only<Reply>(begin(3, "key-a"));
    const Error& error = std::get<Failed>(reply.message).error;
    BOOST_CHECK(error.code == ErrorCode::overloaded);
    BOOST_CHECK_EQUAL(error.retry_after_ms, 11U);
    BOOST_CHECK(error.message.find("ann") != std::string::npos);
  }
  for (std::uint8_t stream = 20; stream < 30; ++stream) only<Start>(begin(stream, "key-b"));
  // Another epoch of an open stream asks for no more room; one that ends or is refused gives some.
  BOOST_CHECK_EQUAL(front.say("x", request(2, 1, 1), "key-a").size(), 2U);
  front.session.on_refused(request(1, 1).stream, 0, {ErrorCode::too_long, "too long", 0}, 2);
  only<Start>(begin(3, "key-a"));
  front.session.on_accepted(acceptance(request(3, 1)), 2);
  BOOST_CHECK(refused(begin(4, "key-a")) == ErrorCode::overloaded);
  front.end(request(3, 1));
  front.end(request(3, 1));  // once is once
  only<Start>(begin(4, "key-a"));
  BOOST_CHECK(refused(begin(5, "key-a")) == ErrorCode::overloaded);
}

BOOST_AUTO_TEST_CASE(a_client_sends_so_many_requests_a_second) {
  constexpr std::uint64_t second_ns = 1'000'000'000;
  SessionConfig config;
  config.clients = {{"key-a", {"ann", "", 4, 0}}, {"key-b", {"bob", "", 0.1, 0}}};
  Front front(config);
  std::uint8_t stream = 0;
  const auto begin = [&](const CurveKey& key) { return front.say("x", request(++stream, 1), key); };
  const auto wait_ms = [&](const CurveKey& key) {
    const Reply reply = only<Reply>(begin(key));
    const Error& error = std::get<Failed>(reply.message).error;
    BOOST_CHECK(error.code == ErrorCode::overloaded);
    return error.retry_after_ms;
  };
  for (int i = 0; i < 4; ++i) only<Start>(begin("key-a"));
  BOOST_CHECK_EQUAL(wait_ms("key-a"), 250U);
  front.now_ns += second_ns / 10;
  BOOST_CHECK_EQUAL(wait_ms("key-a"), 150U);
  // Who comes back when it was told to is let in, once.
  front.now_ns += 150'000'000;
  only<Start>(begin("key-a"));
  BOOST_CHECK_EQUAL(wait_ms("key-a"), 250U);
  // The same submit again is no other request.
  only<Start>(begin("key-b"));
  BOOST_CHECK(front.say("y", request(stream, 1), "key-b").empty());
  BOOST_CHECK_EQUAL(wait_ms("key-b"), 10'000U);
  // An hour's rest saves no more than a second's worth.
  front.now_ns += hour_ns;
  for (int i = 0; i < 4; ++i) only<Start>(begin("key-a"));
  BOOST_CHECK_EQUAL(wait_ms("key-a"), 250U);
  // A list that is read again does not fill what was used up.
  front.session.set_clients(config.clients);
  BOOST_CHECK_EQUAL(wait_ms("key-a"), 250U);
}

BOOST_AUTO_TEST_SUITE_END()
