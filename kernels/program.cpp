#include "kernels/program.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace sluice::kernels {

std::uint32_t rows_max(const PoolShape& pool, RowSpace space) {
  return space == RowSpace::batch ? pool.rows_max : std::min(pool.slots, pool.rows_max);
}

Result<WeightShape> check_weight(const HostTensor& tensor) {
  const FormatInfo& format = info(tensor.format);
  if (tensor.rows == 0 || tensor.cols == 0 || tensor.cols % format.block_elements != 0) {
    return fail(ErrorCode::bad_request, "a weight of {} x {} is not whole {} blocks of {}",
                tensor.rows, tensor.cols, format.name, format.block_elements);
  }
  const std::size_t row = row_bytes(tensor.format, tensor.cols);
  if (row_stride(tensor) < row) {
    return fail(ErrorCode::bad_request, "rows of {} bytes lie {} bytes apart", row,
                tensor.row_stride);
  }
  const std::size_t bytes = (tensor.rows - 1) * row_stride(tensor) + row;
  if (tensor.data.size() != bytes) {
    return fail(ErrorCode::bad_request, "a {} weight of {} x {} has {} bytes, not {}", format.name,
                tensor.rows, tensor.cols, tensor.data.size(), bytes);
  }
  return WeightShape{tensor.format, tensor.rows, tensor.cols};
}

std::size_t row_stride(const HostTensor& tensor) {
  return tensor.row_stride == 0 ? row_bytes(tensor.format, tensor.cols) : tensor.row_stride;
}

Result<void> check_pool(const PoolShape& pool) {
  if (pool.layers == 0 || pool.kv_heads == 0 || pool.head_dim == 0 || pool.blocks == 0 ||
      pool.slots == 0 || pool.context_tokens == 0 || pool.rows_max == 0 ||
      !std::has_single_bit(pool.block_tokens)) {
    return fail(ErrorCode::bad_request,
                "a pool needs layers, heads, blocks, slots, a context, rows, and a power of two "
                "of tokens a block");
  }
  return {};
}

Result<KvFormat> find_kv_format(std::string_view name) {
  if (name == "auto") return KvFormat::f16;
  if (name == "fp8") return KvFormat::e4m3;
  return fail(ErrorCode::bad_request, "keys and values cannot be kept as '{}': write fp8, or auto",
              name);
}

namespace {

/// Checks operations one by one.
class Checker {
 public:
  Checker(const StepProgram& program, std::span<const WeightShape> weights, const PoolShape& pool,
          const std::optional<Shard>& shard)
      : program_(program), weights_(weights), pool_(pool), shard_(shard) {}

  Result<void> check() {
    for (index_ = 0; index_ < program_.ops.size(); ++index_) {
      auto fits = std::visit([this](const auto& op) { return check(op); }, program_.ops[index_]);
      if (!fits) return fits;
    }
    return {};
  }

 private:
  using Checked = Result<void>;

  template <class... Args>
  tl::unexpected<Error> refuse(const char* name, fmt::format_string<Args...> why, Args&&... args) {
    return fail(ErrorCode::bad_request, "operation {} ({}): {}", index_, name,
                fmt::format(why, std::forward<Args>(args)...));
  }

  bool has(Buffer buffer) const { return buffer.index < program_.buffers.size(); }
  bool has(Weight weight) const { return weight.index < weights_.size(); }
  const BufferShape& shape(Buffer buffer) const { return program_.buffers[buffer.index]; }
  const WeightShape& shape(Weight weight) const { return weights_[weight.index]; }

  Checked check(const Embed& op) {
    if (!has(op.table) || !has(op.out)) return refuse("Embed", "no such weight or buffer");
    if (op.first_token &&
        *op.first_token + std::uint64_t{shape(op.table).rows} > pool_.vocabulary) {
      return refuse("Embed", "{} tokens from {} on are not in a vocabulary of {}",
                    shape(op.table).rows, *op.first_token, pool_.vocabulary);
    }
    if (shape(op.out).rows != RowSpace::batch || shape(op.out).width != shape(op.table).cols) {
      return refuse("Embed", "the table has {} columns, the output {}", shape(op.table).cols,
                    shape(op.out).width);
    }
    return {};
  }

  Checked check(const Norm& op) {
    if (!has(op.in) || !has(op.out) || !has(op.gain)) {
      return refuse("Norm", "no such weight or buffer");
    }
    const WeightShape& gain = shape(op.gain);
    const BufferShape& in = shape(op.in);
    if (in.rows != shape(op.out).rows || in.width != shape(op.out).width || gain.rows != 1 ||
        gain.cols != in.width) {
      return refuse("Norm", "input {}, output {} and gain {} x {} differ", in.width,
                    shape(op.out).width, gain.rows, gain.cols);
    }
    if (op.accumulate && op.in.index == op.out.index) {
      return refuse("Norm", "adds to its own input");
    }
    return {};
  }

