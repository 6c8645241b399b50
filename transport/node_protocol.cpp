#include "transport/node_protocol.hpp"

namespace sluice::transport {

std::uint64_t tokens_checksum(const engine::StepResult& result) {
  // One round of splitmix64 a value: each bit of it moves half of the sum's.
  std::uint64_t sum = 0;
  const auto add = [&](std::uint64_t value) {
    sum += value + 0x9e3779b97f4a7c15U;
    sum = (sum ^ sum >> 30U) * 0xbf58476d1ce4e5b9U;
    sum = (sum ^ sum >> 27U) * 0x94d049bb133111ebU;
    sum ^= sum >> 31U;
  };
  add(result.ticket);
  add(result.failed);
  for (const auto& slot : result.slots) {
    add(std::uint64_t{slot.slot.slot} << 32U | slot.slot.generation);
    add(std::uint64_t{slot.error.has_value()} << 32U | slot.tokens.size());
    for (const Token token : slot.tokens) add(token);
  }
  return sum;
}

}  // namespace sluice::transport
