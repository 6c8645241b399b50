#pragma once
// A plain model of a backend, in double, one row and one element at a time: it interprets a program
// over a batch and keeps every buffer, so that tests can compare all of them. Its KV cache rounds
// to half as every backend's does, or to 8 bits. Also a tiny random model that uses all operations.

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numbers>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/quant.hpp"
#include "tests/kernels/e4m3.hpp"

namespace sluice::kernels::test {

struct Tensor {
  HostTensor host;
  std::vector<std::byte> bytes;
  std::vector<double> values;  ///< [rows, cols]
};

/// The largest value that random bits give with a scale of 1, and the minimum's scale that centres
/// the values on 0.
struct Steps {
  float largest;
  float minimum;
};

inline Steps steps_of(Format format) {
  switch (format) {
    case Format::q8_0: return {128, 0};
    case Format::q4_0: return {8, 0};
    case Format::q4_1: return {7.5F, -7.5F};
    case Format::q5_0: return {16, 0};
    case Format::q5_1: return {15.5F, -15.5F};
    case Format::q4_k: return {63 * 7.5F, 7.5F};  // the 6-bit scales multiply both
    case Format::q5_k: return {63 * 15.5F, 15.5F};
    case Format::q6_k: return {128 * 32, 0};
    default: return {1, 0};
  }
}

/// Random values about as large as 1 / sqrt(cols), in any format.
inline Tensor random_tensor(std::mt19937& random, Format format, std::uint32_t rows,
                            std::uint32_t cols, float size, float mean = 0.0F) {
  Tensor t;
  const std::size_t row = row_bytes(format, cols);
  t.bytes.resize(rows * row);
  std::uniform_real_distribution<float> value(mean - size, mean + size);
  if (format == Format::f32) {
    for (std::size_t i = 0; i < t.bytes.size(); i += 4) {
      const float x = value(random);
      std::memcpy(&t.bytes[i], &x, 4);
    }
  } else if (format == Format::f16 || format == Format::bf16) {
    for (std::size_t i = 0; i < t.bytes.size(); i += 2) {
      const float x = value(random);
      const auto half = format == Format::f16
                            ? f32_to_f16(x)
                            : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16);
      std::memcpy(&t.bytes[i], &half, 2);
    }
  } else {
    for (std::byte& b : t.bytes) b = static_cast<std::byte>(random() & 255U);
    const FormatInfo& f = info(format);
    const Steps steps = steps_of(format);
    for (std::size_t at = 0; at < t.bytes.size(); at += f.block_bytes) {
      const std::uint16_t d = f32_to_f16(size / steps.largest);
      const std::uint16_t m = f32_to_f16(size / steps.largest * steps.minimum);
      std::memcpy(&t.bytes[at + (format == Format::q6_k ? 208 : 0)], &d, 2);
      if (steps.minimum != 0) std::memcpy(&t.bytes[at + 2], &m, 2);
    }
  }
  t.host = {format, rows, cols, t.bytes};
  std::vector<float> values(cols);
  for (std::uint32_t r = 0; r < rows; ++r) {
    dequantize(format, std::span(t.bytes).subspan(r * row, row), values);
    t.values.insert(t.values.end(), values.begin(), values.end());
  }
  return t;
}

struct Traits {
  Format format = Format::q4_1;
  std::optional<Format> other_format = std::nullopt;  ///< of every second matrix
  std::uint32_t hidden = 256;
  HeadShape heads{4, 2, 64};
  std::uint32_t feed_forward = 256;
  std::uint32_t vocabulary = 300;
  std::uint32_t layers = 2;
  std::uint32_t pairs = 32;
  std::uint32_t window = 0;
  RopePairs order = RopePairs::adjacent;
  Activation activation = Activation::silu;
  float magnitude = 1.0F;
  bool bias = false;
  bool head_norms = false;
  bool branch_norms = false;  ///< norms of what a layer adds to the residual
  bool mixed_layers = false;  ///< odd layers have no window, and frequencies of their own
  float score_cap = 0.0F;
  float logit_cap = 0.0F;
  std::uint32_t block_tokens = 16;
  std::uint32_t context_tokens = 96;
  std::uint32_t pool_contexts = 8;  ///< that the pool's blocks hold
  bool sample = true;
  KvFormat kv_format = KvFormat::f16;
};

/// A tiny decoder: tensors and a program; Weight{i} is tensors[i] when loaded in order.
struct TinyModel {
  Traits traits;
  std::vector<Tensor> tensors;
  StepProgram program;
  Buffer logits;

  PoolShape pool() const {
    PoolShape p;
    p.layers = traits.layers;
    p.kv_heads = traits.heads.kv_heads;
    p.head_dim = traits.heads.head_dim;
    p.block_tokens = traits.block_tokens;
    p.context_tokens = traits.context_tokens;
    p.blocks = traits.pool_contexts * traits.context_tokens / traits.block_tokens;
    p.slots = 6;
    p.rows_max = traits.context_tokens;
    p.vocabulary = traits.vocabulary;
    p.kv_format = traits.kv_format;
    return p;
  }
};

class TinyModelMaker {
 public:
  TinyModelMaker(const Traits& traits, std::uint32_t seed) : random_(seed) {
    model_.traits = traits;
  }

  TinyModel make() {
    const Traits& t = model_.traits;
    const HeadShape& h = t.heads;
    const std::uint32_t q = h.heads * h.head_dim;
    const std::uint32_t kv = h.kv_heads * h.head_dim;
    const Weight table = matrix(t.vocabulary, t.hidden, 1.0F);
    std::vector<Weight> frequencies{tensor(Format::f32, 1, t.pairs, 0.4F, 0.5F)};
    if (t.mixed_layers) frequencies.push_back(tensor(Format::f32, 1, t.pairs, 0.04F, 0.05F));
    Buffer hidden = buffer(t.hidden);
    op(Embed{table, hidden, 1.5F});
    for (std::uint32_t layer = 0; layer < t.layers; ++layer) {
      // What products read is written once a step, so that it can be read afterwards.
      Buffer normed = buffer(t.hidden);
      const Buffer qkv = buffer(q + 2 * kv);
      Buffer attended = buffer(q);
      op(Norm{hidden, vector(t.hidden), 1e-5F, normed});
      linear(normed, q, t.hidden, qkv, 0);
      linear(normed, kv, t.hidden, qkv, q);
      linear(normed, kv, t.hidden, qkv, q + kv);
      RopeStore rope{qkv, h, layer, frequencies[layer % frequencies.size()], t.order, t.magnitude};
      if (t.head_norms) rope.norms = HeadNorms{vector(h.head_dim), vector(h.head_dim), 1e-4F};
      op(rope);
      const float scale = 1.0F / std::sqrt(static_cast<float>(h.head_dim));
      const std::uint32_t window = t.mixed_layers && layer % 2 == 1 ? 0 : t.window;
      op(Attention{qkv, h, layer, scale, window, attended, t.score_cap});
      // Only rows that are sampled go on behind the last attention.
      const bool last = layer + 1 == t.layers;
      const RowSpace rows = last ? RowSpace::sampled : RowSpace::batch;
      if (last) {
        attended = select(attended, q);
        hidden = select(hidden, t.hidden);
      }
      add_branch(attended, q, hidden, rows);
      normed = buffer(t.hidden, rows);
      const Buffer gate = buffer(2 * t.feed_forward, rows), gated = buffer(t.feed_forward, rows);
      op(Norm{hidden, vector(t.hidden), 1e-5F, normed});
      linear(normed, t.feed_forward, t.hidden, gate, 0);
      linear(normed, t.feed_forward, t.hidden, gate, t.feed_forward);
      op(Gate{gate, t.activation, gated});
      add_branch(gated, t.feed_forward, hidden, rows);
    }
    const Buffer last_normed = buffer(t.hidden, RowSpace::sampled);
    model_.logits = buffer(t.vocabulary, RowSpace::sampled);
    op(Norm{hidden, vector(t.hidden), 1e-5F, last_normed});
    Linear logits{last_normed, matrix(t.vocabulary, t.hidden, 3.0F), {}, model_.logits};
    logits.float_input = true;
    op(logits);
    if (t.logit_cap > 0) op(SoftCap{model_.logits, t.logit_cap});
    if (t.sample) op(Sample{model_.logits});
    return std::move(model_);
  }

