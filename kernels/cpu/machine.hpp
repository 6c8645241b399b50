#pragma once
// What of the machine is this process's: a container that takes more memory than its limit is
// killed, and one that runs more threads than it has processors waits for its own.

#include <cstddef>
#include <optional>
#include <string>

namespace sluice::kernels::cpu {

/// What control groups (Linux; versions 1 and 2) leave the process. None: no limit.
struct CgroupRoom {
  std::optional<std::size_t> memory_bytes;  ///< not counting the page cache, which gives way
  std::optional<double> cores;              ///< processors' worth of time, 0.5 for half of one
};

/// The narrowest of the process's groups and those around them. `membership` lists the groups of
/// the process, which lie under `mount`.
CgroupRoom cgroup_room(const std::string& mount = "/sys/fs/cgroup",
                       const std::string& membership = "/proc/self/cgroup");

/// Bytes of memory that the machine could still give, as MemAvailable says, and the groups allow.
std::size_t available_memory_bytes();

}  // namespace sluice::kernels::cpu
