#include "kernels/cuda/program.hpp"

#include <algorithm>
#include <utility>

namespace sluice::kernels::cuda {

std::uint32_t split_room(const PoolShape& pool, std::uint32_t split_tokens) {
  const std::uint64_t tokens = std::uint64_t{pool.blocks} * pool.block_tokens;
  const std::uint64_t each = split_count(pool.context_tokens, split_tokens);
  const std::uint64_t whole = tokens / split_tokens + pool.slots;  // each slot's last is a part
  return static_cast<std::uint32_t>(std::min(whole, each * pool.slots));
}

std::uint32_t split_count(std::uint32_t positions, std::uint32_t split_tokens) {
  return (positions + split_tokens - 1) / split_tokens;
}

namespace {

/// Whether an operation reads or writes a buffer.
struct Names {
  std::uint32_t index;

  template <class... Buffers>
  bool any(Buffers... buffers) const {
    return ((buffers.index == index) || ...);
  }
  bool operator()(const Embed& op) const { return any(op.out); }
  bool operator()(const Norm& op) const { return any(op.in, op.out); }
  bool operator()(const Linear& op) const { return any(op.in, op.out); }
  bool operator()(const RopeStore& op) const { return any(op.qkv); }
  bool operator()(const Attention& op) const { return any(op.qkv, op.out); }
  bool operator()(const Gate& op) const { return any(op.in, op.out); }
  bool operator()(const SoftCap& op) const { return any(op.values); }
  bool operator()(const AllReduce& op) const { return any(op.values); }
  bool operator()(const AllGather& op) const { return any(op.in, op.out); }
  bool operator()(const Select& op) const { return any(op.in, op.out); }
  bool operator()(const Sample& op) const { return any(op.logits); }
};

}  // namespace

/// Appends the launches of operations that fit.
class Compiler {
 public:
  Compiler(const StepProgram& steps, std::span<const LoadedWeight> weights, const PoolShape& pool,
           const std::optional<Shard>& shard, const DeviceState& state, cudaStream_t stream)
      : steps_(steps),
        weights_(weights),
        pool_(pool),
        shard_(shard),
        state_(state),
        stream_(stream) {}

  Result<Program> compile() {
    std::vector<WeightShape> shapes;
    for (const LoadedWeight& weight : weights_) shapes.push_back(weight.shape);
    SLUICE_TRY(check_program(steps_, shapes, pool_, shard_));
    SLUICE_TRY(plan_memory());
    for (index_ = 0; index_ < steps_.ops.size(); ++index_) {
      SLUICE_TRY(std::visit([this](const auto& op) { return add(op); }, steps_.ops[index_]));
    }
    if (state_.fuse_norms) fuse_norms();
    SLUICE_CUDA(cudaStreamSynchronize(stream_));  // vectors are copied from this thread's memory
    return std::move(program_);
  }

 private:
  /// Every buffer has memory of its own, so that tests can read each; rows are padded with zeros,
  /// which no operation overwrites.
  Result<void> plan_memory() {
    program_.shapes_ = steps_.buffers;
    for (const BufferShape& shape : steps_.buffers) {
      auto rows = make_rows(rows_max(pool_, shape.rows), shape.width);
      if (!rows) return tl::unexpected(rows.error());
      program_.rows_.push_back(*rows);
    }
    stale_.resize(steps_.buffers.size());
    program_.kept_.assign(steps_.buffers.size(), true);
    for (const Op& op : steps_.ops) {
      const auto* linear = std::get_if<Linear>(&op);
      if (linear != nullptr && takes_narrow(weights_[linear->weight.index].device)) {
        SLUICE_TRY(add_narrow(linear->in));
      }
    }
    return {};
  }

  /// Room for what products read of a buffer.
  Result<void> add_narrow(Buffer buffer) {
    Rows& rows = program_.rows_[buffer.index];
    if (rows.narrow != nullptr) return {};
    auto data = make_memory(narrow_room(rows.stride, rows_max(pool_, shape(buffer).rows)) *
                            sizeof(std::uint16_t));
    if (!data) return tl::unexpected(data.error());
    rows.narrow = reinterpret_cast<std::uint16_t*>(*data);
    return {};
  }

  /// With an operation that writes the buffer, but not what products read of it.
  void leave_narrow(Buffer buffer) { stale_[buffer.index] = true; }

  /// With one that writes both.
  void keep_narrow(Buffer buffer) { stale_[buffer.index] = false; }

