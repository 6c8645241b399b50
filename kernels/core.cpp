#include "kernels/core.hpp"

#include <cstdio>
#include <cstdlib>

namespace sluice {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::bad_request: return "bad_request";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::conflict: return "conflict";
    case ErrorCode::too_long: return "too_long";
    case ErrorCode::too_large: return "too_large";
    case ErrorCode::overloaded: return "overloaded";
    case ErrorCode::unavailable: return "unavailable";
    case ErrorCode::deadline: return "deadline";
    case ErrorCode::cancelled: return "cancelled";
    case ErrorCode::gone: return "gone";
    case ErrorCode::not_exact: return "not_exact";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::unauthorized: return "unauthorized";
    case ErrorCode::bad_file: return "bad_file";
    case ErrorCode::io: return "io";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::internal: return "internal";
  }
  return "internal";
}

void assertion_failed(const char* condition, const char* file, int line, std::string_view why) {
  std::fprintf(stderr, "%s:%d: assertion failed: %s (%.*s)\n", file, line, condition,
               static_cast<int>(why.size()), why.data());
  std::abort();
}

}  // namespace sluice
