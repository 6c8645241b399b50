#pragma once
// Brings weights to the device: host memory is copied into pinned buffers, and from there by the
// device, two buffers in turn, so that reading a file and copying it overlap.

#include <cstddef>
#include <span>

#include "kernels/cuda/device.hpp"

namespace sluice::kernels::cuda {

class Uploader {
 public:
  /// Copies rows of `row_bytes`, `from_stride` apart, to rows of `stride` bytes, zeros between
  /// them. Returns when the source has been read.
  Result<void> copy(std::span<const std::byte> from, std::size_t row_bytes,
                    std::size_t from_stride, std::byte* to, std::size_t stride);

  /// Waits for what is under way.
  Result<void> finish();

 private:
  struct Buffer {
    PinnedMemory memory;
    Event copied;
    bool busy = false;
  };

  Result<void> prepare();

  Stream stream_;
  Buffer buffers_[2];
  int next_ = 0;
};

}  // namespace sluice::kernels::cuda
