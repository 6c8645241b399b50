// Hundreds of seeded runs of the real scheduler against the fake device: random arrivals, lengths,
// stops, constraints, resumptions, cancels, deadlines, priorities, pools so small that sequences
// are preempted, steps and single slots that fail, 1 to 3 steps in flight with results at random
// times, devices lost whose results come late. Whatever
// happens, each sequence yields what it yields alone, gapless, with one finish, and nothing is left
// behind. FakeDevice checks slots, blocks, positions, paths and rows of each plan.
#include <boost/test/unit_test.hpp>
#include <deque>
#include <random>

#include "tests/engine/fake_device.hpp"
#include "tests/engine/fake_tokenizer.hpp"

using namespace sluice;
using namespace sluice::engine;
using namespace sluice::engine::test;

namespace {

// How often each thing came up over all runs: what never happens is not tested.
struct Tally {
  int stopped = 0, by_string = 0, length = 0, cancelled = 0, deadline = 0, failed = 0;
  int too_long = 0, overloaded = 0, at_once = 0, too_late = 0, resumed = 0, surplus = 0;
  int constrained = 0, sat_out = 0;
  int lost = 0, lost_in_flight = 0, stale = 0, killers = 0;
  std::uint64_t preempted = 0, cached = 0;
};

// Texts without letters, so that no stop token or string is part of one.
const Constraint constraints[] = {
    {Constraint::Kind::regex, "[0-9]{3,12}"},
    {Constraint::Kind::regex, "(12|34|5)*"},
    {Constraint::Kind::json_schema, R"({"type": "array", "items": {"enum": [1, [2], 33]}})"},
};

std::optional<ConstrainedText> text_of(const Constraint& constraint) {
  static ConstraintCache cache(fake_tokenizer());
  if (!constraint) return {};
  return ConstrainedText(cache.get(constraint).value(), fake_tokenizer(), false);
}

struct Expected {
  Request request;
  Alone alone;
  std::vector<Token> tokens;  // seen so far, resumed ones first
  bool ended = false;
  bool may_fail = false;      // a step or slot failed on it
  bool cancelled = false;
  int losses = 0;             // devices lost while it ran, since its latest token
};

class Simulation {
 public:
  Simulation(std::uint64_t seed, Tally& tally)
      : random_(seed), tally_(tally), config_(random_config()), device_(config_),
        scheduler_(config_, fake_tokenizer()) {}

  void run() {
    int requests = static_cast<int>(below(20) + 5);
    for (int turns = 0; requests > 0 || live_ > 0 || !plans_.empty(); ++turns) {
      BOOST_REQUIRE_MESSAGE(turns < 20000, "the scheduler is stuck");
      now_ += below(1000);
      const std::uint64_t what = below(20);
      if (what < 3 && requests > 0) {
        --requests;
        submit();
      } else if (what == 3 && !expected_.empty()) {
        cancel(below(expected_.size() + 1));
      } else if (what == 4 && below(4) == 0) {
        lose_device();
      } else if (what == 5) {
        apply_stale();
      } else if (what < 13) {
        plan();
      } else {
        complete();
      }
    }
    for (plan(); !plans_.empty(); plan()) complete();  // the last slots are closed
    BOOST_REQUIRE(device_.all_closed());
    const SchedulerStats stats = scheduler_.stats();
    BOOST_REQUIRE_EQUAL(stats.blocks_free, stats.blocks_total);
    BOOST_REQUIRE_EQUAL(stats.running + stats.waiting, 0U);
    BOOST_REQUIRE(!scheduler_.plan(now_));
    tally_.preempted += stats.preemptions;
    tally_.cached += stats.cached_tokens;
  }

 private:
  std::uint64_t below(std::uint64_t end) { return random_() % end; }
  std::uint32_t between(std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(below(high - low + 1));
  }

  SchedulerConfig random_config() {
    SchedulerConfig config;
    config.slots = between(1, 6);
    config.block_tokens = 1U << below(4);
    config.context_tokens = between(8, 48);
    config.blocks = between(1, 4) * 16 / config.block_tokens;
    config.rows_max = between(1, 16);
    config.queue_max = between(2, 20);
    config.steps_in_flight = between(1, 3);
    if (below(4) > 0) config.prefix_root = BlockHash{};
    config.paths_equal = below(2);
    context_ = std::min(config.context_tokens, config.blocks * config.block_tokens);
    return config;
  }

