// Products with at most 16 activation rows: each weight is read once, straight to the registers
// that the tensor cores take it from. A block has 16 weight rows; each of its warps one section of
// their columns. Bound by memory: 2 operations a weight and row, so at 16 rows of bf16 16 a byte,
// where an H200 has some 200 before its arithmetic counts. Its bandwidth needs some 25 KiB under
// way on each multiprocessor; a warp has up to 8 KiB.

#include "kernels/cuda/linear.cuh"

namespace sluice::kernels::cuda {
namespace {

/// Chunks whose weights and activations are under way together, in some 100 registers. Of plain
/// weights in 16 bits, at one tile of activation rows, 8 KiB a warp.
template <class U>
constexpr std::uint32_t chunks_ahead = 4;
template <>
constexpr std::uint32_t chunks_ahead<Unpack<Format::bf16>> = 8;
template <>
constexpr std::uint32_t chunks_ahead<Unpack<Format::f16>> = 8;
template <>
constexpr std::uint32_t chunks_ahead<UnpackE4m3> = 16;

/// A lane's rows: two of weights, g and g + 8, and g of each tile of activations, at 8t.
template <std::uint32_t tiles>
struct LaneRows {
  Bytes upper, lower;
  const std::uint16_t* x[tiles];
};

/// Adds `count` chunks from column k on; everything is asked for before the first is used.
template <class U, std::uint32_t count, std::uint32_t tiles>
__device__ void multiply_chunks(TileSums (&sums)[tiles], const LaneRows<tiles>& rows,
                                std::uint32_t k) {
  Raw<U> upper[count], lower[count];
  uint4 x[count][tiles];
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < count; ++i) {
    upper[i] = load_packed<U>(rows.upper, k + i * chunk + 8 * (lane_index() % 4));
    lower[i] = load_packed<U>(rows.lower, k + i * chunk + 8 * (lane_index() % 4));
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < tiles; ++n) {
      x[i][n] = *reinterpret_cast<const uint4*>(rows.x[n] + k + i * chunk);
    }
  }
  // Or the compiler puts each read right before its use, for the sake of fewer registers.
  __syncwarp();
  SLUICE_UNROLL
  for (std::uint32_t i = 0; i < count; ++i) {
    const uint4 w[2] = {packed<U>(upper[i]), packed<U>(lower[i])};
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < tiles; ++n) multiply_chunk(sums[n], w[0], w[1], x[i][n]);
  }
}

template <class U, std::uint32_t tiles>
__global__ void __launch_bounds__(sections* warp_lanes) few_kernel(LinearArgs args) {
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  constexpr std::uint32_t ahead = chunks_ahead<U> / tiles;
  const std::uint32_t rows = row_count(args.step, args.space);
  const std::uint32_t first = blockIdx.y * tokens;
  if (first >= rows) return;
  SharedPieces shared;
  auto* partial = shared.take<float>(sections * tokens * tile_rows);  // [section][token][row]
  const Place place = find_place(args, blockIdx.x, tile_rows);
  const Product& product = args.product[place.product];
  const DeviceWeight& weight = product.weight;
  const std::uint32_t g = lane_index() / 4, t = lane_index() % 4;
  const std::uint32_t section = warp_index();
  const std::uint32_t width = section_columns(weight.cols);
  const std::uint32_t end = least((section + 1) * width, padded(weight.cols));
  LaneRows<tiles> lane_rows;
  lane_rows.upper = weight.data + least(place.row + g, weight.rows - 1) * weight.stride;
  lane_rows.lower = weight.data + least(place.row + g + 8, weight.rows - 1) * weight.stride;
  TileSums sums[tiles];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < tiles; ++n) {
    const std::uint32_t r = least(first + n * tile_inputs + g, rows - 1);
    lane_rows.x[n] = args.in.narrow + std::size_t{r} * args.in.stride + 8 * t;
    sums[n] = {};
  }
  std::uint32_t k = section * width;
  for (; k + ahead * chunk <= end; k += ahead * chunk) {
    multiply_chunks<U, ahead>(sums, lane_rows, k);
  }
  for (; k < end; k += chunk) multiply_chunks<U, 1>(sums, lane_rows, k);
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < tiles; ++n) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t token = n * tile_inputs + 2 * t + i % 2;
      partial[(section * tokens + token) * tile_rows + g + i / 2 * 8] = sums[n].at[i];
    }
  }
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < tokens * tile_rows; i += blockDim.x) {
    const std::uint32_t o = place.row + i % tile_rows, r = first + i / tile_rows;
    if (o >= weight.rows || r >= rows) continue;
    float sum = 0.0F + partial[i];  // of -0 it is 0, as in linear_many.cu
    for (std::uint32_t s = 1; s * width < weight.cols; ++s) {
      sum += partial[s * tokens * tile_rows + i];
    }
    write_result(product, o, r, sum);
  }
}

template <class U, std::uint32_t tiles>
cudaError_t launch_few(const LinearArgs& args, std::uint32_t rows, cudaStream_t stream) {
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  return launch(few_kernel<U, tiles>,
                dim3(count_blocks(args, tile_rows), divide_up(rows, tokens)),
                sections * warp_lanes,
                SharedPieces::bytes<float>(sections * tokens * tile_rows), stream, args);
}

}  // namespace

cudaError_t linear_few(const LinearArgs& args, std::uint32_t rows, cudaStream_t stream) {
  return with_unpack(args.product[0].weight, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return rows <= tile_inputs ? launch_few<U, 1>(args, rows, stream)
                                   : launch_few<U, 2>(args, rows, stream);
    }
  });
}

}  // namespace sluice::kernels::cuda
