// Shows that devices which tell each other candidates draw what whole rows give: the kernels, over
// random rows and parameters, token, log-probability and what becomes of the slot, to the bit what
// one device and a CPU make of the row; and that whole rows are taken exactly where a row's
// parameters ask for other tokens. Then groups of processes draw in every way, kernel by kernel and
// as graphs that follow each other, gather as little as they may, and lose a rank in the middle.

#include <boost/test/unit_test.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/sample.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/step_plan.hpp"
#include "tests/kernels/cuda_host/cuda_runtime.h"
#include "tests/kernels/device_ranks.hpp"
#include "tests/kernels/drawn_rows.hpp"
#include "tests/kernels/ranks.hpp"

namespace sluice::kernels::test {
namespace {

using cuda::Draw;
using cuda::DrawnRow;
using cuda::DrawStatus;

constexpr std::uint32_t slot_count = 3, slot_blocks = 3, context = 48;

PoolShape pool_of(std::uint32_t vocabulary) {
  PoolShape pool;
  pool.layers = pool.kv_heads = 1;
  pool.head_dim = 2;
  pool.blocks = slot_count * slot_blocks;
  pool.slots = pool.rows_max = slot_count;
  pool.context_tokens = context;
  pool.vocabulary = vocabulary;
  return pool;
}

/// A device's slots, and what it makes of a step's rows, of which it has consecutive tokens.
struct Side {
  Side(std::uint32_t vocabulary, std::uint32_t first_token, std::uint32_t token_count)
      : first(first_token),
        count(token_count),
        states(slot_count),
        tokens(slot_count * (context + 1)),
        blocks(slot_count * slot_blocks),
        biases(slot_count * (vocabulary + 32)),
        stops(biases.size()),
        uses(slot_count * vocabulary),
        adjusted(slot_count * vocabulary, not_a_number),
        drawn(slot_count) {
    arrays = {states.data(), tokens.data(),   blocks.data(), biases.data(),
              stops.data(),  uses.data(),     nullptr,       context + 1,
              slot_blocks,   vocabulary + 32, vocabulary};
  }
  Side(const Side&) = delete;

  /// The part of rows [rows, vocabulary] that it has.
  cuda::Rows take(const std::vector<std::vector<float>>& rows) {
    logits.clear();
    for (const auto& row : rows) {
      logits.insert(logits.end(), row.begin() + first, row.begin() + first + count);
    }
    return {logits.data(), count, nullptr};
  }

  std::uint32_t first, count;
  std::vector<cuda::SlotState> states;
  std::vector<Token> tokens;
  std::vector<std::uint32_t> blocks;
  std::vector<cuda::TokenBias> biases;
  std::vector<Token> stops;
  std::vector<std::uint32_t> uses;
  std::vector<float> adjusted, logits;
  std::vector<DrawnRow> drawn;
  cuda::SlotArrays arrays;
};

/// Ranks' devices that share a vocabulary, and the kernels' launches in the order of a step's.
class Ranks {
 public:
  Ranks(std::uint32_t vocabulary, std::uint32_t size, cudaStream_t stream)
      : chain_(stream), stream_(stream) {
    for (std::uint32_t r = 0; r < size; ++r) {
      sides.push_back(std::make_unique<Side>(vocabulary, shard_begin(vocabulary, r, size),
                                             shard_count(vocabulary, {r, size})));
    }
  }

  /// `launched` is at least the rows that the step has.
  void draw(const std::byte* step, const std::vector<std::vector<float>>& rows,
            std::uint32_t launched, bool tallied) {
    const std::size_t all = sides.size() * launched;
    std::vector<cuda::RankPeak> own_peaks(all, garbage_peak), peaks = own_peaks;
    std::vector<cuda::RankTally> own_tallies(all, garbage_tally), tallies = own_tallies;
    std::vector<cuda::CandidateArgs> args;
    for (std::uint32_t r = 0; r < sides.size(); ++r) {
      Side& side = *sides[r];
      args.push_back({step, side.arrays, side.take(rows), side.first, side.count,
                      static_cast<std::uint32_t>(sides.size()), side.adjusted.data(),
                      side.drawn.data(), &own_peaks[r * launched], peaks.data(),
                      &own_tallies[r * launched], tallies.data(), tallied});
    }
    each(args, launched, cuda::find_peaks);
    peaks = own_peaks;
    if (tallied) each(args, launched, cuda::tally);
    tallies = own_tallies;
    each(args, launched, cuda::settle);
  }

