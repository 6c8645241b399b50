// sluice complete: one prompt in, one answer out, as it comes.

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "cli/connection.hpp"
#include "cli/generation.hpp"

namespace sluice::cli {

namespace {

struct Options {
  ConnectionOptions connection;
  GenerationOptions generation;
  std::string prompt;
  std::string file;
  bool has_prompt = false;
  bool json = false;
  bool receipt = false;
};

Result<std::string> read_prompt(const Options& options) {
  if (options.has_prompt) return options.prompt;
  std::ifstream file;
  const bool from_file = !options.file.empty() && options.file != "-";
  if (from_file) file.open(options.file, std::ios::binary);
  std::istream& in = from_file ? file : std::cin;
  std::string text;
  if (in) text.assign(std::istreambuf_iterator<char>(in), {});
  if (!in || in.bad()) {
    return fail(ErrorCode::io, "cannot read the prompt from {}: {}",
                from_file ? options.file : "standard input", std::strerror(errno));
  }
  return text;
}

nlohmann::ordered_json logprobs_json(const Generation::Choice& choice) {
  auto tokens = nlohmann::ordered_json::array();
  for (const auto& candidates : choice.logprobs) {
    auto list = nlohmann::ordered_json::array();
    for (const auto& one : candidates) {
      list.push_back({{"token", one.token}, {"logprob", one.logprob}});
    }
    tokens.push_back(std::move(list));
  }
  return tokens;
}

void put_choice(nlohmann::ordered_json& out, const Generation& generation, std::size_t index) {
  const Generation::Choice& choice = generation.choices[index];
  const auto& finish = generation.done.finish;
  out["text"] = choice.text;
  out["tokens"] = choice.tokens;
  out["finish_reason"] =
      transport::to_string(index < finish.size() ? finish[index] : engine::FinishReason::none);
  out["chain"] = transport::to_hex(choice.chain);
  if (!choice.logprobs.empty()) out["logprobs"] = logprobs_json(choice);
}

std::string to_json(const Generation& generation) {
  const transport::Receipt& receipt = generation.done.receipt;
  nlohmann::ordered_json out;
  put_choice(out, generation, 0);
  if (generation.choices.size() > 1) {
    for (std::size_t i = 0; i < generation.choices.size(); ++i) {
      nlohmann::ordered_json one;
      put_choice(one, generation, i);
      out["choices"].push_back(std::move(one));
    }
  }
  out["usage"] = {{"prompt_tokens", receipt.prompt_tokens},
                  {"cached_tokens", receipt.cached_tokens},
                  {"completion_tokens", receipt.completion_tokens}};
  out["timing"] = {{"queue_ms", receipt.queue_ms},
                   {"ttft_ms", generation.ttft_ms},
                   {"tpot_ms", generation.tpot_ms()},
                   {"e2el_ms", generation.e2el_ms}};
  out["stream"] = transport::to_hex(generation.stream);
  out["seed"] = generation.seed;
  out["model"] = receipt.model;
  out["backend"] = receipt.backend;
  out["site"] = receipt.site;
  out["jurisdiction"] = receipt.jurisdiction;
  out["device_seconds"] = receipt.device_seconds;
  out["price"] = receipt.price;
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Writes at once: a reader at the other end of a pipe sees each piece as it comes.
void write_now(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

Result<void> complete(const Options& options) {
  auto prompt = read_prompt(options);
  if (!prompt) return tl::unexpected(prompt.error());
  transport::Submit submit = make_submit(options.generation);
  auto connection = Connection::open(options.connection);
  if (!connection) return tl::unexpected(connection.error());
  submit.model = (*connection)->model();
  submit.prompt = std::move(*prompt);
  InterruptGuard interrupts;
  // Several choices arrive mixed: they are printed whole, one after the other.
  const bool live = !options.json && submit.n == 1;
  const auto generation =
      generate((*connection)->client(), submit, interrupts,
               [&](std::uint32_t, const std::string& text) {
                 if (live) write_now(text);
               });
  if (!generation) {
    if (live) write_now("\n");
    return tl::unexpected(generation.error());
  }
  if (options.json) {
    write_now(to_json(*generation) + "\n");
  } else if (live) {
    write_now("\n");
  } else {
    for (const auto& choice : generation->choices) write_now(choice.text + "\n");
  }
  if (options.receipt) fmt::print(stderr, "receipt  {}\n", receipt_line(*generation));
  if (generation->interrupted) return fail(ErrorCode::cancelled, "stopped by Ctrl-C");
  return {};
}

}  // namespace

Command complete_command(CLI::App& root) {
  CLI::App* app = add_command(
      root, "complete", "Complete one prompt, streamed to stdout",
      "  sluice complete --model models/SmolLM2-135M-Instruct-Q4_1.gguf \\\n"
      "    --prompt 'The capital of France is' --max-tokens 8 --temperature 0\n"
      "  sluice complete --connect tcp://127.0.0.1:5570 --file prompt.txt --json\n"
      "  echo 'Once upon a time' | sluice complete --connect tcp://127.0.0.1:5570 --seed 7");
  auto options = std::make_shared<Options>();
  auto* prompt = app->add_option("--prompt", options->prompt, "The text to continue")
                     ->type_name("TEXT");
  app->add_option("--file", options->file, "Read it from a file; without either, from stdin")
      ->type_name("FILE")
      ->excludes(prompt);
  app->add_flag("--json", options->json, "Print one JSON object at the end");
  app->add_flag("--receipt", options->receipt, "Print what it cost to stderr");
  add_connection_options(*app, options->connection);
  add_generation_options(*app, options->generation);
  app->add_option("--n", options->generation.submit.n, "Answers to make")
      ->type_name("N")
      ->group("Generation")
      ->check(CLI::Range(1, 64));
  return {app, [options, prompt] {
            options->has_prompt = prompt->count() > 0;
            return complete(*options);
          }};
}

}  // namespace sluice::cli
