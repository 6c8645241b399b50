#include "model/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace sluice::model {

Result<MappedFile> MappedFile::open(const std::string& path, std::size_t bytes_max) {
  kernels::Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!descriptor) {
    return fail(ErrorCode::io, "cannot open model file {}: {}", path, std::strerror(errno));
  }
  struct stat status {};
  const int stat_errno = ::fstat(descriptor.get(), &status) == 0 ? 0 : errno;
  const bool regular = stat_errno == 0 && S_ISREG(status.st_mode);
  const std::size_t size = regular ? static_cast<std::size_t>(status.st_size) : 0;
  void* address = MAP_FAILED;
  int map_errno = 0;
  if (size > 0 && size <= bytes_max) {
    address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor.get(), 0);
    if (address == MAP_FAILED) map_errno = errno;
  }
  if (stat_errno != 0) {
    return fail(ErrorCode::io, "cannot read model file {}: {}", path, std::strerror(stat_errno));
  }
  if (!regular) return fail(ErrorCode::io, "{} is not a file: give the path of a model", path);
  if (size == 0) return fail(ErrorCode::bad_file, "{} is empty: fetch it again", path);
  if (size > bytes_max) {
    return fail(ErrorCode::bad_file, "{} has {} bytes, more than the {} that such a file may have: "
                "fetch it again", path, size, bytes_max);
  }
  if (address == MAP_FAILED) {
    return fail(ErrorCode::io, "cannot map model file {}: {}", path, std::strerror(map_errno));
  }
  MappedFile file;
  file.bytes_ = {static_cast<const std::byte*>(address), size};
  file.descriptor_ = std::move(descriptor);
  return file;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})), descriptor_(std::move(other.descriptor_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  descriptor_ = std::move(other.descriptor_);
  return *this;
}

std::string shown(std::string_view text) {
  constexpr std::size_t shown_max = 80;
  std::string out = "'";
  for (const char c : text.substr(0, shown_max)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + (text.size() > shown_max ? "…'" : "'");
}

}  // namespace sluice::model
