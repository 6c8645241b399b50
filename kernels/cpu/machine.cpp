#include "kernels/cpu/machine.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernels/backends.hpp"

namespace sluice::kernels {
namespace cpu {
namespace {

namespace fs = std::filesystem;

/// A file of numbers; of "max" and of what is not there, none.
std::optional<double> number(const fs::path& file) {
  std::ifstream in(file);
  double value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

/// The sum of the named entries of a memory.stat.
double stat(const fs::path& file, const std::string& one, const std::string& other) {
  std::ifstream in(file);
  double sum = 0, value = 0;
  for (std::string key; in >> key >> value;) {
    if (key == one || key == other) sum += value;
  }
  return sum;
}

template <class T>
void narrow(std::optional<T>& room, T to) {
  room = room ? std::min(*room, to) : to;
}

void narrow_memory(CgroupRoom& room, double limit, double used) {
  // Version 1 has no word for none, but a number that no machine has.
  if (limit >= 0x1p60) return;
  // What is used may be read after the cache in it has shrunk.
  narrow(room.memory_bytes,
         static_cast<std::size_t>(std::max(0.0, limit - std::max(0.0, used))));
}

void read_version_2(const fs::path& group, CgroupRoom& room) {
  if (const auto limit = number(group / "memory.max")) {
    const double cache = stat(group / "memory.stat", "active_file", "inactive_file");
    narrow_memory(room, *limit, number(group / "memory.current").value_or(0) - cache);
  }
  std::ifstream quota_file(group / "cpu.max");
  double quota = 0, period = 0;
  if (quota_file >> quota >> period && period > 0) narrow(room.cores, quota / period);
}

void read_version_1(const fs::path& group, CgroupRoom& room) {
  if (const auto limit = number(group / "memory.limit_in_bytes")) {
    const double cache = stat(group / "memory.stat", "total_active_file", "total_inactive_file");
    narrow_memory(room, *limit, number(group / "memory.usage_in_bytes").value_or(0) - cache);
  }
  const auto quota = number(group / "cpu.cfs_quota_us");
  const auto period = number(group / "cpu.cfs_period_us");
  if (quota && *quota > 0 && period && *period > 0) narrow(room.cores, *quota / *period);
}

/// Of the group at `path` and those around it. Where a container sees the path that it has outside,
/// its own group is what is mounted.
template <class Read>
void read_upwards(const fs::path& mount, const fs::path& path, CgroupRoom& room, Read read) {
  for (fs::path at = path.relative_path();; at = at.parent_path()) {
    read(mount / at, room);
    if (at.empty()) return;
  }
}

/// Of the whole machine.
std::size_t free_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::size_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    meminfo.ignore(256, '\n');
  }
  const long pages = ::sysconf(_SC_AVPHYS_PAGES);
  const long page = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page)
                               : 0;
}

}  // namespace

CgroupRoom cgroup_room(const std::string& mount, const std::string& membership) {
  CgroupRoom room;
  std::ifstream groups(membership);
  for (std::string line; std::getline(groups, line);) {
    // number:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const fs::path path = line.substr(second + 1);
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (second == first + 1) {
      read_upwards(mount, path, room, read_version_2);
      read_upwards(fs::path(mount) / "unified", path, room, read_version_2);
    }
    for (std::string name; std::getline(controllers, name, ',');) {
      if (name == "memory" || name == "cpu")
        read_upwards(fs::path(mount) / name, path, room, read_version_1);
    }
  }
  return room;
}

std::size_t available_memory_bytes() {
  return std::min(free_memory_bytes(), cgroup_room().memory_bytes.value_or(SIZE_MAX));
}

}  // namespace cpu

std::uint32_t usable_cores() {
  cpu_set_t set;
  const bool known = ::sched_getaffinity(0, sizeof set, &set) == 0;
  const auto cores = known ? static_cast<std::uint32_t>(CPU_COUNT(&set))
                           : std::thread::hardware_concurrency();
  // A thread more than there is time for would hold up the others for the rest of each period.
  const double time = std::floor(cpu::cgroup_room().cores.value_or(cores));
  return static_cast<std::uint32_t>(std::clamp<double>(time, 1, std::max(1U, cores)));
}

}  // namespace sluice::kernels
