#include "kernels/backends.hpp"

#include <filesystem>
#include <system_error>
#include <utility>

#include "kernels/cpu/backend.hpp"
#include "kernels/plugin.hpp"
#include "kernels/shared_library.hpp"

namespace sluice::kernels {
namespace {

namespace fs = std::filesystem;

constexpr const char* cuda_file = "libsluice_cuda.so";

/// The parts of the driver's interface that are needed to see whether the rest is worth loading.
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count)(int*) = nullptr;
  int (*error_text)(int, const char**) = nullptr;  ///< absent in very old drivers
};

std::string driver_error(const Driver& driver, int code) {
  const char* text = nullptr;
  if (driver.error_text != nullptr) driver.error_text(code, &text);
  return fmt::format("error {}, {}", code, text == nullptr ? "unknown" : text);
}

/// What the machine has for CUDA: `hardware` is set in `status`, and `unusable` where that is all.
/// Returns the CUDA version that the driver supports.
int ask_driver(const BackendSearch& search, BackendStatus& status) {
  // Never closed: a driver does not survive being unloaded.
  void* library = ::dlopen(search.driver.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const std::string why = last_dl_error();
    std::error_code ignored;
    status.hardware = fs::exists("/dev/nvidiactl", ignored);
    status.unusable = status.hardware
                          ? fmt::format(
                                "there is an NVIDIA device, but its driver's library does not load "
                                "({}): give the container the driver (--gpus all), or name the "
                                "library's folder in LD_LIBRARY_PATH",
                                why)
                          : fmt::format(
                                "no NVIDIA driver on this machine ({} not found); the cpu backend "
                                "needs none",
                                search.driver);
    return 0;
  }
  Driver driver;
  find_symbol(library, "cuInit", driver.init);
  find_symbol(library, "cuDriverGetVersion", driver.version);
  find_symbol(library, "cuDeviceGetCount", driver.count);
  find_symbol(library, "cuGetErrorString", driver.error_text);
  if (driver.init == nullptr || driver.version == nullptr || driver.count == nullptr) {
    status.unusable =
        fmt::format("{} is no NVIDIA driver: repair the driver's installation", search.driver);
    return 0;
  }
  constexpr int no_device = 100;
  int version = 0, count = 0;
  int code = driver.init(0);
  if (code == 0) code = driver.version(&version);
  if (code == 0) code = driver.count(&count);
  if (code == no_device || (code == 0 && count == 0)) {
    status.unusable =
        "the NVIDIA driver sees no device: look at nvidia-smi and at CUDA_VISIBLE_DEVICES";
    return 0;
  }
  status.hardware = true;
  if (code != 0)
    status.unusable = fmt::format(
        "the NVIDIA driver does not start ({}): look at nvidia-smi; "
        "after an update of the driver, restart the machine",
        driver_error(driver, code));
  return version;
}

std::vector<std::string> plugin_folders(const BackendSearch& search) {
  if (!search.folders.empty()) return search.folders;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const fs::path folder = program.parent_path();
  return {folder.string(), (folder.parent_path() / "lib" / "sluice").string()};
}

/// The plugin's table, once it is known to come from this build.
Result<const PluginTable*> load_plugin(const char* file, const BackendSearch& search) {
  const auto folders = plugin_folders(search);
  std::string path, looked;
  for (const auto& folder : folders) {
    std::error_code ignored;
    const fs::path candidate = fs::path(folder) / file;
    if (path.empty() && fs::exists(candidate, ignored)) path = candidate.string();
    looked += (looked.empty() ? "" : " or ") + folder;
  }
  if (path.empty())
    return fail(ErrorCode::unsupported,
                "{} is not in {}: build where the CUDA toolkit is, or unpack the release archive "
                "whole",
                file, looked);
  // Never closed: it has threads of its own, and hands out code.
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return fail(ErrorCode::unsupported, "a plugin does not load ({}): install it anew",
                last_dl_error());
  const auto symbol = reinterpret_cast<PluginSymbol>(::dlsym(library, plugin_symbol));
  if (symbol == nullptr)
    return fail(ErrorCode::unsupported, "{} is no plugin of sluice: install it anew", path);
  const PluginTable* table = symbol();
  if (table->header.abi != plugin_abi)
    return fail(ErrorCode::unsupported,
                "{} speaks version {} of the plugin interface, this program version {}: install "
                "both from one archive",
                path, table->header.abi, plugin_abi);
  if (std::string_view(table->header.interface) != plugin_interface)
    return fail(ErrorCode::unsupported,
                "{} was made by another build ({}; this program: {}): build both anew, or "
                "install both from one archive",
                path, table->header.interface, plugin_interface);
  return table;
}

