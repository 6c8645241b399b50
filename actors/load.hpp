#pragma once
// A model's files become a loaded engine, or one rank of one: weights on a backend, a recorded
// program, and its facts.

#include <functional>
#include <memory>
#include <string>

#include "actors/admission.hpp"
#include "actors/node.hpp"
#include "kernels/backend.hpp"
#include "model/checkpoint.hpp"
#include "model/config.hpp"
#include "model/decoder.hpp"

namespace sluice::actors {

struct LoadedEngine {
  /// The backend reads weights in place: outlives it.
  std::shared_ptr<const model::Checkpoint> file;
  model::Decoder decoder;  ///< likewise: its rope table
  std::unique_ptr<kernels::Backend> backend;
  kernels::ProgramId program;
  EngineFactsPtr facts;
  kernels::PoolShape pool{};  ///< as allocated
};

/// What can be known of an engine without its weights: name, site, tokenizer, chat format.
Result<std::shared_ptr<EngineFacts>> load_facts(const EngineConfig& config, const SiteConfig& site);

/// Makes one engine's backend; the completion goes to whoever runs the engine.
using BackendFactory = std::function<Result<std::unique_ptr<kernels::Backend>>(
    const EngineConfig&, kernels::Completion)>;

/// Loads everything `config` names. Blocks for as long as that takes.
///
/// With a group, this rank's part of it. The ranks compare what they are about to load, and take
/// the smallest of their KV pools, for the same plans reach all: `bad_request` names a rank whose
/// model, backend or sizes differ. A rank that fails aborts the group. Weights may take one rank
/// longer than another: the first step must wait until every rank has loaded, or it runs into the
/// group's deadline.
Result<LoadedEngine> load_engine(const EngineConfig& config, const SiteConfig& site,
                                 const BackendFactory& make_backend, kernels::Completion completion,
                                 const LoadProgress& progress,
                                 const std::shared_ptr<kernels::Communicator>& group = nullptr);

/// Sizes of KV pool and slots for a model or a rank's part of one: as configured, else every slot's
/// full context as far as memory goes: a quarter of what is free, or on a device with memory of its
/// own nineteen twentieths of what `weight_bytes` and a step's activations leave. `bad_request`
/// when not even one short sequence fits.
Result<kernels::PoolShape> plan_pool(const EngineConfig& config, const model::ModelConfig& model,
                                     const kernels::DeviceInfo& device, std::size_t weight_bytes);

}  // namespace sluice::actors
