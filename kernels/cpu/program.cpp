#include "kernels/cpu/program.hpp"

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

#include "kernels/cpu/tiles.hpp"
#include "kernels/program.hpp"

namespace sluice::kernels::cpu {
namespace {

// Of several short rows one message is made, as long as two of them are small to a socket.
constexpr std::uint32_t gather_floats_wanted = 16U << 10;

std::uint32_t divide_up(std::uint32_t a, std::uint32_t b) { return (a + b - 1) / b; }

}  // namespace

/// Appends the stages of operations that fit.
class Compiler {
 public:
  Compiler(const StepProgram& steps, std::span<const CpuWeight> weights, const PoolShape& pool,
           const std::optional<Shard>& shard)
      : steps_(steps), weights_(weights), pool_(pool), shard_(shard) {}

  Result<Program> compile() {
    const std::vector<WeightShape> shapes(weights_.begin(), weights_.end());
    if (auto fits = check_program(steps_, shapes, pool_, shard_); !fits) {
      return tl::unexpected(fits.error());
    }
    if (auto made = plan_memory(); !made) return tl::unexpected(made.error());
    for (index_ = 0; index_ < steps_.ops.size(); ++index_) {
      std::visit([this](const auto& op) { add(op); }, steps_.ops[index_]);
    }
    return std::move(program_);
  }

 private:
  /// Every buffer has memory of its own, so that tests can read each; rows are padded with zeros,
  /// which no operation overwrites. Untouched pages cost nothing.
  Result<void> plan_memory() {
    std::size_t floats = 0;
    std::vector<std::size_t> offsets;
    for (const BufferShape& shape : steps_.buffers) {
      offsets.push_back(floats);
      floats += rows_max(pool_, shape.rows) * padded(shape.width);
    }
    rounded_.resize(steps_.buffers.size());
    writers_.resize(steps_.buffers.size());
    std::vector<std::size_t> int8_at(steps_.buffers.size()), bf16_at(steps_.buffers.size());
    for (const Op& op : steps_.ops) {
      const auto* linear = std::get_if<Linear>(&op);
      if (linear == nullptr) continue;
      const Activations read = activations(*linear);
      if (read == Activations::f32) continue;
      const BufferShape& in = steps_.buffers[linear->in.index];
      const bool int8 = read == Activations::int8;
      std::size_t& at = (int8 ? int8_at : bf16_at)[linear->in.index];
      if (at != 0) continue;
      at = floats;
      const std::size_t rows = rows_max(pool_, in.rows);
      const auto cols = static_cast<std::uint32_t>(padded(in.width));
      const std::size_t bytes = int8 ? QuantizedView::bytes(rows, in.width, has_tiles())
                                     : NarrowView::bytes(rows, cols, has_tiles());
      floats += bytes / sizeof(float);
    }
    angles_end_ = floats;
    for (const Op& op : steps_.ops) {  // at most one table of angles an operation
      if (const auto* rope = std::get_if<RopeStore>(&op)) {
        floats += std::size_t{pool_.rows_max} * padded(rope->shape.head_dim);
      }
    }
    gathers_end_ = floats;
    for (const Op& op : steps_.ops) {
      if (const auto* gather = std::get_if<AllGather>(&op)) {
        floats += (shard_->size + 1) * gather_floats(steps_.buffers[gather->out.index]);
      }
    }
    candidates_at_ = floats = padded(floats);
    if (draws_from_candidates()) floats += candidate_floats();
    auto arena = ZeroPages::make(floats * sizeof(float), "a program's activations");
    if (!arena) return tl::unexpected(arena.error());
    program_.arena_ = std::move(*arena);
    program_.shapes_ = steps_.buffers;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      program_.views_.push_back(
          {program_.arena_.as<float>() + offsets[i], padded(steps_.buffers[i].width)});
    }
    auto* arena_floats = program_.arena_.as<float>();
    for (std::size_t i = 0; i < steps_.buffers.size(); ++i) {
      const std::uint32_t width = steps_.buffers[i].width;
      if (int8_at[i] != 0) {
        rounded_[i].int8 = {reinterpret_cast<std::byte*>(arena_floats + int8_at[i]), width,
                            has_tiles()};
      }
      if (bf16_at[i] != 0) {
        rounded_[i].bf16 = {reinterpret_cast<std::uint16_t*>(arena_floats + bf16_at[i]),
                            static_cast<std::uint32_t>(padded(width)), has_tiles()};
      }
    }
    return {};
  }

  /// Whether the program ends with a gather of the rows that are sampled, over several ranks.
  bool draws_from_candidates() const {
    if (!shard_ || shard_->size == 1 || steps_.ops.size() < 2) return false;
    const auto* gather = std::get_if<AllGather>(&steps_.ops[steps_.ops.size() - 2]);
    const auto* sample = std::get_if<Sample>(&steps_.ops.back());
    return gather != nullptr && sample != nullptr && gather->out.index == sample->logits.index;
  }

  std::size_t adjusted_stride() const {
    return padded(adjusted_room(shard_count(pool_.vocabulary, *shard_)));
  }

