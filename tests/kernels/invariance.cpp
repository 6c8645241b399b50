// Shows that a row's bits depend on its sequence alone: the same prompts are run alone, beside
// others, in any chunks, with 1 to 3 threads, with steps planned ahead of their results, in other
// pool blocks, and on every instruction set this machine has; logits must be equal to the bit, and
// so must the tokens drawn. Run against every backend this machine has (tested.hpp).

#include "tests/kernels/cpu_targets.hpp"
// Before all that includes Highway's.
#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/program.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

constexpr std::uint32_t prompt_rows = 45;
constexpr int generated = 6;

/// Everything a run of a sequence shows.
struct Trace {
  std::vector<std::uint32_t> logit_bits;  ///< of every sampled row
  std::vector<Token> tokens;

  bool operator==(const Trace&) const = default;
};

Sequence sequence(const TinyModel& model, SlotIndex slot) {
  std::mt19937 random(100 + slot);
  Sequence s;
  s.slot = {slot, 0};
  s.tokens = random_tokens(random, model, prompt_rows);
  s.prompt_tokens = prompt_rows;
  s.sampling.temperature = 0.9F;
  s.sampling.top_p = 0.9F;
  s.sampling.repetition_penalty = 1.1F;
  s.sampling.seed = slot;
  return s;
}

/// Runs `count` sequences side by side, prompts in chunks of at most `chunk` rows, and traces the
/// first. The others start `lag` steps after one another.
Trace trace(const TinyModel& model, const Factory& make, std::uint32_t chunk, SlotIndex count = 1,
            std::uint32_t lag = 0, std::uint32_t shuffle = 0) {
  std::mt19937 random(shuffle);
  Device device(make, model);
  Blocks blocks(model, random);
  std::vector<Sequence> sequences;
  for (SlotIndex i = 0; i < count; ++i) sequences.push_back(sequence(model, i));
  Trace out;
  for (std::uint32_t step = 0; out.tokens.size() < generated; ++step) {
    Batch batch;
    std::uint32_t left = model.pool().rows_max;
    for (SlotIndex i = 0; i < count; ++i) {
      Sequence& s = sequences[i];
      const auto waiting = static_cast<std::uint32_t>(s.tokens.size()) - s.computed;
      const std::uint32_t rows = std::min({waiting, chunk, left});
      if (step < i * lag || rows == 0) continue;
      left -= rows;
      s.plan(batch, rows, rows == waiting, blocks, model.traits.block_tokens);
    }
    const StepResult result = device.run(batch);
    for (const SlotTokens& slot : result.slots) {
      BOOST_REQUIRE_EQUAL(slot.tokens.size(), 1U);
      sequences[slot.slot.slot].tokens.push_back(slot.tokens[0]);
      if (slot.slot.slot != 0) continue;
      for (const float x : device.read(model.logits, 1)) {
        out.logit_bits.push_back(std::bit_cast<std::uint32_t>(x));
      }
      out.tokens.push_back(slot.tokens[0]);
    }
  }
  return out;
}

/// Every option of every operation, in two layers.
TinyModel model_of(Format format, HeadShape heads = {4, 2, 64},
                   KvFormat kv_format = KvFormat::f16) {
  return tiny_model({.format = format,
                     .heads = heads,
                     .window = 30,
                     .activation = Activation::gelu_tanh,
                     .bias = true,
                     .head_norms = true,
                     .branch_norms = true,
                     .mixed_layers = true,
                     .score_cap = 2.0F,
                     .logit_cap = 5.0F,
                     .kv_format = kv_format});
}

}  // namespace

BOOST_AUTO_TEST_SUITE(invariance)

BOOST_AUTO_TEST_CASE(chunks_do_not_matter) {
  on_every_backend([](const Tested& backend) {
    const std::vector<Format> formats =
        backend.emulated ? std::vector{Format::q4_1}
                         : std::vector{Format::q4_1, Format::q8_0, Format::q6_k, Format::f16,
                                       Format::bf16};
    const std::vector<std::uint32_t> chunks =
        backend.emulated ? std::vector{1U, 7U, 31U} : std::vector{1U, 2U, 3U, 7U, 16U, 31U};
    for (const Format format : formats) {
      const TinyModel model = model_of(format);
      const Trace whole = trace(model, backend.make, prompt_rows);
      for (const std::uint32_t chunk : chunks) {
        BOOST_TEST_CONTEXT(info(format).name << ", chunks of " << chunk) {
          BOOST_CHECK(trace(model, backend.make, chunk) == whole);
        }
      }
    }
  });
}

