#pragma once
// What the host asks of the device: plain structs of pointers and sizes, and one function a kernel
// that puts it on a stream. Everything that differs from step to step is read on the device from
// the step's metadata, so that a recorded graph of these launches serves every step of its size.
//
// Arithmetic (design section 6.6): every result is float32, made by explicit fused multiply-adds,
// or by tensor cores, in an order that the shapes of weights and heads alone decide; no float is
// ever added atomically. The files are compiled without contraction (-fmad=false), as the CPU's
// are.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/chain.hpp"
#include "kernels/quant.hpp"
#include "kernels/token.hpp"

namespace sluice::kernels::cuda {

/// Activation rows are padded with zeros to a multiple of this, and so are weight rows, in whole 32
/// bytes, so that every read is whole and aligned.
inline constexpr std::uint32_t row_quantum = 128;

__host__ __device__ constexpr std::uint32_t padded(std::uint32_t width) {
  return (width + row_quantum - 1) / row_quantum * row_quantum;
}

/// Threads of a block that works on one row.
inline constexpr std::uint32_t row_threads = 256;

// Metadata of a step, as it lies in one piece of device memory: a StepHeader, then what it counts,
// each part 16-byte aligned, at the offsets it gives.

struct StepRow {
  std::uint32_t slot = 0;
  std::uint32_t position = 0;
};

/// Consecutive rows of one sequence that attend together.
struct RowGroup {
  std::uint32_t row = 0;
  std::uint32_t rows = 0;
  std::uint32_t slot = 0;
  std::uint32_t position = 0;  ///< of the first row
  std::uint32_t partials = 0;  ///< of a single row whose splits run apart: its first one's place
};

struct StepOpen {
  std::uint32_t slot = 0;
  std::uint32_t token_count = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t tokens = 0;  ///< offset
  float temperature = 1.0F;
  std::uint32_t top_k = 0;
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition = 1.0F;
  float presence = 0.0F;
  float frequency = 0.0F;
  std::uint32_t min_tokens = 0;
  std::uint64_t seed = 0;
  std::int32_t logprobs = -1;
  std::uint32_t bias_count = 0;
  std::uint32_t bias = 0;  ///< offset of TokenBias
  std::uint32_t stop_count = 0;
  std::uint32_t stops = 0;  ///< offset of Token
  std::uint32_t unused = 0;
};

struct TokenBias {
  Token token = 0;
  float bias = 0.0F;
};

struct StepGrant {
  std::uint32_t slot = 0;
  std::uint32_t first_block = 0;
  std::uint32_t count = 0;
  std::uint32_t blocks = 0;  ///< offset
};

/// A row to draw from the logits kept in its slot.
struct HeldRow {
  std::uint32_t slot = 0;
  std::uint32_t mask = 0;  ///< offset of the allowed tokens' bits, u64; 0: any
  std::uint32_t mask_words = 0;
  std::uint32_t unused = 0;
};

struct StepHeader {
  std::uint32_t rows = 0;
  std::uint32_t sampled = 0;
  std::uint32_t groups = 0;
  std::uint32_t single_groups = 0;  ///< of which the first have one row
  std::uint32_t opens = 0;
  std::uint32_t grants = 0;
  std::uint32_t held = 0;
  std::uint32_t row_offset = 0;      ///< StepRow[rows]
  std::uint32_t sampled_offset = 0;  ///< u32[sampled]: rows
  std::uint32_t group_offset = 0;    ///< RowGroup[groups]
  std::uint32_t open_offset = 0;     ///< StepOpen[opens]
  std::uint32_t grant_offset = 0;    ///< StepGrant[grants]
  std::uint32_t held_offset = 0;     ///< HeldRow[held]
};

/// Of a row space: the rows of the batch, or those of its sampled segments.
enum class Space : std::uint32_t { batch, sampled };

/// What a slot keeps on the device.
struct SlotState {
  StepOpen open;  ///< as opened; its offsets do not count here
  std::uint32_t token_count = 0;
  std::uint32_t failed = 0;  ///< a DrawStatus; the slot yields nothing more
};

enum class DrawStatus : std::uint32_t {
  drawn = 0,
  none_allowed = 1,  ///< the mask, bias or minimum length rule out all
  all_nan = 2,
  misplaced = 3,  ///< a bug: the row is not the sequence's last
};

struct SlotArrays {
  SlotState* states = nullptr;      ///< [slots]
  Token* tokens = nullptr;          ///< [slots, token_capacity]
  std::uint32_t* blocks = nullptr;  ///< [slots, block_capacity]
  TokenBias* biases = nullptr;      ///< [slots, list_capacity]
  Token* stops = nullptr;           ///< [slots, list_capacity]
  std::uint32_t* uses = nullptr;    ///< [slots, vocabulary]: see `in_prompt`
  float* held = nullptr;            ///< [slots, vocabulary]
  std::uint32_t token_capacity = 0;
  std::uint32_t block_capacity = 0;
  std::uint32_t list_capacity = 0;
  std::uint32_t vocabulary = 0;