  /// Before a product that reads the buffer.
  void refresh_narrow(Buffer buffer) {
    if (!stale_[buffer.index] || rows(buffer).narrow == nullptr) return;
    stale_[buffer.index] = false;
    program_.launches_.push_back(
        NarrowArgs{state_.step, space(buffer), rows(buffer), shape(buffer).width});
  }

  Result<Rows> make_rows(std::uint32_t rows, std::uint32_t width) {
    const std::size_t bytes = std::size_t{rows} * padded(width) * sizeof(float);
    auto data = make_memory(bytes);
    if (!data) return tl::unexpected(data.error());
    return Rows{*data, padded(width)};
  }

  /// Zeroed.
  Result<float*> make_memory(std::size_t bytes) {
    auto memory = DeviceMemory::make(bytes, "a program's activations");
    if (!memory) return tl::unexpected(memory.error());
    SLUICE_CUDA(cudaMemsetAsync(memory->as<void>(), 0, bytes, stream_));
    program_.memory_.push_back(std::move(*memory));
    return program_.memory_.back().as<float>();
  }

  /// A one-row weight as float32 on the device.
  Result<const float*> vector(Weight weight) {
    const LoadedWeight& w = weights_[weight.index];
    std::vector<float> values(w.shape.cols);
    dequantize(w.shape.format, w.host.data, values);
    auto data = make_memory(values.size() * sizeof(float));
    if (!data) return tl::unexpected(data.error());
    SLUICE_CUDA(cudaMemcpyAsync(*data, values.data(), values.size() * sizeof(float),
                                cudaMemcpyHostToDevice, stream_));
    SLUICE_CUDA(cudaStreamSynchronize(stream_));
    return *data;
  }

  const BufferShape& shape(Buffer buffer) const { return steps_.buffers[buffer.index]; }
  Rows rows(Buffer buffer) const { return program_.rows_[buffer.index]; }
  Space space(Buffer buffer) const {
    return shape(buffer).rows == RowSpace::batch ? Space::batch : Space::sampled;
  }

  Result<void> add(const Embed& op) {
    if (weights_[op.table.index].device.scales != nullptr) {
      return fail(ErrorCode::bad_request,
                  "operation {} (Embed): its table was loaded as 8-bit floats, for products alone",
                  index_);
    }
    leave_narrow(op.out);
    program_.launches_.push_back(EmbedArgs{state_.step, state_.slots,
                                           weights_[op.table.index].device, op.scale, rows(op.out),
                                           op.first_token.has_value(), op.first_token.value_or(0)});
    return {};
  }

  Result<void> add(const AllReduce& op) {
    leave_narrow(op.values);
    program_.launches_.push_back(ReduceRows{space(op.values), rows(op.values)});
    return {};
  }

  Result<void> add(const AllGather& op) {
    leave_narrow(op.out);
    const std::uint32_t width = shape(op.out).width;
    const std::uint32_t widest = (width + shard_->size - 1) / shard_->size;
    const std::uint32_t rows_each = std::clamp(static_cast<std::uint32_t>(piece_floats) / widest,
                                               1U, rows_max(pool_, shape(op.out).rows));
    const std::size_t floats = std::size_t{rows_each} * widest;
    if (floats > piece_floats) {
      return fail(ErrorCode::unsupported,
                  "operation {} (AllGather): {} columns a rank, {} at most: use more ranks", index_,
                  widest, piece_floats);
    }
    auto data = make_memory((1 + shard_->size) * floats * sizeof(float));
    if (!data) return tl::unexpected(data.error());
    const SpreadArgs spread{*data + floats, rows(op.out), width, widest, shard_->size};
    program_.launches_.push_back(GatherRows{space(op.out), rows(op.in), shape(op.in).width, spread,
                                            rows_each, *data, *data + floats});
    return {};
  }

  Result<void> add(const Norm& op) {
    keep_narrow(op.out);
    auto gain = vector(op.gain);
    if (!gain) return tl::unexpected(gain.error());
    const NormArgs args{state_.step, space(op.in),       rows(op.in), rows(op.out),
                        *gain,       shape(op.in).width, op.epsilon,  op.accumulate};
    if (index_ > 0 && sums_up(steps_.ops[index_ - 1], op.in)) {
      const ReduceRows sum = std::get<ReduceRows>(program_.launches_.back());
      program_.launches_.back() = ReduceNorm{sum, args, shard_->size};
    } else {
      program_.launches_.push_back(args);
    }
    return {};
  }

