#pragma once
// A recorded program, checked and resolved to launches.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "kernels/communicator.hpp"
#include "kernels/cuda/collectives.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/program.hpp"

namespace sluice::kernels::cuda {

/// A weight on the device, and where it came from: vectors are read there when a program is made.
struct LoadedWeight {
  WeightShape shape;
  DeviceWeight device;
  HostTensor host;
};

/// What programs share, in device memory.
struct DeviceState {
  const std::byte* step = nullptr;  ///< metadata of the running step
  SlotArrays slots;
  KvArrays kv;
  float* adjusted = nullptr;  ///< [sampled, vocabulary]
  DrawnRow* drawn = nullptr;  ///< [sampled]
  std::uint32_t split_tokens = 0;
  std::uint32_t splits_max = 0;  ///< of a step's single rows, that there is room for
  std::uint32_t processors = 1;  ///< multiprocessors of the device
  std::uint32_t clustered = 1;   ///< LinearArgs::clustered
  bool fuse_gates = true;        ///< with the products before them
  bool fuse_norms = true;        ///< with the products behind them, of a single row
  bool wide_attention = false;   ///< of many rows, by wide.cuh's products
};

/// How a step draws: the first of these that any of its rows needs.
enum class Draw : std::uint8_t {
  hold,        ///< rows wait for masks
  whole,       ///< from whole rows of logits
  candidates,  ///< on ranks: from what each tells of its own tokens, twice (candidates.cu)
  peaks,       ///< likewise, but once, for the highest logit decides
};

/// Sizes of a step's launches, and which they are.
struct StepCounts {
  std::uint32_t rows = 0;
  std::uint32_t sampled = 0;
  std::uint32_t groups = 0;
  std::uint32_t single_groups = 0;  ///< of one row each; the first ones
  std::uint32_t splits = 0;         ///< of the longest of these
  Draw draw = Draw::whole;
};

/// Rows that the ranks add up.
struct ReduceRows {
  Space space = Space::batch;
  Rows values;
};

/// The same, and their norm.
struct ReduceNorm {
  ReduceRows sum;
  NormArgs norm;
  std::uint32_t ranks = 1;
};

/// Columns that each rank has a part of, `rows_each` rows at a time.
struct GatherRows {
  Space space = Space::sampled;
  Rows in;
  std::uint32_t own_width = 0;
  SpreadArgs spread;
  std::uint32_t rows_each = 1;
  float* own = nullptr;  ///< [rows_each, widest]
  float* all = nullptr;  ///< [ranks, rows_each, widest]
};

/// Logits that each rank has a part of, to tokens.
struct DrawApart {
  GatherRows gather;
  SampleArgs sample;
  CandidateArgs candidates;
};

class Program {
 public:
  /// For a rank, if there is one. `bad_request` names the operation that does not fit;
  /// `out_of_memory` for the activations.
  static Result<Program> compile(const StepProgram& steps, std::span<const LoadedWeight> weights,
                                 const PoolShape& pool, const std::optional<Shard>& shard,
                                 const DeviceState& state, cudaStream_t stream);

  /// Puts a step's launches on the chain; its metadata must be on its way before. A program with
  /// collectives needs the group of the shard that it was compiled for.
  Result<void> enqueue(const StepCounts& counts, DeviceGroup* group, LaunchChain& chain) const;

  std::span<const BufferShape> shapes() const { return shapes_; }
  Rows rows(Buffer buffer) const { return rows_[buffer.index]; }

  /// How its steps draw what could be drawn so: from whole rows, unless ranks have parts of them.
  Draw way(Draw draw) const {
    const bool apart = !launches_.empty() && std::holds_alternative<DrawApart>(launches_.back());
    return apart ? draw : std::min(draw, Draw::whole);
  }

  /// False: what lies in it between two launches that were made one is never written.
  bool keeps(Buffer buffer) const { return kept_[buffer.index]; }

 private:
  friend class Compiler;

  using Launch =
      std::variant<EmbedArgs, NormArgs, NarrowArgs, LinearArgs, AnglesArgs, RopeArgs, AttentionArgs,
                   GateArgs, GatedArgs, NormedArgs, SoftCapArgs, SelectArgs, SampleArgs, ReduceRows,
                   ReduceNorm, GatherRows, DrawApart>;

  std::vector<Launch> launches_;
  std::vector<BufferShape> shapes_;
  std::vector<Rows> rows_;
  std::vector<bool> kept_;
  std::vector<DeviceMemory> memory_;
};

/// Splits that a step's single rows have at most, where no two slots share a block of the pool.
std::uint32_t split_room(const PoolShape& pool, std::uint32_t split_tokens);

/// Splits of a sequence of so many positions.
std::uint32_t split_count(std::uint32_t positions, std::uint32_t split_tokens);

}  // namespace sluice::kernels::cuda
