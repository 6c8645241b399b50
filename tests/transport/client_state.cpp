// Shows what a client makes of what reaches it: overlaps are cut, holes are asked for once, a
// broken chain ends the stream, terminals are acknowledged as often as they come, silence is
// answered by asking again, less and less often. Message by message; time is a number.

#include "transport/client_state.hpp"

#include <boost/test/unit_test.hpp>

using namespace sluice;
using namespace sluice::transport;

namespace {

constexpr std::uint64_t second = 1'000'000'000;
constexpr engine::ChainHash start = {1, 2, 3};

Submit request() {
  Submit submit;
  submit.stream = {5};
  submit.owner = {6};
  submit.epoch = 7;
  submit.prompt = "hello";
  return submit;
}

/// The node's log: ten tokens "0 ", "1 ", ... and parts of it.
struct Log {
  engine::StreamLog log{start};
  Log() {
    for (Token token = 0; token < 10; ++token)
      log.append(std::span(&token, 1), std::to_string(token).append(" "), {});
  }
  Chunk part(std::uint32_t from, std::uint32_t count) const {
    return {{5}, 7, 0, log.read(from, count).value()};
  }
  Done done() const {
    return {{5}, 7, {engine::FinishReason::stop}, {log.size()}, {}, {log.text_bytes()}};
  }
};

struct Side {
  explicit Side(std::uint32_t window = 1024) : stream(request(), window) {}
  explicit Side(const Submit& submit) : stream(submit) {}
  Side(std::uint32_t from, bool subscribed) : stream({5}, from, subscribed, 1024) {}

  void accept() { hear(Accepted{{5}, 7, "numerics", 3, start}); }
  void hear(const Message& message) {
    std::vector<ClientEvent> news;
    stream.on_message(message, now_ns, sends, news);
    note(news);
  }
  void tick(std::uint64_t at_ns) {
    std::vector<ClientEvent> news;
    stream.tick(at_ns, sends, news);
    note(news);
  }
  void note(const std::vector<ClientEvent>& news) {
    for (const ClientEvent& event : news) {
      text += event.text;
      tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
      if (!event.tokens.empty()) chain = event.chain;
      accepted += event.accepted.has_value();
      if (event.done) ends += "done";
      if (event.failed) ends += to_string(event.failed->error.code);
    }
  }
  /// What was said since the last look, e.g. "submit, attach 3, ack 5 end".
  std::string said() {
    std::string all;
    for (const Message& message : std::exchange(sends, {})) {
      if (!all.empty()) all += ", ";
      if (const Submit* submit = std::get_if<Submit>(&message)) {
        all += "submit";
        if (submit->epoch > 7)
          all += fmt::format(" {} after {} tokens, {} bytes of {}", submit->epoch,
                             submit->resume_tokens.at(0).size(), submit->resume_text_bytes.at(0),
                             submit->resume_numerics);
      }
      if (const Attach* attach = std::get_if<Attach>(&message)) {
        all += fmt::format("attach {}{}", attach->index, attach->live ? "" : " once");
        BOOST_CHECK(attach->owner == OwnerSecret{} || attach->owner == request().owner);
      }
      if (const Ack* ack = std::get_if<Ack>(&message))
        all += fmt::format("ack {}{}", ack->index, ack->terminal ? " end" : "");
      if (const Cancel* cancel = std::get_if<Cancel>(&message))
        all += fmt::format("cancel {}", cancel->epoch);
    }
    return all;
  }

