#pragma once
// A row's norm by a block, which two kernels take: one reads the row, one adds it up from what
// ranks have sent. Both sum in one order, which the row's width alone decides.
//
// A row of a decode step is read by one block, whose time is the latency of what it waits for:
// memory once, the block's other warps once. So a thread asks for all that it needs together, and
// keeps it.

#include "kernels/cuda/step.cuh"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {

inline constexpr std::uint32_t norm_threads_max = 1024;

/// Fours of elements that a thread keeps: with what a norm multiplies and adds, three times as many
/// are in the 64 registers of 1,024 threads.
inline constexpr std::uint32_t norm_quads = 2;

/// Threads of a block, in whole warps.
__host__ __device__ constexpr std::uint32_t norm_threads(std::uint32_t width) {
  const std::uint32_t warp_elements = 4 * norm_quads * warp_lanes;
  return least(divide_up(width, warp_elements) * warp_lanes, norm_threads_max);
}

/// Some of a row's elements: four times the thread's index, three more, and those of the turns
/// behind, each of four elements a thread.
struct Quads {
  float4 at[norm_quads];
};

/// One of norm_threads(): the one that asks, or one whose part another block's thread does.
struct NormThread {
  std::uint32_t index = threadIdx.x, count = blockDim.x;
};

__device__ inline std::uint32_t quad_column(std::uint32_t first, std::uint32_t turn,
                                            const NormThread& thread = {}) {
  return first + (turn * thread.count + thread.index) * 4;
}

/// Of activations, whose rows can be read to their stride; what it gives of those is not masked.
__device__ inline Quads read_quads(const float* row, std::uint32_t first, std::uint32_t width,
                                   const NormThread& thread = {}) {
  Quads quads;
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < norm_quads; ++k) {
    const std::uint32_t i = quad_column(first, k, thread);
    quads.at[k] = i < width ? *reinterpret_cast<const float4*>(row + i) : float4{0, 0, 0, 0};
  }
  return quads;
}

/// Of a vector that ends with its width.
__device__ inline Quads read_ending_quads(const float* vector, std::uint32_t first,
                                          std::uint32_t width, const NormThread& thread = {}) {
  Quads quads;
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < norm_quads; ++k) {
    const std::uint32_t i = quad_column(first, k, thread);
    quads.at[k] = {0, 0, 0, 0};
    if (i + 4 <= width) {
      quads.at[k] = *reinterpret_cast<const float4*>(vector + i);
    } else if (i < width) {
      quads.at[k].x = vector[i];
      if (i + 1 < width) quads.at[k].y = vector[i + 1];
      if (i + 2 < width) quads.at[k].z = vector[i + 2];
    }
  }
  return quads;
}

/// squares + the squares of what lies in the row, one after the other.
__device__ inline float add_squares(const Quads& quads, std::uint32_t first, std::uint32_t width,
                                    float squares, const NormThread& thread = {}) {
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < norm_quads; ++k) {
    const std::uint32_t i = quad_column(first, k, thread);
    const float4& v = quads.at[k];
    if (i < width) squares = fma_f32(v.x, v.x, squares);
    if (i + 1 < width) squares = fma_f32(v.y, v.y, squares);
    if (i + 2 < width) squares = fma_f32(v.z, v.z, squares);
    if (i + 3 < width) squares = fma_f32(v.w, v.w, squares);
  }
  return squares;
}

/// Asks for the gains before the wait.
__device__ inline void prefetch_gains(const NormArgs& args) {
  const std::uint32_t line = 32, step = blockDim.x * line;
  for (std::uint32_t i = threadIdx.x * line; i < args.width; i += step) {
    prefetch_line(args.gain + i);
  }
}

inline constexpr std::uint32_t norm_scratch_floats = warp_lanes;
inline constexpr std::size_t norm_shared_bytes = SharedPieces::bytes<float>(norm_scratch_floats);

/// What a row is multiplied with, of what `warps` warps added up of squares: by a warp's tree. The
/// block meets once.
__device__ inline float norm_scale(const NormArgs& args, const float* warp_squares,
                                   std::uint32_t warps) {
  __syncthreads();
  const float total = warp_sum(lane_index() < warps ? warp_squares[lane_index()] : 0.0F);
  return 1.0F / sqrtf(total / static_cast<float>(args.width) + args.epsilon);
}

