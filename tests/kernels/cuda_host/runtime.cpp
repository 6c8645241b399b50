// Memory, streams, events and graphs of tests/kernels/cuda_host.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "tests/kernels/cuda_host/cuda_runtime.h"

namespace {

constexpr std::size_t shared_bytes_default = std::size_t{48} << 10;

/// What the calls of all threads share.
struct Device {
  std::mutex mutex;
  cudaError_t last = cudaSuccess;
  std::atomic<cudaError_t> lost = cudaSuccess;  ///< sticky: every call answers this
  std::vector<std::string> complaints;
  std::map<std::string, std::pair<int, cudaError_t>> failures;
  std::map<std::string, std::uint64_t> calls;
  std::map<void*, std::size_t> memory;
  bool closed = false;
  cuda_host::Pages closing;  ///< room for what is allocated while it is closed
  std::size_t closed_bytes = 0;
  std::size_t memory_used = 0;
  std::size_t memory_bytes = std::size_t{4} << 30;
  std::size_t shared_bytes_most = std::size_t{227} << 10;  ///< an sm_90 block's
  int major = 9, driver = 13000;
  std::map<const void*, std::size_t> shared_limits;
  /// Shared with who waits for them, so that another may destroy them meanwhile.
  std::map<CudaHostStream*, std::shared_ptr<CudaHostStream>> streams;
};

Device& device() {
  static Device the_device;
  return the_device;
}

/// Every call begins here: the status it must return at once, if any.
cudaError_t begin(const char* name) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  if (d.lost != cudaSuccess) return d.lost;
  ++d.calls[name];
  const auto found = d.failures.find(name);
  if (found == d.failures.end() || --found->second.first > 0) return cudaSuccess;
  const cudaError_t status = found->second.second;
  d.failures.erase(found);
  d.last = status;
  if (status == cudaErrorLaunchFailure) d.lost = status;
  return status;
}

#define BEGIN(name) \
  if (const cudaError_t status_ = begin(name); status_ != cudaSuccess) return status_

cudaError_t refuse(cudaError_t status) {
  const std::lock_guard lock(device().mutex);
  device().last = status;
  return status;
}

}  // namespace

struct CudaHostGraph {
  std::vector<std::function<void()>> nodes;
  std::vector<std::shared_ptr<const void>> kept;
  bool ends_in_kernel = false;
};

struct CudaHostStream {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool busy = false, stop = false, capturing = false;
  bool ends_in_kernel = false;  ///< what was put on it last, but for a graph
  CudaHostGraph captured;
  std::thread thread{[this] { run(); }};

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return stop || !queue.empty(); });
      if (queue.empty()) return;
      const std::function<void()> work = std::move(queue.front());
      queue.pop_front();
      busy = true;
      lock.unlock();
      work();
      lock.lock();
      busy = false;
      changed.notify_all();
    }
  }

  /// Whether the next kernel would be right behind another.
  bool behind_kernel() {
    const std::lock_guard lock(mutex);
    return capturing ? captured.ends_in_kernel : ends_in_kernel;
  }

  void push(std::function<void()> work, bool kernel = false) {
    const std::lock_guard lock(mutex);
    (capturing ? captured.ends_in_kernel : ends_in_kernel) = kernel;
    if (capturing) return captured.nodes.push_back(std::move(work));
    queue.push_back(std::move(work));
    changed.notify_all();
  }

  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return queue.empty() && !busy; });
  }
};

struct EventState {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t recorded = 0, reached = 0;
  std::chrono::steady_clock::time_point time;
};

