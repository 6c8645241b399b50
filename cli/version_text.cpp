#include <string>

#include "cli/command.hpp"
#include "cli/version.hpp"
#include "kernels/backends.hpp"

namespace sluice::cli {

std::string version_text() {
  std::string text = fmt::format("sluice {} (commit {})", version_number, version_commit);
  for (const auto& backend : kernels::list_backends()) text += "\n  " + kernels::to_text(backend);
  return text;
}

}  // namespace sluice::cli
