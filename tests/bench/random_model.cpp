// Random models of known shapes, which benchmarks measure: as the real file where there is one, the
// same for the same seed, and with logits that are numbers in every format.

#include "bench/random_model.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <utility>
#include <vector>

#include "bench/latency.hpp"
#include "kernels/quant.hpp"
#include "model/config.hpp"
#include "model/weights.hpp"

using namespace sluice;
using namespace sluice::model;
using sluice::bench::random_checkpoint;

namespace {

template <class T>
T require(Result<T> result) {
  BOOST_REQUIRE_MESSAGE(result.has_value(), result.error().message);
  return std::move(*result);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(random_model)

BOOST_AUTO_TEST_CASE(a_shape_is_that_of_the_models_file) {
  const auto real = require(open_checkpoint(SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf"));
  const auto random = require(random_checkpoint("smollm2-135m:q4_1"));
  const ModelConfig due = require(real->config()), found = require(random->config());
  BOOST_TEST(found.layers == due.layers);
  BOOST_TEST(found.hidden == due.hidden);
  BOOST_TEST(found.feed_forward == due.feed_forward);
  BOOST_TEST(found.heads.heads == due.heads.heads);
  BOOST_TEST(found.heads.kv_heads == due.heads.kv_heads);
  BOOST_TEST(found.heads.head_dim == due.heads.head_dim);
  BOOST_TEST(found.vocabulary == due.vocabulary);
  BOOST_TEST(found.context_tokens == due.context_tokens);
  BOOST_TEST(found.rope.theta == due.rope.theta);
  BOOST_TEST(found.rope.inverse_frequencies == due.rope.inverse_frequencies,
             boost::test_tools::per_element());
  BOOST_TEST(found.attention_scale == due.attention_scale);
  BOOST_TEST(found.tied_embeddings == due.tied_embeddings);
  BOOST_REQUIRE_EQUAL(random->tensors().size(), real->tensors().size());
  for (const Tensor& tensor : random->tensors()) {
    const Tensor* twin = real->find_tensor(tensor.name);
    BOOST_REQUIRE_MESSAGE(twin != nullptr, tensor.name);
    BOOST_TEST(tensor.shape == twin->shape, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(every_shape_has_every_tensor) {
  for (const char* name : {"llama-3.2-1b:q4_0", "tinyllama-1.1b:q8_0"}) {
    const auto file = require(random_checkpoint(name));
    const auto tensors = find_tensors(*file, require(file->config()));
    BOOST_TEST(tensors.has_value(), (tensors ? "" : tensors.error().message));
  }
}

BOOST_AUTO_TEST_CASE(the_seed_decides_the_weights) {
  const auto fingerprint = [](std::uint64_t seed) {
    return require(weights_fingerprint(*require(random_checkpoint("smollm2-135m:q8_0", seed))));
  };
  BOOST_TEST(fingerprint(1) == fingerprint(1));
  BOOST_TEST(fingerprint(1) != fingerprint(2));
}

BOOST_AUTO_TEST_CASE(weights_are_small_numbers_of_both_signs) {
  for (std::size_t f = 0; f < kernels::format_count; ++f) {
    const auto& format = kernels::info(static_cast<kernels::Format>(f));
    if (format.block_elements > 64) continue;  // no shape this small has such rows
    BOOST_TEST_CONTEXT(format.name) {
      const auto file = require(random_checkpoint(fmt::format("smollm2-135m:{}", format.name)));
      const Tensor* tensor = file->find_tensor("blk.3.ffn_up.weight");
      BOOST_REQUIRE(tensor != nullptr);
      std::vector<float> row(576);
      std::size_t negative = 0;
      for (const std::size_t at : {0U, 700U, 1535U}) {
        const std::size_t bytes = kernels::row_bytes(format.format, 576);
        kernels::dequantize(format.format, tensor->data.subspan(at * bytes, bytes), row);
        for (const float value : row) {
          BOOST_REQUIRE(std::abs(value) < 0.05F);
          negative += value < 0;
        }
      }
      if (format.format != kernels::Format::q4_1 && format.format != kernels::Format::q5_1)
        BOOST_TEST(negative > 300U);
      BOOST_TEST(negative < 1500U);
    }
  }
}

BOOST_AUTO_TEST_CASE(names_that_there_are_not) {
  const auto said = [](const char* shape) {
    const auto file = random_checkpoint(shape);
    BOOST_REQUIRE(!file);
    BOOST_CHECK(file.error().code == ErrorCode::bad_request);
    return file.error().message;
  };
  BOOST_TEST(said("llama-9").starts_with("there is no shape 'llama-9': llama-3.1-8b, "));
  BOOST_TEST(said("smollm2-135m:q9").starts_with("'smollm2-135m:q9' names no format of weights: "));
  BOOST_TEST(said("smollm2-135m").starts_with("'smollm2-135m' names no format of weights: "));
  BOOST_TEST(said("smollm2-135m:q4_k") ==
             "smollm2-135m has rows of 576, and a block of Q4_K is 256 elements");
}

BOOST_AUTO_TEST_CASE(it_can_be_measured) {
  bench::LatencyOptions options;
  options.shape = "smollm2-135m:q4_1";
  options.backend = "cpu";
  options.threads = 1;
  options.prompt_tokens = 3;
  options.generated_tokens = 2;
  options.repetitions = 1;
  const auto result = require(bench::measure_latency(options));
  BOOST_TEST(result.generated_tok_s.mean > 0);
  // 134.5 million weights of 5 bits.
  BOOST_TEST(result.bytes_per_token > 83e6);
  BOOST_TEST(result.bytes_per_token < 86e6);
}

BOOST_AUTO_TEST_SUITE_END()
