#pragma once
// The part of NCCL that a rank needs, found when it is asked for: a program that names the library
// would not start where there is none.

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "kernels/cuda/collectives.hpp"

namespace sluice::kernels::cuda {

/// As in nccl.h, which the plugin's build compares these with where it is found.
namespace nccl {

using Result = int;
inline constexpr Result success = 0;
inline constexpr Result in_progress = 7;
inline constexpr int float32 = 7;
inline constexpr int sum = 0;

struct Comm;  // NCCL's own

struct UniqueId {
  std::array<char, 128> bytes{};
};

/// ncclConfig_t as of NCCL 2.14: its size tells later libraries that the rest is as they like it.
struct Config {
  std::size_t size = sizeof(Config);
  unsigned magic = 0xCAFEBEEF;
  unsigned version = 21400;
  int blocking = 0;
};

struct Library {
  Result (*version)(int*) = nullptr;
  const char* (*error_text)(Result) = nullptr;
  const char* (*last_error)(Comm*) = nullptr;
  Result (*unique_id)(UniqueId*) = nullptr;
  Result (*start)(Comm**, int ranks, UniqueId, int rank, Config*) = nullptr;
  Result (*state)(Comm*, Result*) = nullptr;
  Result (*all_gather)(const void* own, void* all, std::size_t count, int type, Comm*,
                       cudaStream_t) = nullptr;
  Result (*all_reduce)(const void* from, void* to, std::size_t count, int type, int op, Comm*,
                       cudaStream_t) = nullptr;
  Result (*abort)(Comm*) = nullptr;
  Result (*destroy)(Comm*) = nullptr;
};

/// `unsupported` with the reason. A library that was loaded once stays.
sluice::Result<Library> load(const std::string& file);

/// 22809 as "2.28.9".
std::string to_text(int version);

/// The first whose collectives steps capture: those before can hang where graphs of several
/// communicators are captured at the same time.
inline constexpr int captures_from = 21505;

}  // namespace nccl

/// Every rank at once, with rank 0's id; NCCL's own way of starting, which talks over the network.
/// `captures`: whether steps are to be captured, which all ranks say alike; it is tried, and where
/// it does not work there is no group but a null: it can start anew without.
Result<std::unique_ptr<DeviceGroup>> make_nccl_group(const nccl::Library& library,
                                                     const nccl::UniqueId& id,
                                                     std::shared_ptr<Communicator> group,
                                                     bool captures, std::uint32_t start_ms,
                                                     std::uint32_t first_graph_ms);

}  // namespace sluice::kernels::cuda
