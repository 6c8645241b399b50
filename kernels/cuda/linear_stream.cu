// Products of packed weights with at most 16 activation rows: every weight is read once, and memory
// is to be busy from the first to the last. So a multiprocessor has one block for the whole of a
// launch (of narrower weights two), which takes panel after panel; each of its warps has one
// section of their columns, and brings weights and activations to a ring of its own in shared
// memory, some groups ahead, across panels, without a barrier but the one behind each panel. A
// multiprocessor has room for no more, so that none gets two blocks of plain weights while another
// gets none; the next launch's block comes as soon as there is room again, and asks for its weights
// before the kernels before it have ended.
//
// Of one row that a norm gives, every block norms the row for itself, which waits for less than a
// kernel before it would: what is asked for of the weights comes meanwhile.
//
// Seen on an H200 in a step of an 8B model (bench/gpu.py --parts trace), norms included: gate and
// up products of bf16 at 4.3 of 4.53 TB/s, of e4m3 at 3.7; of Q4_0, where unpacking takes more than
// half of what a multiprocessor can do, at 2.5. The smaller the matrix, the more the first read of
// a row behind the kernel's turn counts: some 3 us of each launch.

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/packed.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr std::uint32_t group = 128;  ///< columns that come together; sections are whole groups
constexpr std::uint32_t usual_depth = 3;  ///< groups of a ring

/// Shared memory of a multiprocessor, of which a block takes some more than it asks for.
constexpr std::size_t processor_bytes = 233'472, block_extra_bytes = 1024;

/// What a block of attention_splits.cu takes of it, with 128 elements a head, at most.
constexpr std::size_t attention_bytes = 75'776;

/// A group in a warp's ring: units of weights.
template <class P>
struct RingWeights {
  static constexpr std::uint32_t units = group / unit_columns;
  static constexpr std::uint32_t pieces = units * P::unit_bytes / sizeof(uint4);
  uint4 weights[pieces];

  __device__ const void* unit(std::uint32_t i) const {
    return weights + i * (P::unit_bytes / sizeof(uint4));
  }
};

constexpr std::uint32_t group_matrices = group / 8;  ///< of eight rows and eight columns

/// And matrices of activations, but where they are a row that the block has normed.
template <class P, std::uint32_t tiles>
struct RingSlot : RingWeights<P> {
  uint4 inputs[tiles][group_matrices][8];
};

/// A block's sums by section, token and row; the odd width keeps threads off each other's banks.
constexpr std::uint32_t sum_stride = panel_rows + 1;
template <std::uint32_t tiles>
constexpr std::uint32_t sum_floats = sections* tiles* tile_inputs* sum_stride;

/// What a block has of a multiprocessor's shared memory.
template <class P, std::uint32_t tiles, bool with_gate, bool normed>
struct Room {
  using Slot = std::conditional_t<normed, RingWeights<P>, RingSlot<P, tiles>>;
  static constexpr std::size_t group_bytes = SharedPieces::bytes<Slot>(sections);
  static constexpr std::size_t other_bytes =
      SharedPieces::bytes<float>(2 * sum_floats<tiles>) +
      (normed ? SharedPieces::bytes<uint4>(norm_kept_max / 8) + norm_shared_bytes : 0) +
      block_extra_bytes;

  /// Blocks that there is room for, two at most: of more, some would have work left when others
  /// have none.
  static constexpr std::uint32_t blocks =
      least<std::size_t>(processor_bytes / (usual_depth * group_bytes + other_bytes), 2);

  /// Groups of a ring. What is not asked for before the block's turn is waited for behind it, and a
  /// norm makes that long; but what runs beside the block needs room too: behind a normed row's
  /// products with a gate nothing does, behind those without a block of attention. More for others,
  /// a row of activations kept once in the room of rings, gained nothing on an H200, and in e4m3
  /// lost 4%.
  static constexpr std::size_t beside_bytes = with_gate ? 0 : attention_bytes;
  static constexpr std::uint32_t depth =
      normed ? ((processor_bytes - beside_bytes) / blocks - other_bytes) / group_bytes
             : usual_depth;