  std::vector<std::unique_ptr<Side>> sides;

  // What no rank told.
  static constexpr cuda::RankPeak garbage_peak{infinity, 1, 1, 0};
  static constexpr cuda::RankTally garbage_tally{infinity, 1, infinity, 0, 1};

 private:
  void each(const std::vector<cuda::CandidateArgs>& args, std::uint32_t launched,
            cudaError_t (*kernel)(const cuda::CandidateArgs&, std::uint32_t, cuda::LaunchChain&)) {
    for (const auto& rank : args) BOOST_REQUIRE(kernel(rank, launched, chain_) == cudaSuccess);
    cudaStreamSynchronize(stream_);
    BOOST_REQUIRE(cuda_host::take_complaints().empty());
  }

  cuda::LaunchChain chain_;
  cudaStream_t stream_;
};

/// Sequences in slots, of random parameters.
struct Sequences {
  std::vector<std::vector<Token>> texts;
  std::vector<std::uint32_t> prompts;
  std::vector<SamplingParams> sampling;

  Sequences(Rows& rows, std::uint32_t vocabulary) {
    const bool greedy = rows.chance(4);
    for (std::uint32_t i = 1 + rows.below(slot_count); i > 0; --i) {
      texts.push_back(rows.text(vocabulary));
      const auto length = static_cast<std::uint32_t>(texts.back().size());
      prompts.push_back(1 + rows.below(length));
      SamplingParams s = rows.params(vocabulary);
      if (greedy) s.temperature = 0.0F;
      if (greedy || !rows.chance(10)) {  // else as it came, often with lists
        s.logprobs = greedy || rows.chance(2) ? -1 : 0;
        if (s.temperature != 0.0F && s.top_k < vocabulary) s.top_k = 0;
        if (s.temperature != 0.0F) s.top_p = 1.0F;
      }
      sampling.push_back(s);
    }
  }

  /// What a step of all of them takes.
  Draw due(std::uint32_t vocabulary) const {
    Draw due = Draw::peaks;
    for (const SamplingParams& s : sampling) {
      const bool cut = (s.top_k > 0 && s.top_k < vocabulary) || s.top_p < 1.0F;
      if (s.logprobs > 0 || (s.temperature > 0.0F && cut)) return Draw::whole;
      if (s.logprobs == 0 || s.temperature > 0.0F) due = Draw::candidates;
    }
    return due;
  }
};

void check_same(const DrawnRow& got, const DrawnRow& due) {
  BOOST_REQUIRE(got.status == due.status);
  if (due.status != DrawStatus::drawn) return;
  BOOST_TEST(got.token == due.token);
  BOOST_REQUIRE_EQUAL(got.logprob_count, due.logprob_count);
  for (std::uint32_t i = 0; i < due.logprob_count; ++i) {
    BOOST_TEST(got.logprobs[i].token == due.logprobs[i].token);
    BOOST_TEST(bits_of(got.logprobs[i].logprob) == bits_of(due.logprobs[i].logprob));
  }
}

void check_same(const DrawnRow& got, const SlotTokens& due) {
  BOOST_REQUIRE_EQUAL(got.status != DrawStatus::drawn, due.error.has_value());
  if (due.error) {
    const bool nan = due.error->message.find("NaN") != std::string::npos;
    BOOST_TEST((got.status == DrawStatus::all_nan) == nan);
    return;
  }
  BOOST_TEST(got.token == due.tokens.at(0));
  BOOST_REQUIRE_EQUAL(got.logprob_count, due.logprobs.empty() ? 0U : due.logprobs[0].size());
  for (std::uint32_t i = 0; i < got.logprob_count; ++i) {
    BOOST_TEST(got.logprobs[i].token == due.logprobs[0][i].token);
    BOOST_TEST(bits_of(got.logprobs[i].logprob) == bits_of(due.logprobs[0][i].logprob));
  }
}

/// Slots as the step left them.
void check_same(const Side& got, const Side& due) {
  for (std::uint32_t slot = 0; slot < slot_count; ++slot) {
    BOOST_TEST(got.states[slot].token_count == due.states[slot].token_count);
    BOOST_TEST(got.states[slot].failed == due.states[slot].failed);
  }
  BOOST_CHECK(got.tokens == due.tokens);
  BOOST_CHECK(got.uses == due.uses);
}

/// How often what happened.
struct Seen {
  int peaks = 0, candidates = 0, whole = 0;
  int none_allowed = 0, all_nan = 0, misplaced = 0;

