// Shows that of threads which compute together one that comes to another's core is sent to a free
// one, may then run where it might before, and is let be where there is none.

#include "kernels/cpu/cores.hpp"

#include <boost/test/unit_test.hpp>

#if defined(__linux__)
#include <sched.h>
#endif

#include <thread>
#include <vector>

namespace sluice::kernels::test {

BOOST_AUTO_TEST_SUITE(cores)

#if defined(__linux__)

void allow(const cpu_set_t& set) {
  BOOST_REQUIRE(::sched_setaffinity(0, sizeof set, &set) == 0);
}

cpu_set_t alone(std::uint32_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  return set;
}

BOOST_AUTO_TEST_CASE(a_thread_goes_to_the_core_that_is_left) {
  cpu_set_t all;
  BOOST_REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
  std::vector<std::uint32_t> usable;
  for (std::uint32_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &all)) usable.push_back(core);
  }
  const auto others = static_cast<std::uint32_t>(usable.size()) - 1;
  cpu::CoreKeeper keeper(others + 1);
  keeper.begin();
  for (std::uint32_t i = 0; i < others; ++i) {
    std::thread([&] {
      allow(alone(usable[i]));
      BOOST_TEST(!keeper.keep_apart(i));
    }).join();
  }
  for (const std::uint32_t begin : usable) {
    std::thread([&] {
      allow(alone(begin));
      const bool held = keeper.keep_apart(others).has_value();
      BOOST_TEST(!held);  // may run nowhere else
      allow(all);
      const auto moved = keeper.keep_apart(others);
      BOOST_TEST(moved.value_or(static_cast<std::uint32_t>(::sched_getcpu())) == usable.back());
      cpu_set_t after;
      BOOST_REQUIRE(::sched_getaffinity(0, sizeof after, &after) == 0);
      BOOST_TEST(CPU_EQUAL(&after, &all));
    }).join();
  }
}

BOOST_AUTO_TEST_CASE(who_was_seen_on_the_core_before_this_work_is_no_hindrance) {
  const cpu_set_t here = alone(static_cast<std::uint32_t>(::sched_getcpu()));
  cpu::CoreKeeper keeper(2);
  keeper.begin();
  std::thread([&] {
    allow(here);
    keeper.keep_apart(0);
  }).join();
  keeper.begin();
  BOOST_TEST(!keeper.keep_apart(1));
}

#endif

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
