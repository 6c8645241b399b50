#pragma once
// The part of CUDA's runtime that this project uses, on the host. A stream is a thread with a
// queue, so that what is not waited for comes late, as on a device. Fresh memory is all ones.
// Limits of real devices are kept: threads a block, grid sizes, shared memory that was not asked
// for.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/cuda_host/block.hpp"

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;

struct CudaHostStream;
struct CudaHostEvent;
struct CudaHostGraph;
using cudaStream_t = CudaHostStream*;
using cudaEvent_t = CudaHostEvent*;
using cudaGraph_t = CudaHostGraph*;
using cudaGraphExec_t = CudaHostGraph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };

struct cudaUUID_t {
  char bytes[16];
};

struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;  ///< each process has a device of its own
  int major, minor, multiProcessorCount;
  std::size_t sharedMemPerBlockOptin;
};

enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, std::size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
using cudaHostFn_t = void (*)(void*);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);

namespace cuda_host {

/// Refuses one that may start early where a device would ignore that, or the project's rule
/// (kernels/cuda/chain.hpp) forbids it: behind what is no kernel. `calls` counts them as "early
/// launch", those of clusters as "cluster launch", and each as "launch of 384 threads", which are a
/// block's. Every kernel's threads must let the next one start and wait for those before.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> thread);

/// Makes the `nth` call of this name from now on fail (1: the next), once. For tests of faults.
void fail_call(const std::string& name, int nth, cudaError_t status);

/// How often a call of this name was made so far.
std::uint64_t calls(const std::string& name);

/// Keeps something until the graph that the stream is capturing is gone, and all that were made of
/// it. False: it captures none.
bool keep_with_capture(cudaStream_t stream, std::shared_ptr<const void> kept);

/// What kernels complained of so far; clears the list and the device's lost state.
std::vector<std::string> take_complaints();

/// Shared memory that a block may have; for tests of smaller devices.
void set_shared_bytes(std::size_t bytes);

/// From now on kernels that touch, before they have waited, what is allocated from now on are
/// refused: what is there already are weights. False: no longer, and what was allocated meanwhile
/// must be freed before the next true.
void close_memory(bool closed);

/// What the device and its driver can; for tests of older ones.
void set_versions(int major, int driver);

/// For its life, a device without Hopper's products, whose weights are not packed.
struct OlderDevice {
  OlderDevice() { set_versions(8, 13000); }
  ~OlderDevice() { set_versions(9, 13000); }
  OlderDevice(const OlderDevice&) = delete;
};

/// Memory the device has; for tests of running out.
void set_memory_bytes(std::size_t bytes);

}  // namespace cuda_host

/// The pretended device's clusters run one after the other.
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(Parameters...),
                                           const cudaLaunchConfig_t*) {
  *clusters = 1;
  return cudaSuccess;
}

template <class... Parameters, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Args&&... args) {
  // Arguments are copied at the launch, as a device's are.
  return cuda_host::launch(*config, reinterpret_cast<const void*>(kernel),
                           [kernel, ... copies = Parameters(args)] { kernel(copies...); });
}
