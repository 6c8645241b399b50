#pragma once
// A node's stats as the Prometheus text format (version 0.0.4). Pure; names in docs/metrics.md.

#include <string>

#include "transport/figures.hpp"

namespace sluice::transport {

/// Values of an engine have its name as a label.
std::string metrics_text(const Values& values);

}  // namespace sluice::transport
