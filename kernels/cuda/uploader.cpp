#include "kernels/cuda/uploader.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::kernels::cuda {
namespace {

// Large enough that a copy's start does not count, small enough to be filled while the other
// leaves.
constexpr std::size_t buffer_bytes = std::size_t{8} << 20;

}  // namespace

Result<void> Uploader::prepare() {
  if (stream_) return {};
  for (Buffer& buffer : buffers_) {
    auto memory = PinnedMemory::make(buffer_bytes);
    if (!memory) return tl::unexpected(memory.error());
    auto event = make_event();
    if (!event) return tl::unexpected(event.error());
    buffer.memory = std::move(*memory);
    buffer.copied = std::move(*event);
  }
  auto stream = make_stream();
  if (!stream) return tl::unexpected(stream.error());
  stream_ = std::move(*stream);
  return {};
}

Result<void> Uploader::copy(std::span<const std::byte> from, std::size_t row_bytes,
                            std::size_t from_stride, std::byte* to, std::size_t stride) {
  SLUICE_TRY(prepare());
  // The bytes of the destination in their order: each row's own, then zeros up to the stride.
  const std::size_t rows = (from.size() - row_bytes) / from_stride + 1;
  std::size_t row = 0, at = 0;
  while (row < rows) {
    Buffer& buffer = buffers_[next_];
    next_ = 1 - next_;
    if (buffer.busy) SLUICE_CUDA(cudaEventSynchronize(buffer.copied.get()));
    auto* data = buffer.memory.as<std::byte>();
    std::size_t filled = 0;
    while (row < rows && filled < buffer_bytes) {
      const std::size_t room = buffer_bytes - filled;
      std::size_t count;
      if (row_bytes == stride && row_bytes == from_stride) {  // whole rows at once
        count = std::min(room, (rows - row) * stride - at);
        std::memcpy(data + filled, from.data() + row * row_bytes + at, count);
      } else if (at < row_bytes) {
        count = std::min(room, row_bytes - at);
        std::memcpy(data + filled, from.data() + row * from_stride + at, count);
      } else {
        count = std::min(room, stride - at);
        std::memset(data + filled, 0, count);
      }
      filled += count;
      at += count;
      row += at / stride;
      at %= stride;
    }
    SLUICE_CUDA(cudaMemcpyAsync(to, data, filled, cudaMemcpyHostToDevice, stream_.get()));
    SLUICE_CUDA(cudaEventRecord(buffer.copied.get(), stream_.get()));
    buffer.busy = true;
    to += filled;
  }
  return {};
}

Result<void> Uploader::finish() {
  if (stream_) SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
  return {};
}

}  // namespace sluice::kernels::cuda
