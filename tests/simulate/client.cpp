#include "tests/simulate/client.hpp"

#include <algorithm>

namespace sluice::simulate {

namespace {

[[noreturn]] void blame(const transport::StreamId& stream, const std::string& what) {
  throw Violation(fmt::format("stream {}: {}", transport::to_hex(stream), what));
}

}  // namespace

Client::Client(transport::Submit submit, Expected expected, const NodeShape& shape)
    : role_(Role::owner),
      submit_(std::move(submit)),
      expected_(std::move(expected)),
      shape_(shape),
      epoch_(submit_.epoch) {
  follow();
}

Client::Client(const Client& owner, Role role, std::uint32_t from)
    : role_(role),
      submit_(owner.submit_),
      expected_(owner.expected_),
      shape_(owner.shape_),
      from_(from) {
  follow();
}

void Client::follow() {
  const std::uint32_t window = shape_.stream.window_tokens;
  state_ = role_ == Role::owner ? std::make_unique<transport::ClientStream>(submit_, window)
                                : std::make_unique<transport::ClientStream>(
                                      submit_.stream, from_, role_ == Role::subscriber, window);
}

void Client::connected(std::uint64_t now_ns, std::vector<transport::Message>& send) {
  if (lost_ns_ != 0) absent_ns_ = std::max(absent_ns_, now_ns - lost_ns_);
  lost_ns_ = 0;
  send.push_back(transport::Hello{});
  if (greeted_) state_->on_connected(now_ns, send);
}

void Client::disconnected(std::uint64_t now_ns) { lost_ns_ = now_ns; }

void Client::hear(const std::string& frame, std::uint64_t now_ns,
                  std::vector<transport::Message>& send) {
  const auto message = transport::decode(frame, {});
  if (!message) blame(stream(), "a node sent what cannot be read: " + message.error().message);
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
  take(std::move(events), now_ns);
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

void Client::restart(std::uint64_t now_ns) {
  if (over()) return;
  disconnected(now_ns);
  greeted_ = accepted_ = false;
  tokens_.clear();
  text_.clear();
  if (role_ == Role::owner) submit_.epoch = epoch_ = state_->epoch() + 1;
  follow();
}

void Client::take(std::vector<transport::ClientEvent> events, std::uint64_t now_ns) {
  if (role_ == Role::owner && state_->epoch() != epoch_) {
    resumptions_ += state_->epoch() - epoch_;
    epoch_ = state_->epoch();
  }
  for (transport::ClientEvent& event : events) {
    if (over()) blame(stream(), "something follows the terminal");
    if (event.accepted && std::exchange(accepted_, true)) blame(stream(), "accepted twice");
    for (const Token token : event.tokens) {
      const std::size_t at = from_ + tokens_.size();
      if (at >= expected_.tokens.size()) blame(stream(), "goes on beyond its end");
      if (token != expected_.tokens[at])
        blame(stream(), fmt::format("token {} is {}, not {}", at, token, expected_.tokens[at]));
      tokens_.push_back(token);
    }
    text_ += event.text;
    if (from_ == 0 && !expected_.text.starts_with(text_))
      blame(stream(), fmt::format("the text is '{}', not '{}'", text_, expected_.text));
    if (event.done) {
      done_ = std::move(event.done);
      terminal_ = transport::to_string(done_->finish.at(0));
    } else if (event.failed) {
      error_ = event.failed->error;
      terminal_ = to_string(error_->code);
    }
  }
  if (over() && ended_ns == 0) ended_ns = now_ns;
  whole_ = done_ && from_ + tokens_.size() == expected_.tokens.size();
}

void Client::judge(bool steps_failed) const {
  if (!over()) blame(stream(), "did not end");
  const bool owner = role_ == Role::owner;
  const auto only_if = [&](bool excused) {
    if (!excused)
      blame(stream(),
            fmt::format("{} ended with {} ({}) without a cause", owner ? "its owner" : "a follower",
                        *terminal_, error_ ? error_->message : ""));
  };
  if (done_) {
    const engine::FinishReason finish = done_->finish.at(0);
    if (done_->tokens.at(0) != from_ + tokens_.size())
      blame(stream(),
            fmt::format("ended with {} tokens of {}", from_ + tokens_.size(), done_->tokens.at(0)));
    if (done_->receipt.completion_tokens != done_->tokens.at(0))
      blame(stream(), fmt::format("the bill counts {} tokens of {}",
                                  done_->receipt.completion_tokens, done_->tokens.at(0)));
    if (done_->receipt.prompt_tokens != std::get<std::string>(submit_.prompt).size())
      blame(stream(), "the bill counts another prompt");
    if (finish == engine::FinishReason::cancelled) {
      // By its owner, or because nobody followed for the time of grace.
      if (owner) only_if(cancelled_ || absent_ns_ + ms >= shape_.stream.grace_ns);
      return;
    }
    if (finish != expected_.finish || !whole_) blame(stream(), "ended too early");
    if (from_ == 0 && text_ != expected_.text) blame(stream(), "lacks the end of its text");
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
      return only_if(steps_failed);
    // A refusal, unless it was accepted: then it goes on when the node can serve again.
    case ErrorCode::unavailable:
      return only_if(!owner || !accepted_ || cancelled_);
    // A reader has no right to submit the stream again. It may come too late, to a node that never
    // had the stream, or hold more than there was when it failed.
    case ErrorCode::not_found:
    case ErrorCode::gone:
    case ErrorCode::bad_request:
      return only_if(!owner);
    default:
      only_if(false);
  }
}

}  // namespace sluice::simulate
