#include "transport/stream.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace sluice::transport {
namespace {

using Frame = std::shared_ptr<const std::string>;

/// What is longer between two looks is no time without a follower: the process was stopped, and
/// whoever came back meanwhile is still to be heard.
constexpr std::uint64_t absence_step_ns = 1'000'000'000;

Frame frame_of(const Message& message) {
  return std::make_shared<const std::string>(encode(message));
}

/// Where a follower stands in one choice.
struct Cursor {
  bool following = false;
  std::uint32_t next = 0;       // next token to send
  std::uint32_t acked = 0;      // tokens below it are held
  std::uint64_t text_next = 0;  // text bytes sent, or held when it attached
};

struct Follower {
  Peer peer;
  bool owner = false;
  std::vector<Cursor> cursors;  // one a choice
  bool terminal_sent = false;
  std::uint64_t sent_ns = 0;  // when anything last went to it
};

}  // namespace

struct StreamState::State {
  StreamId id{};
  std::uint64_t epoch = 0;
  StreamConfig config;
  std::vector<engine::StreamLog> logs;
  std::vector<Follower> followers;
  Frame terminal;  // once finished
  std::uint64_t finished_ns = 0;
  bool owner_has_all = false;
  std::uint64_t absent_ns = 0;   // how long there has been no follower, while this process ran
  std::uint64_t counted_ns = 0;  // as of then

  using Deliveries = std::vector<Delivery>;

  void send(Follower& follower, Frame frame, std::uint64_t now_ns, Deliveries& out) const {
    follower.sent_ns = now_ns;
    out.push_back({follower.peer, std::move(frame)});
  }

  void refuse(const Peer& peer, Error error, Deliveries& out) const {
    out.push_back({peer, frame_of(Failed{id, epoch, std::move(error)})});
  }

  bool behind(const Cursor& cursor, const engine::StreamLog& log) const {
    return cursor.next < log.size() ||
           (cursor.next == log.size() && cursor.text_next < log.text_bytes());
  }

  bool paused(const Cursor& cursor) const {
    return cursor.next - cursor.acked >= config.window_tokens;
  }

  /// Sends from the log what the window allows, then the terminal if nothing is left before it.
  void pump(Follower& follower, std::uint64_t now_ns, Deliveries& out) const {
    bool all = true;
    for (std::uint32_t choice = 0; choice < logs.size(); ++choice) {
      Cursor& cursor = follower.cursors[choice];
      if (!cursor.following) continue;
      const engine::StreamLog& log = logs[choice];
      while (behind(cursor, log) && !paused(cursor)) {
        const std::uint32_t room = config.window_tokens - (cursor.next - cursor.acked);
        auto part = log.read(cursor.next, std::min(room, config.chunk_tokens_max));
        if (!part) {  // below the floor: nothing after the hole would be of use
          cursor.following = false;
          refuse(follower.peer, part.error(), out);
          break;
        }
        cursor.next += static_cast<std::uint32_t>(part->tokens.size());
        cursor.text_next = part->text_offset + part->text.size();
        send(follower, frame_of(Chunk{id, epoch, choice, std::move(*part)}), now_ns, out);
      }
      all = all && !(cursor.following && behind(cursor, log));
    }
    if (terminal == nullptr || !all || follower.terminal_sent) return;
    follower.terminal_sent = true;
    send(follower, terminal, now_ns, out);
  }

  Follower* find(const Peer& peer) {
    const auto found = std::find_if(followers.begin(), followers.end(),
                                    [&](const Follower& f) { return f.peer == peer; });
    return found == followers.end() ? nullptr : &*found;
  }

  /// Says nothing new; whoever is gone is found out by it, whoever forgot to ack does so. Whoever
  /// waits beyond the end hears where that is, and which epoch this is.
  void probe(Follower& follower, std::uint64_t now_ns, Deliveries& out) const {
    for (std::uint32_t choice = 0; choice < logs.size(); ++choice) {
      const Cursor& cursor = follower.cursors[choice];
      const engine::StreamLog& log = logs[choice];
      if (!cursor.following) continue;
      const bool beyond = cursor.next > log.size();
      engine::StreamPart part;
      part.first_index = beyond ? log.size() : cursor.next;
      part.text_offset = beyond ? log.text_bytes() : cursor.text_next;
      if (const auto at = log.read(part.first_index, 0)) part.chain = at->chain;
      return send(follower, frame_of(Chunk{id, epoch, choice, std::move(part)}), now_ns, out);
    }
    follower.sent_ns = now_ns;
  }

