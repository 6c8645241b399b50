// Shows that every weight format means exactly what the reference package `gguf` says it means:
// random blocks, their scales drawn from all finite halves (zeros, subnormals and extremes among
// them), must dequantize to the reference's values to the bit (scripts/fixtures/quant.py).

#include "kernels/quant.hpp"

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "tests/places.hpp"

namespace sluice::kernels {
namespace {

std::vector<std::byte> read_fixture(const std::string& name) {
  const std::string path = tests::fixtures_folder() + "/quant/" + name + ".bin";
  std::ifstream file(path, std::ios::binary);
  BOOST_REQUIRE_MESSAGE(file.good(), "missing " << path);
  const std::vector<char> chars((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::byte> bytes(chars.size());
  std::memcpy(bytes.data(), chars.data(), chars.size());
  return bytes;
}

template <class T>
T at(const std::vector<std::byte>& bytes, std::size_t offset) {
  T value;
  BOOST_REQUIRE_LE(offset + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

Format format_at(std::size_t index) { return static_cast<Format>(index); }

}  // namespace

BOOST_AUTO_TEST_SUITE(quant)

BOOST_AUTO_TEST_CASE(dequantize_equals_the_reference_to_the_bit) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const FormatInfo& format = info(format_at(f));
    const auto fixture = read_fixture(std::string(format.name));
    const auto raw_bytes = at<std::uint32_t>(fixture, 0);
    const auto count = at<std::uint32_t>(fixture, 4);
    BOOST_REQUIRE_EQUAL(row_bytes(format.format, count), raw_bytes);
    std::vector<float> values(count);
    dequantize(format.format, std::span(fixture).subspan(8, raw_bytes), values);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto expected = at<std::uint32_t>(fixture, 8 + raw_bytes + 4 * i);
      wrong += std::bit_cast<std::uint32_t>(values[i]) != expected;
    }
    BOOST_TEST(wrong == 0U, format.name << ": " << wrong << " of " << count << " values differ");
  }
}

BOOST_AUTO_TEST_CASE(every_half_widens_and_rounds_back) {
  const auto fixture = read_fixture("half");
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const bool nan = (bits & 0x7FFFU) > 0x7C00U;
    const float value = f16_to_f32(half);
    if (nan) {
      wrong += value == value || (f32_to_f16(value) & 0x7C00U) != 0x7C00U;
      continue;
    }
    wrong += std::bit_cast<std::uint32_t>(value) != at<std::uint32_t>(fixture, 4 * bits);
    wrong += f32_to_f16(value) != half;
  }
  BOOST_TEST(wrong == 0U);
}

BOOST_AUTO_TEST_CASE(floats_round_to_the_nearest_even_half) {
  const auto fixture = read_fixture("half");
  const std::size_t floats = 4 * 65536;
  const std::size_t count = 4096;
  for (std::size_t i = 0; i < count; ++i) {
    const auto value = at<float>(fixture, floats + 4 * i);
    BOOST_TEST_INFO("rounding " << value);
    BOOST_CHECK_EQUAL(f32_to_f16(value), at<std::uint16_t>(fixture, floats + 4 * count + 2 * i));
  }
}

BOOST_AUTO_TEST_CASE(the_table_is_whole) {
  std::set<std::uint32_t> ids;
  for (std::size_t f = 0; f < format_count; ++f) {
    const FormatInfo& format = info(format_at(f));
    BOOST_CHECK(format.format == format_at(f));
    BOOST_CHECK(ids.insert(format.gguf_id).second);
    BOOST_CHECK(find_format(format.gguf_id) == &format);
  }
  BOOST_CHECK(find_format(9) == nullptr);  // Q8_1, an intermediate no file holds
  BOOST_CHECK_EQUAL(row_bytes(Format::q4_1, 576), 360U);
  BOOST_CHECK_EQUAL(row_bytes(Format::q6_k, 512), 420U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels
