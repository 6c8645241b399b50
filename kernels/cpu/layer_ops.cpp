#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/layer_ops.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/layer_ops.hpp"
#include "kernels/cpu/narrow-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::KvPlace;
using cpu::padded;

void norm_row(const float* in, const float* gain, std::uint32_t width, float epsilon,
              bool accumulate, float* out) {
  Lanes squares = set(0.0F);
  for (std::size_t i = 0; i < padded(width); i += 16) {
    const Lanes x = load(in + i);
    squares = fma(x, x, squares);
  }
  const float mean = sum(squares) / static_cast<float>(width);
  const Lanes scale = set(1.0F / std::sqrt(mean + epsilon));
  for (std::size_t i = 0; i < padded(width); i += 16) {
    const Lanes normed = load(in + i) * scale * load(gain + i);
    store(accumulate ? load(out + i) + normed : normed, out + i);
  }
}

/// A cap keeps a padding of zeros: tanh(0) is exactly 0.
void soft_cap_row(float cap, std::uint32_t first, std::uint32_t last, float* values) {
  for (std::size_t i = first; i < last; i += 16) {
    store(tanh(load(values + i) * set(1.0F / cap)) * set(cap), values + i);
  }
}

HWY_INLINE Lanes silu(const Lanes& x) { return x / (set(1.0F) + exp(set(0.0F) - x)); }

/// 0.5 x (1 + tanh(y)) = x / (1 + e^(-2y)) with y = sqrt(2 / pi) (x + 0.044715 x^3)
HWY_INLINE Lanes gelu_tanh(const Lanes& x) {
  const Lanes y = x * fma(set(0.044715F) * x, x, set(1.0F));
  return x / (set(1.0F) + exp(set(-1.5957691216F) * y));
}

template <class Function>
HWY_INLINE void gate_with(Function function, const float* in, std::uint32_t width,
                          std::uint32_t first, std::uint32_t last, float* out) {
  std::size_t i = first;
  for (; i + 16 <= last; i += 16) store(function(load(in + i)) * load(in + width + i), out + i);
  if (i == last) return;
  float x[16] = {}, y[16] = {}, gated[16];
  std::copy(in + i, in + last, x);
  std::copy(in + width + i, in + width + last, y);
  store(function(load(x)) * load(y), gated);
  std::copy(gated, gated + (last - i), out + i);
}

void gate_row(const float* in, Activation activation, std::uint32_t width, std::uint32_t first,
              std::uint32_t last, float* out) {
  if (activation == Activation::silu) {
    gate_with([](const Lanes& x) HWY_ATTR { return silu(x); }, in, width, first, last, out);
  } else {
    gate_with([](const Lanes& x) HWY_ATTR { return gelu_tanh(x); }, in, width, first, last, out);
  }
}

void rotate_head(float* head, const float* angles, std::uint32_t pairs, RopePairs order) {
  const float* cosine = angles;
  const float* sine = angles + pairs;
  const std::size_t step = order == RopePairs::adjacent ? 2 : 1;
  float* left = head;
  float* right = order == RopePairs::adjacent ? head + 1 : head + pairs;
  std::size_t i = 0;
  for (; i + part_lanes <= pairs; i += part_lanes) {
    Part x, y;
    if (order == RopePairs::adjacent) {
      hn::LoadInterleaved2(F(), left + 2 * i, x, y);
    } else {
      x = hn::LoadU(F(), left + i);
      y = hn::LoadU(F(), right + i);
    }
    const Part c = hn::LoadU(F(), cosine + i);
    const Part s = hn::LoadU(F(), sine + i);
    const Part turned_x = hn::Sub(hn::Mul(x, c), hn::Mul(y, s));
    const Part turned_y = hn::Add(hn::Mul(x, s), hn::Mul(y, c));
    if (order == RopePairs::adjacent) {
      hn::StoreInterleaved2(turned_x, turned_y, F(), left + 2 * i);
    } else {
      hn::StoreU(turned_x, F(), left + i);
      hn::StoreU(turned_y, F(), right + i);
    }
  }
  for (; i < pairs; ++i) {
    const float x = left[i * step];
    const float y = right[i * step];
    left[i * step] = x * cosine[i] - y * sine[i];
    right[i * step] = x * sine[i] + y * cosine[i];
  }
}

