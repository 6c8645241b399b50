// Shows that the CPU backend's KV pool takes no memory until it is told to find some, then as much
// as it says ahead of the blocks in use, in every layer, and never more than all; and that a
// backend with nothing to do tells it to.

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <fstream>
#include <vector>

#include "kernels/cpu/state.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

/// Blocks of a page a layer, to twice of what is found ahead and more.
PoolShape pages(std::uint32_t blocks) {
  PoolShape shape;
  shape.layers = 2;
  shape.kv_heads = 1;
  shape.head_dim = 64;
  shape.block_tokens = 16;
  shape.blocks = blocks;
  shape.context_tokens = 16;
  shape.slots = shape.rows_max = 1;
  shape.vocabulary = 1;
  return shape;
}

constexpr std::uint32_t ahead = cpu::KvPool::ahead_bytes / 8192;

bool in_memory(const cpu::KvPool& pool, std::uint32_t layer, std::uint32_t block) {
  unsigned char there = 0;
  BOOST_REQUIRE(::mincore(pool.keys(layer, block, 0), 1, &there) == 0);
  return (there & 1) != 0;
}

void find_all(cpu::KvPool& pool) {
  while (pool.lags()) pool.find_memory();
}

std::size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::size_t all = 0, resident = 0;
  statm >> all >> resident;
  return resident * 4096;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(kv_pool)

BOOST_AUTO_TEST_CASE(memory_is_found_ahead_of_use) {
  BOOST_REQUIRE_EQUAL(::sysconf(_SC_PAGESIZE), 4096);
  // Far enough apart that no huge page covers both.
  const std::uint32_t blocks = 3 * ahead;
  cpu::KvPool pool;
  BOOST_REQUIRE(pool.allocate(pages(blocks)).has_value());
  BOOST_TEST(pool.lags());
  for (std::uint32_t layer = 0; layer < 2; ++layer) BOOST_TEST(!in_memory(pool, layer, 0));
  find_all(pool);
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    for (std::uint32_t block = 0; block < ahead; ++block) {
      if (!in_memory(pool, layer, block)) BOOST_ERROR("no memory for block " << block);
    }
    BOOST_TEST(!in_memory(pool, layer, 2 * ahead));
  }
  const std::vector<std::uint32_t> some{1, ahead - 1, 5};
  pool.use(some);
  BOOST_TEST(pool.lags());
  pool.find_memory();  // an unfinished row of layers
  const std::vector<std::uint32_t> late{2 * ahead - 1};
  pool.use(late);
  find_all(pool);
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    for (std::uint32_t block = 2 * ahead; block < blocks; ++block) {
      if (!in_memory(pool, layer, block)) BOOST_ERROR("no memory for block " << block);
    }
  }
  const std::vector<std::uint32_t> last{blocks - 1};
  pool.use(last);
  BOOST_TEST(!pool.lags());
}

BOOST_AUTO_TEST_CASE(a_small_pool_is_found_whole) {
  cpu::KvPool pool;
  BOOST_REQUIRE(pool.allocate(pages(37)).has_value());
  find_all(pool);
  for (std::uint32_t block = 0; block < 37; ++block) {
    BOOST_TEST((in_memory(pool, 0, block) && in_memory(pool, 1, block)));
  }
}

BOOST_AUTO_TEST_CASE(an_idle_backend_finds_memory) {
  const TinyModel model = tiny_model({});
  PoolShape pool = model.pool();
  constexpr std::size_t bytes = std::size_t{40} << 20;  // less than is found ahead
  pool.blocks = static_cast<std::uint32_t>(bytes / kv_block_bytes(pool));
  LoadedDevice device(on_cpu(2), model, pool);
  const std::size_t before = resident_bytes();
  device.record();
  bool found = false;
  for (int i = 0; i < 3000 && !found; ++i) {
    found = resident_bytes() >= before + bytes / 4 * 3;
    poll(nullptr, 0, found ? 0 : 10);
  }
  BOOST_TEST(found);
  std::mt19937 random(1);
  const StepResult result = device.run(whole_sequence(random_tokens(random, model, 3), 3, 1));
  BOOST_TEST(!result.failed);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