  std::uint64_t now_ns = 0;
  ClientStream stream;
  std::vector<Message> sends;
  std::string text;
  std::vector<Token> tokens;
  engine::ChainHash chain{};
  std::string ends;
  int accepted = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(client_state)

BOOST_AUTO_TEST_CASE(a_stream_as_it_should_be) {
  const Log log;
  Side side;
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "submit");
  side.hear(log.part(0, 1));  // before `accepted` its chain could not be checked
  BOOST_CHECK_EQUAL(side.text, "");
  side.accept();
  BOOST_CHECK_EQUAL(side.said(), "");
  for (std::uint32_t i = 0; i < 10; ++i) side.hear(log.part(i, 1));
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 5 6 7 8 9 ");
  BOOST_CHECK(side.chain == log.log.chain());
  BOOST_CHECK(!side.stream.ended());
  side.hear(log.done());
  BOOST_CHECK(side.stream.ended());
  BOOST_CHECK_EQUAL(side.ends, "done");
  BOOST_CHECK_EQUAL(side.said(), "ack 10 end");
  side.hear(log.done());  // the ack was lost
  BOOST_CHECK_EQUAL(side.said(), "ack 10 end");
  side.hear(log.part(3, 4));
  side.hear(Failed{{{5}}, 7, {ErrorCode::gone, "", 0}});
  side.tick(100 * second);
  BOOST_CHECK_EQUAL(side.said(), "");
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "ack 10 end");
  BOOST_CHECK_EQUAL(side.ends, "done");
  BOOST_CHECK_EQUAL(side.accepted, 1);
}

BOOST_AUTO_TEST_CASE(overlaps_are_cut_and_holes_asked_for_once) {
  const Log log;
  Side side;
  side.accept();
  side.hear(log.part(0, 3));
  side.hear(log.part(1, 2));
  side.hear(log.part(1, 4));
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 ");
  side.hear(log.part(7, 1));
  side.hear(log.part(8, 1));
  BOOST_CHECK_EQUAL(side.said(), "attach 5");
  side.hear(log.part(5, 1));
  BOOST_CHECK_EQUAL(side.said(), "attach 6");  // the hole is another now
  side.hear(log.part(6, 1));
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 5 6 7 8 ");  // with what came early
  side.hear(log.done());
  BOOST_CHECK_EQUAL(side.said(), "attach 9");
  BOOST_CHECK_EQUAL(side.ends, "");
  side.hear(log.part(9, 1));
  BOOST_CHECK_EQUAL(side.ends, "done");
  BOOST_CHECK_EQUAL(side.said(), "ack 10 end");
}

BOOST_AUTO_TEST_CASE(a_tail_of_text_is_waited_for) {
  Log log;
  const Chunk tail{{5}, 7, 0, log.log.append_text("tail")};
  Side side;
  side.accept();
  for (std::uint32_t i = 0; i < 9; ++i) side.hear(log.part(i, 1));
  Chunk last = log.part(9, 1);
  last.part.text = "9 ";  // as it was before the tail
  side.hear(last);
  side.hear(log.done());
  BOOST_CHECK_EQUAL(side.ends, "");
  BOOST_CHECK_EQUAL(side.said(), "attach 10");
  side.hear(tail);
  side.hear(tail);
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 5 6 7 8 9 tail");
  BOOST_CHECK_EQUAL(side.ends, "done");
}

BOOST_AUTO_TEST_CASE(a_broken_chain_ends_it) {
  const Log log;
  for (const bool reader : {false, true}) {
    std::optional<Side> made;
    reader ? made.emplace(0U, false) : made.emplace();
    Side& side = *made;
    side.accept();
    side.hear(log.part(0, 2));
    Chunk forged = log.part(2, 2);
    forged.part.tokens[0] = 99;
    side.hear(forged);
    BOOST_CHECK_EQUAL(side.ends, "internal");
    BOOST_CHECK(side.stream.ended());
    BOOST_CHECK_EQUAL(side.tokens.size(), 2U);
  }
  Side first;
  first.hear(Accepted{{5}, 7, "numerics", 3, {9}});
  first.hear(log.part(0, 1));
  BOOST_CHECK_EQUAL(first.ends, "internal");
  Side twice;
  twice.accept();
  twice.hear(Accepted{{5}, 7, "numerics", 3, {9}});
  BOOST_CHECK_EQUAL(twice.ends, "internal");
}