  /// Whether an operation is the sum over ranks of this buffer.
  static bool sums_up(const Op& op, Buffer buffer) {
    const auto* sum = std::get_if<AllReduce>(&op);
    return sum != nullptr && sum->values.index == buffer.index;
  }

  Result<void> add(const Linear& op) {
    Product product;
    product.weight = weights_[op.weight.index].device;
    if (takes_narrow(product.weight)) refresh_narrow(op.in);
    leave_narrow(op.out);
    SLUICE_CUDA(prepare_linear(product.weight));
    if (op.bias) {
      auto bias = vector(*op.bias);
      if (!bias) return tl::unexpected(bias.error());
      product.bias = *bias;
    }
    product.out = {rows(op.out).data + op.out_column, rows(op.out).stride};
    product.accumulate = op.accumulate;
    if (LinearArgs* last = beside_last(op, product)) {
      last->product[last->count++] = product;
      return {};
    }
    LinearArgs args;
    args.step = state_.step;
    args.space = space(op.in);
    args.in = rows(op.in);
    args.product[0] = product;
    args.count = 1;
    args.processors = state_.processors;
    args.clustered = state_.clustered;
    program_.launches_.push_back(args);
    return {};
  }

  /// Whether one kernel takes both.
  static bool lies_alike(const DeviceWeight& a, const DeviceWeight& b) {
    return a.format == b.format && a.packed == b.packed &&
           (a.scales == nullptr) == (b.scales == nullptr);
  }

  /// The launch before, if the product can run in it: same input, and results that do not meet.
  LinearArgs* beside_last(const Linear& op, const Product& product) {
    if (index_ == 0 || !std::holds_alternative<Linear>(steps_.ops[index_ - 1])) return nullptr;
    auto* last = std::get_if<LinearArgs>(&program_.launches_.back());
    if (last == nullptr || last->count == products_max || last->in.data != rows(op.in).data ||
        !lies_alike(last->product[0].weight, product.weight)) {
      return nullptr;
    }
    for (std::uint32_t i = 0; i < last->count; ++i) {
      const float* a = last->product[i].out.data;
      const float* b = product.out.data;
      if (a < b + product.weight.rows && b < a + last->product[i].weight.rows) return nullptr;
    }
    return last;
  }

  Result<void> add(const RopeStore& op) {
    leave_narrow(op.qkv);
    auto table = angles(op);
    if (!table) return tl::unexpected(table.error());
    RopeArgs args;
    args.step = state_.step;
    args.slots = state_.slots;
    args.kv = state_.kv;
    args.qkv = rows(op.qkv);
    args.angles = *table;
    args.heads = {op.shape.heads, op.shape.kv_heads, op.shape.head_dim};
    args.layer = op.layer;
    args.pairs = weights_[op.inverse_frequencies.index].shape.cols;
    args.halves = op.pairs == RopePairs::halves;
    if (op.norms) {
      auto q = vector(op.norms->q), k = vector(op.norms->k);
      if (!q || !k) return tl::unexpected(q ? k.error() : q.error());
      args.q_gain = *q;
      args.k_gain = *k;
      args.epsilon = op.norms->epsilon;
    }
    program_.launches_.push_back(args);
    return {};
  }

  /// The step's table of angles for these frequencies; the first user's launch comes after it.
  Result<Rows> angles(const RopeStore& op) {
    for (const Angles& known : angles_) {
      if (known.weight == op.inverse_frequencies.index && known.magnitude == op.magnitude) {
        return known.out;
      }
    }
    const std::uint32_t pairs = weights_[op.inverse_frequencies.index].shape.cols;
    auto out = make_rows(pool_.rows_max, 2 * pairs);
    if (!out) return out;
    auto frequencies = vector(op.inverse_frequencies);
    if (!frequencies) return tl::unexpected(frequencies.error());
    angles_.push_back({op.inverse_frequencies.index, op.magnitude, *out});
    program_.launches_.push_back(AnglesArgs{state_.step, *frequencies, pairs, op.magnitude, *out});
    return out;
  }

  Result<void> add(const Attention& op) {
    keep_narrow(op.out);
    if (op.shape.head_dim > attention_width_max || op.shape.head_dim % 2 != 0) {
      return fail(ErrorCode::unsupported,
                  "heads of {} elements: the cuda backend attends with an even number, {} at most; "
                  "use the cpu backend",
                  op.shape.head_dim, attention_width_max);
    }
    AttentionArgs args;
    args.step = state_.step;
    args.slots = state_.slots;
    args.kv = state_.kv;
    args.qkv = rows(op.qkv);
    args.out = rows(op.out);
    args.heads = {op.shape.heads, op.shape.kv_heads, op.shape.head_dim};
    args.layer = op.layer;
    args.scale = op.scale;
    args.window = op.window;
    args.soft_cap = op.soft_cap;
    args.split_tokens = state_.split_tokens;
    args.wide = state_.wide_attention;
    args.processors = state_.processors;
    SLUICE_TRY(reserve_partials(args));
    SLUICE_CUDA(prepare_attention(args));
    program_.launches_.push_back(args);
    return {};
  }