  /// What this follower is due for, and when next.
  std::optional<std::uint64_t> tend(Follower& follower, std::uint64_t now_ns, Deliveries& out) {
    if (!follower.terminal_sent) {
      if (now_ns - follower.sent_ns >= config.probe_ns) probe(follower, now_ns, out);
      return follower.sent_ns + config.probe_ns;
    }
    if (!follower.owner || owner_has_all) return std::nullopt;
    if (now_ns - follower.sent_ns >= config.resend_ns) send(follower, terminal, now_ns, out);
    return follower.sent_ns + config.resend_ns;
  }
};

StreamState::StreamState(StreamId id, std::uint64_t epoch, Peer owner,
                         std::vector<engine::ChainHash> starts, StreamConfig config,
                         std::uint64_t now_ns)
    : state_(std::make_unique<State>()) {
  SLUICE_ASSERT(!starts.empty(), "a stream has one choice at least");
  SLUICE_ASSERT(config.window_tokens > 0 && config.chunk_tokens_max > 0,
                "a stream that may send nothing never ends");
  state_->id = id;
  state_->epoch = epoch;
  state_->config = config;
  for (const engine::ChainHash& start : starts) state_->logs.emplace_back(start);
  Follower& follower = state_->followers.emplace_back();
  follower.peer = std::move(owner);
  follower.owner = true;
  follower.sent_ns = now_ns;
  follower.cursors.resize(starts.size());
  for (Cursor& cursor : follower.cursors) cursor.following = true;
}

StreamState::~StreamState() = default;
StreamState::StreamState(StreamState&&) noexcept = default;
StreamState& StreamState::operator=(StreamState&&) noexcept = default;

void StreamState::restore(std::uint32_t choice, Token token, std::string text) {
  state_->logs.at(choice).append(std::span(&token, 1), std::move(text), {});
}

void StreamState::owner_holds(std::uint32_t choice, std::uint64_t text_bytes) {
  const engine::StreamLog& log = state_->logs.at(choice);
  Cursor& cursor = state_->followers.at(0).cursors.at(choice);
  cursor.next = log.index_at_text(text_bytes);
  cursor.acked = cursor.next;
  const auto at = log.read(cursor.next, 0);
  SLUICE_ASSERT(at, "nothing was trimmed yet");
  cursor.text_next = at->text_offset;
}

void StreamState::append(std::uint32_t choice, std::span<const Token> tokens, std::string text,
                         std::vector<std::vector<engine::TokenLogprob>> logprobs,
                         std::uint64_t now_ns, std::vector<Delivery>& out) {
  State& state = *state_;
  SLUICE_ASSERT(state.terminal == nullptr, "nothing follows a terminal");
  SLUICE_ASSERT(choice < state.logs.size(), "the stream has so many choices");
  engine::StreamLog& log = state.logs[choice];
  Chunk chunk{state.id, state.epoch, choice, {}};
  chunk.part = log.append(tokens, std::move(text), std::move(logprobs));
  const Frame frame = frame_of(chunk);
  out.push_back({std::nullopt, frame});
  for (Follower& follower : state.followers) {
    Cursor& cursor = follower.cursors[choice];
    if (!cursor.following || state.paused(cursor)) continue;
    if (cursor.next == chunk.part.first_index && cursor.text_next == chunk.part.text_offset) {
      cursor.next = log.size();
      cursor.text_next = log.text_bytes();
      state.send(follower, frame, now_ns, out);
    } else {
      state.pump(follower, now_ns, out);  // attached beyond the end, which this may have reached
    }
  }
}

void StreamState::finish(Message terminal, std::uint64_t now_ns, std::vector<Delivery>& out) {
  State& state = *state_;
  SLUICE_ASSERT(state.terminal == nullptr, "a stream has one terminal");
  if (Done* done = std::get_if<Done>(&terminal)) {
    done->tokens.clear();
    done->text_bytes.clear();
    for (const engine::StreamLog& log : state.logs) {
      done->tokens.push_back(log.size());
      done->text_bytes.push_back(log.text_bytes());
    }
  } else {
    SLUICE_ASSERT(std::holds_alternative<Failed>(terminal), "a terminal is done or error");
  }
  state.terminal = frame_of(terminal);
  state.finished_ns = now_ns;
  out.push_back({std::nullopt, state.terminal});
  for (Follower& follower : state.followers) state.pump(follower, now_ns, out);
}

