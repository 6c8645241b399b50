// The block pool: every block is handed out once until its last holder lets go, whatever the order,
// and what is kept is given up oldest first, when nothing else is left.
#include "engine/kv_blocks.hpp"

#include <boost/test/unit_test.hpp>
#include <random>
#include <set>

using sluice::engine::KvBlocks;

BOOST_AUTO_TEST_SUITE(kv_blocks)

BOOST_AUTO_TEST_CASE(hands_out_every_block_once) {
  KvBlocks blocks(5);
  std::set<std::uint32_t> taken;
  while (blocks.free() > 0) taken.insert(blocks.take().block);
  BOOST_TEST(taken == (std::set<std::uint32_t>{0, 1, 2, 3, 4}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(the_last_holder_frees) {
  KvBlocks blocks(1);
  const std::uint32_t block = blocks.take().block;
  blocks.share(block);
  blocks.release(block);
  BOOST_TEST(blocks.free() == 0U);
  blocks.release(block);
  BOOST_TEST(blocks.free() == 1U);
}

BOOST_AUTO_TEST_CASE(what_is_kept_goes_last_and_the_oldest_first) {
  KvBlocks blocks(4);
  for (std::uint32_t block = 0; block < 4; ++block) BOOST_REQUIRE(!blocks.take().was_idle);
  for (const std::uint32_t block : {2U, 0U, 3U}) {
    blocks.keep(block);
    blocks.release(block);
  }
  blocks.release(1);
  BOOST_TEST(blocks.free() == 4U);
  BOOST_TEST(blocks.idle() == 3U);
  blocks.share(0);  // somebody wants it again
  BOOST_TEST(blocks.idle() == 2U);
  BOOST_TEST(blocks.take().block == 1U);
  const auto oldest = blocks.take();
  BOOST_TEST(oldest.was_idle);
  BOOST_TEST(oldest.block == 2U);
  BOOST_TEST(!blocks.kept(2));
  blocks.give_up(3);
  BOOST_TEST(blocks.idle() == 0U);
  BOOST_TEST(!blocks.take().was_idle);
  blocks.check();
}

BOOST_AUTO_TEST_CASE(conserved_under_random_use) {
  std::mt19937_64 random(4);
  KvBlocks blocks(13);
  std::vector<std::uint32_t> held;  // one entry a holder
  std::set<std::uint32_t> idle;
  for (int i = 0; i < 5000; ++i) {
    const std::size_t pick = held.empty() ? 0 : random() % held.size();
    if (random() % 3 == 0 && blocks.free() > 0) {
      const auto taken = blocks.take();
      BOOST_REQUIRE_EQUAL(idle.erase(taken.block), taken.was_idle ? 1U : 0U);
      held.push_back(taken.block);
      BOOST_REQUIRE_EQUAL(std::ranges::count(held, held.back()), 1);
      if (random() % 3 == 0) blocks.keep(taken.block);
    } else if (random() % 4 == 0 && !idle.empty()) {
      const std::uint32_t block = *idle.begin();
      idle.erase(idle.begin());
      if (random() % 2) {
        blocks.give_up(block);
      } else {
        blocks.share(block);
        held.push_back(block);
      }
    } else if (random() % 2 && !held.empty()) {
      blocks.share(held[pick]);
      held.push_back(held[pick]);
    } else if (!held.empty()) {
      blocks.release(held[pick]);
      if (blocks.holders(held[pick]) == 0 && blocks.kept(held[pick])) idle.insert(held[pick]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    blocks.check();
    BOOST_REQUIRE_EQUAL(blocks.idle(), idle.size());
    const std::set<std::uint32_t> different(held.begin(), held.end());
    BOOST_REQUIRE_EQUAL(blocks.free() + different.size(), blocks.total());
  }
}

BOOST_AUTO_TEST_SUITE_END()