// One head to a key head, and three: they attend in other groups of rows than two do.
BOOST_AUTO_TEST_CASE(chunks_do_not_matter_whatever_heads_share) {
  on_every_backend([](const Tested& backend) {
    for (const HeadShape heads : {HeadShape{2, 2, 64}, HeadShape{3, 1, 64}}) {
      const TinyModel model = model_of(Format::f16, heads);
      const Trace whole = trace(model, backend.make, prompt_rows);
      for (const std::uint32_t chunk : {1U, 7U}) {
        BOOST_TEST_CONTEXT(heads.heads << " heads, chunks of " << chunk) {
          BOOST_CHECK(trace(model, backend.make, chunk) == whole);
        }
      }
    }
  });
}

/// Long enough for several tiles, splits and blocks of queries; cheap but for its attention.
TinyModel long_model(HeadShape heads, std::uint32_t pool_contexts = 8,
                     KvFormat kv_format = KvFormat::f16, Format format = Format::f16) {
  return tiny_model({.format = format,
                     .hidden = 32,
                     .heads = heads,
                     .feed_forward = 32,
                     .vocabulary = 40,
                     .pairs = heads.head_dim / 2,
                     .window = 75,
                     .mixed_layers = true,
                     .context_tokens = 320,
                     .pool_contexts = pool_contexts,
                     .sample = false,
                     .kv_format = kv_format});
}

std::vector<std::uint32_t> first_logits(Device& device) {
  std::vector<std::uint32_t> bits;
  for (const float x : device.read(device.model.logits, 1)) {
    BOOST_TEST(std::isfinite(x));
    bits.push_back(std::bit_cast<std::uint32_t>(x));
  }
  return bits;
}

/// Logits of a prompt's last row, its rows computed in chunks of these sizes.
std::vector<std::uint32_t> logits_of(const TinyModel& model, const Factory& make,
                                     const std::vector<std::uint32_t>& chunks) {
  std::mt19937 random(9);
  Device device(make, model);
  Blocks blocks(model, random);
  Sequence s;
  for (const std::uint32_t rows : chunks) s.prompt_tokens += rows;
  std::mt19937 text(10);
  s.tokens = random_tokens(text, model, s.prompt_tokens);
  for (const std::uint32_t rows : chunks) {
    Batch batch;
    s.plan(batch, rows, s.computed + rows == s.prompt_tokens, blocks, model.traits.block_tokens);
    device.run(batch);
  }
  return first_logits(device);
}

/// CUDA on the host with splits of these sizes, and every other backend.
std::vector<Factory> with_splits(const std::vector<std::uint32_t>& split_tokens, bool cpu) {
  std::vector<Factory> factories;
  for (const std::uint32_t tokens : split_tokens) factories.push_back(on_cuda_host(tokens));
  for (const Tested& backend : tested_backends()) {
    if (!backend.emulated && (cpu || backend.name != "cpu")) factories.push_back(backend.make);
  }
  return factories;
}

BOOST_AUTO_TEST_CASE(chunks_of_long_prompts_do_not_matter) {
  const auto factories = with_splits({64, 128, 256}, true);
  for (const HeadShape heads : {HeadShape{6, 2, 32}, HeadShape{1, 1, 64}}) {
    const TinyModel model = long_model(heads);
    for (const Factory& make : factories) {
      const auto whole = logits_of(model, make, {293});
      BOOST_CHECK(logits_of(model, make, {150, 100, 40, 1, 1, 1}) == whole);
      BOOST_CHECK(logits_of(model, make, {3, 289, 1}) == whole);
    }
  }
}

// A CPU unpacks weights once for so many rows, and attends in pairs.
BOOST_AUTO_TEST_CASE(chunks_of_long_prompts_do_not_matter_to_quantized_weights) {
  for (const Format format : {Format::q4_0, Format::q5_0, Format::q8_0}) {
    for (const HeadShape heads : {HeadShape{6, 2, 32}, HeadShape{1, 1, 64}}) {
      const TinyModel model = long_model(heads, 8, KvFormat::f16, format);
      BOOST_TEST_CONTEXT(info(format).name << ", " << heads.heads << " heads") {
        const auto whole = logits_of(model, on_cpu(2), {293});
        on_every_target([&] {
          BOOST_CHECK(logits_of(model, on_cpu(1), {293}) == whole);
          BOOST_CHECK(logits_of(model, on_cpu(1), {150, 100, 40, 1, 1, 1}) == whole);
          BOOST_CHECK(logits_of(model, on_cpu(1), {3, 289, 1}) == whole);
        });
      }
    }
  }
}