BOOST_AUTO_TEST_CASE(acks_keep_the_window_open) {
  const Log log;
  Side side(4);
  side.accept();
  side.hear(log.part(0, 1));
  BOOST_CHECK_EQUAL(side.said(), "");
  side.hear(log.part(1, 1));
  BOOST_CHECK_EQUAL(side.said(), "ack 2");
  side.hear(log.part(2, 5));
  BOOST_CHECK_EQUAL(side.said(), "ack 7");
  side.hear(log.part(7, 0));  // a probe
  BOOST_CHECK_EQUAL(side.said(), "ack 7");
}

BOOST_AUTO_TEST_CASE(connections_come_and_go) {
  const Log log;
  Side side;
  side.stream.on_connected(0, side.sends);
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "submit, submit");
  side.accept();  // the node may follow the first connection, which is gone
  BOOST_CHECK_EQUAL(side.said(), "attach 0");
  side.hear(log.part(0, 4));
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "attach 4");
  side.hear(log.part(4, 0));  // all there is: the answer, and no probe
  BOOST_CHECK_EQUAL(side.said(), "");
  side.hear(log.part(4, 0));
  BOOST_CHECK_EQUAL(side.said(), "ack 4");
}

BOOST_AUTO_TEST_CASE(silence_is_answered_less_and_less_often) {
  Side side;
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "submit");
  std::vector<std::uint64_t> at;
  for (std::uint64_t now = 0; now < 50; ++now) {
    side.tick(now * second);
    if (!side.said().empty()) at.push_back(now);
  }
  BOOST_CHECK((at == std::vector<std::uint64_t>{3, 9, 21, 45}));
  side.now_ns = 50 * second;
  side.accept();
  side.said();
  side.tick(52 * second);
  BOOST_CHECK_EQUAL(side.said(), "");
  side.tick(53 * second);
  BOOST_CHECK_EQUAL(side.said(), "attach 0");
}

BOOST_AUTO_TEST_CASE(a_node_that_stays_silent_is_given_up) {
  const Log log;
  Side side;
  side.accept();
  side.hear(log.part(0, 3));
  side.said();
  for (std::uint64_t now = 0; now < 60; ++now) side.tick(now * second);
  BOOST_CHECK_EQUAL(side.ends, "");
  side.tick(60 * second);
  BOOST_CHECK_EQUAL(side.ends, "unavailable");
  BOOST_CHECK(side.stream.ended());
  side.said();
  side.tick(200 * second);
  BOOST_CHECK_EQUAL(side.said(), "");
  BOOST_CHECK_EQUAL(side.ends, "unavailable");
}

BOOST_AUTO_TEST_CASE(a_client_that_was_stopped_asks_before_it_gives_up) {
  Side side;
  side.accept();
  side.said();
  side.tick(500 * second);
  BOOST_CHECK_EQUAL(side.said(), "attach 0");
  side.tick(502 * second);
  BOOST_CHECK_EQUAL(side.ends, "");
  side.tick(503 * second);
  BOOST_CHECK_EQUAL(side.ends, "unavailable");
}

BOOST_AUTO_TEST_CASE(failures) {
  // Of the stream itself: acknowledged. Of a request: not, or node and client would talk for ever.
  for (const auto& [code, acked] :
       std::initializer_list<std::pair<ErrorCode, bool>>{{ErrorCode::internal, true},
                                                         {ErrorCode::deadline, true},
                                                         {ErrorCode::conflict, false},
                                                         {ErrorCode::unauthorized, false}}) {
    Side side;
    side.accept();
    side.hear(Failed{{{5}}, 7, {code, "", 0}});
    BOOST_CHECK_EQUAL(side.ends, to_string(code));
    BOOST_CHECK_EQUAL(side.said(), acked ? "ack 0 end" : "");
    side.hear(Failed{{{5}}, 7, {code, "", 0}});
    BOOST_CHECK_EQUAL(side.said(), acked ? "ack 0 end" : "");
    BOOST_CHECK_EQUAL(side.ends, to_string(code));
  }
  Side refused;
  refused.hear(Failed{{{5}}, 0, {ErrorCode::bad_request, "", 0}});
  BOOST_CHECK_EQUAL(refused.ends, "bad_request");
  BOOST_CHECK_EQUAL(refused.said(), "");
}

