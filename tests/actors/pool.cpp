// Shows how large the KV pool is that nobody gave a size: a part of a machine's memory, which
// others need too, and nearly all that weights and activations leave of a device's own.

#include <boost/test/unit_test.hpp>

#include "actors/load.hpp"

namespace sluice::actors {
namespace {

constexpr std::size_t gigabyte = std::size_t{1} << 30;

model::ModelConfig llama_8b() {
  model::ModelConfig model;
  model.layers = 32;
  model.hidden = 4096;
  model.feed_forward = 14336;
  model.heads = {32, 8, 128};
  model.vocabulary = 128256;
  model.context_tokens = 131072;
  return model;
}

kernels::DeviceInfo device(std::size_t free, bool dedicated) {
  kernels::DeviceInfo info;
  info.memory_free_bytes = free;
  info.dedicated_memory = dedicated;
  return info;
}

std::size_t bytes_of(const Result<kernels::PoolShape>& pool) {
  BOOST_REQUIRE_MESSAGE(pool.has_value(), pool.error().message);
  return pool->blocks * kv_block_bytes(*pool);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(pool)

BOOST_AUTO_TEST_CASE(a_quarter_of_a_machines_memory) {
  const auto pool = plan_pool({}, llama_8b(), device(64 * gigabyte, false), 16 * gigabyte);
  BOOST_TEST(bytes_of(pool) <= 16 * gigabyte);
  BOOST_TEST(bytes_of(pool) > 15 * gigabyte);
}

BOOST_AUTO_TEST_CASE(nearly_all_that_weights_leave_of_a_devices_own) {
  const auto pool = plan_pool({}, llama_8b(), device(139 * gigabyte, true), 16 * gigabyte);
  BOOST_TEST(bytes_of(pool) < 117 * gigabyte);
  BOOST_TEST(bytes_of(pool) > 114 * gigabyte);
  EngineConfig large;
  large.step_rows = 8192;
  large.slots = 512;
  const auto less = plan_pool(large, llama_8b(), device(139 * gigabyte, true), 16 * gigabyte);
  // Of 8,192 rows and 512 slots the activations are 4 GB.
  BOOST_TEST(bytes_of(less) < bytes_of(pool) - 3 * gigabyte);
}

BOOST_AUTO_TEST_CASE(never_more_than_the_slots_can_fill) {
  EngineConfig few;
  few.slots = 2;
  few.context_tokens = 4096;
  const auto pool = plan_pool(few, llama_8b(), device(139 * gigabyte, true), 16 * gigabyte);
  BOOST_TEST(bytes_of(pool) == 2 * gigabyte / 2);  // 128 KiB a token
}

BOOST_AUTO_TEST_CASE(eight_bits_hold_twice_as_many_tokens) {
  EngineConfig config;
  config.kv_bytes = gigabyte;
  const auto whole = plan_pool(config, llama_8b(), device(0, true), 0);
  config.kv_cache_dtype = "fp8";
  const auto half = plan_pool(config, llama_8b(), device(0, true), 0);
  BOOST_TEST(bytes_of(half) == bytes_of(whole));
  BOOST_TEST(half->blocks == 2 * whole->blocks);
  config.kv_cache_dtype = "fp4";
  const auto unknown = plan_pool(config, llama_8b(), device(0, true), 0);
  BOOST_REQUIRE(!unknown);
  BOOST_CHECK(unknown.error().code == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(eight_bits_are_counted_in_sixteens) {
  kernels::PoolShape shape{.layers = 1, .kv_heads = 1, .head_dim = 120, .block_tokens = 16};
  BOOST_TEST(kernels::kv_block_bytes(shape) == std::size_t{2} * 2 * 120 * 16);
  shape.kv_format = kernels::KvFormat::e4m3;
  BOOST_TEST(kernels::kv_block_bytes(shape) == std::size_t{2} * 128 * 16);
}

BOOST_AUTO_TEST_CASE(a_device_that_the_weights_fill_is_refused) {
  const auto pool = plan_pool({}, llama_8b(), device(16 * gigabyte, true), 16 * gigabyte);
  BOOST_REQUIRE(!pool);
  BOOST_CHECK(pool.error().code == ErrorCode::bad_request);
  EngineConfig given;
  given.kv_bytes = gigabyte;
  BOOST_TEST(bytes_of(plan_pool(given, llama_8b(), device(0, true), 0)) == gigabyte);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::actors
