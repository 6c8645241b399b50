#pragma once
// Apart from core.hpp, whose library no CUDA compiler takes.

#include <cstdint>

namespace sluice {

/// A token id of the model's vocabulary.
using Token = std::uint32_t;

}  // namespace sluice
