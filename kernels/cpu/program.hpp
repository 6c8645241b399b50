#pragma once
// A recorded program, checked and resolved to addresses: a list of stages. A stage is a set of
// tasks that any thread may take in any order; it begins when the one before it has none left.

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/candidates.hpp"
#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/state.hpp"

namespace sluice::kernels::cpu {

struct EmbedStage {
  CpuWeight table;
  float scale = 1.0F;
  std::optional<Token> first_token;
  RowView out;
};

struct NormStage {
  RowSpace space = RowSpace::batch;
  RowView in;
  const float* gain = nullptr;  ///< padded with zeros
  std::uint32_t width = 0;
  float epsilon = 0.0F;
  RowView out;
  bool accumulate = false;
  RoundedRows rounded;  ///< of `out`, where a product reads it so
};

/// Products that run side by side, such as q, k and v of one input.
struct LinearStage {
  RowSpace space = RowSpace::batch;
  std::vector<Product> products;
};

/// Rounds rows that no stage rounds as it writes them.
struct RoundStage {
  RowSpace space = RowSpace::batch;
  RowView in;
  std::uint32_t width = 0;
  RoundedRows rounded;
};

/// Cosines and sines of the rows' positions: once a step, for all layers.
struct AnglesStage {
  const float* inverse_frequencies = nullptr;
  std::uint32_t pairs = 0;
  float magnitude = 1.0F;
  RowView out;
};

struct RopeStage {
  RowView qkv;
  HeadShape shape;
  std::uint32_t layer = 0;
  RowView angles;
  std::uint32_t pairs = 0;
  RopePairs order = RopePairs::adjacent;
  const float* q_gain = nullptr;  ///< of the heads' norms, or none
  const float* k_gain = nullptr;
  float epsilon = 0.0F;
};

struct AttentionStage {
  AttentionWork work;
  RoundedRows rounded;
};

struct GateStage {
  RowSpace space = RowSpace::batch;
  RowView in;
  Activation activation = Activation::silu;
  std::uint32_t width = 0;
  RowView out;
  RoundedRows rounded;
};

struct SoftCapStage {
  RowSpace space = RowSpace::batch;
  RowView values;
  std::uint32_t width = 0;
  float cap = 0.0F;
};

/// One thread adds up with the other ranks; the others wait at the stage's end.
struct AllReduceStage {
  std::size_t index = 0;  ///< of the stage
  RowSpace space = RowSpace::batch;
  RowView values;
};

/// One of the steps in which ranks draw from what each knows of its own tokens (candidates.hpp), in
/// the order that they follow each other in.
struct CandidateStage {
  enum class Part : std::uint8_t {
    find_peaks,
    meet_peaks,  ///< a gather, by one thread
    tally,
    meet_tallies,  ///< likewise
    settle,
  };
  Part part = Part::find_peaks;
  std::size_t index = 0;  ///< of the stage
  RowView in;             ///< logits of the rank's own tokens
  std::uint32_t width = 0;       ///< of them
  RowView adjusted;              ///< [sampled, adjusted_room(width)]
  Peak* peaks = nullptr;         ///< [ranks, sampled]
  std::byte* tallies = nullptr;  ///< [ranks, the rows' one behind the other]
};

struct AllGatherStage {
  std::size_t index = 0;  ///< of the stage
  bool unsettled = false;  ///< only rows that the candidates left
  RowSpace space = RowSpace::batch;
  RowView in;
  RowView out;
  std::uint32_t width = 0;    ///< of `out`
  std::uint32_t widest = 0;   ///< of all ranks' inputs
  std::uint32_t rows = 0;     ///< that are gathered at a time
  float* own = nullptr;       ///< [rows, widest]
  float* all = nullptr;       ///< [ranks, rows, widest]
};

struct SelectStage {
  RowView in;
  std::uint32_t width = 0;
  RowView out;
  RoundedRows rounded;
};

struct SampleStage {
  RowView logits;
};

using Stage = std::variant<EmbedStage, NormStage, LinearStage, RoundStage, AnglesStage,
                           RopeStage, AttentionStage, GateStage, SoftCapStage, AllReduceStage,
                           CandidateStage, AllGatherStage, SelectStage, SampleStage>;

class Program {
 public:
  /// `bad_request` names the operation that does not fit. `shard`: this rank's place in its group,
  /// if it has one.
  static Result<Program> compile(const StepProgram& steps, std::span<const CpuWeight> weights,
                                 const PoolShape& pool, const std::optional<Shard>& shard);

  std::span<const Stage> stages() const { return stages_; }
  std::span<const BufferShape> shapes() const { return shapes_; }
  RowView view(Buffer buffer) const { return views_[buffer.index]; }
  std::size_t scratch_floats() const { return scratch_floats_; }

 private:
  friend class Compiler;

  std::vector<Stage> stages_;
  std::vector<BufferShape> shapes_;
  std::vector<RowView> views_;
  ZeroPages arena_;
  std::deque<std::vector<float>> vectors_;  ///< gains, biases and frequencies as padded float32
  std::size_t scratch_floats_ = 0;          ///< of a thread
};

}  // namespace sluice::kernels::cpu
