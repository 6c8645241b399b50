#pragma once
// Owners of what CUDA gives a host program, and its failures as errors. Nothing here hides what
// CUDA does: each resource gets an owner, each failed call a name. Tests compile this and the
// kernels for the host, against tests/kernels/cuda_host.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/core.hpp"

namespace sluice::kernels::cuda {

/// A failed call as an error: `out_of_memory` when it was that, else `internal`: after most errors
/// the context is lost, and with it the executor that owns it.
inline Error device_error(cudaError_t status, const char* call) {
  const bool memory = status == cudaErrorMemoryAllocation;
  return {memory ? ErrorCode::out_of_memory : ErrorCode::internal,
          fmt::format("{} failed: {} ({}): {}", call, cudaGetErrorString(status),
                      cudaGetErrorName(status),
                      memory ? "ask for fewer blocks, slots or rows" : "the device is lost"),
          0};
}

/// Returns from a function of Result when a CUDA call fails, with the call's text in the message.
#define SLUICE_CUDA(call)                                                           \
  do {                                                                              \
    if (const cudaError_t status_ = (call); status_ != cudaSuccess)                 \
      return tl::unexpected(::sluice::kernels::cuda::device_error(status_, #call)); \
  } while (false)

/// Returns the error of a Result, if it has one.
#define SLUICE_TRY(result)                                                              \
  do {                                                                                  \
    if (auto done_ = (result); !done_) return tl::unexpected(std::move(done_.error())); \
  } while (false)

/// Device memory. Moves, does not copy.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) cudaFree(data_);
  }

  /// `what` goes into the message when there is no room.
  static Result<DeviceMemory> make(std::size_t bytes, const char* what) {
    DeviceMemory memory;
    if (bytes == 0) return memory;
    if (const cudaError_t status = cudaMalloc(&memory.data_, bytes); status != cudaSuccess) {
      memory.data_ = nullptr;
      if (status != cudaErrorMemoryAllocation) {
        return tl::unexpected(device_error(status, "cudaMalloc"));
      }
      cudaGetLastError();  // running out of memory is no state of the context
      std::size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return fail(ErrorCode::out_of_memory,
                  "{} needs {} MiB of device memory, and {} of {} MiB are free: "
                  "ask for fewer blocks, slots or rows",
                  what, bytes >> 20, free >> 20, total >> 20);
    }
    memory.bytes_ = bytes;
    return memory;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Host memory that the device copies from and to without a detour.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedMemory() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }

  static Result<PinnedMemory> make(std::size_t bytes) {
    PinnedMemory memory;
    SLUICE_CUDA(cudaMallocHost(&memory.data_, bytes));
    memory.bytes_ = bytes;
    return memory;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Owner of a stream, event or graph: `Handle` and the call that destroys it.
template <class Handle, auto destroy>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) destroy(handle_);
  }
  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

/// A stream that waits for no other one.
inline Result<Stream> make_stream() {
  cudaStream_t stream = nullptr;
  SLUICE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

inline Result<Event> make_event() {
  cudaEvent_t event = nullptr;
  SLUICE_CUDA(cudaEventCreate(&event));
  return Event(event);
}

/// What `enqueue`, which gives a Result<void>, puts on the stream, as a graph: nothing of it runs,
/// and after a failure the stream is as before.
template <class Enqueue>
Result<GraphExec> capture_graph(cudaStream_t stream, Enqueue enqueue) {
  SLUICE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const Result<void> enqueued = enqueue();
  cudaGraph_t raw = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &raw);
  const Graph graph(raw);
  if (!enqueued || ended != cudaSuccess) cudaGetLastError();
  if (!enqueued) return tl::unexpected(enqueued.error());
  if (ended != cudaSuccess) return tl::unexpected(device_error(ended, "cudaStreamEndCapture"));
  cudaGraphExec_t exec = nullptr;
  if (const cudaError_t status = cudaGraphInstantiate(&exec, graph.get(), 0);
      status != cudaSuccess) {
    cudaGetLastError();
    return tl::unexpected(device_error(status, "cudaGraphInstantiate"));
  }
  return GraphExec(exec);
}

}  // namespace sluice::kernels::cuda
