#pragma once
// A rank with a pretended device, of a model whose vocabulary is cut over the ranks.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/places.hpp"

namespace sluice::kernels::test {

/// Less than ranks of a test wait for each other.
inline constexpr std::uint32_t patient_graph_ms = 50'000;

/// A pretended NCCL (cmake/SluiceTestPlugins.cmake).
inline std::string pretended(const char* state) {
  return tests::plugins_folder() + "/libnccl" + state + ".so";
}

/// The tiny model with a vocabulary that is cut over the ranks, embedding and logits alike. Sums of
/// an embedding and zeros, and products of the same rows, are those of one device to the bit.
inline TinyModel cut(const Shard& shard, std::uint32_t vocabulary = 301) {
  TinyModel model = tiny_model({.vocabulary = vocabulary});
  StepProgram& program = model.program;
  const std::uint32_t first = shard_begin(vocabulary, shard.rank, shard.size);
  const std::uint32_t count = shard_count(vocabulary, shard);
  const auto keep = [&](Weight weight) {
    Tensor& tensor = model.tensors[weight.index];
    const std::size_t row = tensor.bytes.size() / tensor.host.rows;
    tensor.host.rows = count;
    tensor.host.data = std::span(tensor.bytes).subspan(first * row, count * row);
  };
  auto& embed = std::get<Embed>(program.ops.front());
  keep(embed.table);
  embed.first_token = first;
  program.buffers.push_back({RowSpace::sampled, count});
  const Buffer own{static_cast<std::uint32_t>(program.buffers.size() - 1)};
  auto& product = std::get<Linear>(program.ops[program.ops.size() - 2]);
  keep(product.weight);
  product.out = own;
  program.ops.insert(program.ops.end() - 1, AllGather{own, model.logits});
  program.ops.insert(program.ops.begin() + 1, AllReduce{embed.out});
  return model;
}

struct Rank : LoadedDevice {
  Rank(const TinyModel& tiny, const std::string& library,
       const std::shared_ptr<Communicator>& group, bool graphs = true,
       std::uint32_t first_graph_ms = patient_graph_ms)
      : LoadedDevice(
            [&](Completion done) {
              return require(make_cuda_backend(
                  {.reserve_bytes = 0,
                   .split_tokens = 64,
                   .graphs = graphs,
                   .first_graph_ms = first_graph_ms,
                   .nccl = library},
                  std::move(done)));
            },
            tiny) {
    if (group) join(group);
    record();
  }

  /// Draws `count` tokens greedily from a prompt of 20; empty where a step failed.
  std::vector<Token> draw(std::uint32_t count, SlotIndex slot = 0) {
    Batch batch;
    SlotOpen open{{slot, 1}, {}, 20, {}};
    open.sampling.temperature = 0;
    for (Token t = 0; t < 20; ++t) open.tokens.push_back((13 * t + 5) % 301);
    batch.opens.push_back(open);
    batch.grants.push_back({slot, 0, {0, 1, 2}});
    batch.segments.push_back({{slot, 1}, 0, 20, Path::prompt, true});
    std::vector<Token> tokens;
    while (tokens.size() < count) {
      const StepResult result = run(std::move(batch));
      if (result.failed) {
        failure = result.error;
        return {};
      }
      tokens.push_back(result.slots.at(0).tokens.at(0));
      batch = {};
      batch.segments.push_back(
          {{slot, 1}, static_cast<std::uint32_t>(19 + tokens.size()), 1, Path::decode, true});
    }
    return tokens;
  }

  Error failure;
};

}  // namespace sluice::kernels::test
