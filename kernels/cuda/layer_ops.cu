// The row-wise operations of a layer: a block a row, or a thread an element.

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/step.cuh"
#include "kernels/cuda/unpack.cuh"
#include "kernels/cuda/wide.cuh"
#include "kernels/elementary.hpp"

namespace sluice::kernels::cuda {
namespace {

/// Copies a slot's tokens and parameters, and counts the tokens that penalties look at.
__global__ void open_kernel(const std::byte* step, SlotArrays slots) {
  take_turn();
  if (blockIdx.x >= header(step).opens) return;
  const StepOpen& open = part<StepOpen>(step, header(step).open_offset)[blockIdx.x];
  SlotState& state = slots.states[open.slot];
  if (threadIdx.x == 0) {
    state.open = open;
    state.token_count = open.token_count;
    state.failed = 0;
  }
  const std::size_t slot = open.slot;
  const Token* from = part<Token>(step, open.tokens);
  Token* to = slots.tokens + slot * slots.token_capacity;
  for (std::uint32_t i = threadIdx.x; i < open.token_count; i += blockDim.x) to[i] = from[i];
  const TokenBias* biases = part<TokenBias>(step, open.bias);
  for (std::uint32_t i = threadIdx.x; i < open.bias_count; i += blockDim.x) {
    slots.biases[slot * slots.list_capacity + i] = biases[i];
  }
  const Token* stops = part<Token>(step, open.stops);
  for (std::uint32_t i = threadIdx.x; i < open.stop_count; i += blockDim.x) {
    slots.stops[slot * slots.list_capacity + i] = stops[i];
  }
  const bool penalized = open.repetition != 1.0F || open.presence != 0.0F || open.frequency != 0.0F;
  if (!penalized) return;
  std::uint32_t* uses = slots.uses + slot * slots.vocabulary;
  for (std::uint32_t i = threadIdx.x; i < slots.vocabulary; i += blockDim.x) uses[i] = 0;
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < open.token_count; i += blockDim.x) {
    if (from[i] >= slots.vocabulary) continue;
    if (i < open.prompt_tokens) {
      atomicOr(&uses[from[i]], SlotArrays::in_prompt);
    } else {
      atomicAdd(&uses[from[i]], 1U);  // of integers: the same in any order
    }
  }
}

__global__ void grant_kernel(const std::byte* step, SlotArrays slots) {
  take_turn();
  if (blockIdx.x >= header(step).grants) return;
  const StepGrant& grant = part<StepGrant>(step, header(step).grant_offset)[blockIdx.x];
  const std::uint32_t* from = part<std::uint32_t>(step, grant.blocks);
  std::uint32_t* to =
      slots.blocks + std::size_t{grant.slot} * slots.block_capacity + grant.first_block;
  for (std::uint32_t i = threadIdx.x; i < grant.count; i += blockDim.x) to[i] = from[i];
}

/// The input of position p is the slot's token p, which the step before may just have drawn; 0
/// where the slot failed instead.
__device__ Token input_token(const SlotArrays& slots, const StepRow& row) {
  if (row.position >= slots.states[row.slot].token_count) return 0;
  return slots.tokens[std::size_t{row.slot} * slots.token_capacity + row.position];
}

/// A table of rows: elements column .. column + 7 of one.
template <class U>
struct TableRows {
  static __device__ void read(const DeviceWeight& table, std::uint32_t row, std::uint32_t column,
                              float w[8]) {
    unpack_eight<U>(table.data + row * table.stride, column, w);
  }
};

/// A packed one: they are what products take, and parts of four lanes.
template <class P>
struct TablePanels {
  static __device__ void read(const DeviceWeight& table, std::uint32_t row, std::uint32_t column,
                              float w[8]) {
    const LanePlace place{column % unit_columns / 8, row % panel_rows / 8};
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      TileA tiles[unit_tiles];
      P::unpack(P::read(unit_at<P>(table, row, column), row % 8 * 4 + i), tiles);
      std::uint32_t pair = 0;
      SLUICE_UNROLL
      for (std::uint32_t each = 0; each < unit_tiles * 4; ++each) {
        if (each == place.step() * 4 + place.pair()) pair = tiles[each / 4].pairs[each % 4];
      }
      w[2 * i] = widen_bf16(pair & 0xFFFFU);
      w[2 * i + 1] = widen_bf16(pair >> 16);
    }
  }
};

