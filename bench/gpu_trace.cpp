// Which kernels and copies ran on a GPU, and when: a library that the driver loads into a program
// that CUDA_INJECTION64_PATH names it to. Writes one line of each to the file SLUICE_TRACE:
//   BEGIN_NS END_NS GRID_X,GRID_Y,GRID_Z THREADS REGISTERS SHARED_BYTES NAME
// with the kernel's mangled name; of copies "copyKIND_BYTES" and zeros. CUPTI is looked for when
// the program starts, so that this builds and is packed without it. bench/gpu.py's part `trace`
// uses it.

#include <cupti.h>
#include <dlfcn.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>

namespace {

std::FILE* file = nullptr;

/// CUPTI's functions, by their names.
template <class F>
F* find(const char* name) {
  static void* const library = ::dlopen("libcupti.so.13", RTLD_NOW);
  return library == nullptr ? nullptr : reinterpret_cast<F*>(::dlsym(library, name));
}

#define SLUICE_CUPTI(name) find<decltype(name)>(#name)

void give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* records) {
  *bytes = std::size_t{8} << 20;
  *records = 0;  // as many as fit
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, *bytes));
}

void write_line(std::uint64_t begin, std::uint64_t end) {
  std::fprintf(file, "%" PRIu64 " %" PRIu64 " ", begin, end);
}

void take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
  const auto next = SLUICE_CUPTI(cuptiActivityGetNextRecord);
  CUpti_Activity* record = nullptr;
  while (next(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto& kernel = *reinterpret_cast<const CUpti_ActivityKernel9*>(record);
      write_line(kernel.start, kernel.end);
      std::fprintf(file, "%d,%d,%d %d %d %d %s\n", kernel.gridX, kernel.gridY, kernel.gridZ,
                   kernel.blockX, kernel.registersPerThread, kernel.dynamicSharedMemory,
                   kernel.name);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const auto& copy = *reinterpret_cast<const CUpti_ActivityMemcpy5*>(record);
      write_line(copy.start, copy.end);
      std::fprintf(file, "0,0,0 0 0 0 copy%d_%" PRIu64 "\n", copy.copyKind, copy.bytes);
    }
  }
  std::free(buffer);
}

void finish() {
  SLUICE_CUPTI(cuptiActivityFlushAll)(1);
  std::fclose(file);
}

}  // namespace

/// What the driver calls when it loads this: 1 if it may stay.
extern "C" int InitializeInjection() {
  const char* path = std::getenv("SLUICE_TRACE");
  const auto enable = SLUICE_CUPTI(cuptiActivityEnable);
  if (path == nullptr || enable == nullptr) {
    std::fputs(
        "no trace: set SLUICE_TRACE to a file's name, and LD_LIBRARY_PATH to the folder of "
        "libcupti.so.13, which comes with the CUDA toolkit\n",
        stderr);
    return 1;
  }
  file = std::fopen(path, "w");
  if (file == nullptr) {
    std::perror(path);
    return 1;
  }
  if (SLUICE_CUPTI(cuptiActivityRegisterCallbacks)(give_buffer, take_buffer) != CUPTI_SUCCESS ||
      enable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS ||
      enable(CUPTI_ACTIVITY_KIND_MEMCPY) != CUPTI_SUCCESS) {
    std::fputs("no trace: CUPTI refuses, perhaps for another tool's sake\n", stderr);
    return 1;
  }
  std::atexit(finish);
  return 1;
}
