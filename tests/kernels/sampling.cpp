// Shows that a backend draws exactly the token that the written definition (kernels/sampling.hpp)
// gives: a scalar sampler here, sorting whole vocabularies and making noise for every token, is fed
// the logits read back from the backend, over many random parameter sets. Also that the noise is
// Philox as published and Gumbel by its moments, that exp and log are close to the C library's,
// and that masks, bans and rows without any token to draw behave.

#include "kernels/sampling.hpp"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "kernels/cpu/sample.hpp"
#include "kernels/elementary.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// Logits after bias, penalties and bans, from the definition's words.
std::vector<float> adjusted(std::vector<float> logits, const SamplingParams& s,
                            const std::vector<Token>& tokens, std::uint32_t prompt,
                            const std::vector<std::uint64_t>& allowed) {
  for (const auto& [token, bias] : s.logit_bias) logits[token] += bias;
  for (Token t = 0; t < logits.size(); ++t) {
    const auto begin = tokens.begin();
    const bool in_prompt = std::count(begin, begin + prompt, t) > 0;
    const auto generated = static_cast<std::uint32_t>(std::count(begin + prompt, tokens.end(), t));
    const Penalties penalties{s.repetition_penalty, s.presence_penalty, s.frequency_penalty};
    logits[t] = tamed(penalized(logits[t], penalties, in_prompt, generated));
    const bool in_mask = allowed.empty() || (t / 64 < allowed.size() &&
                                             (allowed[t / 64] >> (t % 64) & 1) != 0);
    if (!in_mask) logits[t] = minus_infinity;
  }
  if (tokens.size() - prompt < s.min_tokens) {
    for (const Token t : s.stop_tokens) logits[t] = minus_infinity;
  }
  return logits;
}

Token best_of(const std::vector<float>& values) {
  return static_cast<Token>(std::max_element(values.begin(), values.end()) - values.begin());
}

Token expected_token(const std::vector<float>& logits, const SamplingParams& s,
                     std::uint32_t index) {
  const Token best = best_of(logits);
  if (s.temperature == 0.0F) return best;
  std::vector<float> z(logits);
  for (float& x : z) x = (x - logits[best]) * inverse_temperature(s.temperature);
  for (float& x : z) x = exp_f32(x) >= s.min_p ? x : minus_infinity;
  std::vector<float> sorted(z);
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  if (s.top_k > 0 && s.top_k < z.size()) {
    for (float& x : z) x = x >= sorted[s.top_k - 1] ? x : minus_infinity;
  }
  if (s.top_p < 1.0F) {
    sorted = z;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    std::uint64_t total = 0, gathered = 0;
    for (const float x : z) total += mass(x);
    float threshold = 0;
    for (const float x : sorted) {
      threshold = x;
      if ((gathered += mass(x)) >= top_p_target(total, s.top_p)) break;
    }
    for (float& x : z) x = x >= threshold ? x : minus_infinity;
  }
  for (Token t = 0; t < z.size(); ++t) z[t] += gumbel(noise_bits(s.seed, index, t));
  return best_of(z);
}

SamplingParams random_params(std::mt19937& random, std::uint32_t vocabulary) {
  const auto chance = [&](unsigned n) { return random() % n == 0; };
  const auto real = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  SamplingParams s;
  s.temperature = chance(4) ? 0.0F : chance(3) ? real(0.01F, 0.3F) : real(0.5F, 4.0F);
  if (chance(2)) s.top_k = 1 + static_cast<std::uint32_t>(random() % 60);
  if (chance(2)) s.top_p = real(0.05F, 1.0F);
  if (chance(3)) s.min_p = real(0.0F, 0.3F);
  if (chance(2)) s.repetition_penalty = real(0.5F, 2.0F);
  if (chance(3)) s.presence_penalty = real(-2.0F, 2.0F);
  if (chance(3)) s.frequency_penalty = real(-1.0F, 1.0F);
  if (chance(3)) {
    for (Token t = 3; t < vocabulary; t += 50) s.logit_bias.emplace_back(t, real(-5.0F, 5.0F));
  }
  if (chance(3)) s.min_tokens = 5;
  for (int i = 0; i < 20; ++i) s.stop_tokens.push_back(static_cast<Token>(random() % vocabulary));
  s.seed = (std::uint64_t{random()} << 32) | random();
  if (chance(2)) s.logprobs = static_cast<std::int32_t>(random() % 6);
  return s;
}