  void count(Draw draw) {
    ++(draw == Draw::peaks ? peaks : draw == Draw::whole ? whole : candidates);
  }
  void count(DrawStatus status) {
    none_allowed += status == DrawStatus::none_allowed;
    all_nan += status == DrawStatus::all_nan;
    misplaced += status == DrawStatus::misplaced;
  }
};

/// Two steps of some sequences.
void compare(Rows& rows, cudaStream_t stream, Seen& seen) {
  const std::uint32_t vocabulary = rows.chance(4) ? 5 + rows.below(60) : 100 + rows.below(1500);
  const std::uint32_t size = 2 + rows.below(4);
  const PoolShape pool = pool_of(vocabulary);
  const Sequences sequences(rows, vocabulary);
  const auto count = static_cast<std::uint32_t>(sequences.texts.size());
  cuda::DeviceState state;
  state.split_tokens = 64;
  cuda::SlotMirror mirror(pool);
  cuda::StepPlan plan;
  cuda::LaunchChain chain(stream);
  Side one(vocabulary, 0, vocabulary);
  Ranks ranks(vocabulary, size, stream);
  std::vector<std::unique_ptr<SomeSlot>> on_cpu;
  cpu::SampleScratch scratch(vocabulary);
  for (int step = 0; step < 2; ++step) {
    Batch batch;
    std::vector<std::vector<float>> logits;
    const bool misplaced = step == 1 && rows.chance(12);
    for (SlotIndex slot = 0; slot < count; ++slot) {
      const auto& text = sequences.texts[slot];
      if (step == 0) {
        batch.opens.push_back({{slot, 1}, text, sequences.prompts[slot], sequences.sampling[slot]});
        batch.grants.push_back({slot, 0, {3 * slot, 3 * slot + 1, 3 * slot + 2}});
        on_cpu.push_back(std::make_unique<SomeSlot>(vocabulary, sequences.sampling[slot], text,
                                                    sequences.prompts[slot]));
      }
      const auto length =
          step == 0 ? static_cast<std::uint32_t>(text.size()) : one.states[slot].token_count;
      const std::uint32_t position = length - 1 + (misplaced && slot == 0 ? 1 : 0);
      batch.segments.push_back({{slot, 1}, position, 1, Path::decode, true});
      logits.push_back(rows.logits(vocabulary, size));
    }
    cuda::plan_batch(batch, pool, state, mirror, plan);
    BOOST_REQUIRE(plan.counts.draw == sequences.due(vocabulary));
    seen.count(plan.counts.draw);
    std::vector<Side*> sides{&one};
    for (const auto& rank : ranks.sides) sides.push_back(rank.get());
    for (const Side* side : sides) {
      cuda::open_slots(plan.bytes.data(), side->arrays, plan.opens, plan.grants, chain);
    }
    cuda::sample(
        {plan.bytes.data(), one.arrays, one.take(logits), one.adjusted.data(), one.drawn.data()},
        count, chain);
    cudaStreamSynchronize(stream);
    for (SlotIndex slot = 0; slot < count; ++slot) {
      seen.count(one.drawn[slot].status);
      if (one.drawn[slot].status == DrawStatus::misplaced) continue;
      check_same(one.drawn[slot], cpu::draw(on_cpu[slot]->slot, logits[slot], {}, scratch));
    }
    if (plan.counts.draw == Draw::whole) return;
    ranks.draw(plan.bytes.data(), logits, count + rows.below(3),
               plan.counts.draw == Draw::candidates);
    for (const auto& rank : ranks.sides) {
      for (SlotIndex slot = 0; slot < count; ++slot) check_same(rank->drawn[slot], one.drawn[slot]);
      check_same(*rank, one);
    }
  }
}

/// What a sequence is drawn by, one for each slot: two that their peaks decide, one for which ranks
/// race, one that takes whole rows.
std::vector<SamplingParams> one_of_each() {
  std::vector<SamplingParams> all(4);
  all[0].temperature = all[1].temperature = 0.0F;
  all[1].logit_bias = {{100, 1.0F}, {101, 1.0F}};
  all[1].frequency_penalty = 0.5F;
  all[2].seed = 11;
  all[2].min_p = 0.01F;
  all[2].logprobs = 0;
  all[2].repetition_penalty = 1.2F;
  all[3].seed = 12;
  all[3].top_k = 7;
  all[3].logprobs = 3;
  return all;
}

/// Steps of two rows that are drawn by peaks, from candidates, from whole rows, and for masks.
struct Kind {
  SlotIndex slot[2];
  bool now = true;
};
constexpr Kind kinds[] = {{{0, 1}}, {{0, 2}}, {{1, 3}}, {{0, 2}, false}};

/// One device's sequences, with their last tokens' places.
class Drawing {
 public:
  explicit Drawing(LoadedDevice& device) : device_(device) {}

