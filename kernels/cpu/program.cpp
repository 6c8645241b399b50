#include "kernels/cpu/program.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "kernels/cpu/layer_ops.hpp"

namespace sluice::kernels::cpu {

std::uint32_t rows_max(const PoolShape& pool, RowSpace space) {
  return space == RowSpace::batch ? pool.rows_max : std::min(pool.slots, pool.rows_max);
}

/// Checks operations one by one and appends their stages.
class Compiler {
 public:
  Compiler(const StepProgram& steps, std::span<const CpuWeight> weights, const PoolShape& pool)
      : steps_(steps), weights_(weights), pool_(pool) {}

  Result<Program> compile() {
    if (auto made = plan_memory(); !made) return tl::unexpected(made.error());
    for (index_ = 0; index_ < steps_.ops.size(); ++index_) {
      auto added = std::visit([this](const auto& op) { return add(op); }, steps_.ops[index_]);
      if (!added) return tl::unexpected(added.error());
    }
    return std::move(program_);
  }

 private:
  using Checked = Result<void>;

  template <class... Args>
  tl::unexpected<Error> refuse(const char* name, fmt::format_string<Args...> why, Args&&... args) {
    return fail(ErrorCode::bad_request, "operation {} ({}): {}", index_, name,
                fmt::format(why, std::forward<Args>(args)...));
  }

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

  bool has(Buffer buffer) const { return buffer.index < steps_.buffers.size(); }
  bool has(Weight weight) const { return weight.index < weights_.size(); }
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

  Checked add(const Embed& op) {
    if (!has(op.table) || !has(op.out)) return refuse("Embed", "no such weight or buffer");
    const CpuWeight& table = weights_[op.table.index];
    if (shape(op.out).rows != RowSpace::batch || shape(op.out).width != table.cols) {
      return refuse("Embed", "the table has {} columns, the output {}", table.cols,
                    shape(op.out).width);
    }
    program_.stages_.push_back(EmbedStage{table, op.scale, view(op.out)});
    return {};
  }

  Checked add(const Norm& op) {
    if (!has(op.in) || !has(op.out) || !has(op.gain)) {
      return refuse("Norm", "no such weight or buffer");
    }
    const CpuWeight& gain = weights_[op.gain.index];
    const BufferShape& in = shape(op.in);
    if (in.rows != shape(op.out).rows || in.width != shape(op.out).width || gain.rows != 1 ||
        gain.cols != in.width) {
      return refuse("Norm", "input {}, output {} and gain {} x {} differ", in.width,
                    shape(op.out).width, gain.rows, gain.cols);
    }
    program_.stages_.push_back(NormStage{in.rows, view(op.in), vector(op.gain), in.width,
                                         op.epsilon, view(op.out)});
    return {};
  }

