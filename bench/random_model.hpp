#pragma once
// Models of a known shape with random weights: speed depends on shapes and formats, not on values,
// and a model of 16 GB need not be fetched to be measured.

#include <memory>
#include <string>
#include <string_view>

#include "model/checkpoint.hpp"

namespace sluice::bench {

/// `shape` is NAME:FORMAT, as "llama-3.1-8b:bf16"; all matrices have the format, the norms float32.
/// Weights are cut out of one block of random bytes, as large as the largest matrix, that the seed
/// decides. There is no tokenizer. `bad_request` names the shapes and formats that there are.
Result<std::shared_ptr<const model::Checkpoint>> random_checkpoint(std::string_view shape,
                                                                   std::uint64_t seed = 1);

/// "llama-3.1-8b, llama-3.2-1b, ..."
std::string shape_names();

}  // namespace sluice::bench
