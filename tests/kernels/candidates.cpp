// Shows that ranks which tell each other candidates draw what whole rows of logits give: token,
// log-probabilities and errors to the bit, over random rows and sampling parameters, and that every
// rank comes to the same. Rows are chosen to hurt: equal logits across the borders of parts, NaN,
// infinities, parts or rows without a token, flat rows. That whole rows are asked for is right only
// where a list may lack something, so how often they are is checked too. Then groups of processes
// draw that way, against the same rows held for a mask, which are gathered whole; and one leaves in
// the middle.
#include "kernels/cpu/candidates.hpp"

#include <algorithm>
#include <boost/test/results_collector.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "kernels/communicator.hpp"
#include "tests/kernels/device_ranks.hpp"
#include "tests/kernels/drawn_rows.hpp"
#include "tests/kernels/ranks.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

using namespace cpu;  // NOLINT: what is tested

/// What every rank says of a row, and whether anything but its peaks was told.
struct Outcome {
  std::vector<std::optional<SlotTokens>> drawn;  ///< one a rank
  bool tallied = false;
};

/// A row on `ranks` ranks: `make` gives each its slot.
template <class Make>
Outcome draw_apart(std::uint32_t ranks, std::span<const float> logits, const Make& make) {
  const auto vocabulary = static_cast<std::uint32_t>(logits.size());
  std::vector<std::unique_ptr<SomeSlot>> slots;
  const std::vector<float> room(adjusted_room(vocabulary), not_a_number);
  std::vector<std::vector<float>> rooms(ranks, room);
  std::vector<TokenValues> adjusted(ranks);
  std::vector<Peak> peaks;
  for (std::uint32_t r = 0; r < ranks; ++r) {
    slots.push_back(make());
    const std::uint32_t first = shard_begin(vocabulary, r, ranks);
    const auto own = logits.subspan(first, shard_count(vocabulary, {r, ranks}));
    peaks.push_back(find_peak(slots[r]->slot, {first, own}, rooms[r], adjusted[r]));
  }
  Peak peak = peaks.front();
  for (const Peak& other : peaks) peak = higher(peak, other);
  Outcome outcome;
  SampleScratch scratch(vocabulary);
  Tallies tallies;
  tallies.bytes = tallies.stride = tally_bytes(slots.front()->slot, peak, vocabulary);
  tallies.ranks = ranks;
  std::vector<std::uint64_t> memory(ranks * tallies.bytes / 8, ~std::uint64_t{0});
  tallies.first = reinterpret_cast<std::byte*>(memory.data());
  outcome.tallied = tallies.bytes > 0;
  for (std::uint32_t r = 0; outcome.tallied && r < ranks; ++r) {
    BOOST_REQUIRE_EQUAL(tally_bytes(slots[r]->slot, peak, vocabulary), tallies.bytes);
    BOOST_REQUIRE_LE(tallies.bytes, tally_bytes_max);
    tally(slots[r]->slot, adjusted[r], peaks[r].best, peak, vocabulary, scratch, tallies, r);
  }
  for (std::uint32_t r = 0; r < ranks; ++r) {
    Slot& slot = slots[r]->slot;
    const std::uint32_t before = slot.token_count;
    outcome.drawn.push_back(settle(slot, peak, tallies, vocabulary, scratch));
    const bool drew = outcome.drawn.back() && !outcome.drawn.back()->tokens.empty();
    BOOST_REQUIRE_EQUAL(slot.token_count, before + (drew ? 1 : 0));
  }
  return outcome;
}

/// The same to the bit.
void check_same(const SlotTokens& got, const SlotTokens& due) {
  BOOST_CHECK(got.slot == due.slot);
  BOOST_REQUIRE_EQUAL(got.error.has_value(), due.error.has_value());
  if (due.error) BOOST_TEST(got.error->message == due.error->message);
  BOOST_TEST(got.tokens == due.tokens, boost::test_tools::per_element());
  BOOST_REQUIRE_EQUAL(got.logprobs.size(), due.logprobs.size());
  if (due.logprobs.empty()) return;
  BOOST_REQUIRE_EQUAL(got.logprobs[0].size(), due.logprobs[0].size());
  for (std::size_t i = 0; i < due.logprobs[0].size(); ++i) {
    BOOST_TEST(got.logprobs[0][i].token == due.logprobs[0][i].token);
    BOOST_TEST(bits_of(got.logprobs[0][i].logprob) == bits_of(due.logprobs[0][i].logprob));
  }
}

/// In this process.
std::size_t failed_checks() {
  namespace unit = boost::unit_test;
  return unit::results_collector.results(unit::framework::current_test_case_id())
      .p_assertions_failed;
}

constexpr std::uint32_t cut_vocabulary = 3001;

/// Sequences that fill the slots.
struct Texts {
  std::vector<std::vector<Token>> prompts;
  std::vector<SamplingParams> sampling;

