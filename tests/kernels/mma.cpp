// Shows that the host's stand-ins for tensor-core instructions, matrix loads and asynchronous
// copies do what the PTX ISA says of them: products laid out by its own formulas of row and column,
// one element at a time, and copies that are not there before their thread waits for them.

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/mma.cuh"
#include "tests/kernels/cuda_host/cuda_runtime.h"

namespace sluice::kernels::test {
namespace {

using namespace cuda;

std::string run_warp(const std::function<void()>& kernel, std::size_t shared_bytes = 0) {
  return cuda_host::run_grid(2, 32, shared_bytes, kernel);
}

std::uint16_t half_of(float value, bool brain) {
  if (!brain) return f32_to_f16(value);
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>(bits >> 16);
}

struct Matrices {
  float a[16][16], b[16][8], sums[16][8];
};

/// Small whole numbers: every sum is exact.
Matrices random_matrices() {
  std::mt19937 random(3);
  const auto value = [&] { return static_cast<float>(random() % 17) - 8.0F; };
  Matrices m;
  for (auto& row : m.a) std::generate(std::begin(row), std::end(row), value);
  for (auto& row : m.b) std::generate(std::begin(row), std::end(row), value);
  for (auto& row : m.sums) std::generate(std::begin(row), std::end(row), value);
  return m;
}

// Where element i of a lane lies, as the PTX ISA's section on mma.m16n8k16 gives it.
int a_row(int lane, int i) { return lane / 4 + ((i < 2 || (i >= 4 && i < 6)) ? 0 : 8); }
int a_column(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8); }
int b_row(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8); }
int b_column(int lane) { return lane / 4; }
int sum_row(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
int sum_column(int lane, int i) { return lane % 4 * 2 + (i & 1); }

void check_products(bool brain) {
  const Matrices m = random_matrices();
  float got[16][8];
  const std::string complaint = run_warp([&] {
    const int lane = static_cast<int>(threadIdx.x);
    std::uint16_t a[8], b[4];
    for (int i = 0; i < 8; ++i) a[i] = half_of(m.a[a_row(lane, i)][a_column(lane, i)], brain);
    for (int i = 0; i < 4; ++i) b[i] = half_of(m.b[b_row(lane, i)][b_column(lane)], brain);
    TileA tile_a;
    TileB tile_b;
    TileSums sums;
    std::memcpy(&tile_a, a, sizeof a);
    std::memcpy(&tile_b, b, sizeof b);
    for (int i = 0; i < 4; ++i) sums.at[i] = m.sums[sum_row(lane, i)][sum_column(lane, i)];
    if (brain) {
      multiply_bf16(sums, tile_a, tile_b);
    } else {
      multiply_f16(sums, tile_a, tile_b);
    }
    for (int i = 0; i < 4; ++i) got[sum_row(lane, i)][sum_column(lane, i)] = sums.at[i];
  });
  BOOST_TEST(complaint == "");
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 8; ++c) {
      float expected = m.sums[r][c];
      for (int k = 0; k < 16; ++k) expected += m.a[r][k] * m.b[k][c];
      BOOST_TEST(got[r][c] == expected);
    }
  }
}

template <bool transposed>
void check_matrices() {
  // Matrix m's element (r, c) is 64 m + 8 r + c.
  alignas(16) std::uint16_t memory[4][8][8];
  std::iota(&memory[0][0][0], &memory[0][0][0] + 256, std::uint16_t{0});
  std::uint32_t got[32][4];
  const std::string complaint = run_warp([&] {
    const std::uint32_t lane = threadIdx.x;
    load_matrices<transposed>(got[lane], memory[lane / 8][lane % 8]);
  });
  BOOST_TEST(complaint == "");
  for (std::uint32_t lane = 0; lane < 32; ++lane) {
    for (std::uint32_t m = 0; m < 4; ++m) {
      const std::uint32_t first = transposed ? 64 * m + 8 * (lane % 4 * 2) + lane / 4
                                             : 64 * m + 8 * (lane / 4) + lane % 4 * 2;
      BOOST_TEST(got[lane][m] == (first | (first + (transposed ? 8 : 1)) << 16));
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(mma)

BOOST_AUTO_TEST_CASE(products_of_bf16_tiles) { check_products(true); }
BOOST_AUTO_TEST_CASE(products_of_f16_tiles) { check_products(false); }
BOOST_AUTO_TEST_CASE(matrices_as_they_lie) { check_matrices<false>(); }
BOOST_AUTO_TEST_CASE(matrices_transposed) { check_matrices<true>(); }

BOOST_AUTO_TEST_CASE(copies_come_when_their_group_is_waited_for) {
  alignas(16) std::uint32_t from[4][4];
  std::iota(&from[0][0], &from[0][0] + 16, 1U);
  const std::string complaint = run_warp(
      [&] {
        SharedPieces pieces;
        auto* to = pieces.take<std::uint32_t>(16);
        if (threadIdx.x != 5) return;
        for (int i = 0; i < 4; ++i) {
          copy_async(to + 4 * i, from[i], i != 2);
          if (i != 1) commit_copies();
        }
        const auto is = [&](int i, std::uint32_t first) { return to[4 * i] == first; };
        constexpr std::uint32_t unwritten = 0xFFFFFFFF;
        if (!is(0, unwritten)) cuda_host::complain("a copy came before it was waited for");
        wait_copies<2>();
        if (!is(0, 1) || !is(1, unwritten)) cuda_host::complain("not the first group alone");
        wait_copies<1>();
        if (!is(1, 5) || !is(2, 0) || !is(3, unwritten)) cuda_host::complain("not the first two");
        wait_copies<0>();
        if (!is(3, 13)) cuda_host::complain("the last copy is missing");
      },
      64);
  BOOST_TEST(complaint == "");
}

BOOST_AUTO_TEST_CASE(copies_that_a_device_would_not_make_are_complained_of) {
  alignas(16) std::uint32_t from[8] = {};
  const auto says = [](const std::string& text, const char* part) {
    return text.find(part) != text.npos;
  };
  const auto copy = [&](std::size_t offset, const void* source) {
    return run_warp(
        [&] {
          SharedPieces pieces;
          copy_async(pieces.take<unsigned char>(32) + offset, source, true);
          commit_copies();
          wait_copies<0>();
        },
        32);
  };
  BOOST_TEST(copy(16, from) == "");
  BOOST_TEST(says(copy(8, from), "misaligned"));
  BOOST_TEST(says(copy(0, from + 1), "misaligned"));
  BOOST_TEST(says(copy(32, from), "outside of shared memory"));
  const std::string lost = run_warp(
      [&] {
        SharedPieces pieces;
        copy_async(pieces.take<unsigned char>(16), from, true);
        commit_copies();
      },
      16);
  BOOST_TEST(says(lost, "did not wait"), lost);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