  /// What a block asks for, so that there is no room for more of them.
  static constexpr std::size_t asked_bytes =
      most(depth * group_bytes + other_bytes, processor_bytes / (blocks + 1) + 16) -
      block_extra_bytes;
  static_assert(depth >= 2);
};

/// What a warp does, from panel to panel: its section's columns [begin, begin + groups x group).
template <class P, std::uint32_t tiles, bool with_gate, bool normed>
class Streamer {
 public:
  using Slot = typename Room<P, tiles, with_gate, normed>::Slot;
  static constexpr std::uint32_t depth = Room<P, tiles, with_gate, normed>::depth;

  /// `row`: the normed one, eight columns an element.
  __device__ Streamer(const LinearArgs& args, Slot* ring, const uint4* row)
      : args_(args), ring_(ring), row_(row), columns_(args.product[0].weight.cols) {
    const std::uint32_t width = section_columns(columns_);
    begin_ = least(warp_index() * width, padded(columns_));
    groups_ = (least(begin_ + width, padded(columns_)) - begin_) / group;
    std::uint32_t all = 0;
    for (std::uint32_t i = 0; i < (with_gate ? 1 : args.count); ++i) {
      all += divide_up(args.product[i].weight.rows, panel_rows);
    }
    mine_ = divide_up(all - blockIdx.x, gridDim.x) * (with_gate ? 2 : 1);
    next_.left = mine_ * groups_;
    inputs_ = args.in.narrow + narrow_row(args.in.stride, lane_index() % 8) +
              narrow_column(begin_ + lane_index() / 8 * 8);
    if (next_.left > 0) find_panel();
  }

  /// Of the block.
  __device__ std::uint32_t panels() const { return mine_; }

  /// The i-th.
  __device__ Place place(std::uint32_t i) const {
    if (with_gate) return {i % 2, (blockIdx.x + i / 2 * gridDim.x) * panel_rows};
    return find_place(args_, blockIdx.x + i * gridDim.x, panel_rows);
  }