  static constexpr std::uint32_t in_prompt = 0x80000000U;  ///< flag above the output count
};

/// Keys and values: [layer][block][kv_head][keys | values][block_tokens][head_stride].
struct KvArrays {
  std::byte* data = nullptr;
  KvFormat format = KvFormat::f16;
  std::uint32_t blocks = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t block_shift = 0;  ///< block_tokens = 1 << block_shift
  std::uint32_t head_stride = 0;  ///< elements: head_dim in whole 16 bytes, as they are read
  std::size_t block_stride = 0;   ///< elements of a block, of one layer
};

/// Rows of a packed weight that lie together.
inline constexpr std::uint32_t panel_rows = 16;

/// A weight on the device: rows of `stride` bytes, a multiple of 32; or packed (packed.cuh).
struct DeviceWeight {
  const std::uint8_t* data = nullptr;
  std::uint64_t stride = 0;  ///< packed: of a panel
  std::uint32_t rows = 0;
  std::uint32_t cols = 0;
  Format format = Format::f32;  ///< the file's
  /// Of rows that were narrowed to e4m3 when they were loaded: [rows].
  const float* scales = nullptr;
  bool packed = false;
};

/// Whether products with it read activations, and it, as bf16.
inline bool takes_narrow(const DeviceWeight& weight) {
  return weight.scales != nullptr || weight.format != Format::f32;
}

/// Activations [rows, stride]
struct Rows {
  float* data = nullptr;
  std::uint32_t stride = 0;
  std::uint16_t* narrow = nullptr;  ///< the same in bf16, where products read them: see narrow_at
};

/// Rows that lie together in Rows::narrow: there is room for whole ones.
inline constexpr std::uint32_t narrow_rows = 128;

/// Where element i of row r lies in Rows::narrow, in two parts to be added. Eight elements of eight
/// rows are one matrix of tensor cores, 128 bytes; of 64 columns and eight rows those lie one
/// behind the other, of 64 columns and 128 rows the 16 KiB of such, which one copy brings to shared
/// memory.
__host__ __device__ constexpr std::size_t narrow_row(std::uint32_t stride, std::uint32_t r) {
  return std::size_t{r / narrow_rows} * stride * narrow_rows + r % narrow_rows / 8 * 512 +
         r % 8 * 8;
}
__host__ __device__ constexpr std::size_t narrow_column(std::uint32_t i) {
  return std::size_t{i / 64} * (64 * narrow_rows) + i % 64 / 8 * 64 + i % 8;
}

/// Elements of Rows::narrow for so many rows.
__host__ __device__ constexpr std::size_t narrow_room(std::uint32_t stride, std::uint32_t rows) {
  return std::size_t{rows + narrow_rows - 1} / narrow_rows * narrow_rows * stride;
}
__host__ __device__ constexpr std::size_t narrow_at(std::uint32_t stride, std::uint32_t r,
                                                    std::uint32_t i) {
  return narrow_row(stride, r) + narrow_column(i);
}

/// Narrows `in` to e4m3: each row is divided by a 448th of its largest magnitude, so that this
/// becomes the largest that there is, and rounded; `scales` are what to multiply it with again.
struct NarrowWeightArgs {
  DeviceWeight in;
  DeviceWeight out;  ///< with scales; `data` is written
};

/// Packs rows of any format but float32.
struct PackArgs {
  DeviceWeight in, out;
};

/// Makes rows.narrow of rows.data.
struct NarrowArgs {
  const std::byte* step = nullptr;
  Space space = Space::batch;
  Rows rows;
  std::uint32_t width = 0;
};

struct EmbedArgs {
  const std::byte* step = nullptr;
  SlotArrays slots;
  DeviceWeight table;
  float scale = 1.0F;
  Rows out;
  bool part = false;        ///< of the vocabulary; other tokens' rows become zeros
  std::uint32_t first = 0;  ///< token of the table's first row
};

struct NormArgs {
  const std::byte* step = nullptr;
  Space space = Space::batch;
  Rows in, out;
  const float* gain = nullptr;
  std::uint32_t width = 0;
  float epsilon = 0.0F;
  bool accumulate = false;
};

/// A norm of rows that are first added up: what every rank has of them, as it was gathered.
struct AddNormArgs {
  NormArgs norm;               ///< `in` becomes the sums
  const float* all = nullptr;  ///< [ranks, floats]; a rank's rows lie as those of norm.in
  std::uint32_t ranks = 1;
  std::size_t floats = 0;  ///< of each rank
};

struct Product {
  DeviceWeight weight;
  const float* bias = nullptr;  ///< [weight.rows] or none
  Rows out;                     ///< starts at the product's first column
  bool accumulate = false;
};

inline constexpr std::uint32_t products_max = 3;

/// Products of one input that run side by side, all of one format. Float32 weights take in.data,
/// others, rounded to bf16, in.narrow.
struct LinearArgs {
  const std::byte* step = nullptr;
  Space space = Space::batch;
  Rows in;
  Product product[products_max];
  std::uint32_t count = 0;
  std::uint32_t processors = 1;  ///< multiprocessors of the device
  std::uint32_t clustered = 1;   ///< of them, those that clusters of four blocks fill
};

struct AnglesArgs {
  const std::byte* step = nullptr;
  const float* inverse_frequencies = nullptr;
  std::uint32_t pairs = 0;
  float magnitude = 1.0F;
  Rows out;  ///< cosines, then sines: [2, pairs]
};

struct Heads {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
};

struct RopeArgs {
  const std::byte* step = nullptr;
  SlotArrays slots;
  KvArrays kv;
  Rows qkv, angles;
  Heads heads;
  std::uint32_t layer = 0;
  std::uint32_t pairs = 0;
  bool halves = false;  ///< (i, i + pairs) instead of (2i, 2i + 1)
  const float* q_gain = nullptr;  ///< of the heads' norms, [head_dim], or none
  const float* k_gain = nullptr;
  float epsilon = 0.0F;
};

/// Positions of a tile of keys and values.
inline constexpr std::uint32_t tile_tokens = 64;

/// Most tiles of a split: a warp of its block takes one.
inline constexpr std::uint32_t split_tiles_max = 4;

/// Most rows of a group: with one head to a key head, they fill a block of attention().
inline constexpr std::uint32_t group_rows = 128;

/// Most elements of a head.
inline constexpr std::uint32_t attention_width_max = 256;

struct AttentionArgs {
  const std::byte* step = nullptr;
  SlotArrays slots;
  KvArrays kv;
  Rows qkv, out;
  Heads heads;
  std::uint32_t layer = 0;
  float scale = 0.0F;
  std::uint32_t window = 0;
  float soft_cap = 0.0F;             ///< 0: none
  std::uint32_t split_tokens = 0;    ///< whole tiles, at most split_tiles_max
  float* partials = nullptr;         ///< of attention_splits: [splits, heads, 2 + head_dim]
  std::uint32_t* arrived = nullptr;  ///< its blocks that have written some: [groups, heads], or 0
  std::uint32_t first_group = 0;     ///< of attention(): those before it are attention_splits' own
  bool wide = false;                 ///< whether attention() may use wide.cuh's products
  std::uint32_t processors = 1;      ///< multiprocessors of the device
};

struct GateArgs {
  const std::byte* step = nullptr;
  Space space = Space::batch;
  Rows in, out;
  std::uint32_t width = 0;
  bool gelu = false;
};

/// Two products side by side, a Gate's input in its order, and the Gate. For few rows, and for
/// packed weights, they are one kernel, and gate.in is not written.
struct GatedArgs {
  LinearArgs linear;
  GateArgs gate;
};

/// Widest row whose norm a block keeps.
inline constexpr std::uint32_t norm_kept_max = 8192;

/// A norm, and packed products that take what it gives, whose results lie elsewhere than its input.
struct NormedArgs {
  NormArgs norm;  ///< of norm_kept_max columns at most, and adding to nothing
  GatedArgs products;

