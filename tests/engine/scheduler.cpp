// The scheduler step by step: how a plan is made up, each way a sequence can end, each refusal, and
// the borders of context, pool, rows and steps in flight. Plans run on the fake device, whose
// tokens are the letters a to h; what a sequence yields alone comes from run_alone.
#include "engine/scheduler.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "engine/request_check.hpp"
#include "tests/engine/driver.hpp"

using namespace sluice;
using namespace sluice::engine;
using namespace sluice::engine::test;
using kernels::Path;

namespace {

SchedulerConfig small() {
  SchedulerConfig config;
  config.slots = 4;
  config.blocks = 64;
  config.block_tokens = 4;
  config.context_tokens = 64;
  config.rows_max = 16;
  return config;
}

Request request(SequenceId id, std::size_t prompt_tokens, std::uint32_t max_tokens) {
  Request request;
  request.id = id;
  request.prompt.assign(prompt_tokens, 'p');
  request.sampling.seed = id;
  request.max_tokens = max_tokens;
  return request;
}

struct Row {
  std::uint32_t position, rows;
  Path path;
  bool sample;
  bool operator==(const Row&) const = default;
};

std::vector<Row> rows(const std::optional<StepPlan>& plan) {
  std::vector<Row> all;
  if (!plan) return all;
  for (const auto& s : plan->batch.segments) all.push_back({s.position, s.rows, s.path, s.sample});
  return all;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(scheduler)

BOOST_AUTO_TEST_CASE(decode_rows_come_before_prompt_chunks) {
  Engine engine(small());
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 10), 0));
  auto plan = engine.step();
  BOOST_REQUIRE(rows(plan) == (std::vector<Row>{{0, 3, Path::prompt, true}}));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 40, 10), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(3, 2, 10), 0));
  auto ahead = engine.step();  // the token of position 3 is not known yet
  BOOST_REQUIRE(rows(ahead) == (std::vector<Row>{{3, 1, Path::decode, true},
                                                 {0, 15, Path::prompt, false}}));
  BOOST_REQUIRE(!engine.step());  // two steps are in flight
  engine.apply(engine.device.run(*plan));
  auto third = engine.step();
  BOOST_REQUIRE(rows(third) == (std::vector<Row>{{4, 1, Path::decode, true},
                                                 {15, 15, Path::prompt, false}}));
  engine.apply(engine.device.run(*ahead));
  auto fourth = engine.step();  // the chunk's rest leaves rows for the third
  BOOST_REQUIRE(rows(fourth) == (std::vector<Row>{{5, 1, Path::decode, true},
                                                  {30, 10, Path::prompt, true},
                                                  {0, 2, Path::prompt, true}}));
}

BOOST_AUTO_TEST_CASE(max_tokens_plans_no_row_beyond) {
  Engine engine(small());
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 2), 0));
  const auto first = engine.step();
  const auto second = engine.step();
  BOOST_REQUIRE(rows(second) == (std::vector<Row>{{3, 1, Path::decode, true}}));
  engine.apply(engine.device.run(*first));
  BOOST_REQUIRE(!engine.step());  // both tokens are underway
  engine.apply(engine.device.run(*second));
  const Ended& ended = engine.ended[1];
  BOOST_REQUIRE(ended.last.finish == FinishReason::length);
  BOOST_REQUIRE(ended.tokens == run_alone(request(1, 3, 2), 64).tokens);
  const auto closing = engine.step();  // nothing runs: the plan only closes
  BOOST_REQUIRE(closing && closing->batch.segments.empty() && closing->batch.closes.size() == 1);
  engine.apply(engine.device.run(*closing));
  BOOST_REQUIRE(engine.device.all_closed());
}

BOOST_AUTO_TEST_CASE(surplus_row_after_a_stop_is_dropped) {
  Request stopping = request(1, 3, 10);
  const Token first_token = run_alone(stopping, 64).tokens.front();
  stopping.sampling.stop_tokens = {first_token};
  Engine engine(small());
  BOOST_REQUIRE(engine.scheduler.submit(stopping, 0));
  const auto first = engine.step();
  const auto surplus = engine.step();
  engine.apply(engine.device.run(*first));
  BOOST_REQUIRE(engine.ended[1].last.finish == FinishReason::stop);
  BOOST_REQUIRE(!engine.ended[1].last.text_bytes);
  BOOST_REQUIRE(engine.ended[1].tokens == std::vector<Token>{first_token});  // in `tokens`
  BOOST_TEST(engine.scheduler.stats().blocks_free == 64U);
  const Applied dropped = engine.scheduler.apply(engine.device.run(*surplus), 9);
  BOOST_TEST(dropped.events.empty());
}