void StreamState::on_attach(const Peer& peer, const Attach& attach, bool owner,
                            std::uint64_t now_ns, std::vector<Delivery>& out) {
  State& state = *state_;
  if (attach.choice >= state.logs.size())
    return state.refuse(
        peer,
        {ErrorCode::bad_request,
         fmt::format("choice {} is asked for; the stream has {}", attach.choice, state.logs.size()),
         0},
        out);
  const auto at = state.logs[attach.choice].read(attach.index, 0);
  const bool waits = attach.live && state.terminal == nullptr;
  if (!at && !(at.error().code == ErrorCode::bad_request && waits))
    return state.refuse(peer, at.error(), out);

  Follower* known = attach.live ? state.find(peer) : nullptr;
  Follower passing;  // without `live`: served once, not kept
  if (known == nullptr) {
    passing.peer = peer;
    passing.sent_ns = now_ns;
    passing.cursors.resize(state.logs.size());
    if (attach.live) {
      if (state.followers.size() >= state.config.followers_max)
        return state.refuse(peer, {ErrorCode::overloaded, "too many follow this stream", 1000},
                            out);
      known = &state.followers.emplace_back(std::move(passing));
    } else {
      known = &passing;
    }
  }
  known->owner = known->owner || owner;
  known->terminal_sent = false;  // it asks because it lacks something
  Cursor& cursor = known->cursors[attach.choice];
  cursor.following = true;
  cursor.next = attach.index;
  cursor.acked = attach.index;
  cursor.text_next = at ? at->text_offset : 0;
  const std::size_t before = out.size();
  state.pump(*known, now_ns, out);
  // Every attach is answered, so that whoever asked knows that there is no more yet.
  if (out.size() == before) state.probe(*known, now_ns, out);
}

void StreamState::on_ack(const Peer& peer, const Ack& ack, bool owner, std::uint64_t now_ns,
                         std::vector<Delivery>& out) {
  State& state = *state_;
  if (ack.choice >= state.logs.size()) return;
  if (owner && ack.terminal && state.terminal != nullptr) state.owner_has_all = true;
  Follower* follower = state.find(peer);
  if (follower == nullptr) return;
  Cursor& cursor = follower->cursors[ack.choice];
  cursor.acked = std::max(cursor.acked, std::min(ack.index, cursor.next));
  state.pump(*follower, now_ns, out);
}

void StreamState::on_lost(const Peer& peer, std::uint64_t now_ns) {
  State& state = *state_;
  const auto lost =
      std::erase_if(state.followers, [&](const Follower& f) { return f.peer == peer; });
  if (lost == 0 || !state.followers.empty()) return;
  state.absent_ns = 0;
  state.counted_ns = now_ns;
}

StreamState::Verdict StreamState::tick(std::uint64_t now_ns, std::vector<Delivery>& out) {
  State& state = *state_;
  Verdict verdict;
  const auto due = [&](std::uint64_t at_ns) {
    verdict.next_tick_ns = std::min(verdict.next_tick_ns.value_or(at_ns), at_ns);
  };
  for (Follower& follower : state.followers)
    if (const auto next = state.tend(follower, now_ns, out)) due(*next);
  if (state.terminal != nullptr) {
    const std::uint64_t end_ns = state.finished_ns + state.config.retention_ns;
    verdict.expired = now_ns >= end_ns;
    due(end_ns);
  } else if (state.followers.empty()) {
    const std::uint64_t passed_ns = now_ns - std::exchange(state.counted_ns, now_ns);
    if (passed_ns <= absence_step_ns) state.absent_ns += passed_ns;
    verdict.abandoned = state.absent_ns >= state.config.grace_ns;
    if (!verdict.abandoned)
      due(now_ns + std::min(state.config.grace_ns - state.absent_ns, absence_step_ns / 2));
  }
  if (verdict.expired || verdict.abandoned) verdict.next_tick_ns.reset();
  return verdict;
}

bool StreamState::settled() const {
  return state_->owner_has_all && std::ranges::all_of(state_->followers, &Follower::terminal_sent);
}

bool StreamState::owed() const {
  return state_->terminal == nullptr ||
         (!state_->owner_has_all && std::ranges::any_of(state_->followers, &Follower::owner));
}

std::size_t StreamState::memory_bytes() const {
  std::size_t bytes = sizeof(State) + (state_->terminal ? state_->terminal->capacity() : 0);
  for (const engine::StreamLog& log : state_->logs) bytes += log.memory_bytes();
  for (const Follower& follower : state_->followers)
    bytes += sizeof follower + follower.cursors.capacity() * sizeof(Cursor);
  return bytes;
}

}  // namespace sluice::transport
