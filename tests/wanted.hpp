#pragma once
// Which backends a run of tests is for.

#include <cstdlib>
#include <string>

namespace sluice::tests {

/// Whether tests run on this backend: on every one, or on those whose names SLUICE_TEST_BACKENDS
/// has, if it is set ("cuda", "cpu,cuda-host"): a GPU's host need not wait for the others.
inline bool wanted(const std::string& backend) {
  const char* named = std::getenv("SLUICE_TEST_BACKENDS");
  if (named == nullptr) return true;
  return ("," + std::string(named) + ",").find("," + backend + ",") != std::string::npos;
}

}  // namespace sluice::tests