  /// Opens the slots; nothing is drawn.
  std::string open() {
    Batch batch;
    const auto sampling = one_of_each();
    for (SlotIndex slot = 0; slot < sampling.size(); ++slot) {
      batch.opens.push_back({{slot, 1}, {3 + slot, 90 - 7 * slot, 150}, 2, sampling[slot]});
      batch.grants.push_back({slot, 0, {2 * slot, 2 * slot + 1}});
      batch.segments.push_back({{slot, 1}, 0, 2, Path::prompt, false});
      next_.push_back(2);
    }
    const StepResult result = device_.run(std::move(batch));
    return result.failed ? "failed: " + result.error.message : "";
  }

  /// A step, and what it drew to the bit.
  std::string step(const Kind& kind) {
    Batch batch;
    std::vector<Mask> masks;
    batch.sample_now = kind.now;
    for (const SlotIndex slot : kind.slot) {
      batch.segments.push_back({{slot, 1}, next_[slot]++, 1, Path::decode, true});
      masks.push_back({{slot, 1}, {}});
    }
    device_.submit(std::move(batch));
    if (!kind.now) device_.backend->sample(device_.ticket, std::move(masks));
    const StepResult result = device_.results.take();
    if (result.failed) return "failed: " + result.error.message;
    std::string text;
    for (const SlotTokens& slot : result.slots) {
      text += fmt::format(" {}", slot.error ? -1 : static_cast<int>(slot.tokens.at(0)));
      if (slot.logprobs.empty()) continue;
      for (const auto& one : slot.logprobs[0])
        text += fmt::format(",{}={:a}", one.token, one.logprob);
    }
    return text;
  }

