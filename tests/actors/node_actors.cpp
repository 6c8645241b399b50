// Shows that the actors of a node, run message by message under CAF's test coordinator, stream what
// the device yields, once and in order, whatever clients, devices and other actors do meanwhile.
// The device is a hash, so the right text of every stream is known in advance.

#include <boost/test/unit_test.hpp>

#include "tests/actors/hearing.hpp"
#include "transport/client_state.hpp"

namespace {

using namespace sluice;
using fakes::greet;
using fakes::Heard;
using fakes::listen;
using fakes::World;
using fakes::WorldOptions;

transport::Cancel cancel_of(const transport::Submit& submit) {
  return {submit.stream, submit.owner, submit.epoch};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(node_actors)

BOOST_AUTO_TEST_CASE(a_stream_is_accepted_chunked_and_done) {
  World world;
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 20);
  world.say("ann", submit);
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_TEST(heard.accepted_first);
  BOOST_TEST(heard.text == World::expected("hello", 1, 20));
  BOOST_TEST(heard.terminals == 1);
  BOOST_REQUIRE(heard.done);
  BOOST_TEST((heard.done->finish.at(0) == engine::FinishReason::length));
  BOOST_TEST(heard.done->receipt.prompt_tokens == 5);
  BOOST_TEST(heard.done->receipt.completion_tokens == 20);
  // Subscribers saw the same.
  std::string published;
  for (const auto& message : world.outbox->published[submit.stream])
    if (const auto* chunk = std::get_if<transport::Chunk>(&message)) published += chunk->part.text;
  BOOST_TEST(published == heard.text);
}

BOOST_AUTO_TEST_CASE(streams_together_give_what_each_gives_alone) {
  World world({.slots = 3});
  greet(world, "ann");
  for (std::uint8_t i = 1; i <= 8; ++i)
    caf::anon_send(world.session, actors::inbound_atom::value,
                   actors::Inbound{"ann", World::submit(i, std::string(i * 3, 'x'), 10U + i)});
  world.run();
  for (std::uint8_t i = 1; i <= 8; ++i)
    BOOST_TEST(listen(world, "ann", World::submit(i, "", 1).stream).text ==
               World::expected(std::string(i * 3, 'x'), i, 10U + i));
}

BOOST_AUTO_TEST_CASE(a_stop_string_ends_text_and_stream) {
  World world;
  greet(world, "ann");
  const auto whole = World::expected("stop", 1, 60);
  auto submit = World::submit(1, "stop", 60);
  submit.stops = {whole.substr(30, 3)};
  world.say("ann", submit);
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_TEST(heard.text == whole.substr(0, whole.find(submit.stops[0])));
  BOOST_REQUIRE(heard.done);
  BOOST_TEST((heard.done->finish.at(0) == engine::FinishReason::stop));
}

BOOST_AUTO_TEST_CASE(cancel_takes_effect_within_two_steps) {
  World world({.hold = true});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 100);
  world.say("ann", submit);
  for (int i = 0; i < 5; ++i) BOOST_REQUIRE(world.step());
  const auto rows = world.backend->rows();
  world.say("ann", cancel_of(submit));
  while (world.step()) {
  }
  // What was in flight, two steps at most, runs out; nothing of the stream is computed after it.
  BOOST_TEST(world.backend->rows() == rows);
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_REQUIRE(heard.done);
  BOOST_TEST((heard.done->finish.at(0) == engine::FinishReason::cancelled));
  BOOST_TEST(heard.text == World::expected("hello", 1, 100).substr(0, heard.text.size()));
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
}

BOOST_AUTO_TEST_CASE(only_the_owner_cancels) {
  World world({.hold = true});
  greet(world, "ann");
  greet(world, "eve");
  const auto submit = World::submit(1, "hello", 30);
  world.say("ann", submit);
  auto forged = cancel_of(submit);
  forged.owner.fill(0);
  world.say("eve", forged);
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", submit.stream).text == World::expected("hello", 1, 30));
}

BOOST_AUTO_TEST_CASE(a_lost_client_frees_its_blocks_after_the_grace_time) {
  World world({.hold = true});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 200);
  world.say("ann", submit);
  for (int i = 0; i < 3; ++i) BOOST_REQUIRE(world.step());
  caf::anon_send(world.session, actors::lost_atom::value, transport::Peer("ann"));
  world.run();
  world.advance(std::chrono::seconds(9));
  BOOST_TEST(world.stat("engine.bytes.running") == 1);
  for (int i = 0; i < 30; ++i) world.advance(std::chrono::milliseconds(100));
  while (world.step()) {
  }
  BOOST_TEST(world.stat("engine.bytes.running") == 0);
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
  BOOST_TEST(world.stat("session.open") == 0);
}

