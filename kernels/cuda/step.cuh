#pragma once
// Reading a step's metadata on the device.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/numbers.cuh"

namespace sluice::kernels::cuda {

__device__ inline const StepHeader& header(const std::byte* step) {
  return *reinterpret_cast<const StepHeader*>(step);
}

template <class T>
__device__ const T* part(const std::byte* step, std::uint32_t offset) {
  return reinterpret_cast<const T*>(step + offset);
}

__device__ inline StepRow step_row(const std::byte* step, std::uint32_t row) {
  return part<StepRow>(step, header(step).row_offset)[row];
}

/// The row that is the sampled ones' index-th.
__device__ inline StepRow sampled_row(const std::byte* step, std::uint32_t index) {
  return step_row(step, part<std::uint32_t>(step, header(step).sampled_offset)[index]);
}

__device__ inline std::uint32_t row_count(const std::byte* step, Space space) {
  return space == Space::batch ? header(step).rows : header(step).sampled;
}

__device__ inline float* row_of(const Rows& rows, std::uint32_t r) {
  return rows.data + std::size_t{r} * rows.stride;
}

/// Writes element i of a row, also where products read it.
__device__ inline void put(const Rows& rows, std::uint32_t r, std::uint32_t i, float value) {
  const std::size_t at = std::size_t{r} * rows.stride + i;
  rows.data[at] = value;
  if (rows.narrow != nullptr) rows.narrow[narrow_at(rows.stride, r, i)] = narrow_bf16(value);
}

/// Elements i, which is even, and i + 1.
__device__ inline void put_pair(const Rows& rows, std::uint32_t r, std::uint32_t i, float2 pair) {
  const std::size_t at = std::size_t{r} * rows.stride + i;
  *reinterpret_cast<float2*>(rows.data + at) = pair;
  if (rows.narrow == nullptr) return;
  std::uint16_t* to = rows.narrow + narrow_at(rows.stride, r, i);
  *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(pair.x, pair.y);
}

/// Keys of one block and head: [block_tokens, head_stride]; its values lie behind them. An Element
/// is std::uint16_t of f16, std::uint8_t of e4m3.
template <class Element = std::uint16_t>
__device__ Element* keys_of(const KvArrays& kv, std::uint32_t layer, std::uint32_t block,
                            std::uint32_t kv_head) {
  const std::size_t head = (std::size_t{layer} * kv.blocks + block) * kv.kv_heads + kv_head;
  return reinterpret_cast<Element*>(kv.data) + head * 2 * kv.block_tokens * kv.head_stride;
}

/// Calls kernels(Element()) for what the pool keeps.
template <class Kernels>
cudaError_t with_element(KvFormat format, Kernels kernels) {
  return format == KvFormat::e4m3 ? kernels(std::uint8_t()) : kernels(std::uint16_t());
}

}  // namespace sluice::kernels::cuda
