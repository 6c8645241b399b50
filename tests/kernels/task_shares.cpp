// Shows that threads which part stages among themselves run every task once, whoever comes when;
// that one without a core holds up no more than what it has in its hands, and finds nothing to do
// in stages that are over; and that a thread's tasks lie side by side while nobody is late.
#include "kernels/cpu/task_shares.hpp"

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <random>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.hpp"

namespace sluice::kernels::cpu {
namespace {

constexpr std::uint32_t counts[] = {1, 2, 3, 7, 36, 37, 192, 3072};

}  // namespace

BOOST_AUTO_TEST_SUITE(task_shares)

BOOST_AUTO_TEST_CASE(every_task_runs_once_before_the_next_stage) {
  for (const std::uint32_t threads : {1U, 2U, 3U, 8U}) {
    ThreadPool pool(threads);
    TaskShares shares(threads);
    std::mt19937 random(threads);
    for (int run = 0; run < 50; ++run) {
      std::vector<std::uint32_t> stages(40);
      for (std::uint32_t& count : stages) count = counts[random() % std::size(counts)];
      std::vector<std::vector<std::uint32_t>> times;  // a task's: tasks are not atomic
      for (const std::uint32_t count : stages) times.emplace_back(count);
      std::atomic<std::uint32_t> early{0};
      shares.begin();
      pool.run([&](std::uint32_t thread) {
        std::uint64_t before = 0;
        for (std::uint32_t s = 0; s < stages.size(); ++s) {
          shares.work(s + 1, stages[s], thread, [&](std::uint32_t task) {
            if (!shares.finished(before)) ++early;
            ++times[s][task];
          });
          before += stages[s];
          ThreadPool::wait([&] { return shares.finished(before); });
        }
      });
      BOOST_TEST(early == 0U);
      for (std::uint32_t s = 0; s < stages.size(); ++s)
        BOOST_TEST(times[s] == std::vector<std::uint32_t>(stages[s], 1U),
                   boost::test_tools::per_element());
    }
  }
}

BOOST_AUTO_TEST_CASE(a_thread_that_stands_still_holds_what_it_has_in_hand) {
  for (const std::uint32_t count : counts) {
    TaskShares shares(2);
    shares.begin();
    std::vector<std::uint32_t> by_other, held;
    bool still = false;
    shares.work(1, count, 1, [&](std::uint32_t task) {
      held.push_back(task);
      if (std::exchange(still, true)) return;
      // Here the other thread has both cores' time.
      shares.work(1, count, 0, [&](std::uint32_t other) { by_other.push_back(other); });
      BOOST_TEST(!shares.finished(count));
    });
    BOOST_TEST(shares.finished(count));
    BOOST_TEST(held.size() <= std::max(1U, count - count / 2) / 4 + 1);
    BOOST_TEST(held.size() + by_other.size() == count);
  }
}

BOOST_AUTO_TEST_CASE(a_late_thread_finds_nothing_in_stages_that_are_over) {
  TaskShares shares(3);
  shares.begin();
  for (const std::uint32_t stage : {1U, 2U, 3U}) {
    std::uint32_t ran = 0;
    shares.work(stage, 2 * stage - 1, 0, [&](std::uint32_t) { ++ran; });
    BOOST_TEST(ran == 2 * stage - 1);
  }
  for (const std::uint32_t stage : {1U, 2U, 3U})
    shares.work(stage, 2 * stage - 1, 2, [](std::uint32_t task) {
      BOOST_ERROR("task " << task << " ran twice");
    });
}

BOOST_AUTO_TEST_CASE(a_share_is_one_stretch) {
  TaskShares shares(4);
  shares.begin();
  std::vector<std::uint32_t> first;  // each thread's first task, none of them through with it
  shares.work(1, 100, 0, [&](std::uint32_t task) {
    if (task != 0) return;
    first.push_back(task);
    shares.work(1, 100, 2, [&](std::uint32_t second) {
      if (first.size() == 1) first.push_back(second);
    });
  });
  BOOST_TEST(first == (std::vector<std::uint32_t>{0, 50}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::cpu
