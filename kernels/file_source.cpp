#include "kernels/file_source.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sluice::kernels {

Result<void> FileSource::read(const std::byte* from, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(descriptor, to.data(), to.size(), from - begin);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return fail(ErrorCode::io, "cannot read the weights at byte {}: {}; fetch the file again",
                  from - begin, got < 0 ? std::strerror(errno) : "it was cut short");
    }
    from += got;
    to = to.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

}  // namespace sluice::kernels