BOOST_AUTO_TEST_CASE(a_repeated_submit_runs_once) {
  World world({.hold = true});
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 10);
  world.say("ann", submit);
  world.say("ann", submit);
  while (world.step()) {
  }
  world.say("ann", submit);
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", submit.stream).text == World::expected("hello", 1, 10));
  BOOST_TEST(world.stat("engine.bytes.tokens") == 10);
}

BOOST_AUTO_TEST_CASE(a_late_reader_gets_everything_once) {
  World world({.hold = true});
  greet(world, "ann");
  greet(world, "bob");
  const auto submit = World::submit(1, "hello", 40);
  world.say("ann", submit);
  for (int i = 0; i < 15; ++i) BOOST_REQUIRE(world.step());
  world.say("bob", transport::Attach{.stream = submit.stream, .index = 0, .live = true});
  while (world.step()) {
  }
  const auto heard = listen(world, "bob", submit.stream);
  BOOST_TEST(heard.text == World::expected("hello", 1, 40));
  BOOST_TEST(heard.done.has_value());
}

BOOST_AUTO_TEST_CASE(a_finished_stream_is_read_again_until_its_retention_is_over) {
  World world;
  greet(world, "ann");
  greet(world, "bob");
  const auto submit = World::submit(1, "hello", 20);
  world.say("ann", submit);
  world.say("ann", transport::Ack{submit.stream, submit.owner, 0, 20, true});
  for (int i = 0; i < 580; ++i) world.advance(std::chrono::milliseconds(100));
  const transport::Attach again{.stream = submit.stream, .index = 0, .live = false};
  world.say("bob", again);
  const auto heard = listen(world, "bob", submit.stream);
  BOOST_TEST(heard.text == World::expected("hello", 1, 20));
  BOOST_TEST(heard.done.has_value());
  for (int i = 0; i < 30; ++i) world.advance(std::chrono::milliseconds(100));
  world.heard("bob").clear();
  world.say("bob", again);
  const auto late = listen(world, "bob", submit.stream);
  BOOST_REQUIRE(late.failed.has_value());
  BOOST_TEST((late.failed->error.code == ErrorCode::gone));
  BOOST_TEST(world.stat("streams.kept") == 0);
}

BOOST_AUTO_TEST_CASE(finished_streams_are_held_within_bounds) {
  WorldOptions options;
  options.stream.retention_bytes = 8192;
  World world(options);
  greet(world, "ann");
  for (std::uint8_t name = 1; name <= 60; ++name) {
    const auto submit = World::submit(name, "hello", 40);
    world.say("ann", submit);
    // Of the first nobody says that it arrived: it is given up last.
    if (name != 1) world.say("ann", transport::Ack{submit.stream, submit.owner, 0, 40, true});
    world.advance(std::chrono::milliseconds(1));
  }
  world.advance(std::chrono::milliseconds(100));
  BOOST_TEST(world.stat("streams.log_bytes") <= 2 * 8192);  // two streamers
  BOOST_TEST(world.stat("streams.kept") >= 2);
  const auto ends = [&](std::uint8_t name) {
    world.heard("ann").clear();
    const auto stream = World::submit(name, "hello", 40).stream;
    world.say("ann", transport::Attach{.stream = stream, .index = 0, .live = false});
    return listen(world, "ann", stream).done.has_value();
  };
  BOOST_TEST(ends(1));
  BOOST_TEST(!ends(2));
  BOOST_TEST(ends(60));
}

BOOST_AUTO_TEST_CASE(bad_requests_get_typed_errors_and_harm_nobody) {
  World world({.hold = true});
  greet(world, "ann");
  const auto good = World::submit(9, "hello", 30);
  world.say("ann", good);
  const auto refused = [&](transport::Submit submit, ErrorCode code) {
    world.say("ann", submit);
    const auto heard = listen(world, "ann", submit.stream);
    BOOST_REQUIRE(heard.failed);
    BOOST_TEST(to_string(heard.failed->error.code) == to_string(code));
    BOOST_TEST(!heard.failed->error.message.empty());
  };
  auto unknown = World::submit(1, "x", 5);
  unknown.model = "nobody";
  refused(unknown, ErrorCode::not_found);
  refused(World::submit(2, std::string(300, 'x'), 5), ErrorCode::too_long);
  refused(World::submit(3, "", 5), ErrorCode::bad_request);
  auto chat = World::submit(4, "", 5);
  chat.prompt = std::vector<transport::ChatMessage>{{"user", "hi"}};
  refused(chat, ErrorCode::unsupported);
  auto outside = World::submit(5, "", 5);
  outside.prompt = std::vector<Token>{1, 2, 257};
  refused(outside, ErrorCode::bad_request);
  auto elsewhere = World::submit(7, "x", 5);
  elsewhere.jurisdictions = {"XX"};
  refused(elsewhere, ErrorCode::bad_request);
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", good.stream).text == World::expected("hello", 9, 30));
}

/// A stream through the client's own state, which checks index and chain.
struct Followed {
  std::vector<Token> tokens;
  std::string text;
  engine::ChainHash chain{};
  std::string numerics;
  std::optional<transport::Receipt> receipt;
  std::string failure;
};

/// Submits, with what `held` has already, and follows to the end.
Followed follow(World& world, transport::Submit submit, Followed held = {}) {
  transport::ClientStream client(submit);
  world.heard("ann").clear();
  world.say("ann", submit);
  Followed whole = std::move(held);
  for (const auto& message : std::vector(world.heard("ann"))) {
    std::vector<transport::Message> answers;
    std::vector<transport::ClientEvent> news;
    client.on_message(message, 0, answers, news);
    for (const auto& event : news) {
      whole.tokens.insert(whole.tokens.end(), event.tokens.begin(), event.tokens.end());
      whole.text += event.text;
      if (!event.tokens.empty()) whole.chain = event.chain;
      if (event.accepted) whole.numerics = event.accepted->numerics;
      if (event.done) whole.receipt = event.done->receipt;
      if (event.failed) whole.failure = to_string(event.failed->error.code);
    }
    for (const auto& answer : answers) world.say("ann", answer);
  }
  return whole;
}

/// What a client holds of `whole` that has `tokens` of it, and a byte less of their text for each
/// of `text_lacking`.
Followed beginning(const Followed& whole, std::size_t tokens, std::size_t text_lacking = 0) {
  Followed held;
  held.tokens.assign(whole.tokens.begin(), whole.tokens.begin() + static_cast<long>(tokens));
  held.text = whole.text.substr(0, tokens - text_lacking);  // a byte a token
  held.numerics = whole.numerics;
  held.chain = whole.chain;
  return held;
}

transport::Submit resume(transport::Submit submit, const Followed& held) {
  ++submit.epoch;
  submit.resume_tokens = {held.tokens};
  submit.resume_text_bytes = {held.text.size()};
  submit.resume_numerics = held.numerics;
  return submit;
}

BOOST_AUTO_TEST_CASE(a_stream_resumes_after_any_of_its_tokens) {
  const auto submit = World::submit(3, "hello", 20);
  World one;
  greet(one, "ann");
  const Followed whole = follow(one, submit);
  BOOST_REQUIRE(whole.tokens.size() == 20);
  BOOST_TEST(whole.text == World::expected("hello", 3, 20));
  World other;  // a node that never saw the stream
  greet(other, "ann");
  for (std::size_t cut = 0; cut <= 20; ++cut) {
    BOOST_TEST_CONTEXT("after " << cut << " tokens") {
      for (const std::size_t lacking : {0U, 4U}) {
        if (lacking > cut) continue;
        const Followed held = beginning(whole, cut, lacking);
        auto again = resume(submit, held);
        again.stream[1] = static_cast<std::uint8_t>(2 * cut + (lacking > 0));
        const Followed continued = follow(other, again, held);
        BOOST_TEST(continued.failure == "");
        BOOST_TEST(continued.tokens == whole.tokens, boost::test_tools::per_element());
        BOOST_TEST(continued.text == whole.text);
        BOOST_TEST((continued.chain == whole.chain));
        BOOST_REQUIRE(continued.receipt);
        BOOST_TEST(continued.receipt->completion_tokens == 20U);
      }
    }
  }
  // The new keeper's log has all of it, for whoever comes late.
  other.heard("ann").clear();
  auto late = resume(submit, beginning(whole, 7));
  late.stream[1] = 14;
  other.say("ann", transport::Attach{late.stream, late.owner, 0, 0, false});
  std::string text;
  for (const auto& message : other.heard("ann"))
    if (const auto* chunk = std::get_if<transport::Chunk>(&message)) text += chunk->part.text;
  BOOST_TEST(text == whole.text);
}