  Checked add(const Linear& op) {
    if (!has(op.in) || !has(op.out) || !has(op.weight) || (op.bias && !has(*op.bias))) {
      return refuse("Linear", "no such weight or buffer");
    }
    const CpuWeight& weight = weights_[op.weight.index];
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    if (op.in.index == op.out.index) return refuse("Linear", "input and output are one buffer");
    if (weight.cols != in.width) {
      return refuse("Linear", "the weight has {} columns, the input {}", weight.cols, in.width);
    }
    if (in.rows != out.rows || std::size_t{op.out_column} + weight.rows > out.width) {
      return refuse("Linear", "{} results from column {} do not fit an output of {}", weight.rows,
                    op.out_column, out.width);
    }
    if (op.bias) {
      const CpuWeight& bias = weights_[op.bias->index];
      if (bias.rows != 1 || bias.cols != weight.rows) {
        return refuse("Linear", "a bias of {} x {} for {} results", bias.rows, bias.cols,
                      weight.rows);
      }
    }
    Product product;
    product.weight = weight;
    product.bias = op.bias ? vector(*op.bias) : nullptr;
    product.in = view(op.in);
    product.out = {view(op.out).data + op.out_column, view(op.out).stride};
    product.accumulate = op.accumulate;
    need_scratch(tile_floats(weight.cols));
    if (!beside_last(product)) program_.stages_.push_back(LinearStage{in.rows, {}});
    std::get<LinearStage>(program_.stages_.back()).products.push_back(product);
    return {};
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

  Checked check_heads(const char* name, const HeadShape& heads, Buffer qkv, std::uint32_t layer) {
    if (heads.kv_heads == 0 || heads.head_dim == 0 || heads.heads % heads.kv_heads != 0 ||
        heads.head_dim > head_dim_max) {
      return refuse(name, "{} heads over {} key heads of {} elements (1 to {}) do not work",
                    heads.heads, heads.kv_heads, heads.head_dim, head_dim_max);
    }
    if (heads.kv_heads != pool_.kv_heads || heads.head_dim != pool_.head_dim ||
        layer >= pool_.layers) {
      return refuse(name, "layer {} with {} x {} key heads is not in a pool of {} with {} x {}",
                    layer, heads.kv_heads, heads.head_dim, pool_.layers, pool_.kv_heads,
                    pool_.head_dim);
    }
    const std::uint32_t width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
    if (shape(qkv).rows != RowSpace::batch || shape(qkv).width != width) {
      return refuse(name, "a qkv row needs {} elements, the buffer has {}", width,
                    shape(qkv).width);
    }
    return {};
  }

  Checked add(const RopeStore& op) {
    if (!has(op.qkv) || !has(op.inverse_frequencies)) {
      return refuse("RopeStore", "no such weight or buffer");
    }
    if (auto fits = check_heads("RopeStore", op.shape, op.qkv, op.layer); !fits) return fits;
    const CpuWeight& frequencies = weights_[op.inverse_frequencies.index];
    if (frequencies.rows != 1 || 2 * std::size_t{frequencies.cols} > op.shape.head_dim) {
      return refuse("RopeStore", "{} pairs do not fit a head of {}", frequencies.cols,
                    op.shape.head_dim);
    }
    program_.stages_.push_back(RopeStage{view(op.qkv), op.shape, op.layer, angles(op),
                                         frequencies.cols, op.pairs});
    return {};
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

  Checked add(const Attention& op) {
    if (!has(op.qkv) || !has(op.out)) return refuse("Attention", "no such buffer");
    if (auto fits = check_heads("Attention", op.shape, op.qkv, op.layer); !fits) return fits;
    if (shape(op.out).rows != RowSpace::batch ||
        shape(op.out).width != op.shape.heads * op.shape.head_dim) {
      return refuse("Attention", "{} heads of {} do not fit an output of {}", op.shape.heads,
                    op.shape.head_dim, shape(op.out).width);
    }
    need_scratch(attention_floats(op.shape, pool_.context_tokens));
    program_.stages_.push_back(AttentionStage{
        {view(op.qkv), op.shape, op.layer, op.scale, op.window, view(op.out)}});
    return {};
  }

  Checked add(const Gate& op) {
    if (!has(op.in) || !has(op.out)) return refuse("Gate", "no such buffer");
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    if (in.rows != out.rows || in.width != 2 * out.width || op.in.index == op.out.index) {
      return refuse("Gate", "an input of {} for an output of {}, not twice as much", in.width,
                    out.width);
    }
    program_.stages_.push_back(
        GateStage{in.rows, view(op.in), op.activation, out.width, view(op.out)});
    return {};
  }

  Checked add(const Select& op) {
    if (!has(op.in) || !has(op.out)) return refuse("Select", "no such buffer");
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    if (in.rows != RowSpace::batch || out.rows != RowSpace::sampled || in.width != out.width) {
      return refuse("Select", "goes from batch rows of {} to sampled rows of {}", in.width,
                    out.width);
    }
    program_.stages_.push_back(SelectStage{view(op.in), in.width, view(op.out)});
    return {};
  }

  Checked add(const Sample& op) {
    if (!has(op.logits)) return refuse("Sample", "no such buffer");
    if (index_ + 1 != steps_.ops.size()) return refuse("Sample", "must be the last operation");
    if (shape(op.logits).rows != RowSpace::sampled ||
        shape(op.logits).width != pool_.vocabulary) {
      return refuse("Sample", "logits of {} for a vocabulary of {}", shape(op.logits).width,
                    pool_.vocabulary);
    }
    program_.stages_.push_back(SampleStage{view(op.logits)});
    return {};
  }

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
