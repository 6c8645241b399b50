#pragma once
// Sampling options on the command line, and following a submitted stream to its end.

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/terminal.hpp"
#include "kernels/core.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

/// Everything a request may say besides its prompt.
struct GenerationOptions {
  transport::Submit submit;
  std::optional<std::uint64_t> seed;    ///< drawn when not given
  std::vector<std::string> logit_bias;  ///< "ID=VALUE"
  std::string regex;
  std::string json_schema;              ///< or "@FILE"
};

void add_generation_options(CLI::App& app, GenerationOptions& options);

/// The request without its prompt; owner, stream and seed drawn. Throws `UsageError`.
transport::Submit make_submit(const GenerationOptions& options);

/// One finished stream, as its client saw it.
struct Generation {
  struct Choice {
    std::string text;
    std::vector<Token> tokens;
    std::vector<std::vector<engine::TokenLogprob>> logprobs;
    engine::ChainHash chain{};
  };
  transport::StreamId stream{};
  std::uint64_t seed = 0;
  std::vector<Choice> choices;
  transport::Done done;
  bool interrupted = false;  ///< by Ctrl-C; `done` says cancelled
  double ttft_ms = 0;        ///< from submit to the first token
  double e2el_ms = 0;        ///< from submit to the terminal

  /// Mean time of an output token after the first.
  double tpot_ms() const;
};

/// Called with each piece of text as it comes.
using TextSink = std::function<void(std::uint32_t choice, const std::string& text)>;

/// Submits, hands on text as it comes, and waits for the end. Ctrl-C (through `interrupts`) cancels
/// the stream. A refusal or failure of the stream is the error.
Result<Generation> generate(transport::Client& client, const transport::Submit& submit,
                            InterruptGuard& interrupts, const TextSink& text);

/// The receipt in one line.
std::string receipt_line(const Generation& generation);

}  // namespace sluice::cli
