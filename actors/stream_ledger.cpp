#include "actors/stream_ledger.hpp"

#include <algorithm>
#include <utility>

namespace sluice::actors {

void StreamLedger::admit(const Admission& admission) {
  Stream stream;
  for (const auto& choice : admission.choices) stream.choices.push_back({choice.tokens.size()});
  StreamOpen& open = stream.asked.emplace();
  open.owner = admission.owner;
  open.engine = admission.engine;
  open.accepted = admission.accepted;
  open.request = admission.request;
  open.request.prompt.clear();
  open.choices = admission.choices;
  open.received = admission.received;
  streams_.insert_or_assign({admission.stream, admission.accepted.epoch}, std::move(stream));
}

StreamLedger::Stream* StreamLedger::find(const Key& key) {
  const auto found = streams_.find(key);
  return found == streams_.end() ? nullptr : &found->second;
}

std::optional<StreamOpen> StreamLedger::open(const transport::StreamId& stream,
                                             std::uint64_t epoch) {
  auto* const found = find({stream, epoch});
  if (found == nullptr || !found->asked) return std::nullopt;
  streams_.erase(streams_.lower_bound({stream, 0}), streams_.find({stream, epoch}));
  return std::exchange(found->asked, std::nullopt);
}

bool StreamLedger::refused(const transport::StreamId& stream, std::uint64_t epoch) {
  const auto* const found = find({stream, epoch});
  if (found == nullptr || !found->asked) return false;
  streams_.erase({stream, epoch});
  return true;
}

Result<bool> StreamLedger::take(const StreamEvent& news) {
  auto* const found = find({news.stream, news.epoch});
  if (found == nullptr) return false;
  const auto& event = news.event;
  const auto refuse = [&](std::string_view why) {
    return fail(ErrorCode::bad_request, "news of choice {} of a stream: {}", news.choice, why);
  };
  if (found->asked) return refuse("the engine never said that it took the stream");
  if (news.choice >= found->choices.size()) return refuse("the stream has no such choice");
  auto& choice = found->choices[news.choice];
  if (choice.ended) return refuse("it ended before");
  if (!event.tokens.empty() && event.first_index != choice.tokens)
    return refuse(fmt::format("token {} came where {} was due", event.first_index, choice.tokens));
  for (const Token token : event.tokens)
    if (token >= vocabulary_)
      return refuse(fmt::format("token {} is beyond the vocabulary of {}", token, vocabulary_));
  if (!event.logprobs.empty() && event.logprobs.size() != event.tokens.size())
    return refuse("its logprobs are not its tokens'");
  choice.tokens += event.tokens.size();
  choice.ended = event.finish != engine::FinishReason::none;
  if (event.finish == engine::FinishReason::error ||
      std::ranges::all_of(found->choices, &Choice::ended))
    streams_.erase({news.stream, news.epoch});
  return true;
}

}  // namespace sluice::actors