/// A stream may reach an event that has been destroyed.
struct CudaHostEvent {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

namespace {

/// Freeing waits for what is under way, as on a device.
void wait_for_streams() {
  const auto streams = [] {
    const std::lock_guard lock(device().mutex);
    return device().streams;
  }();
  for (const auto& [handle, stream] : streams) stream->wait();
}

}  // namespace

namespace cuda_host {

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> thread) {
  BEGIN("cudaLaunchKernel");
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7FFFFFFFU || grid.y > 65535 || grid.z > 65535) {
    return refuse(cudaErrorInvalidConfiguration);
  }
  {
    const std::lock_guard lock(device().mutex);
    const auto known = device().shared_limits.find(kernel);
    const std::size_t limit =
        known == device().shared_limits.end() ? shared_bytes_default : known->second;
    if (config.dynamicSmemBytes > limit) return device().last = cudaErrorInvalidValue;
    ++device().calls["launch of " + std::to_string(threads) + " threads"];
  }
  unsigned cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& dims = config.attrs[i].val.clusterDim;
      cluster = dims.x;
      const std::lock_guard lock(device().mutex);
      if (dims.x == 0 || dims.x > 8 || grid.x % dims.x != 0 || dims.y != 1 || dims.z != 1 ||
          device().major < 9) {
        return device().last = cudaErrorInvalidConfiguration;
      }
      ++device().calls["cluster launch"];
      continue;
    }
    if (config.attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization ||
        config.attrs[i].val.programmaticStreamSerializationAllowed == 0) {
      continue;
    }
    const bool behind_kernel = config.stream->behind_kernel();
    const std::lock_guard lock(device().mutex);
    if (device().major < 9 || device().driver < 12030 || !behind_kernel) {
      return device().last = cudaErrorInvalidValue;
    }
    ++device().calls["early launch"];
  }
  const auto run = [grid, block, cluster, bytes = config.dynamicSmemBytes,
                    body = std::move(thread)] {
    if (device().lost != cudaSuccess) return;
    Turn turn{.owed = true};
    {
      const std::lock_guard lock(device().mutex);
      if (device().closed) {
        turn.closed = {device().closing.begin, (device().closed_bytes + 4095) / 4096 * 4096};
      }
    }
    const std::string complaint = run_grid(grid, block, bytes, body, turn, cluster);
    if (complaint.empty()) return;
    std::fprintf(stderr, "cuda_host: %s\n", complaint.c_str());
    const std::lock_guard lock(device().mutex);
    device().complaints.push_back(complaint);
    device().lost = cudaErrorLaunchFailure;
  };
  config.stream->push(run, true);
  return cudaSuccess;
}

void fail_call(const std::string& name, int nth, cudaError_t status) {
  const std::lock_guard lock(device().mutex);
  device().failures[name] = {nth, status};
}

std::uint64_t calls(const std::string& name) {
  const std::lock_guard lock(device().mutex);
  return device().calls[name];
}

bool keep_with_capture(cudaStream_t stream, std::shared_ptr<const void> kept) {
  const std::lock_guard lock(stream->mutex);
  if (stream->capturing) stream->captured.kept.push_back(std::move(kept));
  return stream->capturing;
}

std::vector<std::string> take_complaints() {
  const std::lock_guard lock(device().mutex);
  device().lost = cudaSuccess;
  device().last = cudaSuccess;
  device().failures.clear();
  return std::exchange(device().complaints, {});
}

void set_shared_bytes(std::size_t bytes) {
  const std::lock_guard lock(device().mutex);
  device().shared_bytes_most = bytes;
}

void close_memory(bool closed) {
  const std::lock_guard lock(device().mutex);
  device().closed = closed;
  if (!closed) return;
  device().closed_bytes = 0;
  Pages& room = device().closing;
  if (room.begin != nullptr) return;
  constexpr std::size_t bytes = std::size_t{256} << 20;
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) std::abort();
  room = {static_cast<std::byte*>(data), bytes};
}

void set_versions(int major, int driver) {
  const std::lock_guard lock(device().mutex);
  device().major = major;
  device().driver = driver;
}

void set_memory_bytes(std::size_t bytes) {
  const std::lock_guard lock(device().mutex);
  device().memory_bytes = bytes;
}

}  // namespace cuda_host

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}

const char* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(device().mutex);
  if (device().lost != cudaSuccess) return device().lost;
  return std::exchange(device().last, cudaSuccess);
}

cudaError_t cudaGetDeviceCount(int* count) {
  BEGIN("cudaGetDeviceCount");
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int index) {
  BEGIN("cudaSetDevice");
  return index == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice);
}

cudaError_t cudaDriverGetVersion(int* version) {
  BEGIN("cudaDriverGetVersion");
  *version = device().driver;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  BEGIN("cudaGetDeviceProperties");
  if (index != 0) return refuse(cudaErrorInvalidDevice);
  std::snprintf(properties->name, sizeof properties->name, "host shim");
  const pid_t process = ::getpid();
  properties->uuid = {};
  std::memcpy(properties->uuid.bytes, &process, sizeof process);
  properties->major = device().major;
  properties->minor = 0;
  properties->multiProcessorCount = 2;
  properties->sharedMemPerBlockOptin = device().shared_bytes_most;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  BEGIN("cudaMemGetInfo");
  const std::lock_guard lock(device().mutex);
  *total = device().memory_bytes;
  *free = *total - std::min(*total, device().memory_used);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  BEGIN("cudaMalloc");
  const std::size_t whole = (bytes + 255) / 256 * 256;
  const std::lock_guard lock(device().mutex);
  if (device().memory_used + whole > device().memory_bytes) {
    return device().last = cudaErrorMemoryAllocation;
  }
  if (device().closed) {
    if (device().closed_bytes + whole > device().closing.bytes) {
      return device().last = cudaErrorMemoryAllocation;
    }
    *data = device().closing.begin + device().closed_bytes;
    device().closed_bytes += whole;
  } else if (
      // Not rounded up: the sanitizer then sees the first byte past the end.
      ::posix_memalign(data, 256, std::max<std::size_t>(bytes, 1)) != 0) {
    return device().last = cudaErrorMemoryAllocation;
  }
  std::memset(*data, 0xFF, bytes);
  device().memory[*data] = whole;
  device().memory_used += whole;
  return cudaSuccess;
}

