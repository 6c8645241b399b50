#pragma once
// The most that a configuration may say.

#include <cstdint>

namespace sluice::model::limits {

// No model comes near these; a value beyond is damage that would only fail later and worse.
inline constexpr std::uint64_t layers = 4096;
inline constexpr std::uint64_t width = 1 << 24;
inline constexpr std::uint64_t heads = 1 << 14;
inline constexpr std::uint64_t head_dim = 1 << 12;
inline constexpr std::uint64_t context = 1 << 28;

}  // namespace sluice::model::limits
