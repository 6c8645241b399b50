#pragma once
// Words every layer shares: typed errors, results, assertions, element formats.

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

#include "kernels/token.hpp"

namespace sluice {

/// What went wrong, in the wire's own vocabulary (docs/protocol.md lists when each is sent).
enum class ErrorCode : std::uint8_t {
  bad_request,   ///< malformed or out-of-range input; sending it again cannot succeed
  not_found,     ///< unknown model or stream
  conflict,      ///< the stream id is taken by another owner or other content
  too_long,      ///< prompt plus max tokens exceed the model's context
  too_large,     ///< a frame, list or string above its limit
  overloaded,    ///< no room now; try again after `retry_after_ms`
  unavailable,   ///< shutting down, not ready, or the engine was lost
  deadline,      ///< the request's deadline passed
  cancelled,     ///< ended by its owner
  gone,          ///< the asked-for part of the stream's log is no longer held
  not_exact,     ///< resuming here could change the tokens (other numerics id)
  unsupported,   ///< understood, and not offered: a format, template, version or option
  unauthorized,  ///< not the owner, or not on the allow list
  bad_file,      ///< a file's content is truncated or lies
  io,            ///< the operating system refused: missing file, permission, port in use
  out_of_memory, ///< host or device memory
  internal,      ///< a bug or a lost device; nothing the caller did
};

/// The code's name on the wire, e.g. "bad_request".
std::string_view to_string(ErrorCode code);

/// An expected failure. The message names the thing, the cause and the remedy.
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;
  std::uint32_t retry_after_ms = 0;  ///< 0: no hint
};

template <class T>
using Result = tl::expected<T, Error>;

/// `return fail(ErrorCode::io, "cannot open {}: {}", path, why);`
template <class... Args>
tl::unexpected<Error> fail(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(text, std::forward<Args>(args)...), 0});
}

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line,
                                   std::string_view why);

/// A broken assertion is a bug: says where and aborts, in release builds too.
#define SLUICE_ASSERT(condition, why)                                              \
  do {                                                                             \
    if (!(condition)) [[unlikely]]                                                 \
      ::sluice::assertion_failed(#condition, __FILE__, __LINE__, (why));           \
  } while (false)

}  // namespace sluice
