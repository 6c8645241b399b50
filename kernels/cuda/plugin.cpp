// The one symbol by which a program reaches the CUDA backend (kernels/plugin.hpp).

#include "kernels/plugin.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <filesystem>

#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/sum_probe.hpp"

namespace {

using namespace sluice;

/// NCCL that came with this plugin, beside it; else the system's.
std::string find_nccl(const std::string& name) {
  Dl_info self{};
  if (::dladdr(reinterpret_cast<const void*>(&find_nccl), &self) == 0) return name;
  const auto beside = std::filesystem::path(self.dli_fname).parent_path() / name;
  std::error_code ignored;
  return std::filesystem::exists(beside, ignored) ? beside.string() : name;
}

Result<std::unique_ptr<kernels::Backend>> make(const kernels::BackendOptions& options,
                                               kernels::Completion completion) {
  kernels::CudaOptions cuda;
  cuda.device = static_cast<int>(options.device);
  cuda.early_launches = options.early_launches;
  cuda.nccl = find_nccl(cuda.nccl);
  return kernels::make_cuda_backend(cuda, std::move(completion));
}

Result<kernels::SumReport> time_sums(const kernels::SumProbe& probe,
                                     std::shared_ptr<kernels::Communicator> group) {
  return kernels::cuda::time_sums(probe, std::move(group), find_nccl(kernels::CudaOptions{}.nccl));
}

const kernels::PluginTable table{
    {kernels::plugin_abi, kernels::plugin_interface},
    // Any driver of the runtime's major version runs what this version compiled.
    CUDART_VERSION / 1000 * 1000,
    &kernels::cuda_devices,
    &make,
    &time_sums,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const kernels::PluginTable*
sluice_backend_plugin() {
  return &table;
}