BOOST_AUTO_TEST_CASE(every_way_to_finish) {
  const std::vector<Token> alone = run_alone(request(1, 3, 20), 64).tokens;
  const std::string text(alone.begin(), alone.end());
  struct Case {
    std::string what;
    Request request;
    FinishReason finish;
  };
  std::vector<Case> cases;
  const auto add = [&](std::string what, FinishReason finish, auto change) {
    cases.push_back({std::move(what), request(1, 3, 20), finish});
    change(cases.back().request);
  };
  const auto stop = FinishReason::stop, length = FinishReason::length;
  add("max tokens", length, [](Request&) {});
  add("one token", length, [](Request& r) { r.max_tokens = 1; });
  add("context end", length, [](Request& r) { r.max_tokens = 0; });
  add("stop token", stop, [&](Request& r) { r.sampling.stop_tokens = {alone[5], 'z'}; });
  add("stop token as the last", stop, [&](Request& r) {
    r.sampling.min_tokens = 19;
    r.sampling.stop_tokens = {alone[19]};
  });
  add("stop token too early", length, [&](Request& r) {
    r.max_tokens = 6;
    r.sampling.min_tokens = 6;
    r.sampling.stop_tokens = {alone[5]};
  });
  add("stop string over tokens", stop, [&](Request& r) { r.stops = {"zz", text.substr(7, 3)}; });
  add("stop string too early", stop, [&](Request& r) {
    r.stops = {text.substr(0, 1)};
    r.sampling.min_tokens = 3;
  });
  add("stop string never", length, [](Request& r) { r.stops = {"zz"}; });
  for (const Case& c : cases) {
    BOOST_TEST_CONTEXT(c.what) {
      const Alone expected = run_alone(c.request, 64);
      BOOST_REQUIRE(expected.finish == c.finish);
      Engine engine(small());
      BOOST_REQUIRE(engine.scheduler.submit(c.request, 0));
      const Ended ended = engine.drain()[1];
      BOOST_REQUIRE(ended.tokens == expected.tokens);
      BOOST_REQUIRE(ended.last.finish == expected.finish);
      BOOST_REQUIRE(ended.last.text_bytes == expected.text_bytes);
      BOOST_TEST(engine.scheduler.stats().blocks_free == 64U);
    }
  }
}

BOOST_AUTO_TEST_CASE(cancel_ends_at_once_wherever_it_is) {
  SchedulerConfig config = small();
  config.slots = 1;
  Engine engine(config);
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 20), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 3, 20), 0));
  const auto first = engine.step();
  const Error why{ErrorCode::cancelled, "by its owner", 0};
  engine.scheduler.cancel(2, FinishReason::cancelled, why, 5);  // waiting
  engine.scheduler.cancel(1, FinishReason::error, {ErrorCode::unavailable, "stopping", 0}, 6);
  engine.scheduler.cancel(7, FinishReason::cancelled, why, 6);  // nobody
  engine.take(engine.scheduler.take_events());
  BOOST_REQUIRE(engine.ended[2].last.finish == FinishReason::cancelled);
  BOOST_REQUIRE(engine.ended[1].last.error.code == ErrorCode::unavailable);
  BOOST_TEST(engine.ended[2].timing.started == 0U);
  BOOST_TEST(engine.scheduler.stats().blocks_free == 64U);
  const auto next = engine.step();
  BOOST_REQUIRE(next && next->batch.segments.empty() && next->batch.closes.size() == 1);
  BOOST_TEST(engine.scheduler.apply(engine.device.run(*first), 8).events.empty());
}