// Of 8 bits keys and values, which the two kernels that attend bring to tensor cores in different
// ways: every width that they are made for.
BOOST_AUTO_TEST_CASE(chunks_of_long_prompts_do_not_matter_with_8_bit_keys) {
  const auto factories = with_splits({64, 256}, false);
  for (const HeadShape heads : {HeadShape{6, 2, 32}, HeadShape{1, 1, 64}, HeadShape{1, 1, 70},
                                HeadShape{1, 1, 96}, HeadShape{2, 1, 128}, HeadShape{1, 1, 256}}) {
    const TinyModel model = long_model(heads, 8, KvFormat::e4m3);
    for (const Factory& make : factories) {
      BOOST_TEST_CONTEXT(heads.heads << " heads of " << heads.head_dim) {
        const auto whole = logits_of(model, make, {293});
        BOOST_CHECK(logits_of(model, make, {150, 100, 40, 1, 1, 1}) == whole);
        BOOST_CHECK(logits_of(model, make, {3, 289, 1}) == whole);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(chunks_and_neighbours_do_not_matter_with_8_bit_keys) {
  on_backends_of_8_bit_keys([](const Tested& backend) {
    const TinyModel model = model_of(Format::f16, {4, 2, 64}, KvFormat::e4m3);
    const Trace whole = trace(model, backend.make, prompt_rows);
    BOOST_CHECK(trace(model, backend.make, 1) == whole);
    BOOST_CHECK(trace(model, backend.make, 7) == whole);
    BOOST_CHECK(trace(model, backend.make, 10, 6, 3) == whole);
    BOOST_CHECK(trace(model, backend.make, 20, 3, 1, 99) == whole);
  });
}

/// Logits of the last row of a prompt of so many tokens, alone or in one step with other prompts'.
std::vector<std::uint32_t> logits_beside(const TinyModel& model, const Factory& make,
                                         const std::vector<std::uint32_t>& prompts) {
  std::mt19937 random(9);
  Device device(make, model);
  Blocks blocks(model, random);
  std::vector<Sequence> sequences;
  Batch last;
  for (const std::uint32_t tokens : prompts) {
    Sequence s;
    s.slot = {static_cast<SlotIndex>(sequences.size()), 0};
    std::mt19937 text(tokens);
    s.tokens = random_tokens(text, model, tokens);
    s.prompt_tokens = tokens;
    Batch batch;
    s.plan(batch, tokens - 1, false, blocks, model.traits.block_tokens);
    device.run(batch);
    s.plan(last, 1, true, blocks, model.traits.block_tokens);
    sequences.push_back(s);
  }
  device.run(last);
  return first_logits(device);
}

// Rows of one split beside rows of several.
BOOST_AUTO_TEST_CASE(neighbours_of_other_lengths_do_not_matter) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = long_model({3, 1, 32});
    for (const std::uint32_t own : {50U, 290U}) {
      const auto alone = logits_beside(model, backend.make, {own});
      BOOST_CHECK(logits_beside(model, backend.make, {own, 140, 65, 230}) == alone);
    }
  });
}

// Slots that share their blocks have more splits than a pool of so many blocks makes room for: rows
// then attend by the kernel of many rows.
BOOST_AUTO_TEST_CASE(shared_blocks_do_not_matter) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = long_model({2, 1, 32}, 1);
    constexpr std::uint32_t rows = 224;  // whole blocks
    std::mt19937 random(11);
    Device device(backend.make, model);
    Sequence first;
    first.tokens = random_tokens(random, model, rows + 1);
    first.prompt_tokens = rows + 1;
    const PoolShape pool = model.pool();
    BOOST_TEST(cuda::split_room(pool, 64) < pool.slots * cuda::split_count(rows + 1, 64));
    std::vector<std::uint32_t> blocks(rows / model.traits.block_tokens + 1);
    std::iota(blocks.begin(), blocks.end(), 0U);
    const auto open = [&](Batch& batch, SlotIndex slot) {
      // The last, which a slot writes, is its own.
      blocks.back() = rows / model.traits.block_tokens + slot;
      batch.opens.push_back({{slot, 0}, first.tokens, first.prompt_tokens, {}});
      batch.grants.push_back({slot, 0, blocks});
    };
    Batch prompt, one, all;
    open(prompt, 0);
    prompt.segments.push_back({{0, 0}, 0, rows, Path::prompt, false});
    device.run(prompt);
    one.segments.push_back({{0, 0}, rows, 1, Path::prompt, true});
    device.run(one);
    const auto alone = first_logits(device);
    for (SlotIndex slot = 0; slot < pool.slots; ++slot) {
      if (slot > 0) open(all, slot);
      all.segments.push_back({{slot, 0}, rows, 1, Path::prompt, true});
    }
    device.run(all);
    BOOST_CHECK(first_logits(device) == alone);
  });
}