  Request random_request() {
    Request request;
    request.id = expected_.size();
    request.prompt.resize(between(1, below(8) == 0 ? 60 : 12));
    for (Token& token : request.prompt) token = static_cast<Token>(below(256));
    if (!expected_.empty() && below(2)) {  // begins as another does, perhaps as its output goes on
      const Expected& other = expected_[below(expected_.size())];
      std::vector<Token> shared = other.request.prompt;
      if (below(2)) shared.insert(shared.end(), other.tokens.begin(), other.tokens.end());
      const auto size = std::min<std::size_t>(shared.size(), below(40));
      std::copy_n(shared.begin(), std::min(size, request.prompt.size()), request.prompt.begin());
      if (below(2)) {
        shared.resize(size);
        request.prompt.insert(request.prompt.begin(), shared.begin(), shared.end());
      }
    }
    request.sampling.seed = request.id;  // names the sequence in its SlotOpen
    if (below(2)) request.max_tokens = between(1, 30);
    if (below(3) == 0) request.sampling.stop_tokens = {static_cast<Token>('a' + below(8))};
    if (below(3) == 0) request.sampling.min_tokens = between(0, 6);
    for (std::uint64_t n = below(3); n > 0; --n) {
      std::string stop;
      for (std::uint32_t i = between(1, 3); i > 0; --i) stop += static_cast<char>('a' + below(8));
      request.stops.push_back(stop);
    }
    if (request.max_tokens > 0) {
      request.sampling.min_tokens = std::min(request.sampling.min_tokens, request.max_tokens);
    }
    if (below(6) == 0) request.constraint = constraints[below(std::size(constraints))];
    request.tenant = std::string(below(3), 't');
    request.priority = static_cast<std::int32_t>(below(3)) - 1;
    if (below(10) == 0) request.deadline = now_ + below(60'000);
    return request;
  }

  void submit() {
    Request request = random_request();
    Expected expected{request, {}, {}, false, false, false, 0};
    const std::size_t longest = request.prompt.size() + std::max(request.max_tokens, 1U);
    if (longest <= context_) {
      expected.alone = run_alone(request, context_, text_of(request.constraint));
      if (below(4) == 0) {
        const auto known = static_cast<std::ptrdiff_t>(below(expected.alone.tokens.size() + 1));
        const auto first = expected.alone.tokens.begin();
        request.resumed.assign(first, first + known);
        expected.tokens = request.resumed;
        tally_.resumed += known > 0;
      }
    }
    const bool complete = longest <= context_ && request.resumed == expected.alone.tokens;
    const SchedulerStats before = scheduler_.stats();
    const auto taken = scheduler_.submit(request, now_);
    if (longest > context_) {
      BOOST_REQUIRE(!taken && taken.error().code == ErrorCode::too_long);
      ++tally_.too_long;
    } else if (!taken && taken.error().message.ends_with("wait already")) {
      BOOST_REQUIRE(taken.error().code == ErrorCode::overloaded);
      BOOST_REQUIRE_GE(before.waiting, config_.queue_max);
      BOOST_REQUIRE_GT(taken.error().retry_after_ms, 0U);
      ++tally_.overloaded;
    } else if (!taken) {
      BOOST_REQUIRE(taken.error().code == ErrorCode::overloaded && request.deadline);
      BOOST_REQUIRE_GT(taken.error().retry_after_ms, 0U);
      ++tally_.too_late;
    } else {
      ++live_;
      tally_.at_once += complete;
      tally_.constrained += static_cast<bool>(request.constraint);
    }
    expected.ended = !taken;
    expected_.push_back(std::move(expected));
    take(scheduler_.take_events());
    BOOST_REQUIRE(!complete || expected_.back().ended);
  }

  void cancel(SequenceId id) {
    if (id < expected_.size()) expected_[id].cancelled = true;
    scheduler_.cancel(id, FinishReason::cancelled, {ErrorCode::cancelled, "by its owner", 0}, now_);
    if (below(2)) take(scheduler_.take_events());
    take_masks();
  }

  void plan() {
    auto plan = scheduler_.plan(now_);
    take(scheduler_.take_events());
    if (!plan) return;
    check(plan->batch);
    plans_.push_back(std::move(*plan));
    BOOST_REQUIRE_LE(plans_.size(), config_.steps_in_flight);
    take_masks();
  }

  // Of the last plan only, and before the next one.
  void take_masks() {
    auto masks = scheduler_.take_masks();
    if (!masks) return;
    BOOST_REQUIRE(!plans_.empty() && masks->ticket == plans_.back().ticket);
    BOOST_REQUIRE(!plans_.back().batch.sample_now);
    const auto sampled = std::ranges::count_if(plans_.back().batch.segments,
                                               [](const auto& segment) { return segment.sample; });
    tally_.sat_out += static_cast<std::size_t>(sampled) > masks->masks.size();
    BOOST_REQUIRE(masks_.emplace(masks->ticket, *masks).second);
  }

  // What can be said of a plan before it runs: who has a row and who must not.
  void check(const kernels::Batch& batch) {
    std::map<kernels::SlotIndex, const kernels::Segment*> segments;
    for (const kernels::Segment& segment : batch.segments) segments[segment.slot.slot] = &segment;
    for (const kernels::SlotOpen& open : batch.opens) {
      BOOST_REQUIRE(!open_.contains(open.slot.slot));
      BOOST_REQUIRE(segments.contains(open.slot.slot));
      const auto length = static_cast<std::uint32_t>(open.tokens.size());
      open_[open.slot.slot] = {open.sampling.seed, length, false};
    }
    for (const kernels::SlotRef& close : batch.closes) open_.erase(close.slot);
    for (auto& [slot, state] : open_) {
      const Expected& expected = expected_[state.id];
      const auto found = segments.find(slot);
      const std::uint32_t output = expected.request.max_tokens;
      const std::size_t end = output ? expected.request.prompt.size() + output : context_;
      const bool has_row = found != segments.end();
      BOOST_REQUIRE(!expected.ended);  // an ended sequence is closed by the next plan
      if (state.decodes) BOOST_REQUIRE_EQUAL(has_row, state.length < end);
      if (has_row && found->second->sample) {
        state.decodes = true;
        ++state.length;
      }
    }
  }

  void complete() {
    if (plans_.empty()) return;
    const StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    const bool fail = below(60) == 0;
    std::set<std::uint32_t> broken;
    for (const kernels::SlotOpen& open : plan.batch.opens) {
      tenants_[open.slot.slot] = open.sampling.seed;
    }
    for (const kernels::Segment& segment : plan.batch.segments) {
      if (below(300) == 0) broken.insert(segment.slot.slot);
      const bool harmed = fail || (segment.sample && broken.contains(segment.slot.slot));
      Expected& expected = expected_[tenants_.at(segment.slot.slot)];
      expected.may_fail = expected.may_fail || harmed;
      tally_.surplus += expected.ended;
    }
    const auto masks = masks_.find(plan.ticket);
    BOOST_REQUIRE_EQUAL(masks != masks_.end(), !plan.batch.sample_now);
    const StepResult result =
        device_.run(plan, fail, broken, masks == masks_.end() ? nullptr : &masks->second);
    now_ += below(1000);
    take(scheduler_.apply(result, now_));
    take_masks();
  }

  // Some of what was in flight it had computed: those results come later, or never.
  void lose_device() {
    ++tally_.lost;
    tally_.lost_in_flight += !plans_.empty();
    if (!plans_.empty() && below(2)) {
      const auto masks = masks_.find(plans_.front().ticket);
      if (plans_.front().batch.sample_now || masks != masks_.end())
        stale_.push_back(device_.run(plans_.front(), below(4) == 0, {},
                                     masks == masks_.end() ? nullptr : &masks->second));
    }
    for (const auto& [slot, state] : open_) ++expected_[state.id].losses;
    plans_.clear();
    masks_.clear();
    open_.clear();
    tenants_.clear();
    device_ = FakeDevice(config_);
    scheduler_.lose_device(now_);
    BOOST_REQUIRE(!scheduler_.take_masks());
    const SchedulerStats stats = scheduler_.stats();
    BOOST_REQUIRE_EQUAL(stats.blocks_free, stats.blocks_total);
    BOOST_REQUIRE_EQUAL(stats.blocks_cached + stats.running, 0U);
    if (below(2)) take(scheduler_.take_events());
  }

  void apply_stale() {
    if (stale_.empty()) return;
    ++tally_.stale;
    take(scheduler_.apply(stale_.front(), now_));
    stale_.pop_front();
  }

  void take(const Applied& applied) {
    std::size_t ends = 0;
    for (const SequenceEvent& event : applied.events) {
      Expected& expected = expected_.at(event.id);
      BOOST_REQUIRE(!expected.ended);
      BOOST_REQUIRE_EQUAL(event.first_index, expected.tokens.size());
      for (const Token token : event.tokens) {
        BOOST_REQUIRE_LT(expected.tokens.size(), expected.alone.tokens.size());
        BOOST_REQUIRE_EQUAL(token, expected.alone.tokens[expected.tokens.size()]);
        expected.tokens.push_back(token);
        expected.losses = 0;
      }
      if (event.finish == FinishReason::none) continue;
      check_end(expected, event);
      expected.ended = true;
      --live_;
      const FinishedSequence& finished = applied.finished.at(ends++);
      BOOST_REQUIRE_EQUAL(finished.id, event.id);
      BOOST_REQUIRE_EQUAL(finished.timing.completion_tokens, expected.tokens.size());
      BOOST_REQUIRE_LE(finished.timing.submitted, finished.timing.finished);
    }
    BOOST_REQUIRE_EQUAL(ends, applied.finished.size());
  }

  void check_end(const Expected& expected, const SequenceEvent& event) {
    switch (event.finish) {
      case FinishReason::stop:
      case FinishReason::length:
        BOOST_REQUIRE(expected.tokens == expected.alone.tokens);
        BOOST_REQUIRE(event.finish == expected.alone.finish);
        BOOST_REQUIRE(event.text_bytes == expected.alone.text_bytes);
        ++(event.finish == FinishReason::length ? tally_.length : tally_.stopped);
        tally_.by_string += event.text_bytes.has_value();
        break;
      case FinishReason::cancelled:
        BOOST_REQUIRE(expected.cancelled);
        ++tally_.cancelled;
        break;
      case FinishReason::error:
        if (event.error.code == ErrorCode::deadline) {
          BOOST_REQUIRE_LE(*expected.request.deadline, now_);
          ++tally_.deadline;
        } else if (event.error.message.find("in a row were lost") != std::string::npos) {
          BOOST_REQUIRE_EQUAL(expected.losses, static_cast<int>(Scheduler::losses_max));
          ++tally_.killers;
        } else {
          BOOST_REQUIRE(expected.may_fail);
          ++tally_.failed;
        }
        break;
      case FinishReason::none: BOOST_REQUIRE(false);
    }
  }

  struct Open {
    SequenceId id = 0;
    std::uint32_t length = 0;  // tokens known or underway
    bool decodes = false;      // its latest segment sampled
  };

  std::mt19937_64 random_;
  Tally& tally_;
  std::uint32_t context_ = 0;  // what a sequence can have, in context and pool
  SchedulerConfig config_;
  FakeDevice device_;
  Scheduler scheduler_;
  Nanoseconds now_ = 1;
  int live_ = 0;
  std::vector<Expected> expected_;           // by sequence id
  std::map<kernels::SlotIndex, Open> open_;  // as of the latest plan
  std::map<kernels::SlotIndex, SequenceId> tenants_;  // as of the step that runs
  std::deque<StepPlan> plans_;               // in flight
  std::deque<StepResult> stale_;             // of lost devices
  std::map<Ticket, StepMasks> masks_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(scheduler_simulation)

BOOST_AUTO_TEST_CASE(every_sequence_is_as_if_alone) {
  Tally tally;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) { Simulation(seed, tally).run(); }
  }
  BOOST_TEST(tally.stopped > 500);
  BOOST_TEST(tally.by_string > 200);
  BOOST_TEST(tally.length > 500);
  BOOST_TEST(tally.cancelled > 200);
  BOOST_TEST(tally.deadline > 50);
  BOOST_TEST(tally.failed > 50);
  BOOST_TEST(tally.too_long > 100);
  BOOST_TEST(tally.overloaded > 100);
  BOOST_TEST(tally.too_late > 10);
  BOOST_TEST(tally.at_once > 50);
  BOOST_TEST(tally.resumed > 200);
  BOOST_TEST(tally.surplus > 200);
  BOOST_TEST(tally.constrained > 1000);
  BOOST_TEST(tally.sat_out > 100);
  BOOST_TEST(tally.lost > 1000);
  BOOST_TEST(tally.lost_in_flight > 500);
  BOOST_TEST(tally.stale > 200);
  BOOST_TEST(tally.killers > 20);
  BOOST_TEST(tally.preempted > 500U);
  BOOST_TEST(tally.cached > 2000U);
}

BOOST_AUTO_TEST_SUITE_END()
