// Shows that a backend computes what its operations say: random ragged batches (several slots,
// prompt chunks and decode rows side by side, shuffled blocks, slots used again) run on the backend
// and on a reference in double (reference.hpp), and every buffer must agree. A buffer's elements
// may differ by 2e-3 of its largest: half-precision keys and values can round to neighbours, 2^-11
// apart. Where a backend rounds the input of products, or queries, the reference rounds what the
// backend has there. Run against every backend this machine has.
//
// Keys and values in bfloat16 the reference rounds from what the backend has, too.
//
// Keys and values of 8 bits, with 3 of fraction, are rounded by up to 2^-4 of themselves, and
// neighbours are up to 2^-3 apart. The reference rounds the backend's own, so that what differs is
// a key whose rotation ends within float32's error, 2^-22, of the middle between two: one in some
// hundred thousand. Its score then moves by 2^-3 of a query's and a key's element, which are about
// 1, over the root of 64 elements, and with it a result's elements by 2^-6 of themselves: they may
// differ by twice that.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "tests/kernels/harness.hpp"
#include "tests/kernels/kept_weights.hpp"
#include "tests/kernels/reference.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

constexpr double tolerance = 2e-3, tolerance_8_bit_keys = 0x1p-5;

class Conformance {
 public:
  Conformance(const Factory& factory, const Traits& traits, std::uint32_t seed)
      : random_(seed),
        model_(tiny_model(traits, seed)),
        device_(factory, model_),
        reference_(model_, device_.backend->device(), kept_weights),
        blocks_(model_, random_) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) step();
  }

 private:
  /// Each slot is idle, in its prompt or decoding; chance decides what it does.
  void step() {
    Batch batch;
    std::uint32_t rows_left = model_.pool().rows_max;
    for (SlotIndex i = 0; i < model_.pool().slots; ++i) {
      Sequence& s = sequences_[i];
      if (s.tokens.empty()) start(s, i);
      const auto waiting = static_cast<std::uint32_t>(s.tokens.size()) - s.computed;
      if (random_() % 4 == 0 || waiting == 0) continue;
      const std::uint32_t rows =
          std::min(rows_left, 1 + static_cast<std::uint32_t>(random_()) % waiting);
      if (rows == 0) continue;
      rows_left -= rows;
      s.plan(batch, rows, rows == waiting, blocks_, model_.traits.block_tokens);
      if (s.tokens.size() + 1 >= model_.pool().context_tokens || random_() % 9 == 0) {
        batch.closes.push_back(s.slot);
      }
    }
    const StepResult result = device_.run(batch);
    reference_.run(batch, [&](Buffer buffer, std::size_t rows) {
      return device_.read(buffer, rows);
    });
    compare(batch);
    take_tokens(result);
    for (const SlotRef& ref : batch.closes) {
      blocks_.give(sequences_[ref.slot].blocks);
      sequences_[ref.slot] = {};
    }
  }

  void start(Sequence& s, SlotIndex slot) {
    s.slot = {slot, ++generation_};
    const std::uint32_t most = model_.traits.context_tokens * 5 / 12;
    s.tokens = random_tokens(random_, model_, 1 + random_() % most);
    s.prompt_tokens = static_cast<std::uint32_t>(s.tokens.size());
    s.sampling.seed = random_();
  }

  void compare(const Batch& batch) {
    for (std::uint32_t b = 0; b < model_.program.buffers.size(); ++b) {
      const auto& expected = reference_.buffers[b];
      const std::optional<std::vector<float>> kept = read(b, expected.size());
      if (!kept) continue;
      const std::vector<float>& got = *kept;
      const bool eight_bits = model_.traits.kv_format == KvFormat::e4m3;
      const double most = eight_bits ? tolerance_8_bit_keys : tolerance;
      double largest = 0, off = 0;
      std::size_t i = 0;
      for (const auto& row : expected) {
        for (const double x : row) {
          largest = std::max(largest, std::abs(x));
          off = std::max(off, std::abs(x - static_cast<double>(got[i++])));
        }
      }
      BOOST_TEST(off <= most * largest, "buffer " << b << " of " << batch.segments.size()
                                                       << " segments: off by " << off << " of "
                                                       << largest);
    }
  }

  /// None of a gate's input that the backend does not keep.
  std::optional<std::vector<float>> read(std::uint32_t buffer, std::size_t rows) {
    std::vector<float> values(rows * model_.program.buffers[buffer].width);
    const auto done = device_.backend->read(device_.program, {buffer}, values);
    if (done) return values;
    BOOST_REQUIRE_MESSAGE(done.error().code == ErrorCode::unsupported, done.error().message);
    BOOST_REQUIRE(std::any_of(
        model_.program.ops.begin(), model_.program.ops.end(), [buffer](const Op& op) {
          const auto* gate = std::get_if<Gate>(&op);
          return gate != nullptr && gate->in.index == buffer;
        }));
    return std::nullopt;
  }

  void take_tokens(const StepResult& result) {
    for (const SlotTokens& slot : result.slots) {
      if (!model_.traits.sample) break;
      BOOST_REQUIRE_EQUAL(slot.tokens.size(), 1U);
      BOOST_REQUIRE(sequences_[slot.slot.slot].slot == slot.slot);
      sequences_[slot.slot.slot].tokens.push_back(slot.tokens[0]);
      reference_.tokens[slot.slot.slot].push_back(slot.tokens[0]);
    }
  }

  std::mt19937 random_;
  TinyModel model_;
  Device device_;
  Reference reference_;
  Blocks blocks_;
  std::uint32_t generation_ = 0;
  Sequence sequences_[6];
};

