// Feeds the decoder of messages between nodes arbitrary bytes. What it accepts must encode to a
// frame that it accepts again and that encodes to the same bytes; small limits make every limit
// reachable.

#include "transport/node_protocol.hpp"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice::transport;
  const std::string_view frame(reinterpret_cast<const char*>(data), size);
  NodeLimits limits;
  limits.frame_bytes_max = 4096;
  limits.slots_max = 8;
  limits.tokens_max = 64;
  limits.mask_words_max = 4;
  limits.events_max = 4;
  limits.name_bytes_max = 64;
  limits.blob_bytes_max = 64;
  limits.client.frame_bytes_max = 1024;
  limits.client.tokens_max = 64;
  const auto routed = decode(frame, limits);
  if (!routed) {
    if (routed.error().message.empty()) std::abort();
    return 0;
  }
  if (const auto* done = std::get_if<StepDone>(&routed->message)) tokens_checksum(done->result);
  const std::string again = encode(routed->channel, routed->message);
  limits.frame_bytes_max = 1 << 20;  // a submit may spell out what was left to defaults
  limits.client.frame_bytes_max = 1 << 20;
  const auto second = decode(again, limits);
  if (!second || second->channel != routed->channel ||
      encode(second->channel, second->message) != again)
    std::abort();
  return 0;
}
