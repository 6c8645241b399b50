// Feeds a decoder arbitrary bytes. What it accepts must encode to a frame that it accepts again and
// that encodes to the same bytes; small limits make every limit reachable.

#include <cstdint>
#include <cstdlib>

#include "transport/protocol.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice::transport;
  const std::string_view frame(reinterpret_cast<const char*>(data), size);
  Limits limits;
  limits.frame_bytes_max = 4096;
  limits.tokens_max = 64;
  limits.text_bytes_max = 256;
  limits.stops_max = 4;
  (void)subject_of(frame, limits);
  const auto message = decode(frame, limits);
  if (!message) {
    if (message.error().message.empty()) std::abort();
    return 0;
  }
  const std::string again = encode(*message);
  limits.frame_bytes_max = 1 << 20;  // defaults left out may be spelt out again
  const auto second = decode(again, limits);
  if (!second || encode(*second) != again) std::abort();
  return 0;
}