BOOST_AUTO_TEST_CASE(deadlines_pass_waiting_or_running) {
  SchedulerConfig config = small();
  config.slots = 1;
  Engine engine(config);
  for (SequenceId id : {1, 2, 3}) {
    Request timed = request(id, 3, 20);
    if (id < 3) timed.deadline = 100 * id;
    BOOST_REQUIRE(engine.scheduler.submit(timed, 0));
  }
  const auto first = engine.step();
  engine.apply(engine.device.run(*first));
  engine.now = 98;
  const auto second = engine.step();
  BOOST_REQUIRE(!rows(second).empty());
  BOOST_REQUIRE(engine.ended[1].last.finish == FinishReason::none);
  engine.now = 499;
  (void)engine.step();
  for (SequenceId id : {1, 2}) {
    BOOST_REQUIRE(engine.ended[id].last.finish == FinishReason::error);
    BOOST_REQUIRE(engine.ended[id].last.error.code == ErrorCode::deadline);
  }
  BOOST_TEST(engine.ended[1].tokens.size() == 1U);
}

BOOST_AUTO_TEST_CASE(failed_step_harms_only_its_own) {
  SchedulerConfig config = small();
  config.rows_max = 4;
  Engine engine(config);
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 4, 5), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 4, 5), 0));
  const auto first = engine.step();   // all of 1
  const auto second = engine.step();  // a row of 1, three of 2
  engine.apply(engine.device.run(*first, true));
  BOOST_REQUIRE(engine.ended[1].last.finish == FinishReason::error);
  BOOST_TEST(engine.ended[1].last.error.message == "the device was lost");
  engine.apply(engine.device.run(*second));
  const Ended other = engine.drain()[2];
  BOOST_REQUIRE(other.tokens == run_alone(request(2, 4, 5), 64).tokens);
  BOOST_TEST(engine.scheduler.stats().blocks_free == 64U);
}

BOOST_AUTO_TEST_CASE(preempted_goes_on_in_decode_path_chunks) {
  SchedulerConfig config = small();
  config.blocks = 6;  // 24 positions for two sequences of 7 + 12
  config.slots = 2;
  config.steps_in_flight = 1;
  config.rows_max = 8;
  Engine engine(config);
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 7, 12), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 7, 12), 0));
  std::vector<Row> recomputed;
  for (auto plan = engine.step(); plan; plan = engine.step()) {
    for (const Row& row : rows(plan)) {
      if (engine.scheduler.stats().preemptions > 0 && row.rows > 1) recomputed.push_back(row);
    }
    engine.apply(engine.device.run(*plan));
  }
  BOOST_TEST(engine.scheduler.stats().preemptions == 1U);
  BOOST_REQUIRE_EQUAL(recomputed.size(), 2U);
  BOOST_REQUIRE((recomputed[0] == Row{0, 7, Path::prompt, false}));
  BOOST_TEST(recomputed[1].position == 7U);
  BOOST_REQUIRE(recomputed[1].path == Path::decode && recomputed[1].sample);
  for (SequenceId id : {1, 2}) {
    BOOST_REQUIRE(engine.ended[id].tokens == run_alone(request(id, 7, 12), 24).tokens);
  }
}

BOOST_AUTO_TEST_CASE(a_lost_device_is_replaced_by_an_empty_one) {
  SchedulerConfig config = small();
  config.prefix_root = BlockHash{};
  Engine engine(config);
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 9, 20), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 3, 20), 0));
  engine.apply(engine.device.run(*engine.step()));  // both have a token
  const auto lost = engine.step();
  const auto lost_too = engine.step();
  BOOST_TEST(engine.scheduler.stats().blocks_cached + engine.scheduler.stats().running > 0U);
  const StepResult stale = engine.device.run(*lost);
  engine.device = FakeDevice(config);
  engine.scheduler.lose_device(5);
  BOOST_TEST(engine.scheduler.stats().blocks_free == 64U);
  BOOST_TEST(engine.scheduler.stats().waiting == 2U);
  BOOST_TEST(engine.scheduler.stats().devices_lost == 1U);

  auto plan = engine.step();  // in their order, with their tokens, from the first position on
  BOOST_REQUIRE(plan && plan->batch.opens.size() == 2);
  BOOST_TEST(plan->ticket == lost_too->ticket + 1);
  BOOST_TEST(plan->batch.opens[0].sampling.seed == 1U);
  BOOST_TEST(plan->batch.opens[0].tokens.size() == 10U);
  BOOST_TEST(plan->batch.opens[1].tokens.size() == 4U);
  BOOST_REQUIRE(
      (rows(plan) == std::vector<Row>{{0, 9, Path::prompt, false}, {0, 3, Path::prompt, false}}));
  BOOST_TEST(engine.scheduler.apply(stale, 6).events.empty());
  engine.apply(engine.device.run(*plan));
  const auto ended = engine.drain();
  BOOST_REQUIRE(ended.at(1).tokens == run_alone(request(1, 9, 20), 64).tokens);
  BOOST_REQUIRE(ended.at(2).tokens == run_alone(request(2, 3, 20), 64).tokens);
}

