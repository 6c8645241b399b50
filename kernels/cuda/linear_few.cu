// Products with at most 16 activation rows: each weight is read once, straight to the registers
// that the tensor cores take it from. A block has 16 weight rows; each of its warps one section of
// their columns. Bound by memory: 2 operations a weight and row, so at 16 rows of bf16 16 a byte,
// where an H200 has some 200 before its arithmetic counts. Its bandwidth needs some 25 KiB under
// way on each multiprocessor; a warp has up to 8 KiB, and asks for its first before the kernels
// before this one have ended.

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

/// A lane's part of `count` chunks: of a block's weights rows g and g + 8, of each tile of
/// activations row g.
template <class U, std::uint32_t count, std::uint32_t tiles>
struct Chunks {
  Raw<U> upper[count], lower[count];
  uint4 x[count][tiles];

  /// From column k on.
  __device__ void load_weights(Bytes upper_row, Bytes lower_row, std::uint32_t k) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) {
      upper[i] = load_packed<U>(upper_row, k + i * chunk + 8 * (lane_index() % 4));
      lower[i] = load_packed<U>(lower_row, k + i * chunk + 8 * (lane_index() % 4));
    }
  }
  __device__ void load_inputs(const std::uint16_t* const (&rows)[tiles], std::uint32_t k) {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) {
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < tiles; ++n) {
        x[i][n] =
            *reinterpret_cast<const uint4*>(rows[n] + k + i * chunk + 8 * (lane_index() % 4));
      }
    }
  }

  __device__ void multiply(TileSums (&sums)[tiles]) const {
    // Or the compiler puts each read right before its use, for the sake of fewer registers.
    __syncwarp();
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < count; ++i) {
      const uint4 w[2] = {packed<U>(upper[i]), packed<U>(lower[i])};
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < tiles; ++n) multiply_chunk(sums[n], w[0], w[1], x[i][n]);
    }
  }
};

template <class U, std::uint32_t tiles>
__global__ void __launch_bounds__(sections* warp_lanes) few_kernel(LinearArgs args) {
  start_next();
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  constexpr std::uint32_t ahead = chunks_ahead<U> / tiles;
  const Place place = find_place(args, blockIdx.x, tile_rows);
  const Product& product = args.product[place.product];
  const DeviceWeight& weight = product.weight;
  const std::uint32_t g = lane_index() / 4, t = lane_index() % 4;
  const std::uint32_t section = warp_index();
  const std::uint32_t width = section_columns(weight.cols);
  const std::uint32_t end = least((section + 1) * width, padded(weight.cols));
  const Bytes upper = weight.data + least(place.row + g, weight.rows - 1) * weight.stride;
  const Bytes lower = weight.data + least(place.row + g + 8, weight.rows - 1) * weight.stride;
  std::uint32_t k = section * width;
  Chunks<U, ahead, tiles> chunks;
  bool more = k + ahead * chunk <= end;
  if (more) chunks.load_weights(upper, lower, k);
  await_previous();
  const std::uint32_t rows = row_count(args.step, args.space);
  const std::uint32_t first = blockIdx.y * tokens;
  if (first >= rows) return;
  SharedPieces shared;
  auto* partial = shared.take<float>(sections * tokens * tile_rows);  // [section][token][row]
  const std::uint16_t* inputs[tiles];
  TileSums sums[tiles];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < tiles; ++n) {
    const std::uint32_t r = least(first + n * tile_inputs + g, rows - 1);
    inputs[n] = args.in.narrow + std::size_t{r} * args.in.stride;
    sums[n] = {};
  }
  if (more) chunks.load_inputs(inputs, k);
  while (more) {
    chunks.multiply(sums);
    k += ahead * chunk;
    more = k + ahead * chunk <= end;
    if (!more) break;
    chunks.load_inputs(inputs, k);
    chunks.load_weights(upper, lower, k);
  }
  for (; k < end; k += chunk) {
    Chunks<U, 1, tiles> last;
    last.load_inputs(inputs, k);
    last.load_weights(upper, lower, k);
    last.multiply(sums);
  }
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
cudaError_t launch_few(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  return launch(few_kernel<U, tiles>,
                dim3(count_blocks(args, tile_rows), divide_up(rows, tokens)),
                sections * warp_lanes,
                SharedPieces::bytes<float>(sections * tokens * tile_rows), chain, args);
}

}  // namespace

cudaError_t linear_few(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_unpack(args.product[0].weight, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return rows <= tile_inputs ? launch_few<U, 1>(args, rows, chain)
                                   : launch_few<U, 2>(args, rows, chain);
    }
  });
}

}  // namespace sluice::kernels::cuda
