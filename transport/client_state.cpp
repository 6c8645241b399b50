#include "transport/client_state.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace sluice::transport {
namespace {

/// Silence after which to ask again: longer than a node leaves a follower without a probe, and
/// doubled each time up to the longest, because a long prompt's submit is dear to repeat.
constexpr std::uint64_t silence_ns_first = 3'000'000'000;
constexpr std::uint64_t silence_ns_last = 24'000'000'000;

/// Chunks kept that came ahead of a hole; the log has those beyond.
constexpr std::size_t early_chunks_max = 64;

/// Attaches for one index before silence is awaited: a node that answers and never helps is broken.
constexpr std::uint32_t times_asked_max = 16;

/// Submissions under a higher epoch without a token between: a node that loses the stream each time
/// would do so for ever.
constexpr std::uint32_t resumptions_max = 4;

/// Pause before asking a node that could not serve and did not say when it could.
constexpr std::uint32_t retry_ms_default = 500;

/// Choices a reader believes in before a terminal told how many there are.
constexpr std::uint32_t choices_max = 16;

struct Choice {
  std::uint32_t next = 0;                  // first token not held
  std::optional<engine::ChainHash> chain;  // before `next`; a reader learns it from its first chunk
  std::optional<std::uint64_t> text_next;  // text bytes held; likewise
  std::uint32_t acked = 0;                 // the last index said to the node
  std::optional<std::uint32_t> asked;      // an attach for this index is under way
  std::uint32_t times_asked = 0;           // for one index, since the last silence
  std::map<std::uint32_t, engine::StreamPart> early;
  std::vector<Token> held;  // the owner's, to resume after
};

/// Failures that answer a request, and not the stream's own end.
bool answers_a_request(ErrorCode code) {
  return code == ErrorCode::gone || code == ErrorCode::not_found || code == ErrorCode::conflict ||
         code == ErrorCode::unauthorized;
}

}  // namespace

struct ClientStream::State {
  StreamId stream{};
  std::optional<Submit> submit;  // of the owner
  bool subscribed = false;
  std::uint32_t window_tokens = 1024;
  std::uint64_t epoch = 0;
  std::uint32_t submissions = 0;  // under this epoch
  std::uint32_t resumptions = 0;  // since the last token
  std::uint32_t late_answers = 0;  // to questions of the former epoch, since the last resumption
  std::optional<Accepted> accepted;
  std::optional<Accepted> before;  // of a lower epoch
  std::vector<Choice> choices;
  std::optional<Done> done;  // came before everything it counts
  bool cancelling = false;
  bool resume_due = false;  // at the next question
  bool reconnected = false; // and nothing of this epoch came since
  bool ended = false;
  bool ack_end = false;  // the end is the stream's own, so that it is acknowledged
  std::uint64_t patience_ns = 0;
  std::uint64_t heard_ns = 0;  // or asked last
  std::uint64_t alive_ns = 0;  // heard, or connected to
  std::uint64_t silence_ns = silence_ns_first;
  std::uint64_t progress_ns = 0;  // a token came, or the first answer

  using Sends = std::vector<Message>;
  using Events = std::vector<ClientEvent>;

  OwnerSecret owner() const { return submit ? submit->owner : OwnerSecret{}; }

  void attach(std::uint32_t index_of_choice, Sends& send) {
    Choice& choice = choices[index_of_choice];
    choice.asked = choice.next;
    choice.acked = choice.next;
    ++choice.times_asked;
    send.push_back(Attach{stream, owner(), index_of_choice, choice.next, !subscribed});
  }

  /// Asks for the rest behind a hole, unless the answer is still to come.
  void attach_once(std::uint32_t index_of_choice, Sends& send) {
    const Choice& choice = choices[index_of_choice];
    if (choice.asked != choice.next && choice.times_asked < times_asked_max)
      attach(index_of_choice, send);
  }

  void ask(Sends& send) {
    if (resume_due) return resume(send);
    if (submit && !accepted) {
      ++submissions;
      send.push_back(*submit);
    } else {
      for (std::uint32_t i = 0; i < choices.size(); ++i) {
        choices[i].times_asked = 0;
        attach(i, send);
      }
    }
    if (cancelling) say_cancel(send);
  }

  void say_cancel(Sends& send) const { send.push_back(Cancel{stream, submit->owner, epoch}); }