void check_logprobs(const SlotTokens& got, const std::vector<float>& logits, std::int32_t wanted) {
  BOOST_REQUIRE_EQUAL(got.logprobs.size(), wanted >= 0 ? 1U : 0U);
  if (wanted < 0) return;
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  std::vector<Token> order(logits.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(),
                   [&](Token a, Token b) { return logits[a] > logits[b]; });
  order.resize(static_cast<std::size_t>(wanted));
  order.insert(order.begin(), got.tokens[0]);
  BOOST_REQUIRE_EQUAL(got.logprobs[0].size(), order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    BOOST_CHECK_EQUAL(got.logprobs[0][i].token, order[i]);
    const double exact = static_cast<double>(logits[order[i]]) - std::log(total);
    BOOST_CHECK_SMALL(static_cast<double>(got.logprobs[0][i].logprob) - exact, 1e-4);
  }
}

/// One slot with a prompt of `tokens`, first row to last in a single segment.
Batch whole_prompt(const Sequence& s, std::uint32_t block_tokens) {
  Batch batch;
  const auto rows = static_cast<std::uint32_t>(s.tokens.size());
  batch.opens.push_back({s.slot, s.tokens, s.prompt_tokens, s.sampling});
  BlockGrant grant{s.slot.slot, 0, {}};
  for (std::uint32_t b = 0; b * block_tokens < rows + 8; ++b) grant.blocks.push_back(b);
  batch.grants.push_back(grant);
  batch.segments.push_back({s.slot, 0, rows, Path::prompt, true});
  return batch;
}

Batch rows_of(std::vector<Segment> segments) {
  Batch batch;
  batch.segments = std::move(segments);
  return batch;
}

/// A prompt of three tokens for slot 0.
Sequence short_sequence(const SamplingParams& sampling) {
  Sequence s;
  s.tokens = {5, 7, 11};
  s.prompt_tokens = 3;
  s.sampling = sampling;
  return s;
}

