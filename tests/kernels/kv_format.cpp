// Shows that keys and values of 8 bits are the nearest there are, ties to even, 448 at most, and
// read as what they are: the conversions by a model in double, what rotation writes to the pool,
// and what attention makes of a single position, which is its value. And who refuses them.

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/numbers.cuh"
#include "kernels/program.hpp"
#include "tests/kernels/e4m3.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

/// As the pool is to have it.
std::uint32_t stored(float value) { return std::isnan(value) ? 0x7FU : e4m3_nearest(value); }

float any_float(std::mt19937& random) {
  const float size = std::ldexp(1.0F, static_cast<int>(random() % 26) - 14);
  return std::uniform_real_distribution<float>(-size, size)(random);
}

/// A row's step, and the pool of one block of 16 tokens that it writes to.
struct Stored {
  static constexpr std::uint32_t dim = 42, stride = 48, tokens = 16, position = 5;

  struct Step {
    cuda::StepHeader header;
    cuda::StepRow row{0, position};
  } step;
  std::uint32_t block = 0;
  std::vector<float> qkv, angles;
  alignas(16) std::byte pool[2 * tokens * stride] = {};

  /// A query, a key and a value; pairs of a key turn by a right angle, which is exact.
  Stored(std::vector<float> row, bool halves) : qkv(std::move(row)), angles(dim, 0.0F) {
    std::fill(angles.begin() + dim / 2, angles.end(), 1.0F);
    std::memset(pool, 0xAA, sizeof pool);
    step.header.rows = 1;
    step.header.row_offset = offsetof(Step, row);
    cuda::RopeArgs args;
    args.step = reinterpret_cast<const std::byte*>(&step);
    args.slots.blocks = &block;
    args.slots.block_capacity = 1;
    args.kv = {pool, KvFormat::e4m3, 1, 1, tokens, 4, stride, sizeof pool};
    args.qkv = {qkv.data(), 3 * dim, nullptr};
    args.angles = {angles.data(), dim, nullptr};
    args.heads = {1, 1, dim};
    args.pairs = dim / 2;
    args.halves = halves;
    const cuda::Stream stream = require(cuda::make_stream());
    cuda::LaunchChain chain(stream.get());
    BOOST_REQUIRE(cuda::rope_store(args, 1, chain) == cudaSuccess);
    BOOST_REQUIRE(cudaStreamSynchronize(stream.get()) == cudaSuccess);
  }

  std::uint32_t at(bool value, std::uint32_t token, std::uint32_t d) const {
    return std::to_integer<std::uint32_t>(pool[((value ? tokens : 0) + token) * stride + d]);
  }
};

