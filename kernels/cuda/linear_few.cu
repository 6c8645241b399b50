// Products with at most 16 activation rows: each weight is read once, straight to the registers
// that the tensor cores take it from. A block has 16 weight rows; each of its warps one section of
// their columns. Bound by memory: 2 operations a weight and row, so at 16 rows of bf16 16 a byte,
// where an H200 has some 200 before its arithmetic counts. Its bandwidth needs some 25 KiB under
// way on each multiprocessor; a warp has up to 8 KiB.

#include "kernels/cuda/linear.cuh"

namespace sluice::kernels::cuda {
namespace {

/// Chunks whose weights are under way together: 16 bytes a lane, row and chunk where plain.
template <class U>
constexpr std::uint32_t chunks_ahead = 4;
template <>
constexpr std::uint32_t chunks_ahead<Unpack<Format::bf16>> = 8;
template <>
constexpr std::uint32_t chunks_ahead<Unpack<Format::f16>> = 8;
template <>
constexpr std::uint32_t chunks_ahead<UnpackE4m3> = 8;

template <class U, std::uint32_t tiles>
__global__ void __launch_bounds__(sections* warp_lanes) few_kernel(LinearArgs args) {
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  constexpr std::uint32_t ahead = chunks_ahead<U>;
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
  Bytes upper = weight.data + least(place.row + g, weight.rows - 1) * weight.stride;
  Bytes lower = weight.data + least(place.row + g + 8, weight.rows - 1) * weight.stride;
  const std::uint16_t* x[tiles];
  TileSums sums[tiles];
  SLUICE_UNROLL
  for (std::uint32_t n = 0; n < tiles; ++n) {
    const std::uint32_t r = least(first + n * tile_inputs + g, rows - 1);
    x[n] = args.in.narrow + std::size_t{r} * args.in.stride + 8 * t;
    sums[n] = {};
  }
  for (std::uint32_t k = section * width; k < end; k += ahead * chunk) {
    uint4 w[ahead][2];
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < ahead; ++i) {
      if (k + i * chunk >= end) continue;
      w[i][0] = pack_eight<U>(upper, k + i * chunk + 8 * t);
      w[i][1] = pack_eight<U>(lower, k + i * chunk + 8 * t);
    }
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < ahead; ++i) {
      if (k + i * chunk >= end) continue;
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < tiles; ++n) {
        const uint4 mine = *reinterpret_cast<const uint4*>(x[n] + k + i * chunk);
        multiply_chunk(sums[n], w[i][0], w[i][1], mine);
      }
    }
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
    float sum = partial[i];
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