/// within_halves in each lane
HWY_INLINE Lanes lanes_within_halves(Lanes v) {
  for (Part& part : v.part) {
    const Part most = hn::Set(F(), largest_f16), least = hn::Set(F(), -largest_f16);
    part = hn::IfThenElse(hn::Gt(part, most), most, part);
    part = hn::IfThenElse(hn::Lt(part, least), least, part);
  }
  return v;
}

/// Of a key or a value, for the pool.
HWY_INLINE void to_halves(const float* from, std::size_t count, std::uint16_t* to) {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) store_half(lanes_within_halves(load(from + i)), to + i);
  for (; i < count; ++i) to[i] = f32_to_f16(within_halves(from[i]));
}

void store_head(const float* key, const float* value, std::uint32_t head_dim, const float* angles,
                std::uint32_t pairs, RopePairs order, const KvPlace& place) {
  float rotated[head_dim_max];
  std::uint16_t halves[head_dim_max];
  std::copy(key, key + head_dim, rotated);
  rotate_head(rotated, angles, pairs, order);
  if (place.paired) {
    for (std::size_t d = 0; d < head_dim; d += 16) narrow_lanes(load(rotated + d), halves + d);
    for (std::size_t d = 0; d < head_dim; d += 2) {
      std::memcpy(place.keys + d / 2 * place.key_stride, halves + d, 2 * sizeof *halves);
    }
    for (std::size_t d = 0; d < head_dim; d += 16) narrow_lanes(load(value + d), halves + d);
    for (std::size_t d = 0; d < head_dim; ++d) place.values[2 * d] = halves[d];
    return;
  }
  to_halves(rotated, head_dim, halves);
  for (std::size_t d = 0; d < head_dim; ++d) place.keys[d * place.key_stride] = halves[d];
  to_halves(value, head_dim, place.values);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(norm_row);
HWY_EXPORT(soft_cap_row);
HWY_EXPORT(gate_row);
HWY_EXPORT(rotate_head);
HWY_EXPORT(store_head);

namespace cpu {

void embed_row(const CpuWeight& table, std::uint32_t row, float scale, float* out) {
  SLUICE_ASSERT(row < table.rows, "a token outside the embedding table");
  const std::span bytes(table.data + std::size_t{row} * table.row_stride,
                        row_bytes(table.format, table.cols));
  dequantize(table.format, bytes, {out, table.cols});
  std::fill(out + table.cols, out + padded(table.cols), 0.0F);
  if (scale == 1.0F) return;
  for (std::size_t i = 0; i < table.cols; ++i) out[i] *= scale;
}

void norm_row(const float* in, const float* gain, std::uint32_t width, float epsilon,
              bool accumulate, float* out) {
  HWY_DYNAMIC_DISPATCH(norm_row)(in, gain, width, epsilon, accumulate, out);
}

void norm_head(const float* head, const float* gain, std::uint32_t head_dim, float epsilon,
               float* out) {
  float padded_head[padded(head_dim_max)] = {};
  std::copy(head, head + head_dim, padded_head);
  norm_row(padded_head, gain, head_dim, epsilon, false, padded_head);
  std::copy(padded_head, padded_head + head_dim, out);
}

void soft_cap_row(float cap, std::uint32_t first, std::uint32_t last, float* values) {
  HWY_DYNAMIC_DISPATCH(soft_cap_row)(cap, first, last, values);
}

void gate_row(const float* in, Activation activation, std::uint32_t width, std::uint32_t first,
              std::uint32_t last, float* out) {
  HWY_DYNAMIC_DISPATCH(gate_row)(in, activation, width, first, last, out);
}

void angles_row(std::uint32_t position, const float* inverse_frequencies, std::uint32_t pairs,
                float magnitude, float* out) {
  for (std::uint32_t i = 0; i < pairs; ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    const SineCosine turn = sine_cosine(static_cast<double>(angle));
    out[i] = static_cast<float>(turn.cosine) * magnitude;
    out[pairs + i] = static_cast<float>(turn.sine) * magnitude;
  }
}

void rotate_head(float* head, const float* angles, std::uint32_t pairs, RopePairs order) {
  HWY_DYNAMIC_DISPATCH(rotate_head)(head, angles, pairs, order);
}

void store_head(const float* key, const float* value, std::uint32_t head_dim, const float* angles,
                std::uint32_t pairs, RopePairs order, const KvPlace& place) {
  HWY_DYNAMIC_DISPATCH(store_head)
  (key, value, head_dim, angles, pairs, order, place);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
