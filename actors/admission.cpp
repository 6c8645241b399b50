#include "actors/admission.hpp"

#include <algorithm>
#include <utility>
#include <variant>

#include "engine/detokenizer.hpp"
#include "engine/stream_log.hpp"

namespace sluice::actors {
namespace {

Result<std::vector<Token>> prompt_ids(const EngineFacts& engine, const transport::Prompt& prompt) {
  if (const auto* ids = std::get_if<std::vector<Token>>(&prompt)) {
    const std::uint32_t size = engine.tokenizer->size();
    const auto bad = std::find_if(ids->begin(), ids->end(), [&](Token id) { return id >= size; });
    if (bad != ids->end())
      return fail(ErrorCode::bad_request,
                  "prompt token {} at position {} is outside the vocabulary of {} tokens", *bad,
                  bad - ids->begin(), size);
    return *ids;
  }
  if (const auto* messages = std::get_if<std::vector<transport::ChatMessage>>(&prompt)) {
    if (!engine.chat) return tl::unexpected(engine.chat_refusal);
    std::vector<model::ChatMessage> chat;
    chat.reserve(messages->size());
    for (const auto& message : *messages) chat.push_back({message.role, message.content});
    return model::encode_chat(*engine.chat, *engine.tokenizer, chat);
  }
  // A prompt's text is data: spellings of special tokens in it stay text.
  auto ids = engine.tokenizer->encode(std::get<std::string>(prompt), false);
  if (engine.tokenizer->adds_begin_of_text())
    if (const auto begin = engine.tokenizer->begin_of_text()) ids.insert(ids.begin(), *begin);
  return ids;
}

Result<void> check_offer(const EngineFacts& engine, const transport::Submit& submit) {
  if (!submit.resume_tokens.empty() && submit.resume_numerics != engine.numerics &&
      !submit.allow_inexact)
    return fail(ErrorCode::not_exact,
                "the tokens to resume after are of numerics '{}', this engine's are '{}': resume "
                "where they are the same, or allow_inexact",
                submit.resume_numerics, engine.numerics);
  if (!submit.jurisdictions.empty() &&
      std::find(submit.jurisdictions.begin(), submit.jurisdictions.end(),
                engine.site.jurisdiction) == submit.jurisdictions.end())
    return fail(ErrorCode::bad_request,
                "site '{}' is in jurisdiction '{}', which the request does not allow",
                engine.site.name, engine.site.jurisdiction);
  return {};
}

/// What was generated elsewhere; the text that the owner holds must be text of these tokens.
Result<void> resume(const transport::Submit& submit, Admission& admission) {
  admission.choices.resize(submit.n);
  for (std::size_t i = 0; i < submit.resume_tokens.size(); ++i) {
    auto& choice = admission.choices[i];
    choice = {submit.resume_tokens[i], submit.resume_text_bytes[i]};
    engine::TextStream text(admission.engine->tokenizer, admission.request);
    for (const Token token : choice.tokens) text.push(token);
    text.finish();  // the owner may hold a complete stream and lack only its terminal
    if (choice.text_bytes > text.released_bytes())
      return fail(ErrorCode::bad_request,
                  "resume_text_bytes[{}] is {}, but the {} tokens to resume after release {} bytes",
                  i, choice.text_bytes, choice.tokens.size(), text.released_bytes());
  }
  return {};
}

}  // namespace

Result<Admission> admit(EngineFactsPtr engine, transport::Peer owner,
                        const transport::Submit& submit, engine::Nanoseconds now) {
  if (auto offered = check_offer(*engine, submit); !offered) return tl::unexpected(offered.error());
  auto prompt = prompt_ids(*engine, submit.prompt);
  if (!prompt) return tl::unexpected(prompt.error());
  if (prompt->empty())
    return fail(ErrorCode::bad_request, "the prompt is empty: give at least one token");
  const std::uint32_t context = engine->scheduler.context_tokens;
  if (prompt->size() >= context)
    return fail(
        ErrorCode::too_long,
        "the prompt has {} tokens, the context of '{}' holds {} and needs room for one more",
        prompt->size(), engine->name, context);
  for (const Token id : submit.sampling.stop_tokens)
    if (id >= engine->tokenizer->size())
      return fail(ErrorCode::bad_request, "stop token {} is outside the vocabulary of {} tokens",
                  id, engine->tokenizer->size());
  for (const auto& [id, bias] : submit.sampling.logit_bias)
    if (id >= engine->tokenizer->size())
      return fail(ErrorCode::bad_request,
                  "logit_bias names token {}, outside the vocabulary of {} tokens", id,
                  engine->tokenizer->size());

  Admission admission;
  admission.owner = std::move(owner);
  admission.stream = submit.stream;
  admission.received = now;
  auto& request = admission.request;
  request.sampling = submit.sampling;
  if (!submit.ignore_eos) {
    auto& stops = request.sampling.stop_tokens;
    const auto ends = engine->tokenizer->end_tokens();
    stops.insert(stops.end(), ends.begin(), ends.end());
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  }
  admission.accepted = {
      submit.stream, submit.epoch, engine->numerics, static_cast<std::uint32_t>(prompt->size()),
      engine::chain_start(engine->numerics, *prompt, request.sampling, submit.constraint)};
  request.prompt = std::move(*prompt);
  request.max_tokens = submit.max_tokens;
  request.stops = submit.stops;
  request.constraint = submit.constraint;
  request.continues_text =
      !std::holds_alternative<std::vector<transport::ChatMessage>>(submit.prompt);
  request.priority = submit.priority;
  request.tenant = submit.tenant.empty() ? admission.owner : submit.tenant;
  if (submit.deadline_ms != 0)
    request.deadline = now + std::uint64_t{submit.deadline_ms} * 1'000'000;
  admission.engine = std::move(engine);
  if (auto resumed = resume(submit, admission); !resumed) return tl::unexpected(resumed.error());
  return admission;
}

engine::Request choice_request(const engine::Request& request,
                               const std::vector<ResumedChoice>& choices, std::uint32_t choice) {
  engine::Request out = request;
  out.resumed = choices.at(choice).tokens;
  out.sampling.seed += choice;
  return out;
}

transport::ModelInfo describe(const EngineFacts& engine) {
  return {engine.name,
          engine.numerics,
          engine.backend,
          engine.chat ? std::string(model::to_string(engine.chat->format)) : std::string(),
          engine.scheduler.context_tokens,
          engine.tokenizer->size()};
}

transport::Receipt make_receipt(const EngineFacts& engine, const engine::SequenceTiming& timing) {
  const auto ms_between = [](engine::Nanoseconds from, engine::Nanoseconds to) {
    return to > from ? static_cast<double>(to - from) / 1e6 : 0.0;
  };
  transport::Receipt receipt;
  receipt.model = engine.name;
  receipt.numerics = engine.numerics;
  receipt.backend = engine.backend;
  receipt.site = engine.site.name;
  receipt.jurisdiction = engine.site.jurisdiction;
  // A sequence that ended while it waited was never started.
  const auto started = timing.started != 0 ? timing.started : timing.finished;
  const auto first = timing.first_token != 0 ? timing.first_token : timing.finished;
  receipt.queue_ms = ms_between(timing.submitted, started);
  receipt.prefill_ms = ms_between(started, first);
  receipt.decode_ms = ms_between(first, timing.finished);
  receipt.device_seconds = static_cast<double>(timing.device_ns) / 1e9;
  receipt.price = engine.site.price_per_million_tokens * timing.completion_tokens / 1e6;
  receipt.prompt_tokens = timing.prompt_tokens;
  receipt.cached_tokens = timing.cached_tokens;
  receipt.completion_tokens = timing.completion_tokens;
  return receipt;
}

transport::Receipt join_receipts(const std::vector<transport::Receipt>& choices) {
  transport::Receipt all = choices.front();
  for (std::size_t i = 1; i < choices.size(); ++i) {
    all.decode_ms = std::max(all.decode_ms, choices[i].decode_ms);
    all.device_seconds += choices[i].device_seconds;
    all.price += choices[i].price;
    all.completion_tokens += choices[i].completion_tokens;
  }
  return all;
}

}  // namespace sluice::actors
