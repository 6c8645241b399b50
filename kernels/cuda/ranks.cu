// What ranks have sent each other, put together. Every float is read once and written once; those
// of a decode step are few, so that a launch is most of what these cost.

#include "kernels/cuda/step.cuh"

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

/// Reads of each rank that a thread has under way together.
constexpr std::uint32_t reads = 4;

/// Widest row that a block keeps in shared memory without asking for more than every kernel has.
constexpr std::uint32_t kept_most = 12000;

/// A block a row. A thread adds up, squares and norms the elements that it has in norm_kernel, in
/// that one's order; what it needs again is kept.
__global__ void add_norm_kernel(AddNormArgs args) {
  take_turn();
  SharedPieces shared;
  auto* scratch = shared.take<float>(row_threads / warp_lanes);
  const NormArgs& norm = args.norm;
  const std::uint32_t r = blockIdx.x;
  if (r >= row_count(norm.step, norm.space)) return;
  float* in = row_of(norm.in, r);
  float* kept = norm.width > kept_most ? in : shared.take<float>(norm.width);
  const float* all = args.all + std::size_t{r} * norm.in.stride;
  float squares = 0.0F;
  for (std::uint32_t first = threadIdx.x; first < norm.width; first += reads * row_threads) {
    float sums[reads];
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < reads; ++k) {
      const std::uint32_t i = first + k * row_threads;
      sums[k] = i < norm.width ? all[i] : 0.0F;
    }
    for (std::uint32_t rank = 1; rank < args.ranks; ++rank) {
      const float* more = all + rank * args.floats;
      SLUICE_UNROLL
      for (std::uint32_t k = 0; k < reads; ++k) {
        const std::uint32_t i = first + k * row_threads;
        if (i < norm.width) sums[k] += more[i];
      }
    }
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < reads; ++k) {
      const std::uint32_t i = first + k * row_threads;
      if (i >= norm.width) continue;
      squares = fma_f32(sums[k], sums[k], squares);
      in[i] = sums[k];
      kept[i] = sums[k];
    }
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(norm.width);
  const float scale = 1.0F / sqrtf(mean + norm.epsilon);
  for (std::uint32_t i = threadIdx.x; i < norm.width; i += row_threads) {
    const float normed = kept[i] * scale * norm.gain[i];
    put(norm.out, r, i, norm.accumulate ? row_of(norm.out, r)[i] + normed : normed);
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
  const std::uint32_t kept = args.norm.width > kept_most ? 0 : args.norm.width;
  const std::size_t bytes =
      SharedPieces::bytes<float>(row_threads / warp_lanes) + SharedPieces::bytes<float>(kept);
  return launch(add_norm_kernel, rows, row_threads, bytes, chain, args);
}

}  // namespace sluice::kernels::cuda