  /// Asks for the weights of the next group in turn that there is.
  __device__ void ask_weights(std::uint32_t slot) {
    if (next_.left == 0) return;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < Slot::pieces; i += warp_lanes) {
      if (i + lane_index() >= Slot::pieces) continue;
      copy_async(&ring_[slot].weights[i + lane_index()], next_.from + i * sizeof(uint4), true);
    }
    next_.from += Slot::units * P::unit_bytes;
    if (--next_.left == 0 || ++next_.group != groups_) return;
    next_.group = 0;
    ++next_.panel;
    find_panel();
  }

  /// And for its activations, after await_previous().
  __device__ void ask_inputs(std::uint32_t slot, std::uint32_t rows)
    requires(!normed)
  {
    if (inputs_left_ == 0) return;
    --inputs_left_;
    const std::uint32_t matrix = lane_index() / 8, r = lane_index() % 8;
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < tiles; ++n) {
      if (n * 8 + r >= rows) continue;  // a column of the sums that nobody reads
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < group_matrices; i += 4) {
        copy_async(&ring_[slot].inputs[n][i + matrix][r],
                   inputs_ + narrow_row(0, n * 8) + narrow_column(i * 8), true);
      }
    }
    inputs_ += narrow_column(group);
    if (++inputs_at_ == groups_) {
      inputs_at_ = 0;
      inputs_ -= groups_ * narrow_column(group);
    }
  }

  /// Fills the ring: weights, then, once they can be read, activations.
  __device__ void begin() {
    inputs_left_ = next_.left;
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < depth; ++i) {
      ask_weights(i);
      commit_copies();
    }
  }
  __device__ void begin_inputs(std::uint32_t rows)
    requires(!normed)
  {
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < depth; ++i) {
      ask_inputs(i, rows);
      commit_copies();
    }
  }

  /// Adds up a panel's section.
  __device__ void multiply(TileSums (&sums)[tiles], std::uint32_t rows) {
    for (std::uint32_t q = 0; q < groups_; ++q) {
      wait_copies<depth - 1>();
      __syncwarp();  // what every lane copied is there
      const Slot& slot = ring_[slot_];
      typename P::Lane weights[Slot::units];
      TileB inputs[tiles][group / 16];
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < Slot::units; ++i) {
        weights[i] = P::read(slot.unit(i), lane_index());
      }
      SLUICE_UNROLL
      for (std::uint32_t n = 0; n < tiles; ++n) {
        SLUICE_UNROLL
        for (std::uint32_t i = 0; i < group_matrices; i += 4) {
          std::uint32_t words[4];
          load_matrices<false>(words, input_row(slot, q, n, i + lane_index() / 8));
          inputs[n][i / 2] = {{words[0], words[1]}};
          inputs[n][i / 2 + 1] = {{words[2], words[3]}};
        }
      }
      __syncwarp();  // and is done with
      ask_weights(slot_);
      if constexpr (!normed) ask_inputs(slot_, rows);
      commit_copies();
      if (++slot_ == depth) slot_ = 0;
      SLUICE_UNROLL
      for (std::uint32_t i = 0; i < Slot::units; ++i) {
        TileA some[unit_tiles];
        P::unpack(weights[i], some);
        SLUICE_UNROLL
        for (std::uint32_t s = 0; s < unit_tiles; ++s) {
          SLUICE_UNROLL
          for (std::uint32_t n = 0; n < tiles; ++n) {
            multiply_bf16(sums[n], some[s], inputs[n][i * unit_tiles + s]);
          }
        }
      }
    }
  }

 private:
  /// The first group of weights that is not yet asked for.
  struct Next {
    std::uint32_t left = 0;  ///< groups from here on
    std::uint32_t panel = 0, group = 0;
    Bytes from = nullptr;  ///< the lane's part
  };

  /// The lane's row of a matrix of the section's q-th group; of a row that is normed, every lane's.
  __device__ const uint4* input_row(const Slot& slot, std::uint32_t q, std::uint32_t n,
                                    std::uint32_t matrix) const {
    if constexpr (normed) {
      return row_ + begin_ / 8 + q * group_matrices + matrix;
    } else {
      return &slot.inputs[n][matrix][lane_index() % 8];
    }
  }

  __device__ void find_panel() {
    const Place at = place(next_.panel);
    next_.from = unit_at<P>(args_.product[at.product].weight, at.row, begin_) +
                 lane_index() * sizeof(uint4);
  }

  const LinearArgs& args_;
  Slot* ring_;
  const uint4* row_;
  std::uint32_t columns_, begin_, groups_, mine_;
  Next next_;
  std::uint32_t inputs_left_ = 0;  ///< groups whose activations are not yet asked for
  const std::uint16_t* inputs_;    ///< the lane's of the next group
  std::uint32_t inputs_at_ = 0, slot_ = 0;
};

