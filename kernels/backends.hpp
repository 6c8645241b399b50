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
#include "kernels/communicator.hpp"
#include "kernels/core.hpp"

namespace sluice::kernels {

struct BackendOptions {
  std::uint32_t threads = 0;  ///< cpu; 0: one for each core this process may use
  std::uint32_t device = 0;   ///< cuda: which of its devices
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

/// Rows of activations that ranks add up and norm, as every half of a layer does in a decode step.
struct SumShape {
  std::uint32_t rows = 1;
  std::uint32_t width = 4096;
};

struct SumProbe {
  std::vector<SumShape> shapes;
  std::uint32_t device = 0;              ///< this rank's
  bool share_device = false;             ///< the ranks have one together, as no service has it
  std::uint32_t start_ms = 60'000;       ///< longest that the devices' group may take to start
  std::uint32_t first_graph_ms = 5'000;  ///< and its first graph, before it goes on without
};

/// Microseconds of a sum and its norm, on the device: the median over graphs of many, or over
/// launches where the group has no graphs.
struct SumTimes {
  SumShape shape;
  double fused_us = 0;    ///< gathered, then added up in rank order and normed by one kernel
  double apart_us = 0;    ///< the sum in rank order, then the norm
  double library_us = 0;  ///< the library's own sum, in any order, then the norm; 0: it has none
};

struct SumReport {
  std::string collectives;  ///< what carries them: "NCCL 2.28.9, 2 ranks"
  bool graphs = false;
  std::vector<SumTimes> times;
};

/// Measures sums over the ranks of a group on their GPUs, after it has checked their bits. Every
/// rank calls it with the same shapes. `unsupported` without a GPU, `internal` for wrong sums and
/// with NCCL's own words.
Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const BackendSearch& search = {});

}  // namespace sluice::kernels
