// Shows that UTF-8 is told from what is none, on every code point there is.

#include "model/unicode.hpp"

#include <boost/test/unit_test.hpp>

using sluice::model::is_valid_utf8;

BOOST_AUTO_TEST_SUITE(unicode)

BOOST_AUTO_TEST_CASE(utf8_against_every_code_point) {
  const auto encoded = [](std::uint32_t point, int length) {
    std::string out;
    constexpr std::uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    if (length == 1) return std::string(1, static_cast<char>(point));
    out += static_cast<char>(lead[length] | point >> (6 * (length - 1)));
    for (int i = length - 2; i >= 0; --i)
      out += static_cast<char>(0x80 | (point >> (6 * i) & 0x3f));
    return out;
  };
  for (std::uint32_t point = 0; point < 0x110000; ++point) {
    const int length = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    const std::string text = encoded(point, length);
    const bool surrogate = point >= 0xd800 && point < 0xe000;
    if (is_valid_utf8("abcdefgh" + text + "!") == surrogate) BOOST_ERROR("code point " << point);
    if (length > 1 && is_valid_utf8(text.substr(0, text.size() - 1))) BOOST_ERROR("cut " << point);
    if (length > 1 && is_valid_utf8(text.substr(1))) BOOST_ERROR("tail of " << point);
    if (length < 4 && is_valid_utf8(encoded(point, length + 1))) BOOST_ERROR("overlong " << point);
  }
  BOOST_CHECK(!is_valid_utf8(encoded(0x110000, 4)));
  BOOST_CHECK(is_valid_utf8(""));
}

BOOST_AUTO_TEST_SUITE_END()