BOOST_AUTO_TEST_CASE(a_stop_string_is_found_across_the_cut) {
  auto submit = World::submit(3, "hello", 20);
  submit.stops = {World::expected("hello", 3, 20).substr(10, 3)};
  World world;
  greet(world, "ann");
  const Followed whole = follow(world, submit);
  BOOST_REQUIRE(whole.tokens.size() == 13);
  for (const std::size_t cut : {11U, 12U, 13U}) {  // the stop's own bytes were held back
    const Followed held = beginning(whole, cut, cut - 10);
    auto again = resume(submit, held);
    again.stream[1] = static_cast<std::uint8_t>(cut);
    const Followed continued = follow(world, again, held);
    BOOST_TEST(continued.tokens == whole.tokens, boost::test_tools::per_element());
    BOOST_TEST(continued.text == whole.text);
    BOOST_TEST((continued.chain == whole.chain));
  }
}

BOOST_AUTO_TEST_CASE(a_higher_epoch_resumes_on_the_same_node) {
  World world({.hold = true});
  greet(world, "ann");
  const auto submit = World::submit(3, "hello", 30);
  world.say("ann", submit);
  for (int i = 0; i < 9; ++i) BOOST_REQUIRE(world.step());
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_REQUIRE(heard.tokens.size() > 3U);
  Followed held;
  held.tokens = heard.tokens;
  held.text = heard.text;
  held.numerics = std::get<transport::Accepted>(world.heard("ann").front()).numerics;
  const auto again = resume(submit, held);
  world.heard("ann").clear();
  world.say("ann", again);
  while (world.step()) {
  }
  std::string text = held.text;
  std::uint32_t terminals = 0;
  for (const auto& message : world.heard("ann")) {
    if (const auto* chunk = std::get_if<transport::Chunk>(&message)) {
      if (chunk->epoch != again.epoch) continue;
      BOOST_TEST(chunk->part.text_offset == text.size());
      text += chunk->part.text;
    }
    if (const auto* done = std::get_if<transport::Done>(&message))
      terminals += done->epoch == again.epoch;
  }
  BOOST_TEST(text == World::expected("hello", 3, 30));
  BOOST_TEST(terminals == 1U);
  BOOST_TEST(world.stat("engine.bytes.blocks_free") == world.stat("engine.bytes.blocks_total"));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_resumed_is_refused_by_name) {
  World world;
  greet(world, "ann");
  const auto submit = World::submit(3, "hello", 20);
  const Followed whole = follow(world, submit);
  std::uint8_t name = 10;
  const auto refusal = [&](auto change) {
    auto again = resume(submit, beginning(whole, 5));
    again.stream[1] = name++;
    change(again);
    return follow(world, again).failure;
  };
  BOOST_TEST(refusal([](auto& s) { s.resume_numerics = "others"; }) == "not_exact");
  BOOST_TEST(refusal([](auto& s) { s.resume_numerics.clear(); }) == "not_exact");
  BOOST_TEST(refusal([](auto& s) { s.resume_text_bytes = {6}; }) == "bad_request");
  BOOST_TEST(refusal([](auto& s) { s.resume_tokens[0][4] = 100'000; }) == "bad_request");
  BOOST_TEST(refusal([](auto& s) { s.max_tokens = 4; }) == "bad_request");
  BOOST_TEST(refusal([](auto& s) {
               s.resume_numerics = "others";
               s.allow_inexact = true;
             }) == "");
}

BOOST_AUTO_TEST_CASE(a_full_queue_refuses_with_a_hint) {
  World world({.hold = true, .slots = 1, .queue_max = 2});
  greet(world, "ann");
  for (std::uint8_t i = 1; i <= 6; ++i) world.say("ann", World::submit(i, "hello", 5));
  std::size_t refused = 0;
  for (std::uint8_t i = 1; i <= 6; ++i) {
    const auto heard = listen(world, "ann", World::submit(i, "", 1).stream);
    if (!heard.failed) continue;
    ++refused;
    BOOST_TEST(to_string(heard.failed->error.code) == "overloaded");
    BOOST_TEST(heard.failed->error.retry_after_ms > 0U);
  }
  BOOST_TEST(refused >= 3U);
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", World::submit(1, "", 1).stream).text ==
             World::expected("hello", 1, 5));
}

BOOST_AUTO_TEST_CASE(stats_tell_latencies_rates_ends_and_refusals) {
  World world({.hold = true, .slots = 1, .queue_max = 1});
  greet(world, "ann");
  world.say("ann", World::submit(1, "hello", 4));
  world.say("ann", World::submit(2, "hello", 4));
  world.say("ann", World::submit(3, "hello", 4));
  BOOST_TEST(world.stat("refused.overloaded") == 1.0);
  // Every step takes 40 ms of the coordinator's time, so that the right figures are known.
  do world.advance(std::chrono::milliseconds(40));
  while (world.step());
  BOOST_TEST(world.stat("finished.length") == 2.0);
  BOOST_TEST(world.stat("streams.ttft_ms.count") == 2.0);
  BOOST_TEST(world.stat("streams.itl_ms.count") == 6.0);
  BOOST_TEST(world.stat("streams.itl_ms.p50") == 40.0, boost::test_tools::tolerance(0.19));
  BOOST_TEST(world.stat("streams.itl_ms.mean") == 40.0, boost::test_tools::tolerance(0.001));
  BOOST_TEST(world.stat("streams.ttft_ms.p99") > 100.0);  // the second waited for the first
  BOOST_TEST(world.stat("engine.kv_use") == 0.0);
  world.advance(std::chrono::milliseconds(1000));
  BOOST_TEST(world.stat("streams.tokens_per_s") == 0.8);  // 8 in the last 10 s
}

BOOST_AUTO_TEST_CASE(a_failed_step_ends_its_streams_only) {
  World world({.hold = true});
  greet(world, "ann");
  const auto doomed = World::submit(1, "hello", 50);
  world.say("ann", doomed);
  for (int i = 0; i < 4; ++i) BOOST_REQUIRE(world.step());
  world.backend->fail_next();
  while (world.step()) {
  }
  const auto heard = listen(world, "ann", doomed.stream);
  BOOST_REQUIRE(heard.failed);
  BOOST_TEST(to_string(heard.failed->error.code) == "internal");
  const auto after = World::submit(2, "again", 10);
  world.say("ann", after);
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", after.stream).text == World::expected("again", 2, 10));
}

BOOST_AUTO_TEST_CASE(a_cancel_overtakes_the_tokenizer) {
  World world;
  greet(world, "ann");
  const auto submit = World::submit(1, "hello", 50);
  // Both reach the session before the tokenizer has run.
  caf::anon_send(world.session, actors::inbound_atom::value, actors::Inbound{"ann", submit});
  caf::anon_send(world.session, actors::inbound_atom::value,
                 actors::Inbound{"ann", cancel_of(submit)});
  world.run();
  const auto heard = listen(world, "ann", submit.stream);
  BOOST_TEST(heard.terminals == 1);
  BOOST_TEST(heard.tokens.size() < 50U);
  BOOST_TEST(world.stat("session.open") == 0);
}

BOOST_AUTO_TEST_CASE(draining_finishes_what_runs_and_refuses_the_rest) {
  World world({.hold = true});
  greet(world, "ann");
  const auto running = World::submit(1, "hello", 20);
  world.say("ann", running);
  BOOST_REQUIRE(world.step());
  bool drained = false;
  caf::scoped_actor self{world.system()};
  self->send(world.session, actors::drain_atom::value);
  world.run();
  world.say("ann", World::submit(2, "late", 5));
  const auto late = listen(world, "ann", World::submit(2, "", 1).stream);
  BOOST_REQUIRE(late.failed);
  BOOST_TEST(to_string(late.failed->error.code) == "unavailable");
  while (world.step()) {
  }
  BOOST_TEST(listen(world, "ann", running.stream).text == World::expected("hello", 1, 20));
  // It has been said; whether it arrived is the owner's to say.
  BOOST_TEST(!self->has_next_message());
  world.say("ann", transport::Ack{running.stream, running.owner, 0, 20, true});
  BOOST_REQUIRE(self->has_next_message());
  self->receive([&](bool done) { drained = done; });
  BOOST_TEST(drained);
}

BOOST_AUTO_TEST_CASE(a_drain_does_not_wait_for_who_is_gone) {
  World world;
  greet(world, "ann");
  world.say("ann", World::submit(1, "hello", 20));
  caf::scoped_actor self{world.system()};
  self->send(world.session, actors::drain_atom::value);
  world.run();
  BOOST_TEST(!self->has_next_message());
  caf::anon_send(world.session, actors::lost_atom::value, transport::Peer("ann"));
  world.run();
  BOOST_TEST(self->has_next_message());
}

BOOST_AUTO_TEST_CASE(a_model_that_cannot_be_loaded_fails_the_node) {
  World world({.fail_first_load = true});
  const auto status = world.status->now();
  BOOST_REQUIRE(!status);
  BOOST_TEST(to_string(status.error().code) == "bad_file");
  world.say("ann", transport::HealthRequest{});
  BOOST_TEST(!std::get<transport::Health>(world.heard("ann").back()).ready);
}

BOOST_AUTO_TEST_SUITE_END()
