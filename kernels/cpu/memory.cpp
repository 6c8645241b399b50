#include "kernels/cpu/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace sluice::kernels::cpu {

ZeroPages::~ZeroPages() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

ZeroPages::ZeroPages(ZeroPages&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

ZeroPages& ZeroPages::operator=(ZeroPages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Result<ZeroPages> ZeroPages::make(std::size_t bytes, std::string_view what) {
  ZeroPages pages;
  if (bytes == 0) return pages;
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return fail(ErrorCode::out_of_memory, "no {} bytes of address space for {}", bytes, what);
  }
  pages.data_ = data;
  pages.bytes_ = bytes;
  return pages;
}

void ZeroPages::want_huge_pages() {
  if (data_ != nullptr) ::madvise(data_, bytes_, MADV_HUGEPAGE);
}

bool ZeroPages::populate(std::size_t first, std::size_t bytes) const {
#if defined(MADV_POPULATE_WRITE)
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t from = first / page * page;  // what mmap gave begins with a page
  const std::size_t to = std::min(bytes_, first + bytes);
  return to <= from || ::madvise(as<std::byte>() + from, to - from, MADV_POPULATE_WRITE) == 0;
#else
  return first + bytes == 0;
#endif
}

}  // namespace sluice::kernels::cpu