  /// The node knows nothing of the stream: submits it anew, to go on where it stands.
  void resume(Sends& send) {
    ++resumptions;
    late_answers = 0;
    resume_due = false;
    submit->epoch = ++epoch;
    submit->resume_numerics = accepted->numerics;
    submit->resume_tokens.clear();
    submit->resume_text_bytes.clear();
    for (Choice& choice : choices) {
      submit->resume_tokens.push_back(choice.held);
      submit->resume_text_bytes.push_back(choice.text_next.value_or(0));
      choice.acked = choice.next;
      choice.asked.reset();
      choice.times_asked = 0;
      choice.early.clear();
    }
    before = std::exchange(accepted, std::nullopt);
    done.reset();
    submissions = 0;
    ask(send);
  }

  void end_with(Error error, Events& events) {
    ended = true;
    ClientEvent event;
    event.failed = Failed{stream, epoch, std::move(error)};
    events.push_back(std::move(event));
  }

  void ack_terminal(Sends& send) const {
    if (!submit || !ack_end) return;
    for (std::uint32_t i = 0; i < choices.size(); ++i)
      send.push_back(Ack{stream, submit->owner, i, choices[i].next, true});
  }

  /// Whether a message of this epoch counts; a reader goes along with a higher one.
  bool current(std::uint64_t of) {
    if (of > epoch && !submit) {
      epoch = of;
      done.reset();
      for (Choice& choice : choices) choice.early.clear();
    }
    if (of == epoch) reconnected = false;
    return of == epoch;
  }

  /// Whether the node now connected to has only an earlier run of the owner's stream.
  bool outdated(std::uint64_t of) const {
    return of < epoch && reconnected && submit && accepted && !ended;
  }

  /// Such a node takes the stream on where it stands, or need not run it any more.
  void bring_up_to_date(Sends& send, Events& events) {
    if (cancelling)
      return end_with({ErrorCode::cancelled, "cancelled; the node has an earlier run of it", 0},
                      events);
    if (resumptions < resumptions_max) resume(send);
  }

  void take(const Accepted& m, Sends& send, Events& events) {
    if (!submit || !current(m.epoch) || ended) return;
    if (accepted && accepted->chain != m.chain)
      return end_with({ErrorCode::internal, "the node accepted the stream twice, differently", 0},
                      events);
    if (before && before->chain != m.chain && !submit->allow_inexact)
      return end_with({ErrorCode::not_exact,
                       "the node that took the stream over would continue another one", 0},
                      events);
    if (!accepted) {
      accepted = m;
      progress_ns = heard_ns;
      for (std::size_t i = 0; i < choices.size(); ++i) {
        engine::ChainHash chain = m.chain;
        if (i < submit->resume_tokens.size())
          for (const Token token : submit->resume_tokens[i])
            chain = engine::chain_next(chain, token);
        choices[i].chain = chain;
      }
      if (!before) {
        ClientEvent event;
        event.accepted = m;
        events.push_back(std::move(event));
      }
    }
    // The node sends to the connection that submitted first, which may be gone.
    if (submissions > 1)
      for (std::uint32_t i = 0; i < choices.size(); ++i) attach(i, send);
  }

  void take(const Chunk& m, Sends& send, Events& events) {
    if (outdated(m.epoch)) return bring_up_to_date(send, events);
    if (ended || !current(m.epoch) || (submit && !accepted) || m.choice >= choices_max) return;
    if (m.choice >= choices.size()) {
      if (submit) return;  // it knows how many it asked for
      choices.resize(m.choice + 1);
    }
    Choice& choice = choices[m.choice];
    if (m.part.tokens.empty() && m.part.text.empty()) {
      // Either all that an attach could get, or a probe: that wants to hear where we are.
      if (choice.asked == choice.next)
        choice.asked.reset();
      else if (!subscribed)  // subscribers are not followed, so not probed
        confirm(m.choice, send);
    }
    place(m.choice, m.part, send, events);
    while (!ended && !choice.early.empty() && choice.early.begin()->first <= choice.next) {
      const auto part = choice.early.extract(choice.early.begin());
      place(m.choice, part.mapped(), send, events);
    }
    if (ended) return;
    if (!choice.early.empty()) attach_once(m.choice, send);
    // Half the window leaves the sender a round trip of tokens before it would pause. A replay
    // without a live follower ends at the whole window.
    const std::uint32_t due = subscribed ? window_tokens : std::max(window_tokens / 2, 1U);
    if (choice.next - choice.acked >= due) confirm(m.choice, send);
    complete(send, events);
  }

  /// Says what is held; for the publisher's subscribers, who are not followed, by attaching there.
  void confirm(std::uint32_t index_of_choice, Sends& send) {
    Choice& choice = choices[index_of_choice];
    if (subscribed) return attach(index_of_choice, send);
    choice.acked = choice.next;
    send.push_back(Ack{stream, owner(), index_of_choice, choice.next, false});
  }

