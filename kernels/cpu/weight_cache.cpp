#include "kernels/cpu/weight_cache.hpp"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <vector>

namespace sluice::kernels::cpu {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view ending = ".packed";

// On x86-64, and on AArch64 with pages of 4 KiB; others' are larger, and files never seen through
// them.
constexpr std::size_t huge_page = std::size_t{2} << 20;

// What a thread hashes at a time.
constexpr std::size_t piece_bytes = huge_page;

/// What stands behind the weights.
struct Seal {
  std::array<char, 8> magic{'s', 'l', 'u', 'i', 'c', 'e', 'p', 'w'};
  std::uint64_t bytes = 0;
  std::uint64_t hash = 0;
  std::array<char, 40> name{};

  bool operator==(const Seal&) const = default;
};

Seal seal_of(std::size_t bytes, std::uint64_t hash, std::string_view name) {
  Seal seal;
  seal.bytes = bytes;
  seal.hash = hash;
  std::copy_n(name.data(), std::min(name.size(), seal.name.size()), seal.name.begin());
  return seal;
}

/// The weights' part of a file: whole huge pages, or the last would be small ones.
constexpr std::size_t mapped_bytes(std::size_t bytes) {
  return (bytes + huge_page - 1) / huge_page * huge_page;
}

/// Of the whole mapping; empty: it cannot be read.
std::optional<std::uint64_t> hash_of(const FilePages& pages, ThreadPool& pool) {
  std::vector<std::uint64_t> hashes(pages.bytes() / piece_bytes);
  std::atomic<std::size_t> next{0};
  std::atomic<bool> readable{true};
  pool.run([&](std::uint32_t) {
    for (std::size_t i = next++; i < hashes.size() && readable; i = next++) {
      if (!pages.fetch(i * piece_bytes, piece_bytes)) {
        readable = false;
      } else {
        hashes[i] = XXH3_64bits(pages.as<std::byte>() + i * piece_bytes, piece_bytes);
      }
    }
  });
  if (!readable) return std::nullopt;
  return XXH3_64bits(hashes.data(), hashes.size() * sizeof hashes[0]);
}

/// Enough of it to compute as fast as with huge pages alone.
bool is_huge(const FilePages& pages) { return pages.huge_bytes() >= pages.bytes() / 4 * 3; }

/// Whether only the user whose process this is can have written to it.
bool own(const struct stat& status) {
  return status.st_uid == ::geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/// Where the folder's files can be listed and linked, whatever its path leads to by now.
std::string path_of(const Descriptor& file) { return fmt::format("/proc/self/fd/{}", file.get()); }

/// Removes files that were not used for longest, but not the one just linked, until all are within
/// the limit.
void make_room(const Descriptor& folder, const std::string& linked, std::uint64_t bytes_max) {
  struct Kept {
    fs::file_time_type used;
    std::uint64_t bytes;
    fs::path path;
  };
  std::vector<Kept> others;
  std::uint64_t sum = 0;
  std::error_code failed;
  for (fs::directory_iterator at(path_of(folder), failed), end; !failed && at != end;
       at.increment(failed)) {
    if (at->path().extension() != ending) continue;
    std::error_code gone;
    const Kept kept{at->last_write_time(gone), at->file_size(gone), at->path()};
    if (gone) continue;
    sum += kept.bytes;
    if (at->path().filename() != linked) others.push_back(kept);
  }
  std::sort(others.begin(), others.end(),
            [](const Kept& a, const Kept& b) { return a.used < b.used; });
  for (auto oldest = others.begin(); sum > bytes_max && oldest != others.end(); ++oldest) {
    if (fs::remove(oldest->path, failed)) sum -= oldest->bytes;
  }
}

/// Removes a file by its name, unless that is another's by now.
void remove_from(const Descriptor& folder, const std::string& name, const struct stat& file) {
  struct stat named {};
  if (::fstatat(folder.get(), name.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0) return;
  if (named.st_ino == file.st_ino) ::unlinkat(folder.get(), name.c_str(), 0);
}

/// What a weight was made of, as numbers. False: it is in no file, or cannot be read.
bool describe(const CpuWeight& weight, std::vector<std::uint64_t>& into) {
  const std::size_t bytes =
      (weight.rows - 1) * weight.row_stride + row_bytes(weight.format, weight.cols);
  into.insert(into.end(), {static_cast<std::uint64_t>(weight.format), weight.rows, weight.cols,
                           weight.row_stride});
  if (!weight.source) {
    if (bytes > copied_bytes) return false;
    into.push_back(XXH3_64bits(weight.data, bytes));
    return true;
  }
  struct stat status {};
  if (::fstat(weight.source.descriptor, &status) != 0) return false;
  for (const auto number : {static_cast<std::uint64_t>(status.st_dev),
                            static_cast<std::uint64_t>(status.st_ino),
                            static_cast<std::uint64_t>(status.st_size),
                            static_cast<std::uint64_t>(status.st_mtim.tv_sec),
                            static_cast<std::uint64_t>(status.st_mtim.tv_nsec),
                            static_cast<std::uint64_t>(status.st_ctim.tv_sec),
                            static_cast<std::uint64_t>(status.st_ctim.tv_nsec),
                            static_cast<std::uint64_t>(weight.data - weight.source.begin)}) {
    into.push_back(number);
  }
  // An image that was built to be the same each time gives two models the same times.
  std::array<std::byte, 64> sample{};
  const std::size_t size = std::min(sample.size(), bytes);
  for (const std::size_t at : {std::size_t{0}, (bytes - size) / 2, bytes - size}) {
    if (!weight.source.read(weight.data + at, std::span(sample).first(size))) return false;
    into.push_back(XXH3_64bits(sample.data(), size));
  }
  return true;
}

}  // namespace

std::string weight_file_name(std::span<CpuWeight* const> weights) {
  std::vector<std::uint64_t> made_of{packed_version};
  for (const CpuWeight* weight : weights) {
    if (!describe(*weight, made_of)) return {};
  }
  const XXH128_hash_t hash = XXH3_128bits(made_of.data(), made_of.size() * sizeof made_of[0]);
  return fmt::format("{:016x}{:016x}{}", hash.high64, hash.low64, ending);
}

Descriptor WeightCache::open_folder() const {
  if (!keeps()) return Descriptor();
  Descriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status {};
  if (!folder || ::fstat(folder.get(), &status) != 0 || !own(status)) return Descriptor();
  return folder;
}

WeightCache::Found WeightCache::find(const std::string& name, std::size_t bytes,
                                     ThreadPool& pool) const {
  const Descriptor folder = open_folder();
  if (!folder || name.empty()) return {};
  const Descriptor file(
      ::openat(folder.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) || !own(status)) {
    return {};
  }
  const std::size_t mapped = mapped_bytes(bytes);
  Seal found;
  if (static_cast<std::uint64_t>(status.st_size) != mapped + sizeof found) {
    remove_from(folder, name, status);
    return {};
  }
  // What cannot be read may be readable another time.
  const auto at = static_cast<off_t>(mapped);
  if (::pread(file.get(), &found, sizeof found, at) != ssize_t{sizeof found}) return {{}, true};
  auto pages = FilePages::map(file.get(), mapped, FilePages::For::reading);
  const auto hash = pages ? hash_of(*pages, pool) : std::nullopt;
  if (!hash) return {{}, true};
  if (found != seal_of(mapped, *hash, name)) {
    pages.reset();
    remove_from(folder, name, status);
    return {};
  }
  if (!is_huge(*pages)) return {{}, true};
  ::futimens(file.get(), nullptr);  // used now
  return {std::move(pages), true};
}

std::optional<WeightCache::Draft> WeightCache::begin(std::size_t bytes) const {
  const std::size_t mapped = mapped_bytes(bytes), all = mapped + sizeof(Seal);
  if (folder_.empty() || all > bytes_max_ || bytes < huge_page) return std::nullopt;
  // A larger file would end the process (SIGXFSZ).
  struct rlimit largest {};
  if (::getrlimit(RLIMIT_FSIZE, &largest) != 0 || largest.rlim_cur < all) return std::nullopt;
  std::error_code failed;
  if (fs::create_directories(folder_, failed)) {
    fs::permissions(folder_, fs::perms::owner_all, failed);
  }
  const Descriptor folder = open_folder();
  struct statvfs space {};
  if (!folder || ::fstatvfs(folder.get(), &space) != 0) return std::nullopt;
  if (space.f_bavail * space.f_frsize / 2 < all) return std::nullopt;
  // Nameless until it is whole: a process that dies leaves nothing behind.
  Descriptor file(::openat(folder.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file || ::fallocate(file.get(), 0, 0, static_cast<off_t>(all)) != 0) return std::nullopt;
  auto pages = FilePages::map(file.get(), mapped, FilePages::For::writing);
  if (!pages) return std::nullopt;
  *pages->as<volatile std::byte>() = std::byte{0};
  if (pages->huge_bytes() == 0) return std::nullopt;
  return Draft{std::move(file), std::move(*pages)};
}

bool WeightCache::keep(Draft& draft, const std::string& name, ThreadPool& pool) const {
  if (!is_huge(draft.pages)) return false;
  draft.pages.protect();
  const Descriptor folder = open_folder();
  const auto hash = folder ? hash_of(draft.pages, pool) : std::nullopt;
  if (!hash) return true;
  const std::size_t mapped = draft.pages.bytes();
  const Seal seal = seal_of(mapped, *hash, name);
  const auto at = static_cast<off_t>(mapped);
  if (::pwrite(draft.file.get(), &seal, sizeof seal, at) != ssize_t{sizeof seal}) return true;
  ::unlinkat(folder.get(), name.c_str(), 0);
  if (::linkat(AT_FDCWD, path_of(draft.file).c_str(), folder.get(), name.c_str(),
               AT_SYMLINK_FOLLOW) == 0) {
    make_room(folder, name, bytes_max_);
  }
  return true;
}

}  // namespace sluice::kernels::cpu
