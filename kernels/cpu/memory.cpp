#include "kernels/cpu/memory.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "kernels/descriptor.hpp"

namespace sluice::kernels::cpu {
namespace {

/// Linux's pm_scan_arg and page_region: which pages of a stretch are of a kind. <linux/fs.h> has
/// them since 6.7.
struct PageScan {
  std::uint64_t size = sizeof(PageScan), flags = 0, start = 0, end = 0, walked_to = 0;
  std::uint64_t found = 0, found_max = 0, pages_max = 0;
  std::uint64_t inverted = 0, all_of = huge, any_of = 0, returned = huge;

  static constexpr std::uint64_t huge = 1U << 6;
};
struct PageRegion {
  std::uint64_t begin, end, kinds;
};
constexpr unsigned long scan_pages = _IOWR('f', 16, PageScan);

/// The pages of [first, first + bytes) of a mapping.
[[maybe_unused]] bool advise(const Mapping& mapping, std::size_t first, std::size_t bytes,
                             int advice) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t from = first / page * page;  // what mmap gave begins with a page
  const std::size_t to = std::min(mapping.bytes(), first + bytes);
  return to <= from || ::madvise(mapping.as<std::byte>() + from, to - from, advice) == 0;
}

}  // namespace

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Mapping::want_huge_pages() {
  if (data_ != nullptr) ::madvise(data_, bytes_, MADV_HUGEPAGE);
}

Result<ZeroPages> ZeroPages::make(std::size_t bytes, std::string_view what) {
  if (bytes == 0) return ZeroPages();
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return fail(ErrorCode::out_of_memory, "no {} bytes of address space for {}", bytes, what);
  }
  return ZeroPages(data, bytes);
}

bool ZeroPages::populate(std::size_t first, std::size_t bytes) const {
#if defined(MADV_POPULATE_WRITE)
  return advise(*this, first, bytes, MADV_POPULATE_WRITE);
#else
  return first + bytes == 0;
#endif
}

std::optional<FilePages> FilePages::map(int descriptor, std::size_t bytes, For purpose) {
  const int access = purpose == For::writing ? PROT_READ | PROT_WRITE : PROT_READ;
  void* data = ::mmap(nullptr, bytes, access, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) return std::nullopt;
  FilePages pages(data, bytes);
  pages.want_huge_pages();
  return pages;
}

bool FilePages::fetch(std::size_t first, std::size_t bytes) const {
#if defined(MADV_POPULATE_READ)
  return advise(*this, first, bytes, MADV_POPULATE_READ);
#else
  return first + bytes == 0;
#endif
}

void FilePages::protect() { ::mprotect(data_, bytes_, PROT_READ); }

std::size_t FilePages::huge_bytes() const {
  const Descriptor map(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::array<PageRegion, 32> found{};
  PageScan scan;
  scan.start = reinterpret_cast<std::uintptr_t>(data_);
  scan.end = scan.start + bytes_;
  scan.found = reinterpret_cast<std::uintptr_t>(found.data());
  scan.found_max = found.size();
  std::size_t huge = 0;
  while (scan.start < scan.end) {
    const int regions = ::ioctl(map.get(), scan_pages, &scan);
    if (regions < 0) return 0;
    for (int i = 0; i < regions; ++i) huge += found[i].end - found[i].begin;
    scan.start = scan.walked_to;
  }
  return huge;
}

}  // namespace sluice::kernels::cpu