template <class Table>
__global__ void embed_kernel(EmbedArgs args) {
  take_turn();
  const std::uint32_t r = blockIdx.x;
  if (r >= header(args.step).rows) return;
  const Token drawn = input_token(args.slots, step_row(args.step, r));
  float* out = row_of(args.out, r);
  if (args.part && (drawn < args.first || drawn - args.first >= args.table.rows)) {
    for (std::uint32_t c = threadIdx.x; c < args.table.cols; c += blockDim.x) out[c] = 0.0F;
    return;
  }
  const Token token = least(drawn - args.first, args.table.rows - 1);
  for (std::uint32_t c = threadIdx.x * 8; c < args.table.cols; c += blockDim.x * 8) {
    float w[8];
    Table::read(args.table, token, c, w);
    SLUICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) {
      if (c + i < args.table.cols) out[c + i] = w[i] * args.scale;
    }
  }
}

template <bool whole>
__global__ void __launch_bounds__(norm_threads_max) norm_kernel(NormArgs args) {
  start_next();
  prefetch_gains(args);
  await_previous();
  const std::uint32_t r = blockIdx.x;
  const float* in = row_of(args.in, r);
  const std::uint32_t rows = row_count(args.step, args.space);  // comes while the row does
  const Quads row = read_quads(in, 0, args.width);
  const NormOperands operands(args, r, 0);
  const std::uint32_t turn = norm_quads * blockDim.x * 4;
  float squares = add_squares(row, 0, args.width, 0.0F);
  for (std::uint32_t i = turn; !whole && i < args.width; i += turn) {
    squares = add_squares(read_quads(in, i, args.width), i, args.width, squares);
  }
  squares = warp_sum(squares);
  if (r >= rows) return;
  const float scale = norm_scale(args, squares);
  put_normed(args, r, 0, row, operands, scale);
  for (std::uint32_t i = turn; !whole && i < args.width; i += turn) {
    put_normed(args, r, i, read_quads(in, i, args.width), NormOperands(args, r, i), scale);
  }
}

/// The angle is the float32 product of position and frequency, as transformers computes it; its
/// functions are exact.
__global__ void angles_kernel(AnglesArgs args) {
  take_turn();
  const std::uint32_t r = blockIdx.x;
  if (r >= header(args.step).rows) return;
  const auto position = static_cast<float>(step_row(args.step, r).position);
  float* out = row_of(args.out, r);
  for (std::uint32_t i = threadIdx.x; i < args.pairs; i += blockDim.x) {
    const SineCosine turn =
        sine_cosine(static_cast<double>(position * args.inverse_frequencies[i]));
    out[i] = static_cast<float>(turn.cosine) * args.magnitude;
    out[args.pairs + i] = static_cast<float>(turn.sine) * args.magnitude;
  }
}

/// Warps of a block that rotates, each with a head of a row: few, so that those of a decode step
/// are spread over many multiprocessors.
constexpr std::uint32_t rope_warps = 4;

/// Two elements of a head that are read and written together.
struct Pair {
  std::uint32_t left, right;
  bool adjacent;

  /// The i-th of a head: first those that turn, then what is left, in its order.
  __device__ Pair(std::uint32_t i, std::uint32_t turning, bool halves)
      : left(2 * i), right(2 * i + 1), adjacent(i >= turning || !halves) {
    if (adjacent) return;
    left = i;
    right = i + turning;
  }

