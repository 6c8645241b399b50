#include <fmt/ranges.h>

#include <string>

#include "actors/node.hpp"
#include "cli/command.hpp"
#include "cli/version.hpp"

namespace sluice::cli {

std::string version_text() {
  return fmt::format("sluice {} (commit {})\n  {}", version_number, version_commit,
                     fmt::join(actors::compiled_backends(), "\n  "));
}

}  // namespace sluice::cli