template <class P, std::uint32_t tiles, bool with_gate, bool normed>
__global__ void __launch_bounds__(sections* warp_lanes, Room<P, tiles, with_gate, normed>::blocks)
    stream_kernel(NormedArgs normed_args) {
  start_next();
  constexpr std::uint32_t tokens = tiles * tile_inputs;
  static_assert(tokens * panel_rows <= sections * warp_lanes);
  const GatedArgs& gated_args = normed_args.products;
  const LinearArgs& args = gated_args.linear;
  SharedPieces shared;
  using Work = Streamer<P, tiles, with_gate, normed>;
  auto* rings = shared.take<typename Work::Slot>(sections * Work::depth);
  auto* sums_at = shared.take<float>(2 * sum_floats<tiles>);
  uint4* row_at = nullptr;
  if constexpr (normed) row_at = shared.take<uint4>(norm_kept_max / 8);
  Work streamer(args, rings + warp_index() * Work::depth, row_at);
  streamer.begin();
  if constexpr (normed) prefetch_gains(normed_args.norm);
  const std::uint32_t rows = least(row_count(args.step, args.space), tokens);
  await_previous();
  if constexpr (normed) {
    auto* scratch = shared.take<float>(norm_scratch_floats);
    norm_row<sections * warp_lanes>(
        normed_args.norm, scratch, blockIdx.x == 0 && rows > 0,
        [row_at](std::uint32_t i, const uint2& four) {
          reinterpret_cast<uint2*>(row_at)[i / 4] = four;
        });
    __syncthreads();
  } else {
    streamer.begin_inputs(rows);
  }
  const std::uint32_t width = section_columns(args.product[0].weight.cols);
  const std::uint32_t g = lane_index() / 4, t = lane_index() % 4;
  const std::uint32_t token = threadIdx.x / panel_rows, row = threadIdx.x % panel_rows;
  float first = 0.0F;  // of a gate's two
  for (std::uint32_t i = 0; i < streamer.panels(); ++i) {
    TileSums sums[tiles] = {};
    streamer.multiply(sums, rows);
    float* to = sums_at + i % 2 * sum_floats<tiles>;  // the other one is still read
    SLUICE_UNROLL
    for (std::uint32_t n = 0; n < tiles; ++n) {
      SLUICE_UNROLL
      for (std::uint32_t j = 0; j < 4; ++j) {
        const std::uint32_t of = n * tile_inputs + 2 * t + j % 2;
        to[(warp_index() * tokens + of) * sum_stride + g + j / 2 * 8] = sums[n].at[j];
      }
    }
    __syncthreads();
    if (token >= rows) continue;
    const float* from = to + token * sum_stride + row;
    float sum = 0.0F + *from;  // of -0 it is 0, as in linear_wide.cu
    for (std::uint32_t s = 1; s * width < args.product[0].weight.cols; ++s) {
      sum += from[s * tokens * sum_stride];
    }
    const Place place = streamer.place(i);
    const Product& product = args.product[place.product];
    const std::uint32_t o = place.row + row;
    if (o >= product.weight.rows) continue;
    if constexpr (with_gate) {
      const GateArgs& gate = gated_args.gate;
      const float value = scaled(product, o, sum);
      if (i % 2 == 0) {
        first = value;
      } else {
        put(gate.out, token, o, gated(gate, first, value));
      }
    } else {
      write_result(product, o, token, sum);
    }
  }
  wait_copies<0>();
}

template <class P, std::uint32_t tiles, bool with_gate, bool normed>
cudaError_t launch_stream(const NormedArgs& args, LaunchChain& chain) {
  const GatedArgs& products = args.products;
  const std::uint32_t panels = with_gate ? divide_up(products.gate.width, panel_rows)
                                         : count_blocks(products.linear, panel_rows);
  using Of = Room<P, tiles, with_gate, normed>;
  const std::uint32_t blocks = least(panels, products.linear.processors * Of::blocks);
  return launch(stream_kernel<P, tiles, with_gate, normed>, blocks, sections * warp_lanes,
                Of::asked_bytes, chain, args);
}

template <bool with_gate>
cudaError_t launch_any(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_packed(args.linear.product[0].weight, [&]<class P>(P) {
    const NormedArgs all{{}, args};
    return rows <= tile_inputs ? launch_stream<P, 1, with_gate, false>(all, chain)
                               : launch_stream<P, 2, with_gate, false>(all, chain);
  });
}

template <class P, std::uint32_t tiles, bool normed>
cudaError_t prepare() {
  const cudaError_t status = allow_shared(stream_kernel<P, tiles, false, normed>,
                                          Room<P, tiles, false, normed>::asked_bytes);
  if (status != cudaSuccess) return status;
  return allow_shared(stream_kernel<P, tiles, true, normed>,
                      Room<P, tiles, true, normed>::asked_bytes);
}

}  // namespace

cudaError_t prepare_stream(const DeviceWeight& weight) {
  return with_packed(weight, []<class P>(P) {
    cudaError_t status = prepare<P, 1, false>();
    if (status == cudaSuccess) status = prepare<P, 2, false>();
    return status != cudaSuccess ? status : prepare<P, 1, true>();
  });
}

cudaError_t linear_stream(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<false>({args, {}}, rows, chain);
}

cudaError_t linear_stream_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch_any<true>(args, rows, chain);
}

cudaError_t linear_normed(const NormedArgs& args, LaunchChain& chain) {
  return with_packed(args.products.linear.product[0].weight, [&]<class P>(P) {
    return args.gated() ? launch_stream<P, 1, true, true>(args, chain)
                      : launch_stream<P, 1, false, true>(args, chain);
  });
}

}  // namespace sluice::kernels::cuda