  /// Two reads in any case: of one or two, the second kind would wait for the first.
  __device__ float2 of(const float* head) const { return {head[left], head[right]}; }
  __device__ void put(float* head, float2 values) const {
    if (adjacent) {
      *reinterpret_cast<float2*>(head + left) = values;
      return;
    }
    head[left] = values.x;
    head[right] = values.y;
  }
  __device__ void put(std::uint16_t* head, float2 values) const {
    const std::uint16_t x = narrow_f16(within_halves(values.x));
    const std::uint16_t y = narrow_f16(within_halves(values.y));
    if (adjacent) {
      *reinterpret_cast<std::uint32_t*>(head + left) = x | std::uint32_t{y} << 16;
      return;
    }
    head[left] = x;
    head[right] = y;
  }
  __device__ void put(std::uint8_t* head, float2 values) const {
    const std::uint16_t both = pack_e4m3(values.x, values.y);
    if (adjacent) {
      *reinterpret_cast<std::uint16_t*>(head + left) = both;
      return;
    }
    head[left] = static_cast<std::uint8_t>(both & 0xFFU);
    head[right] = static_cast<std::uint8_t>(both >> 8);
  }
};

/// Where a row's token keeps a key, or a value.
template <class Element>
__device__ Element* place_of(const RopeArgs& args, const StepRow& at, std::uint32_t kv_head,
                             bool value) {
  const std::uint32_t block = args.slots.blocks[std::size_t{at.slot} * args.slots.block_capacity +
                                                (at.position >> args.kv.block_shift)];
  const std::uint32_t token =
      (at.position & (args.kv.block_tokens - 1)) + (value ? args.kv.block_tokens : 0);
  return keys_of<Element>(args.kv, args.layer, block, kv_head) +
         std::size_t{token} * args.kv.head_stride;
}

/// A warp a head of a row: norms and rotates queries in place, and writes normed and rotated keys,
/// and values, to the pool. It looks up where they go before its turn, and asks for all pairs of a
/// lane, up to `count`, at once.
template <std::uint32_t count, class Element>
__global__ void __launch_bounds__(rope_warps* warp_lanes) rope_kernel(RopeArgs args) {
  start_next();
  const Heads& h = args.heads;
  const std::uint32_t item = blockIdx.x * rope_warps + warp_index(), r = blockIdx.y;
  const bool none = item >= h.heads + 2 * h.kv_heads || r >= header(args.step).rows;
  const bool stored = item >= h.heads, value = item >= h.heads + h.kv_heads;
  Element* to = nullptr;
  if (!none && stored) {
    const std::uint32_t kv_head = item - h.heads - (value ? h.kv_heads : 0);
    to = place_of<Element>(args, step_row(args.step, r), kv_head, value);
  }
  await_previous();
  if (none) return;
  const float* gain = value ? nullptr : stored ? args.k_gain : args.q_gain;
  const std::uint32_t turning = value ? 0 : args.pairs;
  float* head = row_of(args.qkv, r) + item * h.head_dim;
  const float* cosine = row_of(args.angles, r);
  const float* sine = cosine + args.pairs;
  const std::uint32_t last = h.head_dim / 2 - 1;
  float2 pairs[count], turns[count], gains[count];
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < count; ++k) {
    const std::uint32_t i = k * warp_lanes + lane_index();
    pairs[k] = Pair(least(i, last), turning, args.halves).of(head);
    turns[k] = {1.0F, 0.0F};
    if (i < turning) turns[k] = {cosine[i], sine[i]};
  }
  SLUICE_UNROLL
  for (std::uint32_t k = 0; gain != nullptr && k < count; ++k) {
    const std::uint32_t i = k * warp_lanes + lane_index();
    gains[k] = Pair(least(i, last), turning, args.halves).of(gain);
  }
  if (gain != nullptr) {
    float squares = 0.0F;
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < count; ++k) {
      if (k * warp_lanes + lane_index() > last) continue;
      squares = fma_f32(pairs[k].x, pairs[k].x, squares);
      squares = fma_f32(pairs[k].y, pairs[k].y, squares);
    }
    const float mean = warp_sum(squares) / static_cast<float>(h.head_dim);
    const float scale = 1.0F / sqrtf(mean + args.epsilon);
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < count; ++k) {
      pairs[k] = {pairs[k].x * scale * gains[k].x, pairs[k].y * scale * gains[k].y};
    }
  }
  SLUICE_UNROLL
  for (std::uint32_t k = 0; k < count; ++k) {
    const std::uint32_t i = k * warp_lanes + lane_index();
    if (i > last) continue;
    const float x = pairs[k].x, y = pairs[k].y, cos = turns[k].x, sin = turns[k].y;
    const float2 turned = i < turning ? float2{x * cos - y * sin, x * sin + y * cos} : pairs[k];
    const Pair pair(i, turning, args.halves);
    if (stored) {
      pair.put(to, turned);
    } else if (i < turning || gain != nullptr) {
      pair.put(head, turned);
    }
  }
  const std::uint32_t padding = h.head_dim + lane_index();  // takes part in 16-byte reads
  if (stored && padding < args.kv.head_stride) to[padding] = 0;
}