/// The same, of the sum of a warp's squares.
__device__ inline float norm_scale(const NormArgs& args, float warp_squares) {
  SharedPieces shared;
  auto* scratch = shared.take<float>(norm_scratch_floats);
  if (lane_index() == 0) scratch[warp_index()] = warp_squares;
  return norm_scale(args, scratch, blockDim.x / warp_lanes);
}

/// What a norm takes beside its row.
struct NormOperands {
  Quads gains, before;

  __device__ NormOperands(const NormArgs& args, std::uint32_t r, std::uint32_t first)
      : gains(read_ending_quads(args.gain, first, args.width)) {
    if (args.accumulate) before = read_quads(row_of(args.out, r), first, args.width);
  }
};

__device__ inline float4 normed(const float4& v, const float4& gain, float scale) {
  return {v.x * scale * gain.x, v.y * scale * gain.y, v.z * scale * gain.z, v.w * scale * gain.w};
}

/// Elements i .. i + 3 of row r, which ends with its width: what is behind it stays zero.
__device__ inline void put_quad(const NormArgs& args, std::uint32_t r, std::uint32_t i,
                                const float4& to) {
  if (i + 4 <= args.width) {
    put_pair(args.out, r, i, {to.x, to.y});
    put_pair(args.out, r, i + 2, {to.z, to.w});
    return;
  }
  if (i < args.width) put(args.out, r, i, to.x);
  if (i + 1 < args.width) put(args.out, r, i + 1, to.y);
  if (i + 2 < args.width) put(args.out, r, i + 2, to.z);
}

__device__ inline void put_normed(const NormArgs& args, std::uint32_t r, std::uint32_t first,
                                  const Quads& row, const NormOperands& operands, float scale) {
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < norm_quads; ++k) {
    float4 to = normed(row.at[k], operands.gains.at[k], scale);
    if (args.accumulate) {
      const float4& before = operands.before.at[k];
      to = {before.x + to.x, before.y + to.y, before.z + to.z, before.w + to.w};
    }
    put_quad(args, r, quad_column(first, k), to);
  }
}

/// The first row's norm, by a block of `threads`, where the row is one that norm_threads() keep:
/// each thread does what several of those do, so that the bits are the same. `scratch` has room for
/// norm_scratch_floats. put(i, elements i .. i + 3, in bf16) of all that is read of a row, zeros
/// behind its width; and the row itself is written if `writes`.
template <std::uint32_t threads, class Put>
__device__ void norm_row(const NormArgs& args, float* scratch, bool writes, Put put) {
  constexpr std::uint32_t parts = divide_up(norm_threads_max, threads);
  const std::uint32_t count = norm_threads(args.width);
  Quads row[parts], gains[parts];
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < parts; ++i) {
    const NormThread thread{i * threads + threadIdx.x, count};
    if (thread.index >= count) continue;
    row[i] = read_quads(args.in.data, 0, args.width, thread);
    gains[i] = read_ending_quads(args.gain, 0, args.width, thread);
  }
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < parts; ++i) {
    const NormThread thread{i * threads + threadIdx.x, count};
    if (thread.index >= count) continue;  // as a whole warp
    const float squares = warp_sum(add_squares(row[i], 0, args.width, 0.0F, thread));
    if (lane_index() == 0) scratch[thread.index / warp_lanes] = squares;
  }
  const float scale = norm_scale(args, scratch, count / warp_lanes);
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < parts; ++i) {
    const NormThread thread{i * threads + threadIdx.x, count};
    if (thread.index >= count) continue;
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < norm_quads; ++k) {
      const std::uint32_t column = quad_column(0, k, thread);
      float4 to = normed(row[i].at[k], gains[i].at[k], scale);
      if (column >= args.width) to = {0, 0, 0, 0};  // whatever the scale
      if (column + 1 >= args.width) to.y = 0;
      if (column + 2 >= args.width) to.z = 0;
      if (column + 3 >= args.width) to.w = 0;
      if (column < padded(args.width)) {
        put(column, uint2{pack_bf16(to.x, to.y), pack_bf16(to.z, to.w)});
      }
      if (writes) put_quad(args, 0, column, to);
    }
  }
}

/// Calls kernels.template operator()<whole>() with whether a block's threads can keep such a row.
template <class Kernels>
auto with_norm_kernel(std::uint32_t width, Kernels kernels) {
  static_assert(norm_kept_max == 4 * norm_quads * norm_threads_max);
  return width <= norm_kept_max ? kernels.template operator()<true>()
                                : kernels.template operator()<false>();
}

}  // namespace sluice::kernels::cuda