  bool gated() const { return products.gate.width > 0; }
};

struct SoftCapArgs {
  const std::byte* step = nullptr;
  Space space = Space::batch;
  Rows values;
  std::uint32_t width = 0;
  float cap = 0.0F;
};

/// Columns that ranks computed, as they were gathered, to their places in rows of all.
struct SpreadArgs {
  const float* all = nullptr;  ///< [ranks, rows, widest]
  Rows out;
  std::uint32_t width = 0;   ///< of the whole
  std::uint32_t widest = 0;  ///< columns of the rank that has most
  std::uint32_t ranks = 1;
};

struct SelectArgs {
  const std::byte* step = nullptr;
  Rows in, out;
  std::uint32_t width = 0;
};

struct Logprob {
  Token token = 0;
  float logprob = 0.0F;
};

/// Most alternatives that a row lists beside its own token.
inline constexpr std::uint32_t logprobs_max = 64;

struct DrawnRow {
  DrawStatus status = DrawStatus::drawn;
  Token token = 0;
  std::uint32_t logprob_count = 0;
  std::uint32_t unused = 0;
  Logprob logprobs[logprobs_max + 1];
};

struct SampleArgs {
  const std::byte* step = nullptr;
  SlotArrays slots;
  Rows logits;                ///< of the sampled rows
  float* adjusted = nullptr;  ///< [sampled, vocabulary]
  DrawnRow* drawn = nullptr;  ///< [sampled]
};

/// What a rank tells of a sampled row first: the best of its own tokens.
struct RankPeak {
  float value = 0.0F;
  Token token = 0;
  std::uint32_t numbers = 0;  ///< whether any of the model's logits is not NaN
  std::uint32_t unused = 0;
};

/// And next, once all know the row's peak.
struct RankTally {
  float worth = 0.0F;  ///< z and noise of the token of its own that wins the race among them
  Token token = 0;
  float logit = 0.0F;  ///< the winner's
  std::uint32_t unused = 0;
  std::uint64_t mass = 0;  ///< of adjusted logits below the peak, for log-probabilities
};

/// A rank's part of drawing rows whose logits are cut over ranks.
struct CandidateArgs {
  const std::byte* step = nullptr;
  SlotArrays slots;
  Rows logits;      ///< of its own tokens, of the sampled rows
  Token first = 0;  ///< of its tokens
  std::uint32_t count = 0;
  std::uint32_t ranks = 1;
  float* adjusted = nullptr;           ///< [sampled, vocabulary], of which each row begins
  DrawnRow* drawn = nullptr;           ///< [sampled]
  RankPeak* own_peaks = nullptr;       ///< [launched rows]
  RankPeak* peaks = nullptr;           ///< [ranks, launched rows]
  RankTally* own_tallies = nullptr;    ///< as those
  RankTally* tallies = nullptr;
  bool tallied = true;  ///< false: no row needs more than its peak
};

// Each puts a kernel on the chain's stream and returns at once. The counts bound the rows that the
// step's header has: a launch may be larger than its step.

cudaError_t open_slots(const std::byte* step, const SlotArrays& slots, std::uint32_t opens,
                       std::uint32_t grants, LaunchChain& chain);
cudaError_t embed(const EmbedArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t norm(const NormArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t linear(const LinearArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t narrow(const NarrowArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t narrow_weight(const NarrowWeightArgs& args, LaunchChain& chain);
cudaError_t pack_weight(const PackArgs& args, LaunchChain& chain);

/// Bytes of a panel of such a weight once it is packed.
std::uint64_t packed_stride(const DeviceWeight& weight);

cudaError_t angles(const AnglesArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t rope_store(const RopeArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t gate(const GateArgs& args, std::uint32_t rows, LaunchChain& chain);

/// The bits of norm() and linear(), or linear_gated(), of one row; norm.out is written, too.
cudaError_t linear_normed(const NormedArgs& args, LaunchChain& chain);

/// The bits of linear() and gate(). Not of float32 weights.
cudaError_t linear_gated(const GatedArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t soft_cap(const SoftCapArgs& args, std::uint32_t rows, LaunchChain& chain);
cudaError_t select(const SelectArgs& args, std::uint32_t sampled, LaunchChain& chain);

/// out[i] = ((all[0][i] + all[1][i]) + all[2][i]) + ...; `floats` of each rank, a multiple of 4.
cudaError_t add_ranks(const float* all, std::uint32_t ranks, std::size_t floats, float* out,
                      LaunchChain& chain);
cudaError_t spread(const SpreadArgs& args, std::uint32_t rows, LaunchChain& chain);

/// add_ranks, then norm, to the bit.
cudaError_t add_norm(const AddNormArgs& args, std::uint32_t rows, LaunchChain& chain);

/// Once for each format of weights, before their products: reserves shared memory.
cudaError_t prepare_linear(const DeviceWeight& weight);

/// LinearArgs::clustered of a device that takes packed weights; `processors` if it does not tell.
std::uint32_t count_clustered(std::uint32_t processors);

/// Once for each shape of heads, before the two below: reserves their shared memory.
cudaError_t prepare_attention(const AttentionArgs& args);

/// Groups from `first_group` on, each whole: for many rows of a sequence.
cudaError_t attention(const AttentionArgs& args, std::uint32_t groups, LaunchChain& chain);

/// The same result to the bit, for the single-row groups, with a block for every split.
cudaError_t attention_splits(const AttentionArgs& args, std::uint32_t groups, std::uint32_t splits,
                             LaunchChain& chain);

/// Draws every sampled row's token, or keeps its logits in the slot.
cudaError_t sample(const SampleArgs& args, std::uint32_t sampled, LaunchChain& chain);
cudaError_t hold(const SampleArgs& args, std::uint32_t sampled, LaunchChain& chain);

/// Draws every sampled row's token as sample() does, in three parts: after the first two, ranks
/// gather what they tell. All three are launched for as many rows. Not for rows that top-k or top-p
/// cuts, or with log-probabilities of more than the token itself.
cudaError_t find_peaks(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain);
cudaError_t tally(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain);
cudaError_t settle(const CandidateArgs& args, std::uint32_t sampled, LaunchChain& chain);

/// Draws from kept logits, for the header's `held` rows.
cudaError_t sample_held(const SampleArgs& args, std::uint32_t held, LaunchChain& chain);

/// Adds the 32-bit words of `count` times 16 bytes to *sum, modulo 2^32.
cudaError_t add_words(const uint4* words, std::size_t count, std::uint32_t* sum,
                      std::uint32_t blocks, LaunchChain& chain);

/// Makes of out[0], 1 + 2^-12, a value that tells whether the compiler contracted multiplication
/// and addition; writes to out[1] whether it was compiled with the waits of chain.hpp, and to
/// out[2] whether with wide.cuh's products.
cudaError_t probe_code(float* out, LaunchChain& chain);
inline constexpr std::uint32_t probe_floats = 3;

/// What probe_code writes when it did not, and when it was.
inline constexpr float uncontracted = 0.0F;
inline constexpr float code_waits = 1.0F;
inline constexpr float code_widens = 1.0F;

/// Writes to out[0] and out[2] what a tensor core makes of one small product beside zeros, the
/// first and the last of a step; to out[1] and out[3] the same beside 0 times something large.
/// Attention's bits depend on the rows of a block alone if these agree.
cudaError_t probe_zeros(float* out, LaunchChain& chain);
inline constexpr std::uint32_t probe_zeros_floats = 4;

}  // namespace sluice::kernels::cuda