  Batch open(std::uint32_t generation) const {
    Batch batch;
    for (SlotIndex slot = 0; slot < prompts.size(); ++slot) {
      const auto rows = static_cast<std::uint32_t>(prompts[slot].size());
      batch.opens.push_back({{slot, generation}, prompts[slot], rows, sampling[slot]});
      batch.grants.push_back({slot, 0, {3 * slot, 3 * slot + 1, 3 * slot + 2}});
      batch.segments.push_back({{slot, generation}, 0, rows, Path::prompt, true});
    }
    return batch;
  }

  Batch next(std::uint32_t generation, std::uint32_t drawn, bool last) const {
    Batch batch;
    for (SlotIndex slot = 0; slot < prompts.size(); ++slot) {
      const auto at = static_cast<std::uint32_t>(prompts[slot].size()) + drawn - 1;
      batch.segments.push_back({{slot, generation}, at, 1, Path::decode, true});
      if (last) batch.closes.push_back({slot, generation});
    }
    return batch;
  }
};

/// Draws from rows that were held for masks, which then allow all.
StepResult run_held(LoadedDevice& device, Batch batch) {
  std::vector<Mask> masks;
  for (const Segment& segment : batch.segments) masks.push_back({segment.slot, {}});
  Batch closing;
  closing.closes = std::exchange(batch.closes, {});
  batch.sample_now = false;
  device.submit(std::move(batch));
  device.backend->sample(device.ticket, std::move(masks));
  StepResult result = device.results.take();
  device.run(std::move(closing));
  return result;
}

