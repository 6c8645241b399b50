// The smallest whole client in C++: submits a prompt, prints the text as it comes, then the
// receipt.
//
//   example-client tcp://127.0.0.1:5555 "The capital of France is" [MAX_TOKENS]
//
// Built by `cmake --build build/release --target example-client`. What the library does under this
// (greeting, acknowledging, asking for what a broken connection lost) is told in docs/protocol.md.

#include <cstdio>
#include <cstdlib>

#include "transport/client.hpp"

using namespace sluice;
using std::chrono::milliseconds;

namespace {

int failed(const Error& error) {
  std::fprintf(stderr, "%.*s: %s\n", static_cast<int>(to_string(error.code).size()),
               to_string(error.code).data(), error.message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: %s ENDPOINT PROMPT [MAX_TOKENS]\n", argv[0]);
    return 2;
  }
  auto client = transport::Client::connect({.connect = argv[1], .name = "example-client"});
  if (!client) return failed(client.error());

  transport::Submit submit = transport::Client::new_submit();
  submit.prompt = std::string(argv[2]);
  submit.sampling.temperature = 0;  // greedy: the same answer each time
  submit.max_tokens = argc == 4 ? static_cast<std::uint32_t>(std::atoi(argv[3])) : 32;
  const auto stream = (*client)->submit(submit);
  if (!stream) return failed(stream.error());

  while (const auto next = (*client)->next(milliseconds(60'000))) {
    const transport::ClientEvent& event = next->event;
    std::fputs(event.text.c_str(), stdout);
    std::fflush(stdout);
    if (event.failed) return failed(event.failed->error);
    if (!event.done) continue;
    const transport::Receipt& receipt = event.done->receipt;
    std::printf("\n%u tokens in %.0f ms, finished by %s\n", receipt.completion_tokens,
                receipt.queue_ms + receipt.prefill_ms + receipt.decode_ms,
                std::string(transport::to_string(event.done->finish.at(0))).c_str());
    return 0;
  }
  std::fprintf(stderr, "nothing came for a minute\n");
  return 1;
}