/// CUDA's status, and its table when it is usable.
std::pair<BackendStatus, const PluginTable*> find_cuda(const BackendSearch& search) {
  BackendStatus status;
  status.name = "cuda";
  const int version = ask_driver(search, status);
  if (!status.unusable.empty()) return {status, nullptr};
  const auto table = load_plugin(cuda_file, search);
  if (!table) {
    status.unusable = table.error().message;
    return {status, nullptr};
  }
  const int wanted = (*table)->driver_version_min;
  if (version < wanted) {
    status.unusable = fmt::format(
        "the NVIDIA driver is for CUDA {}.{}, and this build needs {}.{}: update the driver",
        version / 1000, version % 1000 / 10, wanted / 1000, wanted % 1000 / 10);
    return {status, nullptr};
  }
  auto devices = (*table)->devices();
  if (!devices) {
    status.unusable = devices.error().message;
    return {status, nullptr};
  }
  status.devices = std::move(*devices);
  return {status, *table};
}

BackendStatus cpu_status() { return {"cpu", {cpu_device_name()}, "", true}; }

struct Found {
  BackendChoice choice;
  const PluginTable* plugin = nullptr;  ///< null: the CPU's
};

Result<Found> find_backend(std::string_view name, const BackendSearch& search) {
  if (name == "cpu") return Found{{"cpu", ""}, nullptr};
  if (name != "auto" && name != "cuda")
    return fail(ErrorCode::bad_request, "there is no backend '{}': auto, cpu and cuda are", name);
  const auto [status, plugin] = find_cuda(search);
  if (plugin != nullptr) return Found{{"cuda", ""}, plugin};
  if (name == "cuda")
    return fail(ErrorCode::unsupported, "the cuda backend cannot be used: {}", status.unusable);
  if (!status.hardware) return Found{{"cpu", ""}, nullptr};
  return Found{{"cpu", fmt::format("running on the cpu, cuda cannot be used: {}", status.unusable)},
               nullptr};
}

}  // namespace

std::vector<BackendStatus> list_backends(const BackendSearch& search) {
  return {cpu_status(), find_cuda(search).first};
}

std::string to_text(const BackendStatus& status) {
  if (!status.unusable.empty())
    return fmt::format("{:<5} unusable: {}", status.name, status.unusable);
  std::string devices;
  for (const auto& device : status.devices) devices += (devices.empty() ? "" : "; ") + device;
  return fmt::format("{:<5} usable: {}", status.name, devices);
}

Result<BackendChoice> choose_backend(std::string_view name, const BackendSearch& search) {
  auto found = find_backend(name, search);
  if (!found) return tl::unexpected(found.error());
  return std::move(found->choice);
}

Result<std::unique_ptr<Backend>> make_backend(std::string_view name, const BackendOptions& options,
                                              Completion completion, const BackendSearch& search) {
  const auto found = find_backend(name, search);
  if (!found) return tl::unexpected(found.error());
  if (found->plugin != nullptr) return found->plugin->make(options, std::move(completion));
  return make_cpu_backend({options.threads, options.weight_cache, options.weight_cache_bytes},
                          std::move(completion));
}

Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const BackendSearch& search) {
  const auto found = find_backend("cuda", search);
  if (!found) return tl::unexpected(found.error());
  return found->plugin->time_sums(probe, std::move(group));
}

}  // namespace sluice::kernels