  /// Takes from a part what is new, if it joins what is held.
  void place(std::uint32_t index_of_choice, const engine::StreamPart& part, Sends& send,
             Events& events) {
    Choice& choice = choices[index_of_choice];
    const auto count = static_cast<std::uint32_t>(part.tokens.size());
    const std::uint32_t end = part.first_index + count;
    const std::uint64_t text_end = part.text_offset + part.text.size();
    const bool text_missing = choice.text_next && part.text_offset > *choice.text_next;
    // Without a chain yet, only an exact cut shows where the text before it ended.
    const bool no_cut = !choice.chain && part.first_index < choice.next && end > choice.next;
    if (part.first_index > choice.next || (end >= choice.next && (text_missing || no_cut))) {
      if (choice.early.size() < early_chunks_max && part.first_index > choice.next)
        choice.early.emplace(part.first_index, part);
      return attach_once(index_of_choice, send);
    }
    if (end < choice.next || (!choice.chain && part.first_index != choice.next)) return;  // held

    const std::uint32_t held = choice.next - part.first_index;
    if (choice.chain) {
      engine::ChainHash chain = *choice.chain;
      for (std::uint32_t i = held; i < count; ++i)
        chain = engine::chain_next(chain, part.tokens[i]);
      if (chain != part.chain)
        return end_with({ErrorCode::internal,
                         fmt::format("the chain is broken between tokens {} and {}: the stream is "
                                     "not what was sampled",
                                     choice.next, end),
                         0},
                        events);
    }
    const std::uint64_t text_held = choice.text_next.value_or(part.text_offset);
    ClientEvent event;
    event.choice = index_of_choice;
    event.tokens.assign(part.tokens.begin() + held, part.tokens.end());
    if (text_end > text_held) event.text = part.text.substr(text_held - part.text_offset);
    if (!part.logprobs.empty())
      event.logprobs.assign(part.logprobs.begin() + held, part.logprobs.end());
    event.chain = part.chain;
    if (end > choice.next) {
      choice.times_asked = resumptions = 0;
      progress_ns = heard_ns;
    }
    if (submit) choice.held.insert(choice.held.end(), event.tokens.begin(), event.tokens.end());
    choice.next = end;
    choice.chain = part.chain;
    choice.text_next = std::max(text_held, text_end);
    if (!event.tokens.empty() || !event.text.empty()) events.push_back(std::move(event));
  }

  /// Ends, if all that the terminal counts is held; else asks for the rest.
  void complete(Sends& send, Events& events) {
    if (!done) return;
    bool whole = true;
    for (std::uint32_t i = 0; i < choices.size(); ++i) {
      const Choice& choice = choices[i];
      const bool text_missing = choice.text_next && *choice.text_next < done->text_bytes[i];
      if (choice.next >= done->tokens[i] && !text_missing) continue;
      whole = false;
      attach_once(i, send);
    }
    if (!whole) return;
    ended = true;
    ack_end = true;
    ClientEvent event;
    event.done = std::exchange(done, std::nullopt);
    events.push_back(std::move(event));
    ack_terminal(send);
  }

  void take(const Done& m, Sends& send, Events& events) {
    if (outdated(m.epoch)) return bring_up_to_date(send, events);
    if (!current(m.epoch)) return;
    if (ended) return ack_terminal(send);  // it comes again because the ack was lost
    if (m.tokens.empty() || m.tokens.size() > choices_max || m.text_bytes.size() != m.tokens.size())
      return;
    if (submit && m.tokens.size() != choices.size())
      return end_with({ErrorCode::internal, "the node ended another number of choices", 0}, events);
    choices.resize(m.tokens.size());
    done = m;
    complete(send, events);
  }

  void take(const Failed& m, Sends& send, Events& events) {
    const bool answer = answers_a_request(m.error.code);
    if (!answer && outdated(m.epoch)) return bring_up_to_date(send, events);
    // Epoch 0 is also what a node says that could not read the message it answers.
    if (m.epoch != 0 && !current(m.epoch)) return;
    if (ended) return answer ? void() : ack_terminal(send);
    // `bad_request` after `accepted` answers an attach beyond the end: a second run of this epoch,
    // at a node that heard the same submit, was left alone there and ended behind what is held.
    // Another attach, from before it was submitted again, is answered so too: one of each choice,
    // and epoch 0 may be that of the former run. Not for ever, for it may also be this submit that
    // the node could not read.
    const bool late = before && !accepted && m.epoch == 0 && late_answers < times_asked_max;
    const bool lost =
        m.error.code == ErrorCode::not_found || m.error.code == ErrorCode::gone ||
        (m.error.code == ErrorCode::bad_request && submit && (accepted || late) && !cancelling);
    if (cancelling && lost)
      return end_with({ErrorCode::cancelled, "cancelled; the node knows nothing of it", 0}, events);
    if (submit && lost && accepted && resumptions < resumptions_max) return resume(send);
    if (late && lost) {
      ++late_answers;
      return;
    }
    if (goes_on_later(m.error)) {
      const std::uint32_t retry_ms = m.error.retry_after_ms;
      silence_ns = (retry_ms != 0 ? retry_ms : retry_ms_default) * 1'000'000ULL;
      resume_due = accepted.has_value();
      ack_end = resume_due;  // else the node would say it again and again
      return ack_terminal(send);
    }
    ack_end = accepted.has_value() && !answer;
    end_with(m.error, events);
    ack_terminal(send);
  }