/// Frees also on a lost device: destructors must.
cudaError_t cudaFree(void* data) {
  wait_for_streams();
  const std::lock_guard lock(device().mutex);
  const auto found = device().memory.find(data);
  if (found == device().memory.end()) return device().last = cudaErrorInvalidValue;
  device().memory_used -= found->second;
  device().memory.erase(found);
  const cuda_host::Pages& room = device().closing;
  const auto* at = static_cast<const std::byte*>(data);
  if (at < room.begin || at >= room.begin + room.bytes) std::free(data);
  return device().lost;
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  BEGIN("cudaMallocHost");
  *data = std::malloc(bytes);
  return *data == nullptr ? refuse(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  wait_for_streams();
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  BEGIN("cudaMemcpyAsync");
  stream->push([to, from, bytes] {
    if (device().lost == cudaSuccess) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind, cudaStream_t stream) {
  BEGIN("cudaMemcpy2DAsync");
  if (width > to_pitch || width > from_pitch) return refuse(cudaErrorInvalidValue);
  stream->push([=] {
    for (std::size_t i = 0; i < height && device().lost == cudaSuccess; ++i) {
      std::memcpy(static_cast<std::byte*>(to) + i * to_pitch,
                  static_cast<const std::byte*>(from) + i * from_pitch, width);
    }
  });
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  BEGIN("cudaLaunchHostFunc");
  stream->push([function, data] {
    if (device().lost == cudaSuccess) function(data);
  });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  BEGIN("cudaMemsetAsync");
  stream->push([to, value, bytes] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  BEGIN("cudaStreamCreate");
  auto made = std::make_shared<CudaHostStream>();
  *stream = made.get();
  const std::lock_guard lock(device().mutex);
  device().streams.emplace(*stream, std::move(made));
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto taken = [&] {
    const std::lock_guard lock(device().mutex);
    return device().streams.extract(stream);
  }();
  stream->wait();
  {
    const std::lock_guard lock(stream->mutex);
    stream->stop = true;
    stream->changed.notify_all();
  }
  stream->thread.join();
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  BEGIN("cudaStreamSynchronize");
  stream->wait();
  const std::lock_guard lock(device().mutex);
  return device().lost;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  BEGIN("cudaEventCreate");
  *event = new CudaHostEvent;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  BEGIN("cudaEventRecord");
  {
    const std::lock_guard lock(event->state->mutex);
    ++event->state->recorded;
  }
  stream->push([state = event->state] {
    const std::lock_guard lock(state->mutex);
    ++state->reached;
    state->time = std::chrono::steady_clock::now();
    state->changed.notify_all();
  });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  BEGIN("cudaEventQuery");
  const std::lock_guard lock(event->state->mutex);
  return event->state->reached >= event->state->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  BEGIN("cudaEventSynchronize");
  {
    EventState& state = *event->state;
    std::unique_lock lock(state.mutex);
    state.changed.wait(lock, [&] { return state.reached >= state.recorded; });
  }
  const std::lock_guard lock(device().mutex);
  return device().lost;
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin_event, cudaEvent_t end_event) {
  BEGIN("cudaEventElapsedTime");
  const std::chrono::duration<float, std::milli> span =
      end_event->state->time - begin_event->state->time;
  *ms = span.count();
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  BEGIN("cudaFuncSetAttribute");
  if (value < 0 || static_cast<std::size_t>(value) > device().shared_bytes_most) {
    return refuse(cudaErrorInvalidValue);
  }
  const std::lock_guard lock(device().mutex);
  device().shared_limits[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  BEGIN("cudaStreamBeginCapture");
  const std::lock_guard lock(stream->mutex);
  stream->capturing = true;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(stream->mutex);
  stream->capturing = false;  // whatever comes of it
  CudaHostGraph captured = std::exchange(stream->captured, {});
  BEGIN("cudaStreamEndCapture");
  *graph = new CudaHostGraph(std::move(captured));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  BEGIN("cudaGraphInstantiate");
  *exec = new CudaHostGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  BEGIN("cudaGraphLaunch");
  for (const auto& node : exec->nodes) stream->push(node);
  return cudaSuccess;
}
