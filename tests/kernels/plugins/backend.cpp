// A plugin of this very build with a device that costs nothing. PRETEND_DRIVER_MIN is the driver it
// asks for.

#include "bench/instant_backend.hpp"
#include "kernels/plugin.hpp"

namespace {

using namespace sluice;

Result<std::vector<std::string>> devices() { return std::vector<std::string>{"Pretend 1", "2"}; }

Result<std::unique_ptr<kernels::Backend>> make(const kernels::BackendOptions& options,
                                               kernels::Completion completion) {
  if (options.device > 1)
    return fail(ErrorCode::bad_request, "there is no device {}", options.device);
  return std::make_unique<bench::InstantBackend>(std::move(completion), false);
}

/// Sums take no time.
Result<kernels::SumReport> time_sums(const kernels::SumProbe& probe,
                                     std::shared_ptr<kernels::Communicator> group) {
  kernels::SumReport report{group->name(), false, {}};
  for (const auto& shape : probe.shapes) report.times.push_back({shape});
  return report;
}

const kernels::PluginTable table{
    {kernels::plugin_abi, kernels::plugin_interface}, PRETEND_DRIVER_MIN, &devices, &make,
    &time_sums};

}  // namespace

extern "C" const kernels::PluginTable* sluice_backend_plugin() { return &table; }