 private:
  void op(Op made) { model_.program.ops.push_back(made); }

  Buffer buffer(std::uint32_t width, RowSpace rows = RowSpace::batch) {
    model_.program.buffers.push_back({rows, width});
    return {static_cast<std::uint32_t>(model_.program.buffers.size() - 1)};
  }

  Buffer select(Buffer from, std::uint32_t width) {
    const Buffer selected = buffer(width, RowSpace::sampled);
    op(Select{from, selected});
    return selected;
  }

  Weight tensor(Format format, std::uint32_t rows, std::uint32_t cols, float size, float mean) {
    model_.tensors.push_back(random_tensor(random_, format, rows, cols, size, mean));
    return {static_cast<std::uint32_t>(model_.tensors.size() - 1)};
  }
  Weight matrix(std::uint32_t rows, std::uint32_t cols, float size) {
    const float each = size / std::sqrt(static_cast<float>(cols));
    const Traits& t = model_.traits;
    const Format format = ++matrices_ % 2 == 0 ? t.other_format.value_or(t.format) : t.format;
    return tensor(format, rows, cols, each, 0.0F);
  }
  Weight vector(std::uint32_t cols) { return tensor(Format::f32, 1, cols, 0.5F, 1.0F); }

  void linear(Buffer in, std::uint32_t rows, std::uint32_t cols, Buffer out, std::uint32_t column,
              bool accumulate = false) {
    std::optional<Weight> bias;
    if (model_.traits.bias) bias = tensor(Format::f32, 1, rows, 0.3F, 0.0F);
    op(Linear{in, matrix(rows, cols, 1.7F), bias, out, column, accumulate});
  }

  /// The residual connection: hidden += weight . in, normed if the model norms it.
  void add_branch(Buffer in, std::uint32_t width, Buffer hidden, RowSpace rows) {
    const Traits& t = model_.traits;
    if (!t.branch_norms) return linear(in, t.hidden, width, hidden, 0, true);
    const Buffer branch = buffer(t.hidden, rows);
    linear(in, t.hidden, width, branch, 0);
    op(Norm{branch, vector(t.hidden), 1e-5F, hidden, true});
  }

  std::mt19937 random_;
  TinyModel model_;
  std::uint32_t matrices_ = 0;
};

inline TinyModel tiny_model(const Traits& traits, std::uint32_t seed = 1) {
  return TinyModelMaker(traits, seed).make();
}

class Reference {
 public:
  /// Rounds as `device` says that it does; of weights that it changes, `keep` is what it keeps.
  Reference(const TinyModel& model, const DeviceInfo& device,
            std::vector<double> (*keep)(const Tensor&))
      : model_(model),
        int8_block_columns_(device.int8_block_columns),
        bf16_products_(device.bf16_products),
        bf16_inputs_(device.bf16_inputs),
        half_queries_(device.half_queries),
        bf16_attention_(device.bf16_attention && attends_in_pairs(model)) {
    if (!device.bf16_weights) return;
    for (Tensor& tensor : model_.tensors) tensor.values = keep(tensor);
  }

  /// Whether a device with `bf16_attention` has it for this model.
  static bool attends_in_pairs(const TinyModel& model) {
    const Traits& traits = model.traits;
    if (traits.heads.head_dim % 16 != 0 || traits.block_tokens % 16 != 0) return false;
    return std::any_of(model.program.ops.begin(), model.program.ops.end(), [&](const Op& op) {
      const auto* linear = std::get_if<Linear>(&op);
      if (linear == nullptr) return false;
      return info(model.tensors[linear->weight.index].host.format).block_elements != 1;
    });
  }

  /// Buffers after the batch ran: [rows][width]
  std::vector<std::vector<std::vector<double>>> buffers;