__global__ void gate_kernel(GateArgs args) {
  take_turn();
  const std::uint32_t r = blockIdx.y;
  const std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= row_count(args.step, args.space) || i >= args.width) return;
  const float* in = row_of(args.in, r);
  put(args.out, r, i, gated(args, in[i], in[args.width + i]));
}

__global__ void soft_cap_kernel(SoftCapArgs args) {
  take_turn();
  const std::uint32_t r = blockIdx.y;
  const std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= row_count(args.step, args.space) || i >= args.width) return;
  float& value = row_of(args.values, r)[i];
  value = tanh_f32(value * (1.0F / args.cap)) * args.cap;
}

/// Reads of sixteen bytes that a thread has under way together.
constexpr std::uint32_t select_reads = 4;

/// What fills a row's last four is zero in both.
__global__ void __launch_bounds__(row_threads) select_kernel(SelectArgs args) {
  take_turn();
  const std::uint32_t sampled = header(args.step).sampled;
  const auto* rows = part<std::uint32_t>(args.step, header(args.step).sampled_offset);
  __syncwarp();  // the compiler would read the second behind the return
  if (blockIdx.x >= sampled) return;
  const float* in = row_of(args.in, rows[blockIdx.x]);
  constexpr std::uint32_t step = 4 * row_threads;
  for (std::uint32_t i = threadIdx.x * 4; i < args.width; i += select_reads * step) {
    float4 some[select_reads];
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < select_reads; ++k) {
      if (i + k * step < args.width) some[k] = *reinterpret_cast<const float4*>(in + i + k * step);
    }
    SLUICE_UNROLL
    for (std::uint32_t k = 0; k < select_reads; ++k) {
      const std::uint32_t at = i + k * step;
      if (at >= args.width) continue;
      put_pair(args.out, blockIdx.x, at, {some[k].x, some[k].y});
      put_pair(args.out, blockIdx.x, at + 2, {some[k].z, some[k].w});
    }
  }
}

/// 1 + 2^-12 squared is 1 + 2^-11 + 2^-24, a tie that rounds to even: without contraction the
/// difference below is 0, with it 2^-24.
__global__ void probe_kernel(float* out) {
  take_turn();
  const float x = out[0];
  out[0] = x * x - (1.0F + 0x1p-11F);
  out[1] = waits_in_turn() ? code_waits : 1.0F - code_waits;
  out[2] = multiplies_wide() ? code_widens : 1.0F - code_widens;
}