BOOST_AUTO_TEST_CASE(neighbours_do_not_matter) {
  on_every_backend([](const Tested& backend) {
    for (std::size_t f = 0; f < format_count; f += backend.emulated ? 5 : 1) {
      const TinyModel model = model_of(static_cast<Format>(f));
      const Trace alone = trace(model, backend.make, prompt_rows);
      BOOST_TEST_CONTEXT(info(static_cast<Format>(f)).name) {
        BOOST_CHECK(trace(model, backend.make, prompt_rows, 2) == alone);
        BOOST_CHECK(trace(model, backend.make, 10, 6, 3) == alone);
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(places_do_not_matter) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = model_of(Format::q4_k);
    const Trace one = trace(model, backend.make, 20, 3, 1);
    BOOST_CHECK(trace(model, backend.make, 20, 3, 1, 99) == one);
  });
}

BOOST_AUTO_TEST_CASE(threads_do_not_matter) {
  const TinyModel model = model_of(Format::q4_k);
  const Trace one = trace(model, on_cpu(1), 20, 3, 1);
  BOOST_CHECK(trace(model, on_cpu(2), 20, 3, 1) == one);
  BOOST_CHECK(trace(model, on_cpu(3), 20, 3, 1) == one);
}

BOOST_AUTO_TEST_CASE(planning_ahead_does_not_matter) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = model_of(Format::q4_0);
    const Trace waited = trace(model, backend.make, prompt_rows);
    std::mt19937 random(5);
    Device device(backend.make, model);
    Blocks blocks(model, random);
    Sequence s = sequence(model, 0);
    for (int step = 0; step < generated; ++step) {  // no result is looked at before all are queued
      Batch batch;
      s.plan(batch, step == 0 ? prompt_rows : 1, true, blocks, model.traits.block_tokens);
      device.submit(batch);
    }
    std::vector<Token> tokens;
    for (int step = 0; step < generated; ++step) {
      const StepResult result = device.results.take();
      BOOST_REQUIRE_EQUAL(result.ticket, static_cast<Ticket>(step + 1));
      tokens.push_back(result.slots.at(0).tokens.at(0));
    }
    BOOST_CHECK(tokens == waited.tokens);
  });
}

BOOST_AUTO_TEST_CASE(a_used_slot_is_as_good_as_a_new_one) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = model_of(Format::q5_1);
    const Trace fresh = trace(model, backend.make, prompt_rows);
    std::mt19937 random(6);
    Device device(backend.make, model);
    std::vector<Token> tokens;
    for (std::uint32_t generation = 0; generation < 3; ++generation) {
      Blocks blocks(model, random);
      Sequence s = sequence(model, 0);
      s.slot.generation = generation;
      if (generation < 2) s.tokens = random_tokens(random, model, prompt_rows);
      tokens.clear();
      for (int step = 0; step < generated; ++step) {
        Batch batch;
        s.plan(batch, step == 0 ? prompt_rows : 1, true, blocks, model.traits.block_tokens);
        if (step + 1 == generated) batch.closes.push_back(s.slot);
        const StepResult result = device.run(batch);
        BOOST_CHECK(result.slots.at(0).slot == s.slot);
        tokens.push_back(result.slots.at(0).tokens.at(0));
        s.tokens.push_back(tokens.back());
      }
    }
    BOOST_CHECK(tokens == fresh.tokens);
  });
}

BOOST_AUTO_TEST_CASE(resuming_does_not_matter) {
  on_every_backend([](const Tested& backend) {
    const TinyModel model = model_of(Format::q4_1);
    const Trace whole = trace(model, backend.make, prompt_rows);
    std::mt19937 random(8);
    Device device(backend.make, model);
    Blocks blocks(model, random);
    Sequence s = sequence(model, 0);  // opened with its first three tokens already generated
    s.tokens.insert(s.tokens.end(), whole.tokens.begin(), whole.tokens.begin() + 3);
    Batch batch;
    s.plan(batch, prompt_rows + 3, true, blocks, model.traits.block_tokens);
    const StepResult result = device.run(batch);
    BOOST_TEST(result.slots.at(0).tokens.at(0) == whole.tokens[3]);
  });
}

BOOST_AUTO_TEST_CASE(instruction_sets_do_not_matter) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const TinyModel model = model_of(static_cast<Format>(f));
    const Trace best = trace(model, on_cpu(1), 20, 2);
    BOOST_TEST_CONTEXT(info(static_cast<Format>(f)).name) {
      on_every_target([&] { BOOST_CHECK(trace(model, on_cpu(1), 20, 2) == best); });
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