  Checked check(const Linear& op) {
    if (!has(op.in) || !has(op.out) || !has(op.weight) || (op.bias && !has(*op.bias))) {
      return refuse("Linear", "no such weight or buffer");
    }
    const WeightShape& weight = shape(op.weight);
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
    if (op.bias && (shape(*op.bias).rows != 1 || shape(*op.bias).cols != weight.rows)) {
      return refuse("Linear", "a bias of {} x {} for {} results", shape(*op.bias).rows,
                    shape(*op.bias).cols, weight.rows);
    }
    return {};
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

  Checked check(const RopeStore& op) {
    if (!has(op.qkv) || !has(op.inverse_frequencies)) {
      return refuse("RopeStore", "no such weight or buffer");
    }
    if (auto fits = check_heads("RopeStore", op.shape, op.qkv, op.layer); !fits) return fits;
    const WeightShape& frequencies = shape(op.inverse_frequencies);
    if (frequencies.rows != 1 || 2 * std::size_t{frequencies.cols} > op.shape.head_dim) {
      return refuse("RopeStore", "{} pairs do not fit a head of {}", frequencies.cols,
                    op.shape.head_dim);
    }
    if (!op.norms) return {};
    for (const Weight weight : {op.norms->q, op.norms->k}) {
      if (!has(weight)) return refuse("RopeStore", "no such gain");
      const WeightShape& gain = shape(weight);
      if (gain.rows != 1 || gain.cols != op.shape.head_dim) {
        return refuse("RopeStore", "a gain of {} x {} for heads of {}", gain.rows, gain.cols,
                      op.shape.head_dim);
      }
    }
    return {};
  }

  Checked check(const Attention& op) {
    if (!has(op.qkv) || !has(op.out)) return refuse("Attention", "no such buffer");
    if (!(op.soft_cap >= 0)) return refuse("Attention", "a soft cap of {}", op.soft_cap);
    if (auto fits = check_heads("Attention", op.shape, op.qkv, op.layer); !fits) return fits;
    if (shape(op.out).rows != RowSpace::batch ||
        shape(op.out).width != op.shape.heads * op.shape.head_dim) {
      return refuse("Attention", "{} heads of {} do not fit an output of {}", op.shape.heads,
                    op.shape.head_dim, shape(op.out).width);
    }
    return {};
  }

  Checked check(const Gate& op) {
    if (!has(op.in) || !has(op.out)) return refuse("Gate", "no such buffer");
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    if (in.rows != out.rows || in.width != 2 * out.width || op.in.index == op.out.index) {
      return refuse("Gate", "an input of {} for an output of {}, not twice as much", in.width,
                    out.width);
    }
    return {};
  }

  Checked check(const SoftCap& op) {
    if (!has(op.values)) return refuse("SoftCap", "no such buffer");
    if (!(op.cap > 0)) return refuse("SoftCap", "a cap of {}", op.cap);
    return {};
  }

  Checked check(const AllReduce& op) {
    if (!has(op.values)) return refuse("AllReduce", "no such buffer");
    if (!shard_) return refuse("AllReduce", "the backend has joined no group");
    return {};
  }

  Checked check(const AllGather& op) {
    if (!has(op.in) || !has(op.out)) return refuse("AllGather", "no such buffer");
    if (!shard_) return refuse("AllGather", "the backend has joined no group");
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    const std::uint32_t due = shard_count(out.width, *shard_);
    if (in.rows != out.rows || in.width != due || op.in.index == op.out.index) {
      return refuse("AllGather", "an input of {}, where rank {} of {} has {} of the output's {}",
                    in.width, shard_->rank, shard_->size, due, out.width);
    }
    return {};
  }

  Checked check(const Select& op) {
    if (!has(op.in) || !has(op.out)) return refuse("Select", "no such buffer");
    const BufferShape& in = shape(op.in);
    const BufferShape& out = shape(op.out);
    if (in.rows != RowSpace::batch || out.rows != RowSpace::sampled || in.width != out.width) {
      return refuse("Select", "goes from batch rows of {} to sampled rows of {}", in.width,
                    out.width);
    }
    return {};
  }

  Checked check(const Sample& op) {
    if (!has(op.logits)) return refuse("Sample", "no such buffer");
    if (index_ + 1 != program_.ops.size()) return refuse("Sample", "must be the last operation");
    if (shape(op.logits).rows != RowSpace::sampled ||
        shape(op.logits).width != pool_.vocabulary) {
      return refuse("Sample", "logits of {} for a vocabulary of {}", shape(op.logits).width,
                    pool_.vocabulary);
    }
    return {};
  }

  const StepProgram& program_;
  std::span<const WeightShape> weights_;
  const PoolShape& pool_;
  const std::optional<Shard>& shard_;
  std::size_t index_ = 0;
};

}  // namespace

Result<void> check_program(const StepProgram& program, std::span<const WeightShape> weights,
                           const PoolShape& pool, const std::optional<Shard>& shard) {
  return Checker(program, weights, pool, shard).check();
}

}  // namespace sluice::kernels
