#include "kernels/cpu/peak.hpp"

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>

#include "kernels/core.hpp"
#include "kernels/cpu/tiles.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace sluice::kernels::cpu {
namespace {

/// One kind of arithmetic, by one kind of instruction.
struct Probe {
  std::string_view values;
  std::string_view instructions;
  bool usable;
  bool (*run)(std::uint64_t steps);  ///< false: the sums are not what they must be
  double ops_a_step;
};

#if defined(__x86_64__)

/// Sums that wait for nothing but themselves. These instructions take 4 or 5 cycles and two can
/// start in each, so ten are needed; 14 and two factors fill the 16 registers of AVX2.
using Sums = std::make_index_sequence<14>;

// Each sum starts at its own number (equal ones would be computed once) and must come back to what
// the steps make of it, which also keeps the compiler from leaving them out.

/// s * -1 + 1, which after an even number of steps is s again.
template <std::size_t... I>
[[gnu::target("avx2,fma")]] bool fma_avx2(std::uint64_t steps, std::index_sequence<I...>) {
  __m256 sum[] = {_mm256_set1_ps(float{I})...};
  const __m256 a = _mm256_set1_ps(-1), b = _mm256_set1_ps(1);
  for (std::uint64_t i = 0; i < steps; ++i) ((sum[I] = _mm256_fmadd_ps(sum[I], a, b)), ...);
  return ((_mm256_cvtss_f32(sum[I]) == float{I}) && ...);
}

template <std::size_t... I>
[[gnu::target("avx512f")]] bool fma_avx512(std::uint64_t steps, std::index_sequence<I...>) {
  __m512 sum[] = {_mm512_set1_ps(float{I})...};
  const __m512 a = _mm512_set1_ps(-1), b = _mm512_set1_ps(1);
  for (std::uint64_t i = 0; i < steps; ++i) ((sum[I] = _mm512_fmadd_ps(sum[I], a, b)), ...);
  return ((_mm512_cvtss_f32(sum[I]) == float{I}) && ...);
}

/// s + 1 * 1 + 1 * -1.
template <std::size_t... I>
[[gnu::target("avx512f,avx512bf16")]] bool dot_bf16(std::uint64_t steps,
                                                    std::index_sequence<I...>) {
  __m512 sum[] = {_mm512_set1_ps(float{I})...};
  const auto a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  const auto b = (__m512bh)_mm512_set1_epi32(static_cast<int>(0x3f80bf80));
  for (std::uint64_t i = 0; i < steps; ++i) ((sum[I] = _mm512_dpbf16_ps(sum[I], a, b)), ...);
  return ((_mm512_cvtss_f32(sum[I]) == float{I}) && ...);
}

/// s + 4 * (1 * 1), modulo 2^32.
template <std::size_t... I>
[[gnu::target("avx512f,avx512vnni")]] bool dot_int8_avx512(std::uint64_t steps,
                                                           std::index_sequence<I...>) {
  __m512i sum[] = {_mm512_set1_epi32(int{I})...};
  const __m512i ones = _mm512_set1_epi8(1);
  for (std::uint64_t i = 0; i < steps; ++i)
    ((sum[I] = _mm512_dpbusd_epi32(sum[I], ones, ones)), ...);
  return ((static_cast<std::uint32_t>(_mm512_cvtsi512_si32(sum[I])) ==
           static_cast<std::uint32_t>(I + 4 * steps)) &&
          ...);
}

template <std::size_t... I>
[[gnu::target("avx2,avxvnni")]] bool dot_int8_avx(std::uint64_t steps, std::index_sequence<I...>) {
  __m256i sum[] = {_mm256_set1_epi32(int{I})...};
  const __m256i ones = _mm256_set1_epi8(1);
  for (std::uint64_t i = 0; i < steps; ++i)
    ((sum[I] = _mm256_dpbusd_avx_epi32(sum[I], ones, ones)), ...);
  return ((static_cast<std::uint32_t>(_mm256_cvtsi256_si32(sum[I])) ==
           static_cast<std::uint32_t>(I + 4 * steps)) &&
          ...);
}

/// AVX-VNNI (leaf 7, subleaf 1), which GCC 12's __builtin_cpu_supports has no name for.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a & (1U << 4)) != 0;
}

#if !defined(__clang__)  // which has no such assembly in functions of other targets