  /// `read(buffer, rows)`: what the device has there after the same batch. Where it rounds,
  /// products take their input from it: else a last bit would be a step, and steps would add up.
  template <class Read>
  void run(const Batch& batch, Read read) {
    read_ = read;
    for (const SlotOpen& open : batch.opens) {
      tokens[open.slot.slot] = open.tokens;
      cache_.erase(open.slot.slot);
    }
    rows_.clear();
    sampled_.clear();
    for (const Segment& s : batch.segments) {
      for (std::uint32_t i = 0; i < s.rows; ++i) rows_.push_back({s.slot.slot, s.position + i});
      if (s.sample) sampled_.push_back(rows_.size() - 1);
    }
    buffers.clear();
    for (const BufferShape& shape : model_.program.buffers) {
      const std::size_t rows = shape.rows == RowSpace::batch ? rows_.size() : sampled_.size();
      buffers.emplace_back(rows, std::vector<double>(shape.width, 0.0));
    }
    for (const Op& op : model_.program.ops) {
      std::visit([this](const auto& o) { apply(o); }, op);
    }
  }

  std::map<SlotIndex, std::vector<Token>> tokens;

 private:
  struct Row {
    SlotIndex slot;
    std::uint32_t position;
  };

  const Tensor& tensor(Weight w) const { return model_.tensors[w.index]; }

  /// One rank: it has all there is.
  void apply(const AllReduce&) {}
  void apply(const AllGather& op) { buffers[op.out.index] = buffers[op.in.index]; }