 private:
  LoadedDevice& device_;
  std::vector<std::uint32_t> next_;
};

constexpr int cycles = 5;

/// Steps of all kinds, again and again.
std::string draw_in_all_ways(LoadedDevice& device) {
  Drawing drawing(device);
  std::string text = drawing.open();
  for (int cycle = 0; cycle < cycles; ++cycle) {
    for (const Kind& kind : kinds) text += drawing.step(kind) + ";";
  }
  return text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(device_candidates)

BOOST_AUTO_TEST_CASE(they_give_what_one_device_and_a_cpu_give) {
  const cuda::Stream stream = require(cuda::make_stream());
  Rows rows(5);
  Seen seen;
  for (int round = 0; round < 250; ++round) {
    BOOST_TEST_CONTEXT("round " << round) { compare(rows, stream.get(), seen); }
  }
  BOOST_TEST_MESSAGE("by peaks " << seen.peaks << ", candidates " << seen.candidates << ", whole "
                                 << seen.whole << "; none allowed " << seen.none_allowed
                                 << ", all NaN " << seen.all_nan << ", misplaced "
                                 << seen.misplaced);
  BOOST_TEST(seen.peaks > 50);
  BOOST_TEST(seen.candidates > 150);
  BOOST_TEST(seen.whole > 20);
  BOOST_TEST(seen.none_allowed > 10);
  BOOST_TEST(seen.all_nan > 10);
  BOOST_TEST(seen.misplaced > 3);
}

// A collective that fails leaves anything behind, and the launches after it run.
BOOST_AUTO_TEST_CASE(what_no_rank_told_writes_nowhere_else) {
  constexpr std::uint32_t vocabulary = 40;
  const cuda::Stream stream = require(cuda::make_stream());
  for (const bool tallied : {false, true}) {
    Batch batch;
    SamplingParams sampling;
    sampling.temperature = tallied ? 1.0F : 0.0F;
    sampling.presence_penalty = 1.0F;
    for (const SlotIndex slot : {0U, 1U}) {
      batch.opens.push_back({{slot, 1}, {7}, 1, sampling});
      batch.grants.push_back({slot, 0, {slot}});
    }
    batch.segments.push_back({{0, 1}, 0, 1, Path::decode, true});
    const PoolShape pool = pool_of(vocabulary);
    cuda::DeviceState state;
    state.split_tokens = 64;
    cuda::SlotMirror mirror(pool);
    cuda::StepPlan plan;
    cuda::plan_batch(batch, pool, state, mirror, plan);
    Side side(vocabulary, 0, vocabulary / 2);
    cuda::LaunchChain chain(stream.get());
    cuda::open_slots(plan.bytes.data(), side.arrays, plan.opens, plan.grants, chain);
    cudaStreamSynchronize(stream.get());
    const std::vector<std::uint32_t> before = side.uses;
    std::vector<cuda::RankPeak> peaks(2, {1.0F, vocabulary + 3, 1, 0});
    std::vector<cuda::RankTally> tallies(2, {1.0F, vocabulary + 3, 1.0F, 0, 1});
    cuda::settle({plan.bytes.data(),
                  side.arrays,
                  {},
                  0,
                  vocabulary / 2,
                  2,
                  side.adjusted.data(),
                  side.drawn.data(),
                  peaks.data(),
                  peaks.data(),
                  tallies.data(),
                  tallies.data(),
                  tallied},
                 1, chain);
    cudaStreamSynchronize(stream.get());
    BOOST_TEST(side.states[0].token_count == 2U);
    BOOST_TEST(side.tokens[1] < vocabulary);
    for (std::size_t i = vocabulary; i < before.size(); ++i) BOOST_TEST(side.uses[i] == before[i]);
  }
}

BOOST_AUTO_TEST_CASE(each_way_has_its_graphs_and_all_draw_the_same) {
  const auto graphs = [] { return cuda_host::calls("cudaGraphLaunch"); };
  const auto alone = run_ranks(1, [&](const auto&) -> std::string {
    const TinyModel model = tiny_model({.vocabulary = 301});
    Rank rank(model, "", nullptr);
    const std::uint64_t before = graphs();
    const std::string text = draw_in_all_ways(rank);
    // To one device it is all one but for the masks: all but the first step of each.
    const std::uint64_t launched = graphs() - before;
    return launched == 3 * cycles - 1 + cycles - 1 ? text : fmt::format("{} graphs", launched);
  });
  const std::string due = alone.front().report;
  BOOST_REQUIRE_MESSAGE(due.find(',') != std::string::npos, due);
  for (const std::uint32_t size : {2U, 3U}) {
    for (const bool captured : {false, true}) {
      BOOST_TEST_CONTEXT(size << " ranks, graphs: " << captured) {
        check_all(run_ranks(size,
                            [&](const auto& group) -> std::string {
                              const TinyModel model = cut(group->shard());
                              Rank rank(model, pretended(""), group, captured);
                              const std::uint64_t before = graphs();
                              const std::string text = draw_in_all_ways(rank);
                              const std::uint64_t launched = graphs() - before;
                              if (launched == (captured ? 4 * (cycles - 1) : 0)) return text;
                              return fmt::format("{} graphs: {}", launched, text);
                            }),
                  due);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(ranks_gather_no_more_than_a_step_needs) {
  check_all(run_ranks(3,
                      [](const auto& group) -> std::string {
                        const auto counted = std::make_shared<Counted>(group);
                        const TinyModel model = cut(group->shard());
                        Rank rank(model, "", counted);
                        Drawing drawing(rank);
                        std::string text = drawing.open();
                        for (const Kind& kind : kinds) {
                          counted->gathers();
                          const std::string drawn = drawing.step(kind);
                          if (drawn.starts_with("failed")) return drawn;
                          text += fmt::format("{};", fmt::join(counted->gathers(), " "));
                        }
                        return text;
                      }),
            "32;32 48;808;808;");  // of two rows, 101 floats each where they go whole
}

BOOST_AUTO_TEST_CASE(a_step_fails_where_a_rank_leaves_it) {
  for (const int at : {1, 2}) {
    check_ok(run_ranks(2, [&](const auto& group) -> std::string {
      const auto renewed = another_group(group);
      const auto counted = std::make_shared<Counted>(group);
      const TinyModel model = cut(group->shard());
      Rank rank(model, "", counted);
      Drawing first(rank);
      if (std::string failed = first.open(); !failed.empty()) return failed;
      if (group->shard().rank == 1) counted->leave_at(at);
      const std::string failed = first.step(kinds[1]);
      if (failed.find("failed: ") != 0) return "a step ended without its group";
      rank.join(renewed);
      const std::string after = draw_in_all_ways(rank);
      return after.find("failed") == std::string::npos ? "ok" : after;
    }));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