  /// Room for the splits' results and their blocks' counts, which all layers share.
  Result<void> reserve_partials(AttentionArgs& args) {
    const std::size_t floats =
        std::size_t{state_.splits_max} * args.heads.heads * (2 + args.heads.head_dim);
    if (floats > partial_floats_) {
      auto data = make_memory(floats * sizeof(float));
      if (!data) return tl::unexpected(data.error());
      partials_ = *data;
      partial_floats_ = floats;
    }
    args.partials = partials_;
    const std::size_t counts = std::size_t{pool_.rows_max} * args.heads.heads;
    if (counts > counts_) {
      auto data = make_memory(counts * sizeof(std::uint32_t));
      if (!data) return tl::unexpected(data.error());
      arrived_ = reinterpret_cast<std::uint32_t*>(*data);
      counts_ = counts;
    }
    args.arrived = arrived_;
    return {};
  }

  Result<void> add(const Gate& op) {
    keep_narrow(op.out);
    const GateArgs args{state_.step,  space(op.in),        rows(op.in),
                        rows(op.out), shape(op.out).width, op.activation == Activation::gelu_tanh};
    if (state_.fuse_gates && follows_its_products(args) && is_gates_own(op.in)) {
      program_.kept_[op.in.index] = false;
      const LinearArgs products = std::get<LinearArgs>(program_.launches_.back());
      program_.launches_.back() = GatedArgs{products, args};
    } else {
      program_.launches_.push_back(args);
    }
    return {};
  }

  /// Whether the launch before is the products of the gate's two halves, and nothing besides.
  bool follows_its_products(const GateArgs& gate) const {
    if (program_.launches_.empty()) return false;
    const auto* linear = std::get_if<LinearArgs>(&program_.launches_.back());
    // Nor may blocks write what others still read.
    if (linear == nullptr || linear->count != 2 || gate.out.data == linear->in.data) return false;
    for (std::uint32_t i = 0; i < 2; ++i) {
      const Product& product = linear->product[i];
      if (product.out.data != gate.in.data + i * gate.width || product.accumulate ||
          product.weight.rows != gate.width || !takes_narrow(product.weight)) {
        return false;
      }
    }
    return true;
  }

  /// Whether the buffer only ever takes two products to the gate behind them.
  bool is_gates_own(Buffer buffer) const {
    const std::uint32_t half = shape(buffer).width / 2;
    const auto writes_half = [&](const Op& op) -> const Linear* {
      const auto* linear = std::get_if<Linear>(&op);
      const bool does = linear != nullptr && linear->out.index == buffer.index &&
                        linear->in.index != buffer.index && !linear->accumulate &&
                        linear->out_column % half == 0 &&
                        weights_[linear->weight.index].device.rows == half;
      return does ? linear : nullptr;
    };
    const std::vector<Op>& ops = steps_.ops;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (!std::visit(Names{buffer.index}, ops[i])) continue;
      if (i + 2 >= ops.size()) return false;
      const Linear* first = writes_half(ops[i]);
      const Linear* second = writes_half(ops[i + 1]);
      const auto* gate = std::get_if<Gate>(&ops[i + 2]);
      if (first == nullptr || second == nullptr || first->out_column == second->out_column ||
          gate == nullptr || gate->in.index != buffer.index || gate->out.index == buffer.index) {
        return false;
      }
      i += 2;
    }
    return true;
  }

  /// Makes one launch of each norm and the products behind it, where a kernel does both.
  void fuse_norms() {
    std::vector<Program::Launch> fused;
    for (const Program::Launch& launch : program_.launches_) {
      const auto both = fused.empty() ? std::nullopt : with_norm(fused.back(), launch);
      if (both) {
        fused.back() = *both;
      } else {
        fused.push_back(launch);
      }
    }
    program_.launches_ = std::move(fused);
  }