  void apply(const Embed& op) {
    const Tensor& table = tensor(op.table);
    const Token first = op.first_token.value_or(0);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const Token token = tokens[rows_[r].slot].at(rows_[r].position) - first;
      if (op.first_token && token >= table.host.rows) {
        std::fill(buffers[op.out.index][r].begin(), buffers[op.out.index][r].end(), 0.0);
        continue;
      }
      for (std::size_t i = 0; i < table.host.cols; ++i) {
        buffers[op.out.index][r][i] = table.values[token * table.host.cols + i] * op.scale;
      }
    }
  }

  void apply(const Norm& op) {
    for (std::size_t r = 0; r < buffers[op.in.index].size(); ++r) {
      const std::vector<double>& in = buffers[op.in.index][r];
      double squares = 0;
      for (const double x : in) squares += x * x;
      const double scale = 1 / std::sqrt(squares / static_cast<double>(in.size()) + op.epsilon);
      for (std::size_t i = 0; i < in.size(); ++i) {
        const double normed = in[i] * scale * tensor(op.gain).values[i];
        double& out = buffers[op.out.index][r][i];
        out = op.accumulate ? out + normed : normed;
      }
    }
  }

  /// A product's input as the backend reads it.
  std::vector<std::vector<double>> inputs(const Linear& op) const {
    std::vector<std::vector<double>> rows = buffers[op.in.index];
    const Format format = tensor(op.weight).host.format;
    const bool int8 = int8_block_columns_ != 0 && info(format).block_elements != 1;
    const bool bf16 = bf16_inputs_ && format == Format::bf16 && !op.float_input;
    if (!int8 && !bf16 && !rounds_to_bf16(format)) return rows;
    const std::vector<float> device = read_(op.in, rows.size());
    std::size_t i = 0;
    for (std::vector<double>& row : rows) {
      for (double& x : row) x = static_cast<double>(device[i++]);
      row = int8 ? rounded(std::move(row)) : brained(std::move(row));
    }
    return rows;
  }

  bool rounds_to_bf16(Format format) const {
    return bf16_products_ && format != Format::f32;
  }

  static std::vector<double> brained(std::vector<double> x) {
    for (double& v : x) v = brain(v);
    return x;
  }

  static double largest(std::span<const double> values) {
    double most = 0;
    for (const double v : values) most = std::max(most, std::abs(v));
    return most;
  }

  std::vector<double> rounded(std::vector<double> x) const {
    const auto part = [](std::span<double> of, std::size_t first, std::size_t count) {
      return of.subspan(first, std::min(count, of.size() - first));
    };
    for (std::size_t g = 0; g < x.size(); g += 2 * int8_block_columns_) {
      const auto group = part(x, g, 2 * int8_block_columns_);
      const double top = largest(group);
      for (std::size_t b = 0; b < group.size(); b += int8_block_columns_) {
        const auto block = part(group, b, int8_block_columns_);
        const double own = largest(block);
        double step = top / 127;
        while (own > 0 && step * 127 >= 2 * own) step /= 2;
        for (double& v : block) v = own == 0 ? 0 : std::nearbyint(v / step) * step;
      }
    }
    return x;
  }

  void apply(const Linear& op) {
    const Tensor& w = tensor(op.weight);
    const auto rows = inputs(op);
    const auto values = rounds_to_bf16(w.host.format) ? brained(w.values) : w.values;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::vector<double>& x = rows[r];
      for (std::size_t o = 0; o < w.host.rows; ++o) {
        double sum = op.bias ? tensor(*op.bias).values[o] : 0.0;
        for (std::size_t i = 0; i < w.host.cols; ++i) {
          sum += values[o * w.host.cols + i] * x[i];
        }
        double& out = buffers[op.out.index][r][op.out_column + o];
        out = op.accumulate ? out + sum : sum;
      }
    }
  }

  void rotate(double* head, const RopeStore& op, std::uint32_t position) const {
    const Tensor& frequencies = tensor(op.inverse_frequencies);
    const std::size_t pairs = frequencies.host.cols;
    for (std::size_t i = 0; i < pairs; ++i) {
      const auto frequency = static_cast<float>(frequencies.values[i]);
      const double angle = static_cast<float>(position) * frequency;
      const double c = std::cos(angle) * op.magnitude, s = std::sin(angle) * op.magnitude;
      const bool adjacent = op.pairs == RopePairs::adjacent;
      double& x = head[adjacent ? 2 * i : i];
      double& y = head[adjacent ? 2 * i + 1 : i + pairs];
      const double turned = x * c - y * s;
      y = x * s + y * c;
      x = turned;
    }
  }

  void norm_head(double* head, Weight gain, float epsilon) const {
    const std::vector<double>& gains = tensor(gain).values;
    double squares = 0;
    for (std::size_t d = 0; d < gains.size(); ++d) squares += head[d] * head[d];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(gains.size()) + epsilon);
    for (std::size_t d = 0; d < gains.size(); ++d) head[d] *= scale * gains[d];
  }

  static double half(double x) { return f16_to_f32(f32_to_f16(static_cast<float>(x))); }
  static double brain(double x) { return bf16_to_f32(f32_to_bf16(static_cast<float>(x))); }

  /// A row's keys, before their rotation, and values. Of 8 bits and in bfloat16 they are the
  /// device's own, as queries() says: a neighbour is 2^-3 of an element away, or 2^-8.
  std::vector<double> keys_and_values(const RopeStore& op, std::size_t r) const {
    const auto first = op.shape.heads * op.shape.head_dim;
    const std::vector<double>& row = buffers[op.qkv.index][r];
    if (model_.traits.kv_format == KvFormat::f16 && !bf16_attention_) {
      return {row.begin() + first, row.end()};
    }
    const std::vector<float> device = read_(op.qkv, r + 1);
    return {device.end() - static_cast<std::ptrdiff_t>(row.size() - first), device.end()};
  }

  void apply(const RopeStore& op) {
    const HeadShape& h = op.shape;
    const bool eight_bits = model_.traits.kv_format == KvFormat::e4m3;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      std::vector<double>& row = buffers[op.qkv.index][r];
      for (std::uint32_t i = 0; i < h.heads; ++i) {
        if (op.norms) norm_head(&row[i * h.head_dim], op.norms->q, op.norms->epsilon);
        rotate(&row[i * h.head_dim], op, rows_[r].position);
      }
      std::vector<double> kv = keys_and_values(op, r);
      for (std::uint32_t i = 0; i < h.kv_heads; ++i) {
        if (op.norms) norm_head(&kv[i * h.head_dim], op.norms->k, op.norms->epsilon);
        rotate(&kv[i * h.head_dim], op, rows_[r].position);
      }
      for (double& x : kv) x = eight_bits ? e4m3_rounded(x) : bf16_attention_ ? brain(x) : half(x);
      cache_[rows_[r].slot][op.layer][rows_[r].position] = kv;
    }
  }

  /// Queries as the backend multiplies them with keys, but for its scale: rows of qkv.
  std::vector<std::vector<double>> queries(const Attention& op) const {
    std::vector<std::vector<double>> rows = buffers[op.qkv.index];
    if (!half_queries_ && !bf16_attention_) return rows;
    const float scale = op.soft_cap == 0   ? op.scale * std::numbers::log2e_v<float>
                        : bf16_attention_ ? op.scale
                                          : op.scale / op.soft_cap;
    const std::vector<float> device = read_(op.qkv, rows.size());
    std::size_t i = 0;
    for (std::vector<double>& row : rows) {
      for (double& x : row) {
        const double scaled = device[i++] * scale;
        x = (bf16_attention_ ? brain(scaled) : half(scaled)) / static_cast<double>(scale);
      }
    }
    return rows;
  }

  void apply(const Attention& op) {
    const HeadShape& h = op.shape;
    const auto all_queries = queries(op);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      auto& cache = cache_[rows_[r].slot][op.layer];
      const std::uint32_t end = rows_[r].position + 1;
      const std::uint32_t begin = op.window != 0 && end > op.window ? end - op.window : 0;
      std::vector<const double*> seen;  // keys and values of each position
      for (std::uint32_t p = begin; p < end; ++p) seen.push_back(cache.at(p).data());
      for (std::uint32_t head = 0; head < h.heads; ++head) {
        const std::uint32_t kv = head / (h.heads / h.kv_heads);
        std::vector<double> weights;
        double top = -INFINITY, total = 0;
        for (std::uint32_t p = begin; p < end; ++p) {
          double dot = 0;
          for (std::uint32_t d = 0; d < h.head_dim; ++d) {
            dot += all_queries[r][head * h.head_dim + d] * seen[p - begin][kv * h.head_dim + d];
          }
          weights.push_back(capped(dot * op.scale, op.soft_cap));
          top = std::max(top, weights.back());
        }
        for (double& w : weights) {
          w = std::exp(w - top);
          total += w = bf16_attention_ ? brain(w) : w;
        }
        for (std::uint32_t d = 0; d < h.head_dim; ++d) {
          double sum = 0;
          for (std::uint32_t p = begin; p < end; ++p) {
            sum += weights[p - begin] * seen[p - begin][(h.kv_heads + kv) * h.head_dim + d];
          }
          buffers[op.out.index][r][head * h.head_dim + d] = sum / total;
        }
      }
    }
  }

  static double capped(double x, float cap) { return cap == 0 ? x : cap * std::tanh(x / cap); }

  void apply(const SoftCap& op) {
    for (std::vector<double>& row : buffers[op.values.index]) {
      for (double& x : row) x = capped(x, op.cap);
    }
  }

  void apply(const Gate& op) {
    for (std::size_t r = 0; r < buffers[op.in.index].size(); ++r) {
      std::vector<double>& out = buffers[op.out.index][r];
      for (std::size_t i = 0; i < out.size(); ++i) {
        const double x = buffers[op.in.index][r][i];
        const double inner = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
        const double active = op.activation == Activation::silu ? x / (1 + std::exp(-x))
                                                                 : 0.5 * x * (1 + std::tanh(inner));
        out[i] = active * buffers[op.in.index][r][out.size() + i];
      }
    }
  }

  void apply(const Select& op) {
    for (std::size_t i = 0; i < sampled_.size(); ++i) {
      buffers[op.out.index][i] = buffers[op.in.index][sampled_[i]];
    }
  }

  void apply(const Sample&) {}

  TinyModel model_;
  std::function<std::vector<float>(Buffer, std::size_t)> read_;
  std::uint32_t int8_block_columns_;
  bool bf16_products_;
  bool bf16_inputs_;
  bool half_queries_;
  bool bf16_attention_;
  std::vector<Row> rows_;
  std::vector<std::size_t> sampled_;
  std::map<SlotIndex, std::map<std::uint32_t, std::map<std::uint32_t, std::vector<double>>>> cache_;
};

}  // namespace sluice::kernels::test
