// The block pool: every block is handed out once until its last holder lets go, whatever the order.
#include "engine/kv_blocks.hpp"

#include <boost/test/unit_test.hpp>
#include <random>
#include <set>

using sluice::engine::KvBlocks;

BOOST_AUTO_TEST_SUITE(kv_blocks)

BOOST_AUTO_TEST_CASE(hands_out_every_block_once) {
  KvBlocks blocks(5);
  std::set<std::uint32_t> taken;
  while (blocks.free() > 0) taken.insert(blocks.take());
  BOOST_TEST(taken == (std::set<std::uint32_t>{0, 1, 2, 3, 4}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(the_last_holder_frees) {
  KvBlocks blocks(1);
  const std::uint32_t block = blocks.take();
  blocks.share(block);
  blocks.release(block);
  BOOST_TEST(blocks.free() == 0U);
  blocks.release(block);
  BOOST_TEST(blocks.free() == 1U);
}

BOOST_AUTO_TEST_CASE(conserved_under_random_use) {
  std::mt19937_64 random(4);
  KvBlocks blocks(13);
  std::vector<std::uint32_t> held;  // one entry a holder
  for (int i = 0; i < 5000; ++i) {
    const std::size_t pick = held.empty() ? 0 : random() % held.size();
    if (random() % 3 == 0 && blocks.free() > 0) {
      held.push_back(blocks.take());
      BOOST_REQUIRE_EQUAL(std::ranges::count(held, held.back()), 1);
    } else if (random() % 2 && !held.empty()) {
      blocks.share(held[pick]);
      held.push_back(held[pick]);
    } else if (!held.empty()) {
      blocks.release(held[pick]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    blocks.check();
    const std::set<std::uint32_t> different(held.begin(), held.end());
    BOOST_REQUIRE_EQUAL(blocks.free() + different.size(), blocks.total());
  }
}

BOOST_AUTO_TEST_SUITE_END()
