// Shows that the probe of arithmetic covers what the processor says it has, each kind once. That
// the sums are right is the probe's own assertion; how fast it is is not looked at.

#include "kernels/cpu/peak.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

namespace sluice::kernels::cpu {
namespace {

/// As the kernel lists them; an empty answer where there is no such list.
bool processor_has(const std::string& flag) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;)
      if (word == flag) return true;
    return false;
  }
  return false;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(peak)

BOOST_AUTO_TEST_CASE(each_kind_of_arithmetic_by_its_widest_instructions) {
  std::map<std::string, std::string> expected;
  if (processor_has("fma")) expected["f32"] = "AVX2 FMA";
  if (processor_has("avx512f")) expected["f32"] = "AVX-512 FMA";
  if (processor_has("avx512_bf16")) expected["bf16"] = "AVX-512 BF16";
  if (processor_has("avx_vnni")) expected["int8"] = "AVX-VNNI";
  if (processor_has("avx512_vnni")) expected["int8"] = "AVX-512 VNNI";
#if !defined(__clang__)
  if (processor_has("amx_tile") && processor_has("amx_bf16")) expected["bf16"] = "AMX";
  if (processor_has("amx_tile") && processor_has("amx_int8")) expected["int8"] = "AMX";
#endif
  for (const std::uint32_t threads : {0U, 1U, 3U}) {
    std::map<std::string, std::string> found;
    for (const ArithmeticPeak& peak : arithmetic_peaks(threads)) {
      BOOST_TEST(found.emplace(peak.values, peak.instructions).second, peak.values << " twice");
      BOOST_TEST(peak.ops_per_s > 0.0);
      BOOST_TEST(std::isfinite(peak.ops_per_s));
    }
    BOOST_CHECK(found == expected);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::cpu
