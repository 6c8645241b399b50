#pragma once
// What a backend's plugin and the program that loads it agree on. C++ types cross the border, so
// both must come from one build: the header, which never changes its shape, tells before anything
// else of the table is read.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/backends.hpp"
#include "kernels/sum_probe.hpp"

namespace sluice::kernels {

inline constexpr std::uint32_t plugin_abi = 1;

/// Hash of the headers in kernels/, the compiler and the sanitizers (cmake/Interface.cmake).
extern const char* const plugin_interface;

struct PluginHeader {
  std::uint32_t abi = 0;            ///< `plugin_abi` of the plugin's build
  const char* interface = nullptr;  ///< `plugin_interface` of the plugin's build
};

struct PluginTable {
  PluginHeader header;
  int driver_version_min = 0;  ///< as the driver counts: 13000 is CUDA 13.0
  /// Names of the devices that this build's kernels run on. An error with the reason when none.
  Result<std::vector<std::string>> (*devices)() = nullptr;
  Result<std::unique_ptr<Backend>> (*make)(const BackendOptions&, Completion) = nullptr;
  Result<SumReport> (*time_sums)(const SumProbe&, std::shared_ptr<Communicator>) = nullptr;
};

/// The one symbol of a plugin: `extern "C" const PluginTable* sluice_backend_plugin();`
inline constexpr const char* plugin_symbol = "sluice_backend_plugin";
using PluginSymbol = const PluginTable* (*)();

}  // namespace sluice::kernels