// So that a request which kills every device does not take the node with it.
BOOST_AUTO_TEST_CASE(three_losses_without_a_token_end_a_sequence) {
  Engine engine(small());
  const auto lose = [&] {
    engine.device = FakeDevice(small());
    engine.scheduler.lose_device(5);
    return engine.scheduler.take_events();
  };
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 2, 20), 0));
  for (int loss = 1; loss < 3; ++loss) {
    BOOST_REQUIRE(engine.step());
    BOOST_TEST(lose().events.empty());
  }
  engine.apply(engine.device.run(*engine.step()));  // a token: it is not the one
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 2, 20), 0));
  BOOST_TEST(lose().events.empty());  // does not run yet: does not count for 2
  for (int loss = 1; loss < 3; ++loss) {
    BOOST_REQUIRE(engine.step());
    const auto news = lose();
    BOOST_REQUIRE_EQUAL(news.events.size(), loss == 2 ? 1U : 0U);
    if (loss < 2) continue;
    BOOST_TEST(news.events[0].id == 1U);
    BOOST_TEST(news.events[0].first_index == 1U);
    BOOST_TEST(to_string(news.events[0].error.code) == "internal");
    BOOST_TEST(news.finished.size() == 1U);
  }
  engine.apply(engine.device.run(*engine.step()));
  BOOST_REQUIRE(engine.drain().at(2).tokens == run_alone(request(2, 2, 20), 64).tokens);
}

