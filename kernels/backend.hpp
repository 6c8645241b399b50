#pragma once
// The only thing a decoder calls (design section 6.8): load weights, record one program of fused
// operations, then run a step with one call. Everything that varies from step to step is in the
// Batch. A backend may fuse what it records; it owns its streams and threads, and nobody sees them.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kernels/batch.hpp"
#include "kernels/communicator.hpp"
#include "kernels/core.hpp"
#include "kernels/file_source.hpp"
#include "kernels/quant.hpp"

namespace sluice::kernels {

/// A matrix in host memory: `rows` x `cols`, row-major, each row in blocks of `format`.
/// A vector has one row. The memory must outlive the backend, which may read it in place.
struct HostTensor {
  Format format = Format::f32;
  std::uint32_t rows = 0;
  std::uint32_t cols = 0;
  std::span<const std::byte> data;
  FileSource source{};  ///< of `data`, where a backend with a copy of its own may read it
  /// To be kept as 8-bit floats (e4m3) with a scale for each row, which halves what a product with
  /// bf16 weights reads. Its products alone can use it.
  bool as_e4m3 = false;
  /// Bytes from a row's beginning to the next's, where some columns of a wider matrix are meant;
  /// `data` ends with the last row's own bytes. 0: the rows lie end to end.
  std::size_t row_stride = 0;
};

/// A weight on the device.
struct Weight {
  std::uint32_t index = 0;
};

/// Which rows a buffer has: one a batch row, or one a sampled segment.
enum class RowSpace : std::uint8_t { batch, sampled };

/// An activation buffer of a program: float32, `width` elements a row.
struct Buffer {
  std::uint32_t index = 0;
};

struct BufferShape {
  RowSpace rows = RowSpace::batch;
  std::uint32_t width = 0;
};

// The fused operations. R is the number of rows of the row space at hand.

/// out[r] = table[token of row r] * scale                                  out: [R, width]
struct Embed {
  Weight table;
  Buffer out;
  float scale = 1.0F;
  /// The table is a rank's part, from this token on; rows of other tokens become zeros.
  std::optional<Token> first_token = std::nullopt;
};

/// out[r] (+)= in[r] / sqrt(mean(in[r]^2) + epsilon) * gain                out, in: [R, width]
struct Norm {
  Buffer in;
  Weight gain;
  float epsilon = 1e-5F;
  Buffer out;
  bool accumulate = false;  ///< adds to what is there: a norm before the residual connection
};

/// out[r][out_column + o] (+)= dot(weight[o], in[r]) + bias[o]             weight: [O, in width]
struct Linear {
  Buffer in;
  Weight weight;
  std::optional<Weight> bias;
  Buffer out;
  std::uint32_t out_column = 0;
  bool accumulate = false;  ///< adds to what is there: the residual connection
  /// Its input is not rounded to bf16 where only bf16 weights ask for that (`bf16_inputs`): for
  /// logits, in which a last rounding shows most.
  bool float_input = false;
};

enum class RopePairs : std::uint8_t {
  adjacent,  ///< (2i, 2i+1), as GGUF's llama permutation expects
  halves,    ///< (i, i + dim/2), as Hugging Face stores it
};

/// Shape of a layer's attention inputs: a row of `qkv` is [heads | kv_heads | kv_heads] x head_dim.
struct HeadShape {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
};

/// A Norm of each query and key head by itself, with a gain for all query heads and one for all key
/// heads: f32 [1, head_dim].
struct HeadNorms {
  Weight q;
  Weight k;
  float epsilon = 1e-6F;
};

/// Rotates q in place, and writes rotated k and v to the pool at the rows' own positions. With
/// `norms`, heads of q and k are normed before they turn; the row's own k stays as it was.
struct RopeStore {
  Buffer qkv;
  HeadShape shape;
  std::uint32_t layer = 0;
  Weight inverse_frequencies;  ///< f32 [1, rotated_dim / 2]; rotated_dim <= head_dim
  RopePairs pairs = RopePairs::adjacent;
  float magnitude = 1.0F;      ///< multiplies cos and sin (YaRN's attention factor)
  std::optional<HeadNorms> norms = std::nullopt;
};

/// out[r][h] = softmax(cap(scale * q[h] . K[kv(h)])) V[kv(h)] over positions 0..p(r), in their
/// order; cap(x) = soft_cap * tanh(x / soft_cap)
struct Attention {
  Buffer qkv;
  HeadShape shape;
  std::uint32_t layer = 0;
  float scale = 0.0F;
  std::uint32_t window = 0;  ///< last positions seen, own included; 0: all
  Buffer out;                ///< [R, heads * head_dim]
  float soft_cap = 0.0F;     ///< 0: none
};

enum class Activation : std::uint8_t { silu, gelu_tanh };

/// out[r][i] = activation(in[r][i]) * in[r][width + i]                     in: [R, 2 * width]
struct Gate {
  Buffer in;
  Activation activation = Activation::silu;
  Buffer out;
};

/// values[r] = cap * tanh(values[r] / cap)                                 values: [R, width]
struct SoftCap {
  Buffer values;
  float cap = 0.0F;  ///< > 0
};

/// values[r] = the sum of all ranks' values[r], in rank order              values: [R, width]
struct AllReduce {
  Buffer values;
};

/// out[r] = all ranks' in[r], side by side in rank order                   out: [R, width],
///                                                      in: [R, shard_count(width, own shard)]
/// Where `Sample` follows and reads `out`, rows of a step that samples now may be left out: ranks
/// need not see all of a row's logits to draw what it gives.
struct AllGather {
  Buffer in;
  Buffer out;
};

/// out: the last row of each sampled segment, in segment order             in: batch, out: sampled
struct Select {
  Buffer in;
  Buffer out;
};

/// Draws each sampled row's token by its slot's parameters, appends it to the slot's tokens and
/// reports it. Rows of `logits` are kept in their slot when the batch does not sample now.
struct Sample {
  Buffer logits;  ///< sampled, [R, vocabulary]
};

using Op = std::variant<Embed, Norm, Linear, RopeStore, Attention, Gate, SoftCap, AllReduce,
                        AllGather, Select, Sample>;

/// One forward pass, recorded once per model. `Sample`, if present, is last.
struct StepProgram {
  std::vector<BufferShape> buffers;
  std::vector<Op> ops;
};

struct ProgramId {
  std::uint32_t index = 0;
};

/// Sizes fixed for a backend's life.
struct PoolShape {
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t blocks = 0;
  std::uint32_t block_tokens = 16;   ///< a power of two
  std::uint32_t slots = 0;
  std::uint32_t context_tokens = 0;  ///< longest sequence a slot can hold
  std::uint32_t rows_max = 0;        ///< most rows in a batch
  std::uint32_t vocabulary = 0;
  KvFormat kv_format = KvFormat::f16;
};

/// Bytes of KV pool a block takes on this project's backends: keys and values. 8-bit ones of a
/// position are filled up to sixteens, as they are copied.
constexpr std::size_t kv_block_bytes(const PoolShape& shape) {
  const std::uint32_t elements = shape.kv_format == KvFormat::e4m3
                                     ? (shape.head_dim + 15) / 16 * 16
                                     : shape.head_dim;
  return std::size_t{2} * element_bytes(shape.kv_format) * shape.layers * shape.kv_heads *
         elements * shape.block_tokens;
}

struct DeviceInfo {
  std::string backend;       ///< "cpu", "cuda"
  std::string device;        ///< "AMD EPYC, AVX3, 2 threads"
  std::string arithmetic;    ///< part of the numerics id: whatever may change a result's bits
  bool paths_equal = false;  ///< prompt and decode arithmetic agree to the bit
  /// Products with quantized weights round their input to int8, so many columns to a step; 0: not.
  /// Twice as many share one, which either half halves as often as its values allow.
  std::uint32_t int8_block_columns = 0;
  /// Products round their input and weights to bf16, but for float32 weights.
  bool bf16_products = false;
  /// Weights are kept as bf16 but for float32, tables too; of quantized ones scales, and offsets of
  /// the middle code, are rounded to it first (kernels/cuda/packed.cuh).
  bool bf16_weights = false;
  /// Products with bf16 weights round their input to bf16, but for `float_input`, and take
  /// denormals for zeros.
  bool bf16_inputs = false;
  /// Where a program has products with quantized weights, whose input is rounded more than that,
  /// attention rounds queries (multiplied by its scale, and by log2(e)
  /// unless scores are capped), keys, values and their weights to bf16; if heads' elements and
  /// blocks' tokens are multiples of 16.
  bool bf16_attention = false;
  /// Attention rounds queries to f16, multiplied by its scale and log2(e), or by scale / soft_cap.
  bool half_queries = false;
  std::uint32_t threads = 0;
  /// submit() and sample() take a few microseconds: a thread of the backend's own does the rest.
  bool queues_steps = false;
  /// Rows of a prompt that a step takes at least, where others decode: fewer would cost it hardly
  /// less.
  std::uint32_t prompt_rows_min = 4;
  std::size_t memory_free_bytes = 0;
  /// Weights are copied to memory that nothing else is meant to use: the KV pool may have the rest.
  bool dedicated_memory = false;
  std::string collectives;  ///< how this rank reaches the others; empty: in no group
};

/// Called once per ticket, in ticket order, on a thread of the backend's; must not block.
using Completion = std::function<void(StepResult&&)>;

/// A device that runs programs. Calls come one at a time; no call waits for the device except
/// `record`, `allocate`, `read` and the destructor, which finishes what is submitted.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const DeviceInfo& device() const = 0;

