// Shows that a plan which a scheduler could not have made, or a result which a device could not
// have had, is refused by name before a backend or a scheduler would end the process over it. That
// what they do make passes, the scheduler's simulation shows.

#include "engine/plan_check.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>

using namespace sluice;
using namespace sluice::engine;

namespace {

constexpr std::uint32_t vocabulary = 100;
const SchedulerConfig config{
    .slots = 2, .blocks = 8, .block_tokens = 4, .context_tokens = 20, .rows_max = 6};

/// Opens slot 0 with six tokens, five of them prompt, and computes them.
StepPlan first() {
  StepPlan plan;
  plan.ticket = 1;
  plan.batch.opens.push_back({{0, 1}, {1, 2, 3, 4, 5, 6}, 5, {}});
  plan.batch.grants.push_back({0, 0, {3, 4}});
  plan.batch.segments.push_back({{0, 1}, 0, 6, kernels::Path::prompt, true});
  return plan;
}

/// The token after it.
StepPlan second() {
  StepPlan plan;
  plan.ticket = 2;
  plan.batch.segments.push_back({{0, 1}, 6, 1, kernels::Path::decode, true});
  return plan;
}

using Change = std::function<void(StepPlan&)>;

void check_refused(const Result<void>& checked, std::string_view part) {
  BOOST_REQUIRE_MESSAGE(!checked, "it was taken; expected: " << part);
  BOOST_TEST_CONTEXT(checked.error().message) {
    BOOST_CHECK(checked.error().code == ErrorCode::bad_request);
    BOOST_CHECK(checked.error().message.find(part) != std::string::npos);
  }
}

void check_first(std::string_view part, const Change& change) {
  PlanCheck check(config, vocabulary);
  auto plan = first();
  change(plan);
  check_refused(check.take(plan), part);
}

void check_second(std::string_view part, const Change& change) {
  PlanCheck check(config, vocabulary);
  BOOST_REQUIRE(check.take(first()));
  auto plan = second();
  change(plan);
  check_refused(check.take(plan), part);
}

StepResult result_of(const StepPlan& plan, Token token) {
  StepResult result;
  result.ticket = plan.ticket;
  for (const auto& segment : plan.batch.segments)
    if (segment.sample) result.slots.push_back({segment.slot, {token}, {}, {}});
  return result;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(plan_check)

BOOST_AUTO_TEST_CASE(a_sequence_runs_and_its_slot_is_used_again) {
  PlanCheck check(config, vocabulary);
  BOOST_REQUIRE(check.take(first()));
  auto plan = second();
  plan.batch.closes.push_back({0, 1});
  BOOST_REQUIRE(check.take(plan));
  plan = first();
  plan.ticket = 3;
  plan.batch.opens[0].slot = plan.batch.segments[0].slot = {0, 2};
  BOOST_CHECK(check.take(plan));
}

BOOST_AUTO_TEST_CASE(slots_must_be_there_and_free) {
  check_first("slot 2 cannot be opened", [](auto& p) { p.batch.opens[0].slot.slot = 2; });
  check_first("it is open", [](auto& p) { p.batch.opens.push_back(p.batch.opens[0]); });
  check_first("generation 7 is not open", [](auto& p) { p.batch.segments[0].slot.generation = 7; });
  check_first("not open", [](auto& p) { p.batch.closes = {{1, 1}}; });
  check_first("not open", [](auto& p) { p.batch.closes = {{0, 1}, {0, 1}}; });
  check_second("slot 0 cannot be opened", [](auto& p) { p.batch.opens = first().batch.opens; });
}

BOOST_AUTO_TEST_CASE(sequences_must_fit) {
  check_first("opens with 0 tokens", [](auto& p) { p.batch.opens[0].tokens.clear(); });
  check_first("opens with 21 tokens", [](auto& p) { p.batch.opens[0].tokens.assign(21, 1); });
  check_first("7 of them the prompt's", [](auto& p) { p.batch.opens[0].prompt_tokens = 7; });
  check_first("token 100", [](auto& p) { p.batch.opens[0].tokens[2] = 100; });
  check_first("temperature", [](auto& p) { p.batch.opens[0].sampling.temperature = NAN; });
  check_first("logprobs", [](auto& p) { p.batch.opens[0].sampling.logprobs = 1 << 30; });
  check_first("stop_tokens", [](auto& p) { p.batch.opens[0].sampling.stop_tokens = {200}; });
}

BOOST_AUTO_TEST_CASE(blocks_must_be_of_the_pool_and_without_holes) {
  check_first("block 8", [](auto& p) { p.batch.grants[0].blocks[1] = 8; });
  check_first("is granted those from 1", [](auto& p) { p.batch.grants[0].first_block = 1; });
  check_first("a context has 5", [](auto& p) { p.batch.grants[0].blocks.assign(6, 1); });
  check_first("a context has 5", [](auto& p) {
    p.batch.grants.push_back({0, 1, std::vector<std::uint32_t>(5, 1)});
  });
  check_first("not open", [](auto& p) { p.batch.grants[0].slot = 1; });
  check_first("not open", [](auto& p) { p.batch.grants[0].slot = 1U << 31; });
  check_first("blocks were not granted", [](auto& p) { p.batch.grants[0].blocks.pop_back(); });
}

BOOST_AUTO_TEST_CASE(rows_must_be_of_known_tokens) {
  check_first("the context ends", [](auto& p) { p.batch.segments[0].rows = 0; });
  check_first("the context ends", [](auto& p) {
    p.batch.segments[0].position = UINT32_MAX;
    p.batch.segments[0].rows = 2;
  });
  check_first("no step has drawn", [](auto& p) { p.batch.segments[0].rows = 7; });
  check_first("behind the last one only", [](auto& p) { p.batch.segments[0].rows = 5; });
  check_first("rows of this slot already",
              [](auto& p) { p.batch.segments.push_back(p.batch.segments[0]); });
  check_first("has 7 rows", [](auto& p) {
    p.batch.opens.push_back({{1, 1}, {1}, 1, {}});
    p.batch.grants.push_back({1, 0, {5}});
    p.batch.segments.push_back({{1, 1}, 0, 1, kernels::Path::prompt, true});
  });
  check_second("no step has drawn", [](auto& p) { p.batch.segments[0].position = 7; });
}

BOOST_AUTO_TEST_CASE(steps_come_in_order_and_masks_when_they_are_due) {
  check_first("step 0 follows", [](auto& p) { p.ticket = 0; });
  check_second("step 1 follows step 1", [](auto& p) { p.ticket = 1; });
  check_first("draws nothing", [](auto& p) {
    p.batch.sample_now = false;
    p.batch.segments[0].sample = false;
  });
  PlanCheck check(config, vocabulary);
  check_refused(check.take(StepMasks{0, {}}), "waits for none");
  BOOST_REQUIRE(check.take(first()));
  check_refused(check.take(StepMasks{1, {}}), "waits for none");

  auto held = first();
  held.batch.sample_now = false;
  const auto waiting = [&] {
    PlanCheck fresh(config, vocabulary);
    BOOST_REQUIRE(fresh.take(held));
    return fresh;
  };
  check_refused(waiting().take(second()), "before the masks");
  check_refused(waiting().take(StepMasks{2, {}}), "waits for none");
  check_refused(waiting().take(StepMasks{1, {{{2, 1}, {}}}}), "slot 2");
  check_refused(waiting().take(StepMasks{1, {{{0, 1}, {1, 2, 3}}}}), "3 words");
  auto good = waiting();
  BOOST_REQUIRE(good.take(StepMasks{1, {{{0, 1}, {1, 2}}}}));
  BOOST_CHECK(good.take(second()));
  auto without = waiting();  // its row sat out: there is no token to go on from
  BOOST_REQUIRE(without.take(StepMasks{1, {}}));
  check_refused(without.take(second()), "waits for a mask");
}

BOOST_AUTO_TEST_CASE(results_answer_their_step) {
  const auto plan = first();
  const auto check = [&](std::string_view part, const std::function<void(StepResult&)>& change) {
    ResultCheck results(vocabulary);
    results.planned(plan);
    auto result = result_of(plan, 7);
    change(result);
    const auto taken = results.take(result);
    if (part.empty())
      BOOST_CHECK(taken);
    else
      check_refused(taken, part);
  };
  check("", [](auto&) {});
  check("", [](auto& r) { r.slots[0] = {r.slots[0].slot, {}, {}, Error{}}; });
  check("", [](auto& r) { r = {r.ticket, {}, 0, {}, true}; });
  check("that of step 1 was due", [](auto& r) { r.ticket = 2; });
  check("it is missing", [](auto& r) { r.slots.clear(); });
  check("drew nothing", [](auto& r) { r.slots[0].slot.generation = 9; });
  check("answered twice", [](auto& r) { r.slots.push_back(r.slots[0]); });
  check("has 0 tokens", [](auto& r) { r.slots[0].tokens.clear(); });
  check("has 2 tokens", [](auto& r) { r.slots[0].tokens.push_back(1); });
  check("token 100", [](auto& r) { r.slots[0].tokens[0] = 100; });
  check("logprobs", [](auto& r) { r.slots[0].logprobs.resize(2); });
  ResultCheck none(vocabulary);
  check_refused(none.take(result_of(plan, 7)), "none is underway");
}

BOOST_AUTO_TEST_CASE(sizes_that_no_scheduler_survives_are_refused) {
  BOOST_CHECK(check_config(config));
  for (const auto& change : std::initializer_list<void (*)(SchedulerConfig&)>{
           [](auto& c) { c.slots = 0; }, [](auto& c) { c.slots = UINT32_MAX; },
           [](auto& c) { c.blocks = 0; }, [](auto& c) { c.blocks = UINT32_MAX; },
           [](auto& c) { c.block_tokens = 0; }, [](auto& c) { c.context_tokens = 1; },
           [](auto& c) { c.rows_max = 0; }, [](auto& c) { c.steps_in_flight = 0; }}) {
    auto changed = config;
    change(changed);
    check_refused(check_config(changed), "none to plan for");
  }
}

BOOST_AUTO_TEST_SUITE_END()
