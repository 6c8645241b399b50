# Run at every build: writes OUTPUT (a C++ file) anew only when the commit changed, so that nothing
# else is compiled again and the compiler cache stays warm.
execute_process(COMMAND git describe --always --dirty --abbrev=12 --exclude=*
  WORKING_DIRECTORY ${SOURCE} OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE status ERROR_QUIET)
if(NOT status EQUAL 0)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[
#include "cli/version.hpp"

namespace sluice::cli {
const char* const version_number = "@VERSION@";
const char* const version_commit = "@commit@";
}  // namespace sluice::cli
]])
