#include "kernels/cpu/program.hpp"

#include <algorithm>
#include <utility>

#include "kernels/program.hpp"

namespace sluice::kernels::cpu {

/// Appends the stages of operations that fit.
class Compiler {
 public:
  Compiler(const StepProgram& steps, std::span<const CpuWeight> weights, const PoolShape& pool)
      : steps_(steps), weights_(weights), pool_(pool) {}

  Result<Program> compile() {
    const std::vector<WeightShape> shapes(weights_.begin(), weights_.end());
    if (auto fits = check_program(steps_, shapes, pool_); !fits) {
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
    for (const Op& op : steps_.ops) {  // at most one table of angles an operation
      if (const auto* rope = std::get_if<RopeStore>(&op)) {
        floats += std::size_t{pool_.rows_max} * padded(rope->shape.head_dim);
      }
    }
    auto arena = ZeroPages::make(floats * sizeof(float), "a program's activations");
    if (!arena) return tl::unexpected(arena.error());
    program_.arena_ = std::move(*arena);
    program_.shapes_ = steps_.buffers;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      program_.views_.push_back(
          {program_.arena_.as<float>() + offsets[i], padded(steps_.buffers[i].width)});
    }
    angles_end_ = offsets.empty() ? 0
                                  : offsets.back() + rows_max(pool_, steps_.buffers.back().rows) *
                                                         padded(steps_.buffers.back().width);
    return {};
  }

  const BufferShape& shape(Buffer buffer) const { return steps_.buffers[buffer.index]; }
  RowView view(Buffer buffer) const { return program_.view(buffer); }

  /// A one-row weight as float32, padded with zeros.
  const float* vector(Weight weight) {
    const CpuWeight& w = weights_[weight.index];
    std::vector<float>& values = program_.vectors_.emplace_back(padded(w.cols), 0.0F);
    dequantize(w.format, {w.data, w.row_bytes}, std::span(values).first(w.cols));
    return values.data();
  }

  void need_scratch(std::size_t floats) {
    program_.scratch_floats_ = std::max(program_.scratch_floats_, floats);
  }

  void add(const Embed& op) {
    program_.stages_.push_back(EmbedStage{weights_[op.table.index], op.scale, view(op.out)});
  }

  void add(const Norm& op) {
    program_.stages_.push_back(NormStage{shape(op.in).rows, view(op.in), vector(op.gain),
                                         shape(op.in).width, op.epsilon, view(op.out)});
  }

  void add(const Linear& op) {
    Product product;
    product.weight = weights_[op.weight.index];
    product.bias = op.bias ? vector(*op.bias) : nullptr;
    product.in = view(op.in);
    product.out = {view(op.out).data + op.out_column, view(op.out).stride};
    product.accumulate = op.accumulate;
    need_scratch(tile_floats(product.weight.cols));
    if (!beside_last(product)) program_.stages_.push_back(LinearStage{shape(op.in).rows, {}});
    std::get<LinearStage>(program_.stages_.back()).products.push_back(product);
  }

  /// Whether the product can run in the stage before: same input, and results that do not meet.
  bool beside_last(const Product& product) const {
    if (index_ == 0 || program_.stages_.empty()) return false;
    const auto* stage = std::get_if<LinearStage>(&program_.stages_.back());
    if (stage == nullptr || !std::holds_alternative<Linear>(steps_.ops[index_ - 1])) return false;
    for (const Product& other : stage->products) {
      if (other.in.data != product.in.data) return false;
      const auto* a = other.out.data;
      const auto* b = product.out.data;
      if (a < b + product.weight.rows && b < a + other.weight.rows) return false;
    }
    return true;
  }

  void add(const RopeStore& op) {
    const RowView table = angles(op);
    program_.stages_.push_back(RopeStage{view(op.qkv), op.shape, op.layer, table,
                                         weights_[op.inverse_frequencies.index].cols, op.pairs});
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
    program_.stages_.push_back(AttentionStage{
        {view(op.qkv), op.shape, op.layer, op.scale, op.window, view(op.out)}});
  }

  void add(const Gate& op) {
    program_.stages_.push_back(GateStage{shape(op.in).rows, view(op.in), op.activation,
                                         shape(op.out).width, view(op.out)});
  }

  void add(const Select& op) {
    program_.stages_.push_back(SelectStage{view(op.in), shape(op.in).width, view(op.out)});
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
  std::size_t index_ = 0;
  std::vector<Angles> angles_;
  std::size_t angles_end_ = 0;  ///< floats of the arena in use
  Program program_;
};

Result<Program> Program::compile(const StepProgram& steps, std::span<const CpuWeight> weights,
                                 const PoolShape& pool) {
  return Compiler(steps, weights, pool).compile();
}

}  // namespace sluice::kernels::cpu