void check_tokens(const Tested& backend, std::uint32_t vocabulary, int rounds) {
  std::mt19937 random(3);
  const TinyModel model = tiny_model({.vocabulary = vocabulary, .layers = 1});
  Device device(backend.make, model);
  for (std::uint32_t round = 0; static_cast<int>(round) < backend.rounds(rounds); ++round) {
    Sequence s;
    s.slot = {0, round};
    s.tokens = random_tokens(random, model, 1 + random() % 30);
    s.prompt_tokens = 1 + static_cast<std::uint32_t>(random() % s.tokens.size());
    s.sampling = random_params(random, model.traits.vocabulary);
    for (int generated = 0; generated < 3; ++generated) {
      const auto last = static_cast<std::uint32_t>(s.tokens.size()) - 1;
      Batch batch = whole_prompt(s, model.traits.block_tokens);
      if (generated > 0) batch = rows_of({{s.slot, last, 1, Path::decode, true}});
      if (generated == 2) batch.closes.push_back(s.slot);
      const StepResult result = device.run(batch);
      const std::vector<float> logits =
          adjusted(device.read(model.logits, 1), s.sampling, s.tokens, s.prompt_tokens, {});
      const auto index = static_cast<std::uint32_t>(s.tokens.size()) - s.prompt_tokens;
      BOOST_REQUIRE_EQUAL(result.slots.size(), 1U);
      BOOST_REQUIRE_EQUAL(result.slots[0].tokens.size(), 1U);
      BOOST_TEST(result.slots[0].tokens[0] == expected_token(logits, s.sampling, index));
      check_logprobs(result.slots[0], logits, s.sampling.logprobs);
      s.tokens.push_back(result.slots[0].tokens[0]);
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sampling)

BOOST_AUTO_TEST_CASE(tokens_are_those_of_the_definition) {
  on_every_backend([](const Tested& backend) {
    check_tokens(backend, 1003, 300);
    check_tokens(backend, 9001, 40);  // more than a device's block has under way together
  });
}

BOOST_AUTO_TEST_CASE(top_k_rules_out_what_lies_far_below) {
  // Exactly k tokens are close to the highest, and much of the mass is not: once taken for all that
  // there are.
  std::vector<float> logits(4096, -5.0F);
  logits[7] = logits[4000] = 0.0F;
  std::vector<Token> room(101);
  cpu::Slot slot;
  slot.tokens = room;
  slot.sampling.top_k = 2;
  cpu::SampleScratch scratch(4096);
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    slot.sampling.seed = seed;
    const Token token = cpu::draw(slot, logits, {}, scratch).tokens.at(0);
    BOOST_TEST((token == 7 || token == 4000));
  }
}

BOOST_AUTO_TEST_CASE(philox_is_as_published) {
  // Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
  using Words = std::array<std::uint32_t, 4>;
  BOOST_CHECK((philox({0, 0, 0, 0}, 0) ==
               Words{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  constexpr std::uint32_t ones = 0xffffffffU;
  BOOST_CHECK((philox({ones, ones, ones, ones}, ~std::uint64_t{0}) ==
               Words{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  BOOST_CHECK((philox({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, 0x299f31d0a4093822U) ==
               Words{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

BOOST_AUTO_TEST_CASE(noise_is_gumbel_and_rises) {
  double sum = 0, squares = 0;
  constexpr std::uint32_t count = 200000;
  for (std::uint32_t t = 0; t < count; ++t) {
    const double g = static_cast<double>(gumbel(noise_bits(42, 7, t)));
    sum += g;
    squares += g * g;
  }
  const double mean = sum / count;
  BOOST_CHECK_SMALL(mean - 0.5772156649, 0.01);  // three standard errors are 0.0086
  BOOST_CHECK_SMALL(squares / count - mean * mean - M_PI * M_PI / 6, 0.04);
  BOOST_TEST(gumbel(0) >= gumbel_lowest);
  BOOST_TEST(gumbel(0xffffffffU) <= gumbel_highest);
  float before = gumbel(0);
  for (std::uint64_t bits = 0; bits <= 0xffffffffU; bits += 0x3ffff) {
    const float g = gumbel(static_cast<std::uint32_t>(bits));
    const double u = (static_cast<double>(bits) + 0.5) / 4294967296.0;
    BOOST_REQUIRE_SMALL(static_cast<double>(g) - -std::log(-std::log(u)), 4e-6);
    BOOST_REQUIRE_GE(g, before);
    before = g;
  }
}

BOOST_AUTO_TEST_CASE(elementary_functions_are_close) {
  for (float x = -86.0F; x < 88.0F; x += 0.0137F) {
    const double exact = std::exp(static_cast<double>(x));
    BOOST_REQUIRE_SMALL(static_cast<double>(exp_f32(x)) / exact - 1, 2.5e-7);
  }
  BOOST_CHECK_EQUAL(exp_f32(0.0F), 1.0F);
  BOOST_CHECK_EQUAL(exp_f32(minus_infinity), 0.0F);
  for (float x = 1e-30F; x < 1e30F; x *= 1.0137F) {
    const double exact = std::log(static_cast<double>(x));
    BOOST_REQUIRE_SMALL(static_cast<double>(log_f32(x)) - exact, 1e-7 + 2e-7 * std::abs(exact));
  }
  for (double angle = 0; angle < 140000; angle += 1.37) {
    const SineCosine turn = sine_cosine(angle);
    BOOST_REQUIRE_SMALL(turn.sine - std::sin(angle), 1e-13);
    BOOST_REQUIRE_SMALL(turn.cosine - std::cos(angle), 1e-13);
  }
}

BOOST_AUTO_TEST_CASE(held_rows_draw_within_their_masks) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = tiny_model({.layers = 1});
    Device device(backend.make, model);
    const Sequence first = short_sequence({});
    SamplingParams greedy;
    greedy.temperature = 0.0F;
    Sequence second = short_sequence(greedy);
    second.slot = {1, 0};
    Batch batch = whole_prompt(first, 16);
    Batch other = whole_prompt(second, 16);
    other.grants[0].blocks = {10, 11};
    batch.opens.push_back(other.opens[0]);
    batch.grants.push_back(other.grants[0]);
    batch.segments.push_back(other.segments[0]);
    batch.sample_now = false;
    device.submit(batch);
    const std::vector<float> logits = device.read(model.logits, 2);  // waits until the step ran
    BOOST_TEST(device.results.empty());

    std::vector<std::uint64_t> allowed(2, 0);  // tokens 64 to 66, all others banned
    allowed[1] = 7;
    device.backend->sample(device.ticket, {{first.slot, allowed}});
    StepResult result = device.results.take();
    BOOST_REQUIRE_EQUAL(result.slots.size(), 2U);
    const std::vector<float> row(logits.begin(), logits.begin() + model.traits.vocabulary);
    const auto masked = adjusted(row, first.sampling, first.tokens, 3, allowed);
    BOOST_REQUIRE_EQUAL(result.slots[0].tokens.size(), 1U);
    BOOST_TEST(result.slots[0].tokens[0] == expected_token(masked, first.sampling, 0));
    BOOST_TEST(result.slots[1].tokens.empty());  // sat out

    // The row that sat out draws in a later step's second half, in which it has no segment.
    Batch next = rows_of({{first.slot, 3, 1, Path::decode, true}});
    next.sample_now = false;
    device.submit(next);
    device.backend->sample(device.ticket, {{second.slot, {}}, {first.slot, {}}});
    result = device.results.take();
    BOOST_REQUIRE_EQUAL(result.slots.size(), 2U);
    BOOST_TEST(result.slots[0].tokens.size() == 1U);
    BOOST_CHECK(result.slots[1].slot == second.slot);
    const std::vector<float> held(logits.begin() + model.traits.vocabulary, logits.end());
    BOOST_REQUIRE_EQUAL(result.slots[1].tokens.size(), 1U);
    BOOST_TEST(result.slots[1].tokens[0] == best_of(held));
  });
}

BOOST_AUTO_TEST_CASE(completions_keep_the_order_of_tickets) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = tiny_model({.layers = 1});
    Device device(backend.make, model);
    Batch held = whole_prompt(short_sequence({}), 16);
    held.sample_now = false;
    device.submit(held);
    Sequence second = short_sequence({});
    second.slot = {1, 0};
    Batch other = whole_prompt(second, 16);
    other.grants[0].blocks = {10, 11};
    device.submit(other);
    device.read(model.logits, 1);  // both ran
    BOOST_TEST(device.results.empty());
    device.backend->sample(1, {});
    BOOST_TEST(device.results.take().ticket == 1U);
    BOOST_TEST(device.results.take().ticket == 2U);
  });
}

BOOST_AUTO_TEST_CASE(a_step_never_sampled_fails_at_the_end) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = tiny_model({.layers = 1});
    Device device(backend.make, model);
    Batch held = whole_prompt(short_sequence({}), 16);
    held.sample_now = false;
    device.submit(held);
    device.backend.reset();
    const StepResult result = device.results.take();
    BOOST_TEST(result.failed);
    BOOST_CHECK(result.error.code == ErrorCode::unavailable);
  });
}

BOOST_AUTO_TEST_CASE(a_row_with_nothing_to_draw_fails_alone) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = tiny_model({.layers = 1});
    Device device(backend.make, model);
    SamplingParams banned_all;
    for (Token t = 0; t < model.traits.vocabulary; ++t) {
      banned_all.logit_bias.emplace_back(t, minus_infinity);
    }
    const Sequence bad = short_sequence(banned_all);
    Sequence good = short_sequence({});
    good.slot = {1, 0};
    Batch batch = whole_prompt(bad, 16);
    Batch other = whole_prompt(good, 16);
    other.grants[0].blocks = {10, 11};
    batch.opens.push_back(other.opens[0]);
    batch.grants.push_back(other.grants[0]);
    batch.segments.push_back(other.segments[0]);
    device.submit(batch);
    // Planned before the failure is known: it runs, and reports the same.
    device.submit(
        rows_of({{bad.slot, 3, 1, Path::decode, true}, {good.slot, 3, 1, Path::decode, true}}));
    for (int step = 0; step < 2; ++step) {
      const StepResult result = device.results.take();
      BOOST_TEST(!result.failed);
      BOOST_REQUIRE_EQUAL(result.slots.size(), 2U);
      BOOST_REQUIRE(result.slots[0].error.has_value());
      BOOST_CHECK(result.slots[0].error->code == ErrorCode::internal);
      BOOST_TEST(result.slots[0].tokens.empty());
      BOOST_TEST(!result.slots[1].error.has_value());
      BOOST_TEST(result.slots[1].tokens.size() == 1U);
    }
  });
}

