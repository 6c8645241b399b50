#pragma once
// What `sluice top` shows of a node at one moment, from its answers. Pure.

#include <deque>
#include <string>

#include "transport/figures.hpp"
#include "transport/protocol.hpp"

namespace sluice::cli {

struct TopSnapshot {
  std::string connect;
  transport::Welcome welcome;
  transport::Health health;
  transport::Values now;
  transport::Values before;  ///< empty: figures are since the node's start
  double seconds = 0;        ///< between both

  /// Growth of a counter a second; 0 without `before`.
  double rate(const std::string& counter) const;
  double tokens_per_s() const;
  /// Of what came since `before`.
  transport::Histogram histogram(const std::string& name) const;
  double value(const std::string& name) const;
};

/// Lines of plain text, each at most `columns` wide (0: as wide as they are). Control characters
/// in what the node says are shown as '?'.
std::string to_text(const TopSnapshot& snapshot, std::size_t columns);

/// One JSON object.
std::string to_json(const TopSnapshot& snapshot);

}  // namespace sluice::cli
