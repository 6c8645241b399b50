// Products with at most 16 activation rows: each weight is read once, straight to the registers
// that the tensor cores take it from. A block has 16 weight rows, or where a Gate follows 8 of each
// of its two products, so that it has both of what an element of the result is made of; each of its
// warps has one section of their columns. Bound by memory: 2 operations a weight and row, so at 16
// rows of bf16 16 a byte, where an H200 has some 200 before its arithmetic counts. Its bandwidth
// needs some 25 KiB under way on each multiprocessor; a warp has up to 8 KiB, and asks for its
// first before the kernels before this one have ended.

#include "kernels/cuda/gate.cuh"
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

/// A lane's part of `count` chunks: of a block's weights row g of the upper eight and of the lower,
/// of each tile of activations row g.
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
        x[i][n] = *reinterpret_cast<const uint4*>(
            rows[n] + narrow_column(k + i * chunk + 8 * (lane_index() % 4)));
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

/// Weight rows that a block has of a product.
template <bool with_gate>
constexpr std::uint32_t block_rows = with_gate ? tile_rows / 2 : tile_rows;

template <class U, std::uint32_t tiles, bool with_gate>
__global__ void __launch_bounds__(sections* warp_lanes) few_kernel(GatedArgs gated_args) {
  start_next();
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  constexpr std::uint32_t ahead = chunks_ahead<U> / tiles;
  const LinearArgs& args = gated_args.linear;
  const Place place = with_gate ? Place{0, blockIdx.x * block_rows<with_gate>}
                                : find_place(args, blockIdx.x, tile_rows);
  const Product& product = args.product[place.product];
  const Product& beside = with_gate ? args.product[1] : product;  // of the lower eight rows
  const DeviceWeight& weight = product.weight;
  const std::uint32_t g = lane_index() / 4, t = lane_index() % 4;
  const std::uint32_t section = warp_index();
  const std::uint32_t width = section_columns(weight.cols);
  const std::uint32_t end = least((section + 1) * width, chunked(weight.cols));
  const auto offset = [&](std::uint32_t row) {  // both of a gate's weights lie alike
    return least(row, weight.rows - 1) * weight.stride;
  };
  const Bytes upper = weight.data + offset(place.row + g);
  const Bytes lower = beside.weight.data + offset(place.row + (with_gate ? g : g + 8));
  std::uint32_t k = section * width;
  Chunks<U, ahead, tiles> chunks;
  bool more = k + ahead * chunk <= end;
  if (more) chunks.load_weights(upper, lower, k);
  if (threadIdx.x == 0) {
    prefetch_scaling(product, place.row);
    if (with_gate) prefetch_scaling(beside, place.row);
  }
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
    inputs[n] = args.in.narrow + narrow_row(args.in.stride, r);
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
  const auto sum_of = [&](std::uint32_t token, std::uint32_t row) {
    const float* from = partial + token * tile_rows + row;
    float sum = 0.0F + *from;  // of -0 it is 0, as in linear_many.cu
    for (std::uint32_t s = 1; s * width < weight.cols; ++s) sum += from[s * tokens * tile_rows];
    return sum;
  };
  for (std::uint32_t i = threadIdx.x; i < tokens * block_rows<with_gate>; i += blockDim.x) {
    const std::uint32_t token = i / block_rows<with_gate>, row = i % block_rows<with_gate>;
    const std::uint32_t o = place.row + row, r = first + token;
    if (o >= weight.rows || r >= rows) continue;
    const float sum = sum_of(token, row);
    if constexpr (with_gate) {
      const GateArgs& gate = gated_args.gate;
      const float other = scaled(beside, o, sum_of(token, row + 8));
      put(gate.out, r, o, gated(gate, scaled(product, o, sum), other));
    } else {
      write_result(product, o, r, sum);
    }
  }
}

template <class U, std::uint32_t tiles, bool with_gate>
cudaError_t launch_few(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  const std::uint32_t blocks = with_gate ? divide_up(args.gate.width, block_rows<with_gate>)
                                         : count_blocks(args.linear, tile_rows);
  return launch(few_kernel<U, tiles, with_gate>, dim3(blocks, divide_up(rows, tokens)),
                sections * warp_lanes,
                SharedPieces::bytes<float>(sections * tokens * tile_rows), chain, args);
}

template <bool with_gate>
cudaError_t launch_any(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_unpack(args.linear.product[0].weight, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return rows <= tile_inputs ? launch_few<U, 1, with_gate>(args, rows, chain)
                                 : launch_few<U, 2, with_gate>(args, rows, chain);
    }
  });
}

}  // namespace

cudaError_t linear_few(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<false>({args, {}}, rows, chain);
}

cudaError_t linear_few_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<true>(args, rows, chain);
}

}  // namespace sluice::kernels::cuda