BOOST_AUTO_TEST_CASE(epochs) {
  const Log log;
  Chunk old = log.part(0, 2);
  old.epoch = 6;
  Chunk higher = log.part(2, 2);
  higher.epoch = 8;
  Side owner;
  owner.accept();
  owner.hear(old);
  owner.hear(Failed{{{5}}, 6, {ErrorCode::internal, "", 0}});
  BOOST_CHECK_EQUAL(owner.text, "");
  BOOST_CHECK_EQUAL(owner.ends, "");
  Side reader(0, false);
  reader.hear(log.part(0, 2));
  reader.hear(higher);
  reader.hear(log.part(4, 2));  // of the old epoch, which is over now
  BOOST_CHECK_EQUAL(reader.text, "0 1 2 3 ");
}

BOOST_AUTO_TEST_CASE(a_reader_in_the_middle) {
  const Log log;
  Side side(4, true);
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "attach 4 once");
  side.hear(log.part(3, 2));  // its text cannot be cut: the answer has it cut
  BOOST_CHECK_EQUAL(side.text, "");
  side.hear(log.part(4, 2));
  BOOST_CHECK_EQUAL(side.text, "4 5 ");
  side.hear(log.part(8, 2));
  BOOST_CHECK_EQUAL(side.said(), "attach 6 once");
  side.hear(log.part(6, 0));  // it had not come that far when it was asked
  BOOST_CHECK_EQUAL(side.said(), "attach 6 once");
  side.hear(log.part(6, 2));
  side.hear(log.done());
  BOOST_CHECK_EQUAL(side.text, "4 5 6 7 8 9 ");
  BOOST_CHECK_EQUAL(side.ends, "done");
  BOOST_CHECK_EQUAL(side.said(), "");  // a reader has nothing to acknowledge
}

BOOST_AUTO_TEST_CASE(a_node_that_never_helps_is_not_asked_for_ever) {
  const Log log;
  Side side(0, true);
  side.hear(log.part(5, 1));
  for (int i = 0; i < 1000; ++i) side.hear(log.part(0, 0));
  BOOST_CHECK_LE(side.sends.size(), 16U);
  BOOST_CHECK_GE(side.sends.size(), 2U);
  side.said();
  side.tick(side.now_ns + 100 * second);
  BOOST_CHECK_EQUAL(side.said(), "attach 0 once");
}

BOOST_AUTO_TEST_CASE(a_stream_that_its_node_lost_is_resumed) {
  const Log log;
  Side side;
  side.accept();
  side.hear(log.part(0, 4));
  side.said();
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "attach 4");
  side.stream.on_unavailable(0, second / 2);  // it loads
  side.tick(second / 4);
  BOOST_CHECK_EQUAL(side.said(), "");
  side.tick(second / 2);
  BOOST_CHECK_EQUAL(side.said(), "attach 4");
  side.hear(Failed{{{5}}, 0, {ErrorCode::not_found, "", 0}});
  BOOST_CHECK_EQUAL(side.said(), "submit 8 after 4 tokens, 8 bytes of numerics");
  BOOST_CHECK_EQUAL(side.stream.epoch(), 8U);
  side.hear(Failed{{{5}}, 0, {ErrorCode::not_found, "", 0}});  // to the first attach
  side.hear(log.part(4, 2));                                   // of the old epoch
  BOOST_CHECK_EQUAL(side.said(), "");
  side.hear(Accepted{{5}, 8, "numerics", 3, start});
  Chunk rest = log.part(4, 6);
  rest.epoch = 8;
  side.hear(rest);
  Done done = log.done();
  done.epoch = 8;
  side.hear(done);
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 5 6 7 8 9 ");
  BOOST_CHECK_EQUAL(side.tokens.size(), 10U);
  BOOST_CHECK_EQUAL(side.accepted, 1);
  BOOST_CHECK_EQUAL(side.ends, "done");
}

