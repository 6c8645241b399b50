#pragma once
// The CPU's kernels held to one instruction set after the other. Include before any of Highway's
// headers, which choose by what is defined here.

#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"
// The targets must be chosen before Highway's headers.
#include <hwy/targets.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <functional>

namespace sluice::kernels::test {

/// Whether the one target with tiles, the processor's or a loop's, can run now.
inline bool target_has_tiles() { return (hwy::SupportedTargets() & HWY_AVX3_DL) != 0; }

/// Calls check() with the kernels held to each instruction set. Files without the target of byte
/// dot products go by the one below it meanwhile.
inline void on_every_target(const std::function<void()>& check) {
  const std::int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
#if defined(__x86_64__)
  BOOST_TEST(hwy::PopCount(static_cast<std::uint64_t>(supported)) >= 2U);  // else nothing compares
#endif
  for (std::int64_t rest = supported; rest != 0; rest &= rest - 1) {
    const std::int64_t below = (rest & -rest) == HWY_AVX3_DL ? HWY_AVX3 : 0;
    hwy::SetSupportedTargetsForTest((rest & -rest) | below);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    BOOST_TEST_CONTEXT(hwy::TargetName(rest & -rest)) { check(); }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
}

}  // namespace sluice::kernels::test