/// Rounds of six random sequences, drawn in both ways: "ok" and how often a step had how many
/// gathers.
std::string draw_in_both_ways(const std::shared_ptr<Communicator>& group) {
  const TinyModel model = cut(group->shard(), cut_vocabulary);
  LoadedDevice device(on_cpu(2), model);
  const auto counted = std::make_shared<Counted>(group);
  device.join(counted);
  device.record();
  Rows rows(3);
  int steps_of[4] = {};
  for (std::uint32_t round = 0; round < 40; ++round) {
    Texts texts;
    const bool simple = rows.chance(3);
    for (int i = 0; i < 6; ++i) {
      std::vector<Token> prompt(1 + rows.below(15));
      for (Token& t : prompt) t = rows.below(cut_vocabulary);
      texts.prompts.push_back(std::move(prompt));
      texts.sampling.push_back(rows.params(cut_vocabulary));
      if (simple) texts.sampling.back().temperature = 0.0F;
      if (simple) texts.sampling.back().logprobs = -1;
    }
    std::vector<StepResult> both[2];
    for (const bool held : {false, true}) {
      const std::uint32_t generation = 2 * round + held;
      for (std::uint32_t drawn = 0; drawn < 3; ++drawn) {
        Batch batch = drawn == 0 ? texts.open(generation)
                                 : texts.next(generation, drawn, drawn == 2);
        counted->gathers();
        both[held].push_back(held ? run_held(device, std::move(batch))
                                  : device.run(std::move(batch)));
        const auto gathers = counted->gathers().size();
        if (gathers < 1 || gathers > (held ? 1 : 3)) return fmt::format("{} gathers", gathers);
        if (!held) ++steps_of[gathers];
      }
    }
    for (std::size_t step = 0; step < 3; ++step) {
      for (std::size_t i = 0; i < 6; ++i) {
        SlotTokens got = both[0][step].slots.at(i), due = both[1][step].slots.at(i);
        got.slot = due.slot;
        check_same(got, due);
      }
    }
  }
  if (failed_checks() > 0) return "a check failed";
  return fmt::format("ok {} {} {}", steps_of[1], steps_of[2], steps_of[3]);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(candidates)

BOOST_AUTO_TEST_CASE(they_give_what_whole_rows_give) {
  Rows rows(11);
  std::size_t by_peaks = 0, by_winners = 0, by_lists = 0, whole = 0, errors = 0;
  for (int round = 0; round < 6000; ++round) {
    const std::uint32_t vocabulary = rows.chance(5) ? 5 + rows.below(60) : 300 + rows.below(3000);
    const std::uint32_t ranks = 2 + rows.below(4);
    const std::vector<float> logits = rows.logits(vocabulary, ranks);
    const SamplingParams sampling = rows.params(vocabulary);
    const std::vector<Token> text = rows.text(vocabulary);
    const auto prompt = 1 + rows.below(static_cast<std::uint32_t>(text.size()));
    const auto make = [&] {
      return std::make_unique<SomeSlot>(vocabulary, sampling, text, prompt);
    };
    const auto alone = make();
    SampleScratch scratch(vocabulary);
    const SlotTokens due = draw(alone->slot, logits, {}, scratch);
    const Outcome got = draw_apart(ranks, logits, make);
    const bool cuts = sampling.temperature != 0.0F && has_threshold(sampling, vocabulary);
    for (const auto& drawn : got.drawn) {
      BOOST_REQUIRE_EQUAL(drawn.has_value(), got.drawn.front().has_value());
      if (drawn) check_same(*drawn, due);
    }
    errors += due.error.has_value();
    if (!got.drawn.front()) {
      ++whole;
      BOOST_TEST(cuts);
    } else {
      ++(!got.tallied ? by_peaks : cuts ? by_lists : by_winners);
    }
  }
  BOOST_TEST_MESSAGE("by peaks " << by_peaks << ", winners " << by_winners << ", lists " << by_lists
                                 << ", whole rows " << whole << "; errors " << errors);
  BOOST_TEST(by_peaks > 500U);
  BOOST_TEST(by_winners > 500U);
  BOOST_TEST(by_lists > 1000U);
  BOOST_TEST(whole > 200U);
  BOOST_TEST(errors > 100U);
}

BOOST_AUTO_TEST_CASE(whole_rows_are_asked_for_where_lists_end_too_high) {
  constexpr std::uint32_t vocabulary = 3000, ranks = 3;
  std::vector<float> falling(vocabulary);  // the best are all the first rank's
  for (std::uint32_t t = 0; t < vocabulary; ++t) falling[t] = -0.01F * static_cast<float>(t);
  std::vector<float> mixed(vocabulary);  // they take turns
  for (std::uint32_t t = 0; t < vocabulary; ++t) {
    mixed[t] = falling[t % 1000 * 3 + t / 1000];
  }
  const auto asks_for_whole = [&](const std::vector<float>& logits, const SamplingParams& s) {
    const Outcome got = draw_apart(ranks, logits, [&] {
      return std::make_unique<SomeSlot>(vocabulary, s, std::vector<Token>{1}, 1);
    });
    return !got.drawn.front().has_value();
  };
  SamplingParams s;
  BOOST_TEST(!asks_for_whole(falling, s));  // the race needs no list
  s.logprobs = 20;
  BOOST_TEST(!asks_for_whole(falling, s));
  for (s.top_k = 1; s.top_k < list_tokens_max; ++s.top_k) BOOST_TEST(!asks_for_whole(falling, s));
  BOOST_TEST(asks_for_whole(falling, s));  // list_tokens_max of them
  BOOST_TEST(!asks_for_whole(mixed, s));
  s.top_k = 3 * list_tokens_max - 3;
  BOOST_TEST(!asks_for_whole(mixed, s));
  s.top_k = 3 * list_tokens_max;
  BOOST_TEST(asks_for_whole(mixed, s));
  s.min_p = 0.5F;  // of a list's end too, so that none behind it counts
  BOOST_TEST(!asks_for_whole(mixed, s));
  s = {};
  s.top_p = 0.4F;  // 1 - exp(-0.64) = 0.47 of the mass is in the first rank's list
  BOOST_TEST(!asks_for_whole(falling, s));
  s.top_p = 0.6F;
  BOOST_TEST(asks_for_whole(falling, s));
  BOOST_TEST(!asks_for_whole(mixed, s));
  s.top_k = 2;
  std::vector<float> equal(vocabulary, 1.0F);
  BOOST_TEST(asks_for_whole(equal, s));  // ties with the k-th stay in
  s.logprobs = list_tokens_max + 1;
  s.top_k = 0;
  s.top_p = 1.0F;
  BOOST_TEST(asks_for_whole(mixed, s));
}

BOOST_AUTO_TEST_CASE(processes_draw_what_whole_rows_give) {
  for (const std::uint32_t size : {2U, 3U}) {
    const auto ends = run_ranks(size, draw_in_both_ways);
    int steps[3] = {};
    BOOST_TEST(std::sscanf(ends[0].report.c_str(), "ok %d %d %d", &steps[0], &steps[1],
                           &steps[2]) == 3,
               ends[0].report);
    for (const int count : steps) BOOST_TEST(count > 10, ends[0].report);
    check_all(ends, ends[0].report);
  }
}

BOOST_AUTO_TEST_CASE(a_step_fails_where_a_rank_leaves_it) {
  for (const int at : {1, 2, 3}) {
    check_ok(run_ranks(2, [&](const auto& group) -> std::string {
      const auto renewed = another_group(group);
      const TinyModel model = cut(group->shard(), cut_vocabulary);
      LoadedDevice device(on_cpu(2), model);
      const auto counted = std::make_shared<Counted>(group);
      if (group->shard().rank == 1) counted->leave_at(at);
      device.join(counted);
      device.record();
      SamplingParams flat;
      flat.top_k = 400;  // more than any list: three gathers
      const Texts texts{{{5, 7, 11}}, {flat}};
      const StepResult failed = device.run(texts.open(1));
      if (!failed.failed || !failed.slots.empty()) return "a step ended without its group";
      if (failed.error.code != ErrorCode::unavailable) return failed.error.message;
      if (failed.error.message.find("all_gather: ") == std::string::npos) {
        return failed.error.message;
      }
      device.join(renewed);
      const StepResult after = device.run(texts.open(2));
      return after.failed ? after.error.message : "ok";
    }));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
