// Packs weights when they are loaded (packed.cuh).

#include "kernels/cuda/packed.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t warps = 8;

/// Eight columns of a row that has them, for a lane that packs its two, from `first` on.
template <class U, class P>
__device__ void put_eight(typename P::Lane& lane, const LanePlace& place, std::uint32_t first,
                          Bytes row, std::uint32_t column) {
  if constexpr (HasCodes<U>) {
    P::put(lane, place, first, codes_at<U>(row, column), U::zero);
  } else if constexpr (std::is_same_v<U, UnpackE4m3>) {
    P::put(lane, place, first, load_eight<8>(row + column));
  } else {
    EightFloats w;
    unpack_eight<U>(row, column, w.at);
    P::put(lane, place, first, w);
  }
}

/// A warp a unit, of a panel a block column.
template <class U>
__global__ void pack_kernel(PackArgs args) {
  using P = typename PackedBy<U>::Type;
  take_turn();
  const std::uint32_t column = (blockIdx.y * warps + warp_index()) * unit_columns;
  if (column >= padded(args.in.cols)) return;
  const std::uint32_t upper = blockIdx.x * panel_rows + lane_index() / 4;
  typename P::Lane lane{};
  SLUICE_UNROLL
  for (std::uint32_t eight = 0; eight < unit_columns / 8; ++eight) {
    SLUICE_UNROLL
    for (std::uint32_t lower = 0; lower < 2; ++lower) {
      const std::uint32_t row = upper + lower * 8, k = column + eight * 8;
      if (row >= args.in.rows || k >= args.in.cols) continue;
      put_eight<U, P>(lane, {eight, lower}, lane_index() % 4 * 2,
                      args.in.data + row * args.in.stride, k);
    }
  }
  Bytes unit = unit_at<P>(args.out, blockIdx.x * panel_rows, column);
  P::write(const_cast<std::uint8_t*>(unit), lane_index(), lane);
}

}  // namespace

std::uint64_t packed_stride(const DeviceWeight& weight) {
  std::uint64_t stride = 0;
  with_packed(weight, [&]<class P>(P) {
    stride = std::uint64_t{padded(weight.cols)} / unit_columns * P::unit_bytes;
    return cudaSuccess;
  });
  return stride;
}

cudaError_t pack_weight(const PackArgs& args, LaunchChain& chain) {
  const dim3 grid(divide_up(args.in.rows, panel_rows),
                  divide_up(padded(args.in.cols) / unit_columns, warps));
  return with_unpack(args.in, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, Unpack<Format::f32>>) {
      return cudaErrorInvalidValue;
    } else {
      return launch(pack_kernel<U>, grid, warps * warp_lanes, 0, chain, args);
    }
  });
}

}  // namespace sluice::kernels::cuda
