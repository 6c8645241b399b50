#pragma once
// The checks that every backend makes of what it is given: weights, the pool's sizes, and a
// program's shapes. What a backend makes of a program that fits is its own affair.

#include <optional>
#include <span>

#include "kernels/backend.hpp"

namespace sluice::kernels {

/// What a program needs to know of a loaded weight.
struct WeightShape {
  Format format = Format::f32;
  std::uint32_t rows = 0;
  std::uint32_t cols = 0;
};

/// Largest head_dim that a program may use.
inline constexpr std::uint32_t head_dim_max = 512;

/// Rows that a batch, or its sampled segments, can have.
std::uint32_t rows_max(const PoolShape& pool, RowSpace space);

/// `bad_request` where blocks, sizes and bytes of a tensor do not fit each other.
Result<WeightShape> check_weight(const HostTensor& tensor);

/// `bad_request` for sizes that are missing, or a block that is no power of two.
Result<void> check_pool(const PoolShape& pool);

/// What people call it: "fp8", or "auto", which is f16. `bad_request` for another name.
Result<KvFormat> find_kv_format(std::string_view name);

/// `bad_request` names the operation that does not fit its buffers, weights, the pool or the place
/// in a group; without one, collectives do not fit.
Result<void> check_program(const StepProgram& program, std::span<const WeightShape> weights,
                           const PoolShape& pool, const std::optional<Shard>& shard = {});

/// Bytes from a tensor's row to the next.
std::size_t row_stride(const HostTensor& tensor);

}  // namespace sluice::kernels
