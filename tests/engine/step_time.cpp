// What is learned of a device's steps: lines are found, noise is averaged, the past is forgotten,
// and from them follow the rows that a target leaves and the time that a prompt needs.
#include "engine/step_time.hpp"

#include <boost/test/unit_test.hpp>

using sluice::engine::StepTime;

namespace {

/// A device that takes 5 ms a step, 1 ms a decode row and 0.5 ms a prompt row.
constexpr std::uint64_t ns(std::uint32_t decode_rows, std::uint32_t prompt_rows) {
  return 5'000'000 + 1'000'000ULL * decode_rows + 500'000ULL * prompt_rows;
}

StepTime learned() {
  StepTime time(4);
  for (std::uint32_t rows = 1; rows <= 8; ++rows) time.add(rows, 0, ns(rows, 0));
  for (std::uint32_t rows = 1; rows <= 8; ++rows) time.add(rows, 64, ns(rows, 64));
  return time;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(step_time)

BOOST_AUTO_TEST_CASE(nothing_known_limits_nothing) {
  StepTime time(4);
  BOOST_TEST(time.prompt_rows(8, 0, 512) == 512U);
  BOOST_TEST(time.prompt_ns(1000, 8, 0, 512) == 0.0);
  time.add(0, 100, ns(0, 100));
  BOOST_TEST(time.prompt_rows(0, 0, 512) == 512U);  // nobody decodes
  BOOST_TEST(time.prompt_rows(8, 0, 512) == 512U);  // nobody has yet
  BOOST_TEST(time.prompt_ns(1000, 0, 0, 512) == 1000 * ns(0, 100) / 100.0);
}

BOOST_AUTO_TEST_CASE(a_line_is_found) {
  const StepTime time = learned();
  for (const std::uint32_t rows : {1U, 4U, 8U, 32U})
    BOOST_TEST(time.decode_ns(rows) == static_cast<double>(ns(rows, 0)),
               boost::test_tools::tolerance(1e-6));
}

BOOST_AUTO_TEST_CASE(rows_fill_what_the_target_leaves) {
  const StepTime time = learned();
  // 8 decode rows take 13 ms: 87 ms are left of 100, at half a millisecond a row.
  BOOST_TEST(time.prompt_rows(8, 100'000'500, 512) == 174U);
  BOOST_TEST(time.prompt_rows(8, 100'000'000, 100) == 100U);
  // Without a target, 3/5 of the 37 ms of 32 rows; so too when it leaves next to nothing.
  BOOST_TEST(time.prompt_rows(32, 0, 512) == 44U);  // 44.4
  BOOST_TEST(time.prompt_rows(32, 40'000'000, 512) == 44U);
  BOOST_TEST(time.prompt_rows(1, 7'300'000, 512) == 4U);  // a few always
  const std::uint32_t longer = time.prompt_rows(1, 0, 512);  // by 8 ms, where 3/5 are 3.6
  BOOST_TEST(longer >= 15U);
  BOOST_TEST(longer <= 16U);
  BOOST_TEST(time.prompt_rows(1, 6'500'000, 512) == 7U);  // but who sets a target gets the 3.6
}

// Where the first prompt row of a step costs as much as hundreds more, what the target leaves is
// nothing, and fewer and fewer rows would seem dearer and dearer.
BOOST_AUTO_TEST_CASE(a_device_may_want_many_rows) {
  const auto takes = [](std::uint32_t prompt_rows) {
    return 3'000'000ULL + (prompt_rows > 0 ? 20'000'000 : 0) + 30'000ULL * prompt_rows;
  };
  StepTime few(4), many(128);
  for (StepTime* time : {&few, &many}) {
    time->add(1, 0, takes(0));
    time->add(0, 512, takes(512));
    for (int i = 0; i < 200; ++i) {
      const std::uint32_t rows = time->prompt_rows(1, 0, 512);
      time->add(1, rows, takes(rows));
    }
  }
  BOOST_TEST(few.prompt_rows(1, 0, 512) == 4U);
  BOOST_TEST(many.prompt_rows(1, 0, 512) == 128U);
  BOOST_TEST(many.prompt_rows(1, 0, 100) == 100U);
  BOOST_TEST(many.prompt_rows(1, 100'000'000, 512) == 512U);
}

BOOST_AUTO_TEST_CASE(pauses_are_short_and_few) {
  StepTime time = learned();  // half a millisecond a row
  BOOST_TEST(!time.pause(101));
  for (int i = 0; i < 8; ++i) BOOST_TEST(time.pause(95));
  BOOST_TEST(!time.pause(41));  // 20 ms are left of 400
  BOOST_TEST(time.pause(39));
  time.pass(195'000'000);
  BOOST_TEST(!time.pause(41));  // and 20 again
  time.pass(100'000'000);       // a clock that goes back gives nothing
  time.pass(195'000'000);
  BOOST_TEST(!time.pause(41));
  BOOST_TEST(time.pause(39));
  time.pass(3'600'000'000'000);
  for (int i = 0; i < 8; ++i) BOOST_TEST(time.pause(99));
  BOOST_TEST(!time.pause(10));
}

BOOST_AUTO_TEST_CASE(a_prompt_shares_its_steps) {
  const StepTime time = learned();
  const double alone = time.prompt_ns(1000, 0, 0, 512);
  const double beside = time.prompt_ns(1000, 8, 0, 512);
  BOOST_TEST(alone == 5e8, boost::test_tools::tolerance(0.01));
  // 15 rows a step of 13 + 7.5 ms.
  BOOST_TEST(beside == 1000 / 15.0 * 20.5e6, boost::test_tools::tolerance(0.05));
}

BOOST_AUTO_TEST_CASE(a_short_prompt_may_take_one_step) {
  StepTime time = learned();
  const auto near = boost::test_tools::tolerance(0.05);
  BOOST_TEST(time.prompt_ns(90, 8, 0, 512) == 13e6 + 45e6, near);
  BOOST_TEST(time.prompt_ns(90, 8, 0, 64) == 90 / 15.0 * 20.5e6, near);  // no step is so long
  BOOST_TEST(time.prompt_ns(90, 8, 20'000'000, 512) > 90e6);  // a target allows no pauses
  for (int i = 0; i < 8; ++i) BOOST_TEST(time.pause(95));
  BOOST_TEST(time.prompt_ns(90, 8, 0, 512) == 90 / 15.0 * 20.5e6, near);  // there were enough
}

BOOST_AUTO_TEST_CASE(the_past_is_forgotten) {
  StepTime time = learned();
  for (int i = 0; i < 200; ++i) time.add(8, 0, 2 * ns(8, 0));
  BOOST_TEST(time.decode_ns(8) == 2.0 * static_cast<double>(ns(8, 0)),
             boost::test_tools::tolerance(0.01));
  for (int i = 0; i < 200; ++i) time.add(0, 64, 64 * 3'000'000ULL);
  BOOST_TEST(time.prompt_ns(100, 0, 0, 512) == 3e8, boost::test_tools::tolerance(0.01));
}

BOOST_AUTO_TEST_CASE(one_row_count_or_a_falling_line_means_the_average) {
  StepTime time(4);
  time.add(8, 0, 10'000'000);
  time.add(8, 0, 10'000'000);
  BOOST_TEST(time.decode_ns(1) == 1e7);
  BOOST_TEST(time.decode_ns(64) == 1e7);
  StepTime falling(4);
  falling.add(1, 0, 20'000'000);
  falling.add(8, 0, 10'000'000);
  BOOST_TEST(falling.decode_ns(100) > 9e6);
}

BOOST_AUTO_TEST_SUITE_END()