void check(const Traits& traits, int steps = 12) {
  on_every_backend([&](const Tested& backend) {
    if (backend.name == "cpu" && traits.kv_format == KvFormat::e4m3) return;
    Conformance(backend.make, traits, 7).run(backend.rounds(steps));
  });
}

/// Of which several tiles of positions, and several splits, are attended to.
Traits long_traits(const HeadShape& heads) {
  return {.format = Format::f16,
          .hidden = 32,
          .heads = heads,
          .feed_forward = 32,
          .vocabulary = 40,
          .layers = 1,
          .pairs = heads.head_dim / 2,
          .context_tokens = 320};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(conformance)

BOOST_AUTO_TEST_CASE(every_weight_format) {
  for (std::size_t f = 0; f < format_count; ++f) {
    BOOST_TEST_CONTEXT(info(static_cast<Format>(f)).name) {
      check({.format = static_cast<Format>(f), .vocabulary = 100, .layers = 1}, 6);
    }
  }
}

// A buffer's readers round it each in their own way.
BOOST_AUTO_TEST_CASE(matrices_of_different_formats) {
  check({.format = Format::q8_0, .other_format = Format::bf16}, 6);
  check({.format = Format::bf16, .other_format = Format::f32, .head_norms = true}, 6);
}

BOOST_AUTO_TEST_CASE(a_long_run_with_slots_used_again) { check({}, 60); }

BOOST_AUTO_TEST_CASE(rope_in_halves_partial_and_scaled) {
  check({.pairs = 20, .order = RopePairs::halves, .magnitude = 1.25F});
}

BOOST_AUTO_TEST_CASE(windows_shorter_and_longer_than_a_tile) {
  for (const Format format : {Format::q4_1, Format::f16}) {  // in bfloat16, and in float32
    check({.format = format, .window = 5});
    check({.format = format, .window = 37});
  }
}

BOOST_AUTO_TEST_CASE(biases_and_gelu) {
  check({.activation = Activation::gelu_tanh, .bias = true});
}

BOOST_AUTO_TEST_CASE(norms_of_heads) {
  check({.head_norms = true});
  check({.heads = {4, 1, 256}, .pairs = 128, .order = RopePairs::halves, .head_norms = true}, 6);
  check({.format = Format::f32,
         .heads = {2, 1, 100},
         .pairs = 33,
         .order = RopePairs::halves,
         .head_norms = true});
  check({.format = Format::f16,
         .heads = {6, 2, 10},
         .pairs = 3,
         .order = RopePairs::halves,
         .head_norms = true});
}

BOOST_AUTO_TEST_CASE(norms_before_the_residual_connection) {
  check({.branch_norms = true});
  check({.format = Format::f32, .hidden = 40, .pairs = 8, .branch_norms = true});
}

BOOST_AUTO_TEST_CASE(layers_of_different_windows_and_frequencies) {
  check({.layers = 3, .window = 11, .mixed_layers = true}, 8);
}

// Caps that bend most of what they cap: scores and logits here are about 1 and 3.
BOOST_AUTO_TEST_CASE(soft_caps_of_scores_and_logits) {
  check({.score_cap = 0.7F, .logit_cap = 1.5F}, 6);
  check({.vocabulary = 61, .window = 20, .score_cap = 50.0F, .logit_cap = 30.0F}, 6);
}

BOOST_AUTO_TEST_CASE(widths_that_fill_no_vector) {
  check({.format = Format::f32,
         .hidden = 40,
         .heads = {6, 2, 10},
         .feed_forward = 27,
         .vocabulary = 61,
         .pairs = 5});
  for (const Format format : {Format::f16, Format::bf16}) {
    check({.format = format, .hidden = 24, .heads = {3, 3, 8}, .feed_forward = 9, .pairs = 4});
  }
}

BOOST_AUTO_TEST_CASE(many_heads_share_one_key_head) {
  check({.format = Format::f32, .heads = {7, 1, 16}, .pairs = 8});
}

// Several tiles and splits of positions, several blocks of queries, widths that have kernels of
// their own, windows that cut tiles. CUDA's splits as they are by default, too.
BOOST_AUTO_TEST_CASE(long_sequences) {
  const auto check_heads = [](HeadShape heads, std::uint32_t window, float cap = 0.0F) {
    BOOST_TEST_CONTEXT(heads.heads << " heads of " << heads.head_dim) {
      Traits traits = long_traits(heads);
      traits.window = window;
      traits.score_cap = cap;
      check(traits, 20);
      Conformance(on_cuda_host(256), traits, 8).run(3);
    }
  };
  check_heads({2, 2, 80}, 0);
  check_heads({3, 1, 96}, 150);
  check_heads({2, 1, 128}, 70, 2.0F);
  check_heads({2, 1, 256}, 0);
  check_heads({1, 1, 160}, 100);
}

// More heads to a key head than a tensor core's tile has rows.
BOOST_AUTO_TEST_CASE(more_heads_to_a_key_head_than_queries_of_a_warp) {
  check({.format = Format::f16,
         .hidden = 32,
         .heads = {20, 1, 16},
         .feed_forward = 32,
         .vocabulary = 40,
         .layers = 1,
         .pairs = 8},
        10);
}

BOOST_AUTO_TEST_CASE(keys_and_values_of_8_bits) {
  check({.kv_format = KvFormat::e4m3});
  check({.format = Format::f16,
         .window = 37,
         .order = RopePairs::halves,
         .head_norms = true,
         .score_cap = 0.7F,
         .block_tokens = 4,
         .kv_format = KvFormat::e4m3});
  for (const HeadShape heads : {HeadShape{6, 2, 10}, HeadShape{4, 2, 32}, HeadShape{2, 2, 80},
                                HeadShape{3, 1, 96}, HeadShape{2, 1, 128}, HeadShape{1, 1, 160},
                                HeadShape{2, 1, 256}, HeadShape{20, 1, 16}}) {
    BOOST_TEST_CONTEXT(heads.heads << " heads of " << heads.head_dim) {
      Traits traits = long_traits(heads);
      traits.kv_format = KvFormat::e4m3;
      check(traits, 12);
      Conformance(on_cuda_host(256), traits, 8).run(3);
    }
  }
}

BOOST_AUTO_TEST_CASE(blocks_of_any_power_of_two) {
  for (const std::uint32_t tokens : {1U, 4U, 8U, 32U}) {
    BOOST_TEST_CONTEXT(tokens << " tokens a block") { check({.block_tokens = tokens}); }
  }
}

BOOST_AUTO_TEST_CASE(norms_and_caps_that_do_not_fit_are_refused) {
  on_every_backend([](const Tested& backend) {
    const auto refused = [&](const Traits& traits, auto&& spoil, const std::string& why) {
      TinyModel model = tiny_model(traits);
      for (Op& op : model.program.ops) spoil(op);
      const auto device = backend.make([](StepResult&&) {});
      for (const Tensor& tensor : model.tensors) require(device->load(tensor.host));
      BOOST_REQUIRE(device->allocate(model.pool()).has_value());
      const auto program = device->record(model.program);
      BOOST_REQUIRE(!program);
      BOOST_CHECK(program.error().code == ErrorCode::bad_request);
      BOOST_CHECK_MESSAGE(program.error().message.find(why) != std::string::npos,
                          program.error().message);
    };
    refused({.head_norms = true}, [](Op& op) {
      if (auto* rope = std::get_if<RopeStore>(&op)) rope->norms->k = Weight{0};
    }, "(RopeStore): a gain of 300 x 256");
    refused({.branch_norms = true}, [](Op& op) {
      if (auto* norm = std::get_if<Norm>(&op)) norm->in = norm->out;
    }, "(Norm): adds to its own input");
    refused({.logit_cap = 1.0F}, [](Op& op) {
      if (auto* cap = std::get_if<SoftCap>(&op)) cap->cap = 0.0F;
    }, "(SoftCap): a cap of 0");
    refused({}, [](Op& op) {
      if (auto* attention = std::get_if<Attention>(&op)) attention->soft_cap = -1.0F;
    }, "(Attention): a soft cap of -1");
  });
}

// In the pool they would be infinite, and 0 times that no number for rows that do not see them.
BOOST_AUTO_TEST_CASE(values_beyond_half_precision_stay_numbers) {
  TinyModel model = tiny_model({.format = Format::f32, .layers = 1, .sample = false});
  const HeadShape& heads = model.traits.heads;
  Buffer attended;
  for (const Op& op : model.program.ops) {
    if (const auto* attention = std::get_if<Attention>(&op)) attended = attention->out;
    const auto* linear = std::get_if<Linear>(&op);
    const std::uint32_t values_at = (heads.heads + heads.kv_heads) * heads.head_dim;
    if (linear == nullptr || linear->out_column != values_at) continue;
    std::vector<std::byte>& bytes = model.tensors[linear->weight.index].bytes;
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(float)) {
      float value;
      std::memcpy(&value, &bytes[at], sizeof value);
      value *= 1e6F;
      std::memcpy(&bytes[at], &value, sizeof value);
    }
  }
  on_every_backend([&](const Tested& backend) {
    std::mt19937 random(2);
    Device device(backend.make, model);
    Blocks blocks(model, random);
    Sequence s;
    s.tokens = random_tokens(random, model, 5);
    s.prompt_tokens = 5;
    Batch batch;
    s.plan(batch, 5, true, blocks, model.traits.block_tokens);
    const StepResult result = device.run(std::move(batch));
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    float largest = 0;
    for (const float value : device.read(attended, 5)) {
      BOOST_TEST(std::isfinite(value));
      largest = std::max(largest, std::abs(value));
    }
    BOOST_TEST(largest > 60000.0F);  // it is what was asked for
  });
}

// That every word was read is the probes' own assertion.
BOOST_AUTO_TEST_CASE(the_bandwidth_probe_ends_with_a_rate_at_any_size) {
  on_every_backend([](const Tested& backend) {
    const auto device = backend.make([](StepResult&&) {});
    for (const std::size_t bytes : {64U, 5000U, 300'016U}) {
      const double rate = require(device->read_bandwidth(bytes));
      BOOST_CHECK_GT(rate, 0.0);
      BOOST_CHECK(std::isfinite(rate));
    }
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