// Found by the simulator (--fleets, seed 868): an unanswered submit was sent to a second node too,
// which ended its run for want of followers; back there the client took the refusal for the end.
BOOST_AUTO_TEST_CASE(a_run_that_ended_behind_what_is_held_is_resumed) {
  const Log log;
  Side side;
  side.accept();
  side.hear(log.part(0, 6));
  side.said();
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "attach 6");
  side.hear(Failed{{{5}}, 7, {ErrorCode::bad_request, "index 6 is beyond the stream's 4", 0}});
  BOOST_CHECK_EQUAL(side.said(), "submit 8 after 6 tokens, 12 bytes of numerics");
  BOOST_CHECK_EQUAL(side.ends, "");
  Side fresh;  // of what was never accepted it is the end
  fresh.hear(Failed{{{5}}, 7, {ErrorCode::bad_request, "no such model", 0}});
  BOOST_CHECK_EQUAL(fresh.ends, "bad_request");
}

// Found by the simulator (--fleets, seeds 6089 and 9131): both choices of a stream of epoch 0 asked
// beyond the end; the second refusal, of a run already given up, was taken for the new one's end.
BOOST_AUTO_TEST_CASE(refusals_of_a_run_that_was_given_up_are_not_the_new_ones_end) {
  const Log log;
  Submit two = request();
  two.epoch = 0;
  two.n = 2;
  Side side(two);
  side.stream.on_connected(0, side.sends);
  side.hear(Accepted{{5}, 0, "numerics", 3, start});
  for (std::uint32_t choice = 0; choice < 2; ++choice) {
    Chunk chunk = log.part(0, 6 + choice);
    chunk.epoch = 0;
    chunk.choice = choice;
    side.hear(chunk);
  }
  side.stream.on_connected(0, side.sends);
  side.said();
  const Failed beyond{{{5}}, 0, {ErrorCode::bad_request, "index 6 is beyond the stream's 4", 0}};
  side.hear(beyond);
  BOOST_CHECK_EQUAL(side.said(), "submit");  // epoch 1
  side.hear(beyond);
  BOOST_CHECK_EQUAL(side.ends, "");
  BOOST_CHECK_EQUAL(side.said(), "");
  side.hear(Accepted{{5}, 1, "numerics", 3, start});
  BOOST_CHECK_EQUAL(side.ends, "");
  // A node that cannot read the submit may answer so too: that is not waited out for ever.
  side.hear(beyond);
  for (int i = 0; i < 100 && side.ends.empty(); ++i) side.hear(beyond);
  BOOST_CHECK_EQUAL(side.ends, "bad_request");
}

BOOST_AUTO_TEST_CASE(a_stream_whose_engine_was_lost_is_resumed_when_it_may_be_back) {
  const Log log;
  Side side;
  side.stream.on_connected(0, side.sends);
  side.accept();
  side.hear(log.part(0, 4));
  side.said();
  side.hear(Failed{{{5}}, 7, {ErrorCode::unavailable, "the engine was lost", 1000}});
  BOOST_CHECK_EQUAL(side.said(), "ack 4 end");  // or it would be told again and again
  side.tick(9 * second / 10);
  BOOST_CHECK_EQUAL(side.said(), "");
  side.tick(side.now_ns = second);
  BOOST_CHECK_EQUAL(side.said(), "submit 8 after 4 tokens, 8 bytes of numerics");
  side.hear(Failed{{{5}}, 8, {ErrorCode::unavailable, "still loading", 500}});
  side.tick(side.now_ns += second / 2);
  BOOST_CHECK_EQUAL(side.said(), "submit 8 after 4 tokens, 8 bytes of numerics");
  BOOST_CHECK_EQUAL(side.ends, "");
  // Not for ever: as long as it would wait for a node that says nothing.
  for (int i = 0; i < 200 && side.ends.empty(); ++i) {
    side.hear(Failed{{{5}}, 8, {ErrorCode::unavailable, "still loading", 500}});
    side.tick(side.now_ns += second / 2);
  }
  BOOST_CHECK_EQUAL(side.ends, "unavailable");
  BOOST_CHECK_GE(side.now_ns, ClientStream::default_patience_ns);
}