  /// Of each of the candidates' rooms, a multiple of what a float's row is.
  std::size_t adjusted_floats() const {
    return rows_max(pool_, RowSpace::sampled) * adjusted_stride();
  }
  std::size_t met_floats(std::size_t row_bytes) const {
    const std::size_t bytes = shard_->size * rows_max(pool_, RowSpace::sampled) * row_bytes;
    return padded(bytes / sizeof(float) + 1);
  }
  std::size_t candidate_floats() const {
    return adjusted_floats() + met_floats(tally_bytes_max) + met_floats(sizeof(Peak));
  }

  /// Columns of the rank that has most.
  std::uint32_t widest(const BufferShape& out) const { return divide_up(out.width, shard_->size); }

  std::uint32_t gathered_rows(const BufferShape& out) const {
    return std::clamp(gather_floats_wanted / widest(out), 1U, rows_max(pool_, out.rows));
  }

  std::size_t gather_floats(const BufferShape& out) const {
    return std::size_t{gathered_rows(out)} * widest(out);
  }

  const BufferShape& shape(Buffer buffer) const { return steps_.buffers[buffer.index]; }
  RowView view(Buffer buffer) const { return program_.view(buffer); }

  Activations activations(const Linear& op) const {
    const Activations read = activations_of(weights_[op.weight.index].format);
    return op.float_input && read == Activations::bf16 ? Activations::f32 : read;
  }

  /// A one-row weight as float32, padded with zeros.
  const float* vector(Weight weight) {
    const CpuWeight& w = weights_[weight.index];
    std::vector<float>& values = program_.vectors_.emplace_back(padded(w.cols), 0.0F);
    dequantize(w.format, {w.data, row_bytes(w.format, w.cols)}, std::span(values).first(w.cols));
    return values.data();
  }

  /// Appends a stage that writes whole rows of a buffer.
  void add_writer(Stage stage, Buffer out) {
    writers_[out.index] = program_.stages_.size();
    program_.stages_.push_back(std::move(stage));
  }

  /// The buffer as rounded rows, of each kind that any product reads: by the stage that wrote it
  /// last if that can, else by one more.
  RoundedRows rounded(Buffer buffer) {
    const RoundedRows rows = rounded_[buffer.index];
    std::optional<std::size_t>& writer = writers_[buffer.index];
    if (writer == rounded_already) return rows;
    const bool done = writer && std::visit([&](auto& stage) { return round(stage, rows); },
                                           program_.stages_[*writer]);
    if (!done) {
      program_.stages_.push_back(
          RoundStage{shape(buffer).rows, view(buffer), shape(buffer).width, rows});
    }
    writer = rounded_already;
    return rows;
  }

  template <class AnyStage>
  static bool round(AnyStage& stage, const RoundedRows& rows) {
    if constexpr (requires { stage.rounded; }) {
      if constexpr (std::is_same_v<AnyStage, AttentionStage>) {
        if (stage.work.shape.head_dim % block_cols != 0) return false;  // heads would share a block
      }
      stage.rounded = rows;
      return true;
    }
    return false;
  }

  void need_scratch(std::size_t floats) {
    program_.scratch_floats_ = std::max(program_.scratch_floats_, floats);
  }

  void add(const Embed& op) {
    add_writer(EmbedStage{weights_[op.table.index], op.scale, op.first_token, view(op.out)},
               op.out);
  }

  void add(const Norm& op) {
    add_writer(NormStage{shape(op.in).rows, view(op.in), vector(op.gain), shape(op.in).width,
                         op.epsilon, view(op.out), op.accumulate, {}},
               op.out);
  }

  void add(const Linear& op) {
    const CpuWeight& weight = weights_[op.weight.index];
    const float* bias = op.bias ? vector(*op.bias) : nullptr;
    const RowView out{view(op.out).data + op.out_column, view(op.out).stride};
    const bool rounds = activations(op) != Activations::f32;
    const RoundedRows in = rounds ? rounded(op.in) : RoundedRows{};
    if (!beside_last(op)) program_.stages_.push_back(LinearStage{shape(op.in).rows, {}});
    auto& stage = std::get<LinearStage>(program_.stages_.back());
    stage.products.push_back({weight.packed, bias, view(op.in), in, out, op.accumulate});
    writers_[op.out.index].reset();
    beside_.push_back(index_);
  }

  /// Whether the product can run in the stage before: same input, and results that do not meet.
  bool beside_last(const Linear& op) {
    const bool follows = index_ > 0 && !beside_.empty() && beside_.back() + 1 == index_ &&
                         std::holds_alternative<LinearStage>(program_.stages_.back());
    for (std::size_t i = 0; follows && i < beside_.size(); ++i) {
      const auto& other = std::get<Linear>(steps_.ops[beside_[i]]);
      const std::uint32_t rows = weights_[op.weight.index].rows;
      const std::uint32_t other_rows = weights_[other.weight.index].rows;
      const bool apart = other.out.index != op.out.index ||
                         other.out_column >= op.out_column + rows ||
                         op.out_column >= other.out_column + other_rows;
      if (other.in.index == op.in.index && apart) continue;
      beside_.clear();
      return false;
    }
    if (!follows) beside_.clear();
    return follows;
  }

