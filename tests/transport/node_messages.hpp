#pragma once
// Random messages between nodes, and whether two are the same, field by field.

#include <map>
#include <random>
#include <tuple>

#include "transport/node_protocol.hpp"

namespace sluice::transport::testing {

/// Seeded; of every magnitude, so that every length of an integer comes up.
struct NodeRandom {
  std::mt19937_64 engine;

  std::uint64_t below(std::uint64_t n) { return engine() % n; }
  bool coin() { return below(2) == 0; }
  std::uint64_t u64() { return engine() >> below(64); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(engine() >> (32 + below(32))); }
  float real() { return static_cast<float>(static_cast<std::int64_t>(engine())) / 0x1p60F; }
  double amount() { return static_cast<double>(engine()) / 0x1p50; }
  StreamId id();
  std::string text();
  std::string bytes();
  kernels::SlotRef slot() { return {u32(), u32()}; }
  Error error() { return {static_cast<ErrorCode>(below(17)), text(), u32()}; }

  /// Up to `most` of what `make` makes.
  template <class Make>
  auto list(std::uint64_t most, Make make) {
    std::vector<decltype(make())> out;
    for (auto n = below(most + 1); n > 0; --n) out.push_back(make());
    return out;
  }
  std::vector<Token> tokens(std::uint64_t most) {
    return list(most, [&] { return Token{u32()}; });
  }
};

/// One of every kind, in the order of the variant.
std::vector<NodeMessage> random_node_messages(NodeRandom& r);

/// A step in which `rows` sequences decode, some of them taking a new block.
RunPlan decode_plan(std::uint32_t rows);

bool same(const NodeMessage& a, const NodeMessage& b);

}  // namespace sluice::transport::testing