BOOST_AUTO_TEST_CASE(priority_then_arrival_decides_who_runs) {
  SchedulerConfig config = small();
  config.slots = 1;
  Engine engine(config);
  const std::int32_t priorities[] = {0, 5, -1, 5};
  for (SequenceId id = 0; id < 4; ++id) {
    Request r = request(id, 2, 1);
    r.priority = priorities[id];
    BOOST_REQUIRE(engine.scheduler.submit(r, 0));
  }
  std::vector<SequenceId> order;
  for (auto plan = engine.step(); plan; plan = engine.step()) {
    for (const auto& open : plan->batch.opens) order.push_back(open.sampling.seed);
    engine.apply(engine.device.run(*plan));
  }
  BOOST_TEST(order == (std::vector<SequenceId>{1, 3, 0, 2}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(resumed_tokens_continue_the_stream) {
  Request whole = request(1, 5, 12);
  whole.stops = {"zz"};
  const std::vector<Token> alone = run_alone(whole, 64).tokens;
  for (std::size_t known = 0; known <= alone.size(); ++known) {
    Engine engine(small());
    Request part = whole;
    part.resumed.assign(alone.begin(), alone.begin() + static_cast<std::ptrdiff_t>(known));
    BOOST_REQUIRE(engine.scheduler.submit(part, 0));
    if (known > 0 && known < alone.size()) {
      const auto plan = engine.step();
      BOOST_REQUIRE(rows(plan) == (std::vector<Row>{{0, 5, Path::prompt, false}}));
      engine.apply(engine.device.run(*plan));
    }
    const Ended ended = engine.drain()[1];
    BOOST_TEST(ended.last.first_index + ended.last.tokens.size() == alone.size());
    BOOST_TEST(ended.tokens.size() == alone.size() - known);
    BOOST_TEST(std::ranges::equal(ended.tokens, std::span(alone).subspan(known)));
    BOOST_REQUIRE(ended.last.finish == FinishReason::length);
    BOOST_TEST(ended.timing.completion_tokens == alone.size());
  }
  Engine engine(small());
  Request beyond = whole;
  beyond.resumed = alone;
  beyond.max_tokens = 11;
  BOOST_REQUIRE(engine.scheduler.submit(beyond, 0).error().code == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(what_never_fits_is_refused_with_numbers) {
  Engine engine(small());  // a context of 64, a pool of 256
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 63, 0), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 63, 1), 0));
  const auto full = engine.scheduler.submit(request(3, 64, 0), 0);
  BOOST_REQUIRE(full.error().code == ErrorCode::too_long);
  BOOST_TEST(full.error().message.find("needs 65; the context holds 64") != std::string::npos);
  BOOST_REQUIRE(engine.scheduler.submit(request(4, 60, 5), 0).error().code == ErrorCode::too_long);
  BOOST_REQUIRE(engine.scheduler.submit(request(5, 3, std::numeric_limits<std::uint32_t>::max()), 0)
                    .error().code == ErrorCode::too_long);
  SchedulerConfig tiny = small();
  tiny.blocks = 2;
  Engine pool(tiny);
  const auto over = pool.scheduler.submit(request(1, 8, 1), 0);
  BOOST_REQUIRE(over.error().code == ErrorCode::too_long);
  BOOST_TEST(over.error().message.find("the KV pool holds 8") != std::string::npos);
  BOOST_REQUIRE(pool.scheduler.submit(request(2, 7, 1), 0));
  BOOST_REQUIRE(pool.scheduler.submit(request(3, 3, 0), 0));
  BOOST_TEST(pool.drain()[3].tokens.size() == 5U);  // the pool's end
}

BOOST_AUTO_TEST_CASE(full_queue_says_when_to_return) {
  SchedulerConfig config = small();
  config.queue_max = 2;
  Engine engine(config);
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 5), 0));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 3, 5), 0));
  const auto first = engine.scheduler.submit(request(3, 3, 5), 0);
  const auto second = engine.scheduler.submit(request(4, 3, 5), 0);
  BOOST_REQUIRE(first.error().code == ErrorCode::overloaded);
  BOOST_TEST(first.error().retry_after_ms > 0U);
  BOOST_TEST(second.error().retry_after_ms > first.error().retry_after_ms);
  (void)engine.step();  // both run now
  BOOST_REQUIRE(engine.scheduler.submit(request(5, 3, 5), 0));
}

/// Three streams decode, on a device whose time is `row_us` a row.
struct Decoding : Engine {
  static SchedulerConfig roomy(Nanoseconds itl_target) {
    SchedulerConfig config = small();
    config.slots = 8;
    config.context_tokens = 512;
    config.blocks = 512;
    config.rows_max = 256;
    config.itl_target = itl_target;
    return config;
  }
  explicit Decoding(Nanoseconds itl_target, std::uint64_t a_row_us = 1)
      : Engine(roomy(itl_target)), row_us(a_row_us) {
    for (SequenceId id = 1; id <= 3; ++id)
      BOOST_REQUIRE(scheduler.submit(request(id, 3, 100), now));
    for (int i = 0; i < 10; ++i) run(*step());
  }
  void run(const StepPlan& plan) {
    StepResult result = device.run(plan);
    result.device_ns *= row_us;  // of its 1,000 ns a row
    apply(result);
  }
  /// Rows of the prompt in each step until it is through.
  std::vector<std::uint32_t> read_prompt(std::uint32_t tokens) {
    BOOST_REQUIRE(scheduler.submit(request(9, tokens, 2), now));
    std::vector<std::uint32_t> chunks;
    for (std::uint32_t done = 0; done < tokens; done += chunks.back()) {
      const auto plan = step();
      const auto all = rows(plan);
      BOOST_REQUIRE_EQUAL(all.size(), 4U);
      for (std::size_t i = 0; i < 3; ++i) BOOST_REQUIRE_EQUAL(all[i].rows, 1U);
      chunks.push_back(all[3].rows);
      run(*plan);
    }
    return chunks;
  }
  std::uint64_t row_us;
};