BOOST_AUTO_TEST_CASE(nan_logits_are_an_error_or_are_passed_over) {
  on_every_backend([](const Tested& backend) {
    TinyModel model = tiny_model({.format = Format::f32, .layers = 1});
    const float nan = std::numeric_limits<float>::quiet_NaN();
    Tensor& output = model.tensors.back();  // the weight of the logits
    const std::size_t row = output.host.cols * sizeof(float);
    for (std::size_t t = 0; t < model.traits.vocabulary; ++t) {
      if (t != 17) std::memcpy(&output.bytes[t * row], &nan, sizeof nan);
    }
    {
      Device device(backend.make, model);
      const StepResult result = device.run(whole_prompt(short_sequence({}), 16));
      BOOST_REQUIRE_EQUAL(result.slots[0].tokens.size(), 1U);
      BOOST_TEST(result.slots[0].tokens[0] == 17U);
    }
    std::memcpy(&output.bytes[17 * row], &nan, sizeof nan);
    Device device(backend.make, model);
    const StepResult result = device.run(whole_prompt(short_sequence({}), 16));
    BOOST_REQUIRE(result.slots[0].error.has_value());
    BOOST_TEST(result.slots[0].error->message.find("NaN") != std::string::npos);
  });
}

// Of more tokens than a device's block reads in one turn; rows that end with whole fours, and not.
BOOST_AUTO_TEST_CASE(among_equal_and_infinite_logits_the_definition_holds) {
  on_every_backend([](const Tested& backend) {
    for (const std::uint32_t vocabulary : {17000U, 17003U}) {
      for (const float special : {0.0F, std::numeric_limits<float>::infinity()}) {
        TinyModel model =
            tiny_model({.format = Format::f32, .vocabulary = vocabulary, .layers = 1});
        Tensor& output = model.tensors.back();
        const std::size_t row = output.host.cols * sizeof(float);
        const float nan = std::numeric_limits<float>::quiet_NaN();
        for (std::size_t t = 0; t < vocabulary; ++t) {
          if (t >= 7) std::memcpy(&output.bytes[t * row], &output.bytes[t % 7 * row], row);
          if (t % 5 == 2) std::memcpy(&output.bytes[t * row], &nan, sizeof nan);
          const float infinite = t % 2 == 0 ? special : -special;
          if (t % 911 == 500) std::memcpy(&output.bytes[t * row], &infinite, sizeof infinite);
        }
        Device device(backend.make, model);
        std::uint32_t round = 0;
        for (const float temperature : {0.0F, 1.0F}) {
          for (const std::int32_t logprobs : {-1, 0}) {
            SamplingParams sampling;
            sampling.temperature = temperature;
            sampling.logprobs = logprobs;
            Sequence s = short_sequence(sampling);
            s.slot = {0, round++};
            Batch batch = whole_prompt(s, 16);
            batch.closes.push_back(s.slot);
            const StepResult result = device.run(batch);
            const std::vector<float> logits =
                adjusted(device.read(model.logits, 1), sampling, s.tokens, 3, {});
            BOOST_REQUIRE_EQUAL(result.slots.at(0).tokens.size(), 1U);
            BOOST_TEST(result.slots[0].tokens[0] == expected_token(logits, sampling, 0));
          }
        }
      }
    }
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
