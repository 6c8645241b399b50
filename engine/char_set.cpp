#include "engine/char_set.hpp"

#include <algorithm>

namespace sluice::engine {

void CharSet::add(char32_t first, char32_t last) {
  constexpr char32_t below = 0xD7FF, above = 0xE000;  // of the surrogates
  if (first <= below) insert({first, std::min(last, below)});
  if (last >= above) insert({std::max(first, above), last});
}

void CharSet::insert(Range range) {
  if (range.first > range.second) return;
  const auto from = std::ranges::find_if(
      ranges_, [&](const Range& r) { return r.second + 1 >= range.first; });
  auto to = from;
  for (; to != ranges_.end() && to->first <= range.second + 1; ++to) {
    range.first = std::min(range.first, to->first);
    range.second = std::max(range.second, to->second);
  }
  ranges_.insert(ranges_.erase(from, to), range);
}

void CharSet::add(const CharSet& other) {
  for (const Range& range : other.ranges_) add(range.first, range.second);
}

CharSet CharSet::complement() const {
  CharSet out;
  char32_t next = 0;
  for (const auto& [first, last] : ranges_) {
    if (first > next) out.add(next, first - 1);
    next = last + 1;
  }
  if (next <= char_max) out.add(next, char_max);
  return out;
}

CharSet CharSet::without(const CharSet& other) const {
  CharSet hidden = complement();
  hidden.add(other);
  return hidden.complement();
}

bool CharSet::contains(char32_t c) const {
  return std::ranges::any_of(ranges_,
                             [&](const Range& r) { return r.first <= c && c <= r.second; });
}

}  // namespace sluice::engine
