#include "cli/generation.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>

#include "cli/command.hpp"

namespace sluice::cli {

namespace {

using Clock = std::chrono::steady_clock;

// How long Ctrl-C may go unseen while nothing arrives.
constexpr auto poll = std::chrono::milliseconds(50);

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::pair<Token, float> parse_bias(const std::string& text) {
  const std::size_t sign = text.find('=');
  Token id = 0;
  float value = 0;
  const char* const end = text.data() + text.size();
  if (sign != std::string::npos) {
    const auto first = std::from_chars(text.data(), text.data() + sign, id);
    const auto second = std::from_chars(text.data() + sign + 1, end, value);
    if (first.ec == std::errc{} && first.ptr == text.data() + sign && second.ec == std::errc{} &&
        second.ptr == end) {
      return {id, value};
    }
  }
  throw UsageError{fmt::format("--logit-bias takes TOKEN=VALUE, e.g. 42=-5; this is '{}'", text)};
}

/// What an option says, or with @ in front what that file says.
std::string text_or_file(const std::string& value) {
  if (!value.starts_with('@')) return value;
  std::ifstream file(value.substr(1), std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file)
    throw UsageError{fmt::format("cannot read {}: {}", value.substr(1), std::strerror(errno))};
  return text;
}

/// Takes one event into what is there so far.
void take(const transport::ClientEvent& event, Generation& generation) {
  if (event.choice >= generation.choices.size()) generation.choices.resize(event.choice + 1);
  Generation::Choice& choice = generation.choices[event.choice];
  choice.text += event.text;
  choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
  choice.logprobs.insert(choice.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  if (!event.tokens.empty()) choice.chain = event.chain;
}

}  // namespace

void add_generation_options(CLI::App& app, GenerationOptions& options) {
  const std::string group = "Generation";
  transport::Submit& submit = options.submit;
  engine::SamplingParams& sampling = submit.sampling;
  const auto add = [&](const std::string& name, auto& value, const std::string& does,
                       const std::string& type) {
    return app.add_option(name, value, does)
        ->group(group)
        ->type_name(type)
        ->allow_extra_args(false);  // one value each time, also for options that repeat
  };
  add("--max-tokens", submit.max_tokens, "Most tokens to make; 0: to the context's end", "N");
  add("--temperature", sampling.temperature, "0: always the likeliest token", "T")
      ->capture_default_str();
  add("--top-k", sampling.top_k, "Draw from the K likeliest; 0: off", "K");
  add("--top-p", sampling.top_p, "Draw from the likeliest that make up P", "P");
  add("--min-p", sampling.min_p, "Draw from those at least P as likely as the likeliest", "P");
  add("--repetition-penalty", sampling.repetition_penalty, "Over prompt and output; 1: off", "X");
  add("--presence-penalty", sampling.presence_penalty, "For tokens already made; 0: off", "X");
  add("--frequency-penalty", sampling.frequency_penalty, "For each time made; 0: off", "X");
  add("--logit-bias", options.logit_bias, "Added to a token's logit; may be repeated", "ID=X");
  add("--seed", options.seed, "Same seed, same tokens; drawn when not given", "S");
  add("--stop", submit.stops, "Text that ends the answer; may be repeated", "TEXT");
  add("--regex", options.regex, "The answer matches this pattern", "PATTERN");
  add("--json-schema", options.json_schema,
      "The answer is JSON that fits this JSON Schema; @FILE reads it", "SCHEMA")
      ->excludes("--regex");
  add("--stop-token", sampling.stop_tokens, "Token id that ends the answer; may be repeated", "ID");
  add("--min-tokens", sampling.min_tokens, "No end before this many tokens", "N");
  app.add_flag("--ignore-eos", submit.ignore_eos, "Go on when the model says that it is done")
      ->group(group);
  add("--logprobs", sampling.logprobs, "Log probabilities of the K best, in --json; -1: none", "K");
  add("--priority", submit.priority, "Higher goes first", "N");
  add("--tenant", submit.tenant, "Whose share it takes; else the connection's", "NAME");
  add("--deadline-ms", submit.deadline_ms, "Give up after; 0: never", "MS");
  add("--jurisdiction", submit.jurisdictions, "Where it may run; may be repeated", "NAME");
}

transport::Submit make_submit(const GenerationOptions& options) {
  const transport::Submit drawn = transport::Client::new_submit();
  transport::Submit submit = options.submit;
  engine::SamplingParams& sampling = submit.sampling;
  for (const std::string& text : options.logit_bias) {
    sampling.logit_bias.push_back(parse_bias(text));
  }
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end());
  using Kind = engine::Constraint::Kind;
  if (!options.regex.empty()) submit.constraint = {Kind::regex, options.regex};
  if (!options.json_schema.empty())
    submit.constraint = {Kind::json_schema, text_or_file(options.json_schema)};
  sampling.seed = options.seed.value_or(drawn.sampling.seed);
  submit.stream = drawn.stream;
  submit.owner = drawn.owner;
  return submit;
}

double Generation::tpot_ms() const {
  const auto made = choices.empty() ? 0 : choices.front().tokens.size();
  return made < 2 ? 0.0 : (e2el_ms - ttft_ms) / static_cast<double>(made - 1);
}

Result<Generation> generate(transport::Client& client, const transport::Submit& submit,
                            InterruptGuard& interrupts, const TextSink& text) {
  Generation generation;
  generation.stream = submit.stream;
  generation.seed = submit.sampling.seed;
  generation.choices.resize(submit.n);
  const auto start = Clock::now();
  if (const auto sent = client.submit(submit); !sent) return tl::unexpected(sent.error());
  while (true) {
    if (interrupts.take()) {
      generation.interrupted = true;
      client.cancel(submit.stream);
    }
    const auto next = client.next(poll);
    if (!next || next->stream != submit.stream) continue;
    const transport::ClientEvent& event = next->event;
    if (generation.ttft_ms == 0 && !event.tokens.empty()) generation.ttft_ms = ms_since(start);
    take(event, generation);
    if (!event.text.empty()) text(event.choice, event.text);
    if (event.failed) return tl::unexpected(event.failed->error);
    if (event.done) {
      generation.done = *event.done;
      generation.e2el_ms = ms_since(start);
      return generation;
    }
  }
}

std::string receipt_line(const Generation& generation) {
  const transport::Receipt& receipt = generation.done.receipt;
  const double rate = generation.tpot_ms() > 0 ? 1000.0 / generation.tpot_ms() : 0.0;
  return fmt::format(
      "{} + {} tokens ({} cached) on {} at {}: queue {:.1f} ms, prefill {:.1f} ms, "
      "decode {:.1f} ms, device {:.3f} s, first token {:.1f} ms, {:.1f} tokens/s, price {}",
      receipt.prompt_tokens, receipt.completion_tokens, receipt.cached_tokens, receipt.backend,
      receipt.site, receipt.queue_ms, receipt.prefill_ms, receipt.decode_ms,
      receipt.device_seconds, generation.ttft_ms, rate, receipt.price);
}

}  // namespace sluice::cli