  static std::optional<NormedArgs> with_norm(const Program::Launch& before,
                                             const Program::Launch& launch) {
    const auto* norm = std::get_if<NormArgs>(&before);
    const auto* gated = std::get_if<GatedArgs>(&launch);
    const auto* linear = gated != nullptr ? &gated->linear : std::get_if<LinearArgs>(&launch);
    if (norm == nullptr || linear == nullptr || norm->accumulate || norm->width > norm_kept_max ||
        norm->out.data != linear->in.data || norm->in.data == norm->out.data ||
        !linear->product[0].weight.packed) {
      return std::nullopt;
    }
    // A block may have written results while another reads the norm's input.
    const auto reads = [norm](const Rows& out) {
      return out.data >= norm->in.data && out.data < norm->in.data + norm->in.stride;
    };
    for (std::uint32_t i = 0; i < linear->count; ++i) {
      if (reads(linear->product[i].out)) return std::nullopt;
    }
    if (gated == nullptr) return NormedArgs{*norm, {*linear, {}}};
    if (reads(gated->gate.out)) return std::nullopt;
    return NormedArgs{*norm, *gated};
  }

  Result<void> add(const SoftCap& op) {
    leave_narrow(op.values);
    program_.launches_.push_back(SoftCapArgs{state_.step, space(op.values), rows(op.values),
                                             shape(op.values).width, op.cap});
    return {};
  }

  Result<void> add(const Select& op) {
    keep_narrow(op.out);
    program_.launches_.push_back(
        SelectArgs{state_.step, rows(op.in), rows(op.out), shape(op.in).width});
    return {};
  }

  Result<void> add(const Sample& op) {
    const SampleArgs sample{state_.step, state_.slots, rows(op.logits), state_.adjusted,
                            state_.drawn};
    if (!ends_with_parts(op)) {
      program_.launches_.push_back(sample);
      return {};
    }
    const GatherRows gather = std::get<GatherRows>(program_.launches_.back());
    auto candidates = candidates_of(sample, gather);
    if (!candidates) return tl::unexpected(candidates.error());
    program_.launches_.back() = DrawApart{gather, sample, *candidates};
    return {};
  }

  /// Whether the logits are several ranks' parts, gathered for this and nothing else.
  bool ends_with_parts(const Sample& op) const {
    if (!shard_ || shard_->size == 1 || index_ == 0) return false;
    const auto* gather = std::get_if<AllGather>(&steps_.ops[index_ - 1]);
    return gather != nullptr && gather->out.index == op.logits.index &&
           index_ + 1 == steps_.ops.size();
  }

  /// With room for what ranks tell of as many rows as a step can have.
  Result<CandidateArgs> candidates_of(const SampleArgs& sample, const GatherRows& gather) {
    const std::size_t rows = rows_max(pool_, RowSpace::sampled), ranks = shard_->size;
    auto data = make_memory((1 + ranks) * rows * (sizeof(RankTally) + sizeof(RankPeak)));
    if (!data) return tl::unexpected(data.error());
    auto* tallies = reinterpret_cast<RankTally*>(*data);
    auto* peaks = reinterpret_cast<RankPeak*>(tallies + (1 + ranks) * rows);
    CandidateArgs args;
    args.step = sample.step;
    args.slots = sample.slots;
    args.logits = gather.in;
    args.first = shard_begin(pool_.vocabulary, shard_->rank, shard_->size);
    args.count = gather.own_width;
    args.ranks = shard_->size;
    args.adjusted = sample.adjusted;
    args.drawn = sample.drawn;
    args.own_peaks = peaks;
    args.peaks = peaks + rows;
    args.own_tallies = tallies;
    args.tallies = tallies + rows;
    return args;
  }

  struct Angles {
    std::uint32_t weight;
    float magnitude;
    Rows out;
  };

  const StepProgram& steps_;
  std::span<const LoadedWeight> weights_;
  const PoolShape& pool_;
  const std::optional<Shard>& shard_;
  const DeviceState& state_;
  cudaStream_t stream_;
  std::size_t index_ = 0;
  std::vector<Angles> angles_;
  std::vector<bool> stale_;  ///< of each buffer: whether what products read of it is out of date
  float* partials_ = nullptr;
  std::size_t partial_floats_ = 0;
  std::uint32_t* arrived_ = nullptr;
  std::size_t counts_ = 0;
  Program program_;
};

Result<Program> Program::compile(const StepProgram& steps, std::span<const LoadedWeight> weights,
                                 const PoolShape& pool, const std::optional<Shard>& shard,
                                 const DeviceState& state, cudaStream_t stream) {
  return Compiler(steps, weights, pool, shard, state, stream).compile();
}

}  // namespace sluice::kernels::cuda
