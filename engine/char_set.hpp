#pragma once
// Sets of characters, as a pattern names them.

#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace sluice::engine {

/// The highest code point. Surrogates are no characters: no set has them.
inline constexpr char32_t char_max = 0x10FFFF;

/// Unicode characters as ascending ranges that do not touch. A value.
class CharSet {
 public:
  using Range = std::pair<char32_t, char32_t>;  ///< first and last

  CharSet() = default;
  CharSet(std::initializer_list<Range> ranges) {
    for (const Range& range : ranges) add(range.first, range.second);
  }

  static CharSet all() { return {{0, char_max}}; }

  void add(char32_t first, char32_t last);
  void add(const CharSet& other);

  CharSet complement() const;
  CharSet without(const CharSet& other) const;
  bool contains(char32_t c) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  void insert(Range range);

  std::vector<Range> ranges_;
};

}  // namespace sluice::engine
