# Writes OUTPUT, a C++ file with what identifies the interface between a program and its plugins:
# the hash of HEADERS and BUILD (compiler and sanitizers), for C++ types cross that border.
set(text "${BUILD}")
foreach(header IN LISTS HEADERS)
  file(SHA256 ${header} hash)
  string(APPEND text " ${hash}")
endforeach()
string(SHA256 interface "${text}")
string(SUBSTRING ${interface} 0 16 interface)
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[
#include "kernels/plugin.hpp"

namespace sluice::kernels {
const char* const plugin_interface = "@interface@";
}  // namespace sluice::kernels
]])
