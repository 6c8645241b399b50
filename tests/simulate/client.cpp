#include "tests/simulate/client.hpp"

#include <algorithm>

namespace sluice::simulate {

namespace {

/// As often a client has a stream go on without a token before it gives up.
constexpr std::uint64_t barren_max = 4;

[[noreturn]] void blame(const transport::StreamId& stream, const std::string& what) {
  throw Violation(fmt::format("stream {}: {}", transport::to_hex(stream), what));
}

}  // namespace

Client::Client(transport::Submit submit, std::vector<Expected> choices, const NodeShape& shape)
    : role_(Role::owner), submit_(std::move(submit)), shape_(shape), epoch_(submit_.epoch) {
  for (Expected& expected : choices) choices_.emplace_back().expected = std::move(expected);
  follow();
}

Client::Client(const Client& owner, Role role, std::uint32_t from)
    : role_(role), submit_(owner.submit_), shape_(owner.shape_) {
  for (const Choice& choice : owner.choices_) choices_.emplace_back().expected = choice.expected;
  choices_.front().from = from;
  follow();
}

void Client::follow() {
  const std::uint32_t window = shape_.stream.window_tokens;
  if (role_ == Role::owner)
    state_ = std::make_unique<transport::ClientStream>(submit_, window);
  else
    state_ = std::make_unique<transport::ClientStream>(submit_.stream, choices_.front().from,
                                                       role_ == Role::subscriber, window);
}

void Client::connected(std::uint64_t now_ns, std::vector<transport::Message>& send) {
  send.push_back(transport::Hello{});
  if (greeted_) state_->on_connected(now_ns, send);
}

void Client::disconnected(std::size_t host, std::uint64_t now_ns) {
  auto& absence = absences_[host];
  if (absence.since_ns == 0) absence.since_ns = now_ns;
}

void Client::followed(std::size_t host, std::uint64_t now_ns) {
  auto& [since_ns, longest_ns] = absences_[host];
  if (since_ns != 0) longest_ns = std::max(longest_ns, now_ns - since_ns);
  since_ns = 0;
}

void Client::hear(std::size_t host, const std::string& frame, std::uint64_t now_ns,
                  std::vector<transport::Message>& send) {
  const auto message = transport::decode(frame, transport::Limits());
  if (!message) blame(stream(), "a node sent what cannot be read: " + message.error().message);
  if (std::holds_alternative<transport::Chunk>(*message)) followed(host, now_ns);
  if (std::holds_alternative<transport::Welcome>(*message)) {
    if (!std::exchange(greeted_, true)) state_->on_connected(now_ns, send);
    return;
  }
  const auto* failed = std::get_if<transport::Failed>(&*message);
  if (failed != nullptr && !failed->stream) {
    if (failed->error.code != ErrorCode::unavailable)
      blame(stream(), "a node refused what it should know: " + failed->error.message);
    if (greeted_) state_->on_unavailable(now_ns, failed->error.retry_after_ms * ms);
    return;
  }
  std::vector<transport::ClientEvent> events;
  state_->on_message(*message, now_ns, send, events);
  const bool ended = over();
  take(std::move(events), now_ns);
  if (ended || !over()) return;
  followed(host, now_ns);
  absent_ns_ = absences_[host].longest_ns;
}

void Client::tick(std::uint64_t now_ns, std::vector<transport::Message>& send) {
  if (!greeted_) {  // says hello until somebody answers
    send.push_back(transport::Hello{});
    return;
  }
  std::vector<transport::ClientEvent> events;
  state_->tick(now_ns, send, events);
  take(std::move(events), now_ns);
}

void Client::cancel(std::vector<transport::Message>& send) {
  cancelled_ = true;
  state_->cancel(send);
}

void Client::restart() {
  if (over()) return;
  greeted_ = accepted_ = false;
  for (Choice& choice : choices_) {
    choice.tokens.clear();
    choice.text.clear();
  }
  if (role_ == Role::owner) submit_.epoch = epoch_ = state_->epoch() + 1;
  follow();
}

void Client::take(std::vector<transport::ClientEvent> events, std::uint64_t now_ns) {
  if (role_ == Role::owner && state_->epoch() != epoch_) {
    resumptions_ += state_->epoch() - epoch_;
    barren_ += state_->epoch() - epoch_;
    epoch_ = state_->epoch();
  }
  for (transport::ClientEvent& event : events) {
    if (over()) blame(stream(), "something follows the terminal");
    if (event.accepted && std::exchange(accepted_, true)) blame(stream(), "accepted twice");
    if (event.choice >= choices_.size()) blame(stream(), "has a choice too many");
    Choice& choice = choices_[event.choice];
    const Expected& expected = choice.expected;
    for (const Token token : event.tokens) {
      const std::size_t at = choice.held();
      if (at >= expected.tokens.size()) blame(stream(), "goes on beyond its end");
      if (token != expected.tokens[at])
        blame(stream(), fmt::format("token {} is {}, not {}", at, token, expected.tokens[at]));
      choice.tokens.push_back(token);
      barren_ = 0;
    }
    choice.text += event.text;
    if (choice.from == 0 && !expected.text.starts_with(choice.text))
      blame(stream(), fmt::format("the text is '{}', not '{}'", choice.text, expected.text));
    if (event.done) {
      done_ = std::move(event.done);
      const bool cancelled = std::ranges::count(done_->finish, engine::FinishReason::cancelled) > 0;
      terminal_ =
          transport::to_string(cancelled ? engine::FinishReason::cancelled : done_->finish.at(0));
    } else if (event.failed) {
      error_ = event.failed->error;
      terminal_ = to_string(error_->code);
    }
  }
  if (over() && ended_ns == 0) ended_ns = now_ns;
  whole_ = done_ && std::ranges::all_of(choices_, [](const Choice& choice) {
             return choice.held() == choice.expected.tokens.size();
           });
}

std::uint64_t Client::tokens() const {
  std::uint64_t sum = 0;
  for (const Choice& choice : choices_) sum += choice.tokens.size();
  return sum;
}

void Client::judge(bool steps_failed, std::uint32_t devices_lost) const {
  if (!over()) blame(stream(), "did not end");
  const bool owner = role_ == Role::owner;
  const auto only_if = [&](bool excused) {
    if (!excused)
      blame(stream(),
            fmt::format("{} ended with {} ({}) without a cause", owner ? "its owner" : "a follower",
                        *terminal_, error_ ? error_->message : ""));
  };
  if (done_) {
    if (done_->finish.size() != choices_.size()) blame(stream(), "ended another number of choices");
    std::uint32_t tokens = 0;
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      tokens += done_->tokens.at(i);
      // A follower may have had more of an earlier run than the one that was cut short came to.
      const bool more = !owner && done_->finish.at(i) == engine::FinishReason::cancelled &&
                        choices_[i].held() > done_->tokens.at(i);
      if (done_->tokens.at(i) != choices_[i].held() && !more)
        blame(stream(),
              fmt::format("ended with {} tokens of {}", choices_[i].held(), done_->tokens.at(i)));
    }
    if (done_->receipt.completion_tokens != tokens)
      blame(stream(), fmt::format("the bill counts {} tokens of {}",
                                  done_->receipt.completion_tokens, tokens));
    if (done_->receipt.prompt_tokens != std::get<std::string>(submit_.prompt).size())
      blame(stream(), "the bill counts another prompt");
    if (*terminal_ == transport::to_string(engine::FinishReason::cancelled)) {
      // By its owner, or because nobody followed for the time of grace.
      if (owner) only_if(cancelled_ || absent_ns_ + ms >= shape_.stream.grace_ns);
      return;
    }
    if (!whole_) blame(stream(), "ended too early");
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      const Choice& choice = choices_[i];
      if (done_->finish.at(i) != choice.expected.finish)
        blame(stream(), "ended for another reason");
      if (choice.from == 0 && choice.text != choice.expected.text)
        blame(stream(), "lacks the end of its text");
    }
    return;
  }
  switch (error_->code) {
    case ErrorCode::deadline:
      return only_if(submit_.deadline_ms != 0);
    case ErrorCode::overloaded:
      return;  // a refusal, at once
    case ErrorCode::cancelled:
      return only_if(!owner || cancelled_);
    case ErrorCode::internal:
      // Or one device after another was lost sooner than it could compute the stream's tokens.
      return only_if(steps_failed ||
                     (devices_lost >= engine::Scheduler::losses_max &&
                      error_->message.find("devices in a row were lost") != std::string::npos));
    // A refusal, unless it was accepted: then it goes on when the node can serve again, but for an
    // engine that is lost time after time without a token.
    case ErrorCode::unavailable:
      return only_if(!owner || !accepted_ || cancelled_ || barren_ >= barren_max);
    // A reader has no right to submit the stream again. It may come too late, to a node that never
    // had the stream, or hold more than there was when it failed. An owner submits it again, as
    // often as it may.
    case ErrorCode::not_found:
    case ErrorCode::gone:
    case ErrorCode::bad_request:
      return only_if(!owner || barren_ >= barren_max);
    default:
      only_if(false);
  }
}

}  // namespace sluice::simulate