BOOST_AUTO_TEST_CASE(a_prompt_takes_only_what_the_target_leaves_beside_who_decodes) {
  // 3 us go to the decode rows; what a prompt row costs was seen when the streams began.
  BOOST_TEST(Decoding(103'000).read_prompt(300) == (std::vector{100U, 100U, 100U}),
             boost::test_tools::per_element());
  // Without a target, 3/5 of 30 ms would be two rows: a few always go.
  BOOST_TEST(Decoding(0, 10'000).read_prompt(18) == (std::vector{4U, 4U, 4U, 6U}),
             boost::test_tools::per_element());
  Decoding engine(0);
  engine.read_prompt(300);
  const auto ended = engine.drain();
  for (const SequenceId id : {1, 2, 3})
    BOOST_TEST(ended.at(id).tokens == run_alone(request(id, 3, 100), 512).tokens,
               boost::test_tools::per_element());
}

// A prompt that streams wait 50 ms for at most is read at once, until they waited for too many.
BOOST_AUTO_TEST_CASE(a_short_prompt_may_hold_up_who_decodes) {
  BOOST_TEST(Decoding(0).read_prompt(200) == std::vector{200U}, boost::test_tools::per_element());
  BOOST_TEST(Decoding(4'000, 1).read_prompt(12) == (std::vector{4U, 4U, 4U}),
             boost::test_tools::per_element());  // never beyond a target
  Decoding engine(0, 1'000);
  std::vector<std::uint32_t> firsts;
  for (SequenceId id = 11; id <= 23; ++id) {
    BOOST_REQUIRE(engine.scheduler.submit(request(id, 40, 1), engine.now));
    const auto plan = engine.step();
    BOOST_REQUIRE_EQUAL(rows(plan).size(), 4U);
    firsts.push_back(rows(plan)[3].rows);
    engine.run(*plan);
    engine.scheduler.cancel(id, FinishReason::cancelled, {}, engine.now);
  }
  BOOST_TEST(std::ranges::count(firsts, 40U) == 12);  // 32 ms each beyond the 8 that always may be
  BOOST_TEST(firsts.back() <= 8U);
}

BOOST_AUTO_TEST_CASE(nobody_decodes_nothing_is_limited) {
  Decoding engine(0);
  engine.drain();
  BOOST_REQUIRE(engine.scheduler.submit(request(9, 300, 2), engine.now));
  BOOST_TEST(rows(engine.step()).at(0).rows == 256U);
}

BOOST_AUTO_TEST_CASE(a_deadline_that_the_first_token_would_miss_is_refused_at_once) {
  Decoding engine(103'000);
  const auto submit = [&](SequenceId id, std::uint32_t tokens, Nanoseconds within) {
    Request timed = request(id, tokens, 2);
    timed.deadline = engine.now + within;
    return engine.scheduler.submit(std::move(timed), engine.now);
  };
  // 200 tokens need two steps of 103 us.
  const auto refused = submit(4, 200, 190'000);
  BOOST_REQUIRE(!refused);
  BOOST_TEST(to_string(refused.error().code) == "overloaded");
  BOOST_TEST(refused.error().retry_after_ms == 1U);
  BOOST_REQUIRE(submit(5, 200, 220'000));
  // Behind it, the same prompt needs four.
  BOOST_REQUIRE(!submit(6, 200, 390'000));
  BOOST_REQUIRE(submit(7, 200, 450'000));
  BOOST_TEST(engine.scheduler.stats().waiting == 2U);
}

BOOST_AUTO_TEST_CASE(a_deadline_counts_on_a_pause) {
  // 40 rows take 40 ms beside 3 of decoding, in steps of 8 prompt rows 55.
  Decoding engine(0, 1'000);
  Request timed = request(4, 40, 1);
  timed.deadline = engine.now + 46'000'000;
  BOOST_REQUIRE(engine.scheduler.submit(std::move(timed), engine.now));
  BOOST_TEST(rows(engine.step()).at(3).rows == 40U);
  Request late = request(5, 40, 1);
  late.deadline = engine.now + 41'000'000;
  BOOST_TEST(!engine.scheduler.submit(std::move(late), engine.now));
}

BOOST_AUTO_TEST_CASE(device_time_is_shared_by_rows) {
  Engine engine(small());  // the fake device takes 1,000 ns a row
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 2), 7));
  BOOST_REQUIRE(engine.scheduler.submit(request(2, 9, 3), 7));
  const auto ended = engine.drain();
  BOOST_TEST(ended.at(1).timing.device_ns == 4000U);
  BOOST_TEST(ended.at(2).timing.device_ns == 11000U);
  const SequenceTiming& timing = ended.at(2).timing;
  BOOST_TEST(timing.submitted == 7U);
  BOOST_TEST(timing.prompt_tokens == 9U);
  BOOST_TEST(timing.completion_tokens == 3U);
  BOOST_TEST(timing.started < timing.first_token);
  BOOST_TEST(timing.first_token < timing.finished);
}

BOOST_AUTO_TEST_CASE(more_slots_than_rows) {
  SchedulerConfig config = small();
  config.rows_max = 2;
  Engine engine(config);
  for (SequenceId id : {1, 2, 3, 4}) BOOST_REQUIRE(engine.scheduler.submit(request(id, 5, 6), 0));
  const auto ended = engine.drain();
  for (SequenceId id : {1, 2, 3, 4}) {
    BOOST_REQUIRE(ended.at(id).tokens == run_alone(request(id, 5, 6), 64).tokens);
  }
}

BOOST_AUTO_TEST_CASE(requests_are_checked_field_by_field) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  struct Case {
    std::string named;  // in the message
    void (*change)(Request&, float, float);
  };
  const Case cases[] = {
      {"prompt", [](Request& r, float, float) { r.prompt.clear(); }},
      {"prompt[1]", [](Request& r, float, float) { r.prompt[1] = 256; }},
      {"resume_tokens[0]", [](Request& r, float, float) { r.resumed = {256}; }},
      {"stop_tokens[0]", [](Request& r, float, float) { r.sampling.stop_tokens = {999}; }},
      {"temperature", [](Request& r, float, float) { r.sampling.temperature = -0.5F; }},
      {"temperature", [](Request& r, float n, float) { r.sampling.temperature = n; }},
      {"top_p", [](Request& r, float, float) { r.sampling.top_p = 0; }},
      {"top_p", [](Request& r, float n, float) { r.sampling.top_p = n; }},
      {"min_p", [](Request& r, float, float) { r.sampling.min_p = 1.5F; }},
      {"repetition_penalty", [](Request& r, float, float) { r.sampling.repetition_penalty = 0; }},
      {"presence_penalty", [](Request& r, float, float i) { r.sampling.presence_penalty = i; }},
      {"frequency_penalty", [](Request& r, float n, float) { r.sampling.frequency_penalty = n; }},
      {"token 256", [](Request& r, float, float) { r.sampling.logit_bias = {{256, 1.0F}}; }},
      {"ascend", [](Request& r, float, float) { r.sampling.logit_bias = {{2, 1}, {2, 1}}; }},
      {"finite", [](Request& r, float, float i) { r.sampling.logit_bias = {{2, i}}; }},
      {"logprobs", [](Request& r, float, float) { r.sampling.logprobs = 21; }},
      {"logprobs", [](Request& r, float, float) { r.sampling.logprobs = -2; }},
      {"min_tokens", [](Request& r, float, float) { r.sampling.min_tokens = 6; }},
      {"stop string 1", [](Request& r, float, float) { r.stops = {"a", ""}; }},
      {"stop string 0", [](Request& r, float, float) { r.stops = {"\xFF"}; }},
  };
  BOOST_REQUIRE(check_request(request(1, 3, 5), 256));
  Engine engine(small());
  for (const Case& c : cases) {
    BOOST_TEST_CONTEXT(c.named) {
      Request bad = request(1, 3, 5);
      c.change(bad, nan, inf);
      const auto refused = engine.scheduler.submit(bad, 0);
      BOOST_REQUIRE(!refused && refused.error().code == ErrorCode::bad_request);
      BOOST_TEST(refused.error().message.find(c.named) != std::string::npos);
    }
  }
  BOOST_REQUIRE(engine.scheduler.submit(request(1, 3, 5), 0));  // none of them was taken
}

BOOST_AUTO_TEST_SUITE_END()
