// What ranks have sent each other, put together. Every float is read once and written once; those
// of a decode step are few, so that a launch is most of what these cost.

#include "kernels/cuda/norm.cuh"

namespace sluice::kernels::cuda {
namespace {

/// Four floats a thread: ((r0 + r1) + r2) + ...
__global__ void add_kernel(const float* all, std::uint32_t ranks, std::size_t floats,
                           float* out) {
  take_turn();
  const std::size_t i = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
  if (i >= floats) return;
  float4 sum = *reinterpret_cast<const float4*>(all + i);
  for (std::uint32_t rank = 1; rank < ranks; ++rank) {
    const float4 more = *reinterpret_cast<const float4*>(all + rank * floats + i);
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
  }
  *reinterpret_cast<float4*>(out + i) = sum;
}

/// A grid of columns, rows and ranks.
__global__ void spread_kernel(SpreadArgs args) {
  take_turn();
  const std::uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
  const std::uint32_t rank = blockIdx.z;
  const auto begin = static_cast<std::uint32_t>(std::uint64_t{args.width} * rank / args.ranks);
  const auto end = static_cast<std::uint32_t>(std::uint64_t{args.width} * (rank + 1) / args.ranks);
  if (column >= end - begin) return;
  const std::size_t row = std::size_t{rank} * gridDim.y + blockIdx.y;
  args.out.data[std::size_t{blockIdx.y} * args.out.stride + begin + column] =
      args.all[row * args.widest + column];
}

/// Ranks whose reads a thread has under way together.
constexpr std::uint32_t ranks_together = 4;

/// ((r0 + r1) + r2) + ...
__device__ Quads add_quads(const float* all, const AddNormArgs& args, std::uint32_t first) {
  Quads sums = read_quads(all, first, args.norm.width);
  for (std::uint32_t rank = 1; rank < args.ranks; rank += ranks_together) {
    Quads more[ranks_together];
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < ranks_together; ++n) {
      if (rank + n >= args.ranks) continue;
      more[n] = read_quads(all + (rank + n) * args.floats, first, args.norm.width);
    }
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < ranks_together; ++n) {
      if (rank + n >= args.ranks) continue;
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < norm_quads; ++k) {
        sums.at[k].x += more[n].at[k].x;
        sums.at[k].y += more[n].at[k].y;
        sums.at[k].z += more[n].at[k].z;
        sums.at[k].w += more[n].at[k].w;
      }
    }
  }
  return sums;
}

__device__ void keep_quads(float* row, std::uint32_t first, std::uint32_t width,
                           const Quads& quads) {
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < norm_quads; ++k) {
    const std::uint32_t i = quad_column(first, k);
    if (i < width) *reinterpret_cast<float4*>(row + i) = quads.at[k];
  }
}

/// A block a row, with norm_kernel's order.
template <bool whole>
__global__ void __launch_bounds__(norm_threads_max) add_norm_kernel(AddNormArgs args) {
  start_next();
  const NormArgs& norm = args.norm;
  prefetch_gains(norm);
  await_previous();
  const std::uint32_t r = blockIdx.x;
  if (r >= row_count(norm.step, norm.space)) return;
  float* in = row_of(norm.in, r);
  const float* all = args.all + std::size_t{r} * norm.in.stride;
  const Quads row = add_quads(all, args, 0);
  const NormOperands operands(norm, r, 0);  // asked for before the sums are there
  keep_quads(in, 0, norm.width, row);
  const std::uint32_t turn = norm_quads * blockDim.x * 4;
  float squares = add_squares(row, 0, norm.width, 0.0F);
  for (std::uint32_t i = turn; !whole && i < norm.width; i += turn) {
    const Quads sums = add_quads(all, args, i);
    keep_quads(in, i, norm.width, sums);
    squares = add_squares(sums, i, norm.width, squares);
  }
  const float scale = norm_scale(norm, warp_sum(squares));
  put_normed(norm, r, 0, row, operands, scale);
  for (std::uint32_t i = turn; !whole && i < norm.width; i += turn) {
    put_normed(norm, r, i, read_quads(in, i, norm.width), NormOperands(norm, r, i), scale);
  }
}

}  // namespace

cudaError_t add_ranks(const float* all, std::uint32_t ranks, std::size_t floats, float* out,
                      LaunchChain& chain) {
  constexpr std::size_t each = std::size_t{row_threads} * 4;
  const auto blocks = static_cast<std::uint32_t>((floats + each - 1) / each);
  return launch(add_kernel, blocks, row_threads, 0, chain, all, ranks, floats, out);
}

cudaError_t spread(const SpreadArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const dim3 grid((args.widest + row_threads - 1) / row_threads, rows, args.ranks);
  return launch(spread_kernel, grid, row_threads, 0, chain, args);
}

cudaError_t add_norm(const AddNormArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_norm_kernel(args.norm.width, [&]<bool whole>() {
    return launch(add_norm_kernel<whole>, rows, norm_threads(args.norm.width), norm_shared_bytes,
                  chain, args);
  });
}

}  // namespace sluice::kernels::cuda