  /// Whether a stream that was accepted once can go on when its node serves again: the engine was
  /// lost, or is full just now. Not for longer than the caller would wait for a silent node.
  bool goes_on_later(const Error& error) const {
    const bool passes = error.code == ErrorCode::unavailable ||
                        (error.code == ErrorCode::overloaded && before && !accepted);
    return submit && passes && (accepted || before) && !cancelling &&
           resumptions < resumptions_max && heard_ns - progress_ns < patience_ns;
  }

  template <class Other>
  void take(const Other&, Sends&, Events&) {}
};

ClientStream::ClientStream(const Submit& submit, std::uint32_t window_tokens,
                           std::uint64_t patience_ns)
    : state_(std::make_unique<State>()) {
  state_->stream = submit.stream;
  state_->submit = submit;
  state_->epoch = submit.epoch;
  state_->window_tokens = window_tokens;
  state_->patience_ns = patience_ns;
  state_->choices.resize(submit.n);
  for (std::size_t i = 0; i < state_->choices.size(); ++i) {
    Choice& choice = state_->choices[i];
    if (i < submit.resume_tokens.size()) choice.held = submit.resume_tokens[i];
    choice.next = static_cast<std::uint32_t>(choice.held.size());
    choice.text_next = i < submit.resume_text_bytes.size() ? submit.resume_text_bytes[i] : 0;
    choice.acked = choice.next;
  }
}

ClientStream::ClientStream(StreamId stream, std::uint32_t from, bool subscribed,
                           std::uint32_t window_tokens, std::uint64_t patience_ns)
    : state_(std::make_unique<State>()) {
  state_->stream = stream;
  state_->subscribed = subscribed;
  state_->window_tokens = window_tokens;
  state_->patience_ns = patience_ns;
  Choice& choice = state_->choices.emplace_back();
  choice.next = from;
  choice.acked = from;
  if (from == 0) choice.text_next = 0;
}

ClientStream::~ClientStream() = default;

void ClientStream::on_message(const Message& message, std::uint64_t now_ns,
                              std::vector<Message>& send, std::vector<ClientEvent>& events) {
  state_->heard_ns = state_->alive_ns = now_ns;
  state_->silence_ns = silence_ns_first;
  std::visit([&](const auto& m) { state_->take(m, send, events); }, message);
}

void ClientStream::on_connected(std::uint64_t now_ns, std::vector<Message>& send) {
  state_->heard_ns = state_->alive_ns = now_ns;
  if (state_->ended) return state_->ack_terminal(send);
  state_->reconnected = true;
  state_->ask(send);
}

void ClientStream::tick(std::uint64_t now_ns, std::vector<Message>& send,
                        std::vector<ClientEvent>& events) {
  State& state = *state_;
  if (state.ended) return;
  // A process that was itself stopped for long asks first.
  const bool asked = state.silence_ns > silence_ns_first;
  const bool answer_due = now_ns - state.heard_ns >= silence_ns_first;
  if (now_ns - state.alive_ns >= state.patience_ns && asked && answer_due)
    return state.end_with({ErrorCode::unavailable,
                           fmt::format("nothing came from the node for {} s, though asked again: "
                                       "see whether it runs, and submit again",
                                       (now_ns - state.alive_ns) / 1'000'000'000),
                           0},
                          events);
  if (now_ns - state.heard_ns < state.silence_ns) return;
  state.heard_ns = now_ns;
  state.silence_ns = std::min(state.silence_ns * 2, silence_ns_last);
  state.ask(send);
}

void ClientStream::cancel(std::vector<Message>& send) {
  if (!state_->submit || state_->ended) return;
  state_->cancelling = true;
  if (state_->submissions > 0 || state_->accepted) state_->say_cancel(send);
}

void ClientStream::on_unavailable(std::uint64_t now_ns, std::uint64_t retry_ns) {
  state_->heard_ns = state_->alive_ns = now_ns;
  state_->silence_ns = retry_ns;
}

std::uint64_t ClientStream::epoch() const { return state_->epoch; }

bool ClientStream::ended() const { return state_->ended; }

}  // namespace sluice::transport