  void add(const RopeStore& op) {
    const RowView table = angles(op);
    writers_[op.qkv.index].reset();
    RopeStage stage{view(op.qkv), op.shape, op.layer, table,
                    weights_[op.inverse_frequencies.index].cols, op.pairs};
    if (op.norms) {
      stage.q_gain = vector(op.norms->q);
      stage.k_gain = vector(op.norms->k);
      stage.epsilon = op.norms->epsilon;
    }
    program_.stages_.push_back(stage);
  }

  /// The step's table of angles for these frequencies; the first user's stage comes after it.
  RowView angles(const RopeStore& op) {
    for (const Angles& known : angles_) {
      if (known.weight == op.inverse_frequencies.index && known.magnitude == op.magnitude) {
        return known.out;
      }
    }
    const std::uint32_t pairs = weights_[op.inverse_frequencies.index].cols;
    const RowView out{program_.arena_.as<float>() + angles_end_, padded(op.shape.head_dim)};
    angles_end_ += pool_.rows_max * out.stride;
    angles_.push_back({op.inverse_frequencies.index, op.magnitude, out});
    program_.stages_.push_back(
        AnglesStage{vector(op.inverse_frequencies), pairs, op.magnitude, out});
    return out;
  }

  void add(const Attention& op) {
    need_scratch(attention_floats(op.shape, pool_.context_tokens));
    const AttentionWork work{view(op.qkv), op.shape,  op.layer,    op.scale,
                             op.window,    view(op.out), op.soft_cap};
    add_writer(AttentionStage{work, {}}, op.out);
  }

  void add(const Gate& op) {
    add_writer(GateStage{shape(op.in).rows, view(op.in), op.activation, shape(op.out).width,
                         view(op.out), {}},
               op.out);
  }

  void add(const SoftCap& op) {
    writers_[op.values.index].reset();
    program_.stages_.push_back(
        SoftCapStage{shape(op.values).rows, view(op.values), shape(op.values).width, op.cap});
  }

  void add(const AllReduce& op) {
    writers_[op.values.index].reset();
    program_.stages_.push_back(
        AllReduceStage{program_.stages_.size(), shape(op.values).rows, view(op.values)});
  }

  void add_candidates(const AllGather& op) {
    CandidateStage stage;
    float* at = program_.arena_.as<float>() + candidates_at_;
    stage.in = view(op.in);
    stage.width = shape(op.in).width;
    stage.adjusted = {at, adjusted_stride()};
    stage.tallies = reinterpret_cast<std::byte*>(at += adjusted_floats());
    stage.peaks = reinterpret_cast<Peak*>(at + met_floats(tally_bytes_max));
    using Part = CandidateStage::Part;
    for (const Part part : {Part::find_peaks, Part::meet_peaks, Part::tally, Part::meet_tallies,
                            Part::settle}) {
      stage.part = part;
      stage.index = program_.stages_.size();
      program_.stages_.push_back(stage);
    }
  }

  void add(const AllGather& op) {
    const bool unsettled = draws_from_candidates() && index_ + 2 == steps_.ops.size();
    if (unsettled) add_candidates(op);
    const BufferShape& out = shape(op.out);
    float* own = program_.arena_.as<float>() + gathers_end_;
    float* all = own + gather_floats(out);
    gathers_end_ += (shard_->size + 1) * gather_floats(out);
    writers_[op.out.index].reset();
    program_.stages_.push_back(AllGatherStage{program_.stages_.size(), unsettled, out.rows,
                                              view(op.in), view(op.out), out.width, widest(out),
                                              gathered_rows(out), own, all});
  }

  void add(const Select& op) {
    add_writer(SelectStage{view(op.in), shape(op.in).width, view(op.out), {}}, op.out);
  }

  void add(const Sample& op) { program_.stages_.push_back(SampleStage{view(op.logits)}); }

  struct Angles {
    std::uint32_t weight;
    float magnitude;
    RowView out;
  };

  const StepProgram& steps_;
  std::span<const CpuWeight> weights_;
  const PoolShape& pool_;
  const std::optional<Shard>& shard_;
  std::size_t index_ = 0;
  std::vector<std::size_t> beside_;  ///< products of the last stage, as operations
  std::vector<Angles> angles_;
  std::vector<RoundedRows> rounded_;  ///< of each buffer that a product reads so
  /// The stage that wrote a buffer's whole rows last, or that they are rounded already.
  std::vector<std::optional<std::size_t>> writers_;
  static constexpr std::size_t rounded_already = SIZE_MAX;
  std::size_t angles_end_ = 0;   ///< floats of the arena in use
  std::size_t gathers_end_ = 0;  ///< likewise
  std::size_t candidates_at_ = 0;
  Program program_;
};

Result<Program> Program::compile(const StepProgram& steps, std::span<const CpuWeight> weights,
                                 const PoolShape& pool, const std::optional<Shard>& shard) {
  return Compiler(steps, weights, pool, shard).compile();
}

}  // namespace sluice::kernels::cpu
