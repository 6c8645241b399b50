#pragma once
// What this binary was built from. The values are written at build time (cmake/Version.cmake).

namespace sluice::cli {

extern const char* const version_number;  ///< "0.1.0"
extern const char* const version_commit;  ///< abbreviated, with "-dirty" if it was changed

}  // namespace sluice::cli