void check_stored(const std::vector<float>& row, bool halves) {
  constexpr std::uint32_t dim = Stored::dim;
  const Stored it(row, halves);
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    const std::uint32_t left = halves ? i : 2 * i, right = halves ? i + dim / 2 : 2 * i + 1;
    const float x = row[dim + left], y = row[dim + right];
    if (std::isfinite(x) && std::isfinite(y)) {
      BOOST_TEST((it.at(false, Stored::position, left) & 0x7FU) == (stored(-y) & 0x7FU));
      BOOST_TEST((it.at(false, Stored::position, right) & 0x7FU) == (stored(x) & 0x7FU));
      if (y != 0) BOOST_TEST(it.at(false, Stored::position, left) == stored(-y));
      if (x != 0) BOOST_TEST(it.at(false, Stored::position, right) == stored(x));
    }
  }
  for (std::uint32_t d = 0; d < dim; ++d) {
    BOOST_TEST_INFO(row[2 * dim + d]);
    BOOST_TEST(it.at(true, Stored::position, d) == stored(row[2 * dim + d]));
  }
  for (std::uint32_t d = 0; d < Stored::stride; ++d) {
    for (std::uint32_t token = 0; token < Stored::tokens; ++token) {
      const bool own = token == Stored::position;
      if (own && d < dim) continue;
      for (const bool value : {false, true}) {
        BOOST_TEST(it.at(value, token, d) == (own ? 0U : 0xAAU));  // what fills a row is zero
      }
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kv_format)

BOOST_AUTO_TEST_CASE(eight_bits_are_read_as_they_are) {
  for (std::uint32_t i = 0; i < 256; ++i) {
    const std::uint32_t word = i | (255U - i) << 8 | (i ^ 0x55U) << 16 | (i ^ 0xAAU) << 24;
    const std::uint32_t low = cuda::widen_e4m3<false>(word), high = cuda::widen_e4m3<true>(word);
    const std::uint32_t halves[4] = {low & 0xFFFFU, low >> 16, high & 0xFFFFU, high >> 16};
    for (std::uint32_t n = 0; n < 4; ++n) {
      const std::uint32_t bits = word >> 8 * n & 0xFFU;
      const float value = f16_to_f32(static_cast<std::uint16_t>(halves[n]));
      BOOST_TEST_INFO(bits);
      if ((bits & 0x7FU) == 0x7FU) {
        BOOST_TEST(std::isnan(value));
      } else {
        BOOST_TEST(static_cast<double>(value) == e4m3_value(bits));
        BOOST_TEST(std::signbit(value) == (bits >= 0x80U));
        BOOST_TEST(cuda::saturate_e4m3(value) == bits);
        BOOST_TEST(e4m3_rounded(e4m3_value(bits)) == e4m3_value(bits));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(floats_become_the_nearest) {
  constexpr float infinite = std::numeric_limits<float>::infinity();
  std::vector<float> values{0.0F,   -0.0F,   448.0F,   449.0F,    464.0F,
                            479.0F, 480.0F,  -1e30F,   infinite,  -infinite,
                            1e-40F, -1e-30F, 0x1p-10F, -0x1p-10F, NAN};
  for (std::uint32_t bits = 0; bits < 0x7EU; ++bits) {  // ties and their neighbours
    const auto between = static_cast<float>((e4m3_value(bits) + e4m3_value(bits + 1)) / 2);
    for (const float value :
         {between, std::nextafter(between, 0.0F), std::nextafter(between, 1e9F)}) {
      values.push_back(value);
      values.push_back(-value);
    }
  }
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) values.push_back(any_float(random));
  for (const float value : values) {
    BOOST_TEST_INFO(value);
    BOOST_CHECK_EQUAL(cuda::saturate_e4m3(value), stored(value));
    if (!std::isfinite(value)) continue;
    BOOST_CHECK_EQUAL(e4m3_rounded(value), e4m3_value(stored(value)));
  }
}

BOOST_AUTO_TEST_CASE(the_pool_has_the_nearest) {
  std::mt19937 random(4);
  for (const bool halves : {false, true}) {
    for (int i = 0; i < 20; ++i) {
      std::vector<float> row(3 * Stored::dim);
      for (float& x : row) x = any_float(random);
      check_stored(row, halves);
    }
  }
  std::vector<float> row(3 * Stored::dim, 0.0F);
  row[Stored::dim] = 1000.0F;
  row[Stored::dim + 3] = -449.0F;
  row[2 * Stored::dim + 1] = -1e20F;
  row[2 * Stored::dim + 2] = NAN;
  row[2 * Stored::dim + 3] = -std::numeric_limits<float>::infinity();
  check_stored(row, false);
}

// A single position's weight is 1: what attention gives is the value as it was stored.
BOOST_AUTO_TEST_CASE(one_position_gives_its_value) {
  for (const float size : {1.0F, 1e-3F, 400.0F, 1e6F}) {
    TinyModel model = tiny_model(
        {.format = Format::f32, .layers = 1, .sample = false, .kv_format = KvFormat::e4m3});
    const HeadShape& heads = model.traits.heads;
    const std::uint32_t values_at = (heads.heads + heads.kv_heads) * heads.head_dim;
    Buffer qkv, attended;
    for (const Op& op : model.program.ops) {
      if (const auto* attention = std::get_if<Attention>(&op)) {
        qkv = attention->qkv;
        attended = attention->out;
      }
      const auto* linear = std::get_if<Linear>(&op);
      if (linear == nullptr || linear->out_column != values_at) continue;
      std::vector<std::byte>& bytes = model.tensors[linear->weight.index].bytes;
      for (std::size_t at = 0; at < bytes.size(); at += sizeof(float)) {
        float value;
        std::memcpy(&value, &bytes[at], sizeof value);
        value *= size;
        std::memcpy(&bytes[at], &value, sizeof value);
      }
    }
    on_backends_of_8_bit_keys([&](const Tested& backend) {
      Device device(backend.make, model);
      std::mt19937 random(5);
      double largest = 0;
      for (std::uint32_t i = 1; i <= 4; ++i) {
        const StepResult result = device.run(whole_sequence(random_tokens(random, model, 1), 1, i));
        BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
        const auto row = device.read(qkv, 1), out = device.read(attended, 1);
        for (std::uint32_t d = 0; d < out.size(); ++d) {
          const std::uint32_t head = d / heads.head_dim / (heads.heads / heads.kv_heads);
          const float value = row[values_at + head * heads.head_dim + d % heads.head_dim];
          BOOST_TEST_INFO(value);
          BOOST_CHECK_EQUAL(static_cast<double>(out[d]), e4m3_value(e4m3_nearest(value)));
          largest = std::max(largest, std::abs(static_cast<double>(out[d])));
        }
      }
      BOOST_TEST((largest == 448.0) == (size >= 400.0F));
    });
  }
}

BOOST_AUTO_TEST_CASE(half_the_bytes) {
  PoolShape pool = tiny_model({}).pool();
  const std::size_t bytes = kv_block_bytes(pool);
  pool.kv_format = KvFormat::e4m3;
  BOOST_TEST(kv_block_bytes(pool) == bytes / 2);
}

BOOST_AUTO_TEST_CASE(names_and_who_refuses) {
  BOOST_CHECK(find_kv_format("auto").value() == KvFormat::f16);
  BOOST_CHECK(find_kv_format("fp8").value() == KvFormat::e4m3);
  const auto unknown = find_kv_format("fp4");
  BOOST_REQUIRE(!unknown);
  BOOST_CHECK(unknown.error().code == ErrorCode::bad_request);
  const auto cpu = on_cpu(1)([](StepResult&&) {});
  const auto refused = cpu->allocate(tiny_model({.kv_format = KvFormat::e4m3}).pool());
  BOOST_REQUIRE(!refused);
  BOOST_CHECK(refused.error().code == ErrorCode::unsupported);
  BOOST_TEST(refused.error().message.find("cuda backend") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
