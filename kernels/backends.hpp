#pragma once
// Which backends this program has, and whether they can be used on this machine. The CPU's is
// linked in. CUDA's is a plugin, loaded only after an NVIDIA driver has answered, so that a machine
// without one pays neither time nor memory for it.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"

namespace sluice::kernels {

/// Processors that this process may run on, as many as its control groups' time is worth; at least
/// 1. Any thread.
std::uint32_t usable_cores();

struct BackendOptions {
  std::uint32_t threads = 0;  ///< cpu; 0: one for each core this process may use
  /// cpu: where packed weights are kept for the next start, and how many bytes; empty: nowhere
  std::string weight_cache = {};
  std::uint64_t weight_cache_bytes = 0;
  std::uint32_t device = 0;  ///< cuda: which of its devices
  /// cuda: kernels start while those before them end, where the device can; without, to compare.
  bool early_launches = true;
};

/// Where drivers and plugins are looked for; tests name other places.
struct BackendSearch {
  std::string driver = "libcuda.so.1";
  /// Folders that may hold plugins; empty: the program's own, then ../lib/sluice.
  std::vector<std::string> folders;
};

struct BackendStatus {
  std::string name;
  std::vector<std::string> devices;
  std::string unusable;   ///< cause and remedy in one line; empty: usable
  bool hardware = false;  ///< there is something on this machine that it is meant for
};

/// Every backend that this program knows: cpu, cuda. Any thread; on a machine with an NVIDIA driver
/// this starts it, which takes tenths of a second.
std::vector<BackendStatus> list_backends(const BackendSearch& search = {});

/// One line for people: "cpu   usable: AMD EPYC, AVX3".
std::string to_text(const BackendStatus& status);

struct BackendChoice {
  std::string name;
  std::string note;  ///< why a GPU that is there stays unused; empty: nothing to say
};

/// "auto" becomes cuda if that is usable, else cpu; a name stays itself. `bad_request` for an
/// unknown name, `unsupported` with the reason for one that cannot be used here.
Result<BackendChoice> choose_backend(std::string_view name, const BackendSearch& search = {});

/// Makes the chosen backend; errors are those of choosing and of the backend itself.
Result<std::unique_ptr<Backend>> make_backend(std::string_view name, const BackendOptions& options,
                                              Completion completion,
                                              const BackendSearch& search = {});

}  // namespace sluice::kernels