  /// Makes a weight usable by programs. `out_of_memory`, or `unsupported` for a format, or for
  /// `as_e4m3` where the backend has no such products.
  virtual Result<Weight> load(const HostTensor& tensor) = 0;

  /// Allocates KV pool and slots; once, before `record`. `out_of_memory` with the sizes, or
  /// `unsupported` for a `kv_format` that the backend does not have.
  virtual Result<void> allocate(const PoolShape& shape) = 0;

  /// Makes this backend a rank of a group, for programs with collectives: before they are recorded,
  /// and again after a step failed. All slots are closed then, as before the first step; steps that
  /// wait for masks fail. `bad_request` for another rank or size than programs were recorded for,
  /// `unsupported` where the backend has no collectives.
  ///
  /// When a collective fails, so does its step, with the communicator's error, and so does every
  /// step after it until the backend joins a new group.
  virtual Result<void> join(std::shared_ptr<Communicator> group) {
    return fail(ErrorCode::unsupported, "the {} backend cannot be one of {} ranks: use cpu",
                device().backend, group->shard().size);
  }

  /// Checks every shape in the program, plans its memory. `bad_request` names the operation.
  virtual Result<ProgramId> record(const StepProgram& program) = 0;

  /// Queues one step; steps run in order. The caller keeps the batch valid by construction: a slot
  /// or block that is out of range is an assertion, for only the scheduler makes batches.
  virtual void submit(ProgramId program, Ticket ticket, Batch batch) = 0;

  /// Second half of a step submitted with `sample_now == false`; the ticket's completion comes
  /// after this. Rows without a mask sit out, their logits kept in the slot for a later call, whose
  /// result then names them after the slots of its own batch.
  virtual void sample(Ticket ticket, std::vector<Mask> masks) = 0;

  /// Bytes a second that the device reads from its memory, going over `bytes` of it: the limit of a
  /// step that reads so many. Best of several passes; waits, and takes memory of that size for as
  /// long. `out_of_memory`.
  virtual Result<double> read_bandwidth(std::size_t bytes) = 0;

  /// Copies the first out.size() floats of a buffer as the last step left it. For tests: waits.
  /// `unsupported` for a buffer that is not kept, since the operations around it were fused.
  virtual Result<void> read(ProgramId program, Buffer buffer, std::span<float> out) = 0;
};

}  // namespace sluice::kernels