// Two nodes behind one address: back at the first, which runs an earlier epoch of the stream.
BOOST_AUTO_TEST_CASE(a_node_with_an_earlier_run_is_brought_up_to_date) {
  const Log log;
  Side side;
  side.stream.on_connected(0, side.sends);
  side.accept();
  side.hear(log.part(0, 4));
  side.stream.on_connected(0, side.sends);
  side.hear(Failed{{{5}}, 0, {ErrorCode::not_found, "", 0}});
  side.hear(Accepted{{5}, 8, "numerics", 3, start});
  Chunk more = log.part(4, 2);
  more.epoch = 8;
  side.hear(more);
  side.said();
  side.hear(log.part(4, 1));  // late, and of no use
  BOOST_CHECK_EQUAL(side.said(), "");
  side.stream.on_connected(0, side.sends);
  BOOST_CHECK_EQUAL(side.said(), "attach 6");
  side.hear(log.part(6, 1));
  BOOST_CHECK_EQUAL(side.said(), "submit 9 after 6 tokens, 12 bytes of numerics");
  side.hear(log.part(7, 1));
  BOOST_CHECK_EQUAL(side.said(), "");
  // An earlier run that has failed says so without telling its epoch from that of no stream.
  side.hear(Accepted{{5}, 9, "numerics", 3, start});
  side.stream.on_connected(0, side.sends);
  side.said();
  side.hear(Failed{{{5}}, 0, {ErrorCode::bad_request, "index 6 is beyond 4 tokens", 0}});
  BOOST_CHECK_EQUAL(side.said(), "submit 10 after 6 tokens, 12 bytes of numerics");
  BOOST_CHECK_EQUAL(side.text, "0 1 2 3 4 5 ");
  BOOST_CHECK_EQUAL(side.ends, "");
}

BOOST_AUTO_TEST_CASE(a_cancel_is_said_until_it_is_heard) {
  const Log log;
  Side side;
  side.stream.on_connected(0, side.sends);
  side.accept();
  side.hear(log.part(0, 4));
  side.said();
  side.stream.cancel(side.sends);
  BOOST_CHECK_EQUAL(side.said(), "cancel 7");
  side.stream.on_connected(second, side.sends);  // it may have been lost with the connection
  BOOST_CHECK_EQUAL(side.said(), "attach 4, cancel 7");
  // A node that does not know the stream has nothing to cancel; it is not submitted anew for that.
  side.hear(Failed{{{5}}, 0, {ErrorCode::not_found, "no such stream", 0}});
  BOOST_CHECK_EQUAL(side.ends, "cancelled");
  BOOST_CHECK_EQUAL(side.said(), "");
}

BOOST_AUTO_TEST_CASE(a_stream_that_is_lost_each_time_is_given_up) {
  Side side;
  side.accept();
  int submissions = 0;
  for (std::uint64_t epoch = 8; epoch < 20 && side.ends.empty(); ++epoch) {
    side.said();
    side.hear(Failed{{{5}}, 0, {ErrorCode::gone, "", 0}});
    submissions += side.said().starts_with("submit");
    side.hear(Accepted{{5}, epoch, "numerics", 3, start});
  }
  BOOST_CHECK_EQUAL(submissions, 4);
  BOOST_CHECK_EQUAL(side.ends, "gone");
}

BOOST_AUTO_TEST_CASE(another_stream_under_its_name_is_refused) {
  Side side;
  side.accept();
  side.hear(Failed{{{5}}, 0, {ErrorCode::not_found, "", 0}});
  side.hear(Accepted{{5}, 8, "numerics", 3, engine::chain_next(start, 1)});
  BOOST_CHECK_EQUAL(side.ends, "not_exact");
}

BOOST_AUTO_TEST_CASE(resumed_tokens_are_held_already) {
  const Log log;
  Submit submit = request();
  submit.resume_tokens = {{0, 1, 2}};
  submit.resume_text_bytes = {6};
  Side side(submit);
  side.accept();
  side.hear(log.part(0, 5));
  BOOST_CHECK_EQUAL(side.text, "3 4 ");
  BOOST_CHECK((side.tokens == std::vector<Token>{3, 4}));
}

BOOST_AUTO_TEST_SUITE_END()