/// Four tiles' sums of 64 bytes' products each, all of them 1. An eighth of the steps: each takes
/// so much longer than one of vectors.
template <class Value, class Sum, class Dots>
bool dot_tiles(std::uint64_t steps, Value value, Dots dots) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shape;
  alignas(64) Value values[1024 / sizeof(Value)];
  std::fill(std::begin(values), std::end(values), value);
  alignas(64) Sum sums[16][16];
  asm volatile("ldtilecfg %0\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"
               "tilezero %%tmm3\n tileloadd (%1,%2,1), %%tmm4\n tileloadd (%1,%2,1), %%tmm5"
               : : "m"(shape), "r"(values), "r"(std::size_t{64}) : "memory");
  for (std::uint64_t i = 0; i < steps / 8; ++i) dots();
  asm volatile("tilestored %%tmm3, (%0,%1,1)\n tilerelease"
               : : "r"(sums), "r"(std::size_t{64}) : "memory");
  return sums[15][15] == static_cast<Sum>(steps / 8 * (64 / sizeof(Value)));
}

bool dot_tiles_bf16(std::uint64_t steps) {  // below 2^24, to be exact
  return dot_tiles<std::uint16_t, float>(steps, 0x3F80, [] {
    asm volatile("tdpbf16ps %tmm5, %tmm4, %tmm0\n tdpbf16ps %tmm5, %tmm4, %tmm1\n"
                 "tdpbf16ps %tmm5, %tmm4, %tmm2\n tdpbf16ps %tmm5, %tmm4, %tmm3");
  });
}

bool dot_tiles_int8(std::uint64_t steps) {
  return dot_tiles<std::uint8_t, std::uint32_t>(steps, 1, [] {
    asm volatile("tdpbusd %tmm5, %tmm4, %tmm0\n tdpbusd %tmm5, %tmm4, %tmm1\n"
                 "tdpbusd %tmm5, %tmm4, %tmm2\n tdpbusd %tmm5, %tmm4, %tmm3");
  });
}

bool has_int8_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_tiles() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1U << 25)) != 0;
}

constexpr double tile_ops = 4 * 16 * 16 * 2 / 8.0;  // for each pair of values, a step

#endif

/// The widest of each kind first.
std::vector<Probe> known_probes() {
  constexpr double sums = Sums::size();
  const bool avx512 = __builtin_cpu_supports("avx512f");
  return {
      {"f32", "AVX-512 FMA", avx512, [](auto n) { return fma_avx512(n, Sums{}); }, sums * 16 * 2},
      {"f32", "AVX2 FMA", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
       [](auto n) { return fma_avx2(n, Sums{}); }, sums * 8 * 2},
#if !defined(__clang__)
      {"bf16", "AMX", has_tiles(), dot_tiles_bf16, tile_ops * 32},
#endif
      {"bf16", "AVX-512 BF16", avx512 && __builtin_cpu_supports("avx512bf16"),
       [](auto n) { return dot_bf16(n, Sums{}); }, sums * 32 * 2},
#if !defined(__clang__)
      {"int8", "AMX", has_int8_tiles(), dot_tiles_int8, tile_ops * 64},
#endif
      {"int8", "AVX-512 VNNI", avx512 && __builtin_cpu_supports("avx512vnni"),
       [](auto n) { return dot_int8_avx512(n, Sums{}); }, sums * 64 * 2},
      {"int8", "AVX-VNNI", has_avx_vnni(), [](auto n) { return dot_int8_avx(n, Sums{}); },
       sums * 32 * 2},
  };
}

#else

std::vector<Probe> known_probes() { return {}; }

#endif

double measure(const Probe& probe, std::uint32_t threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int passes = 10;
  // Some 7 ms at 2.6 GHz and two instructions a cycle: above the grain of scheduling. Even.
  constexpr std::uint64_t steps = 2'500'000;
  std::vector<std::array<double, passes>> ops_per_s(threads);
  std::barrier gate(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> workers;
  for (std::uint32_t t = 0; t < threads; ++t)
    workers.emplace_back([&, t] {
      for (double& rate : ops_per_s[t]) {
        gate.arrive_and_wait();
        const auto start = Clock::now();
        const bool right = probe.run(steps);
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        SLUICE_ASSERT(right, "the probe computed what it was timed for");
        rate = static_cast<double>(steps) * probe.ops_a_step / seconds;
      }
    });
  workers.clear();
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    double together = 0;
    for (const auto& thread : ops_per_s) together += thread[pass];
    best = std::max(best, together);
  }
  return best;
}

}  // namespace

std::vector<ArithmeticPeak> arithmetic_peaks(std::uint32_t threads) {
  std::vector<ArithmeticPeak> peaks;
  for (const Probe& probe : known_probes()) {
    if (!probe.usable || (!peaks.empty() && peaks.back().values == probe.values)) continue;
    peaks.push_back({probe.values, probe.instructions, measure(probe, std::max(1U, threads))});
  }
  return peaks;
}

}  // namespace sluice::kernels::cpu