/// 2^-12 times (1 + 2^-10) 2^-6 in column 0, 0 times 2^15 or 0 in column 1 or 15.
__global__ void probe_zeros_kernel(float* out) {
  take_turn();
  constexpr std::uint32_t weight = 0x0C00U, value = 0x2401U, large = 0x7800U;
  const std::uint32_t t = lane_index() % 4;
  for (std::uint32_t probe = 0; probe < probe_zeros_floats; ++probe) {
    const std::uint32_t other = probe % 2 == 1 ? large << 16 : 0U;
    TileA a{};
    TileB b{};
    if (t == 0) {
      a.pairs[0] = weight;
      b.pairs[0] = value | (probe < 2 ? other : 0U);
    }
    if (t == 3 && probe >= 2) b.pairs[1] = other;
    TileSums sums{};
    multiply_f16(sums, a, b);
    if (lane_index() == 0) out[probe] = sums.at[0];
  }
}

}  // namespace

cudaError_t open_slots(const std::byte* step, const SlotArrays& slots, std::uint32_t opens,
                       std::uint32_t grants, LaunchChain& chain) {
  cudaError_t status = cudaSuccess;
  if (opens > 0) status = launch(open_kernel, opens, row_threads, 0, chain, step, slots);
  if (status != cudaSuccess || grants == 0) return status;
  return launch(grant_kernel, grants, row_threads, 0, chain, step, slots);
}

cudaError_t embed(const EmbedArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const auto start = [&](auto kernel) { return launch(kernel, rows, row_threads, 0, chain, args); };
  if (args.table.scales != nullptr) return cudaErrorInvalidValue;
  if (args.table.packed) {
    return with_packed(args.table, [&]<class P>(P) { return start(embed_kernel<TablePanels<P>>); });
  }
  return with_unpack(args.table, [&]<class U>(U) {
    if constexpr (std::is_same_v<U, UnpackE4m3>) {
      return cudaErrorInvalidValue;
    } else {
      return start(embed_kernel<TableRows<U>>);
    }
  });
}

cudaError_t norm(const NormArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return with_norm_kernel(args.width, [&]<bool whole>() {
    return launch(norm_kernel<whole>, rows, norm_threads(args.width), norm_shared_bytes, chain,
                  args);
  });
}

cudaError_t angles(const AnglesArgs& args, std::uint32_t rows, LaunchChain& chain) {
  return launch(angles_kernel, rows, least(padded(args.pairs), row_threads), 0, chain, args);
}

cudaError_t rope_store(const RopeArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const std::uint32_t items = args.heads.heads + 2 * args.heads.kv_heads;
  const dim3 grid(divide_up(items, rope_warps), rows);
  const auto start = [&](auto kernel) {
    return launch(kernel, grid, rope_warps * warp_lanes, 0, chain, args);
  };
  static_assert(attention_width_max == 4 * 2 * warp_lanes);
  return with_element(args.kv.format, [&]<class Element>(Element) {
    if (args.heads.head_dim <= 2 * warp_lanes) return start(rope_kernel<1, Element>);
    if (args.heads.head_dim <= 4 * warp_lanes) return start(rope_kernel<2, Element>);
    return start(rope_kernel<4, Element>);
  });
}

cudaError_t gate(const GateArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const dim3 grid(divide_up(args.width, row_threads), rows);
  return launch(gate_kernel, grid, row_threads, 0, chain, args);
}

cudaError_t soft_cap(const SoftCapArgs& args, std::uint32_t rows, LaunchChain& chain) {
  const dim3 grid(divide_up(args.width, row_threads), rows);
  return launch(soft_cap_kernel, grid, row_threads, 0, chain, args);
}

cudaError_t select(const SelectArgs& args, std::uint32_t sampled, LaunchChain& chain) {
  return launch(select_kernel, sampled, row_threads, 0, chain, args);
}

cudaError_t probe_zeros(float* out, LaunchChain& chain) {
  return launch(probe_zeros_kernel, 1, warp_lanes, 0, chain, out);
}

cudaError_t probe_code(float* out, LaunchChain& chain) {
  return launch(probe_kernel, 1, 1, 0, chain, out);
}

}  // namespace sluice::kernels::cuda
