#include "transport/session.hpp"

#include <sodium.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <utility>

namespace sluice::transport {
namespace {

using Digest = std::array<std::uint8_t, crypto_hash_sha256_BYTES>;

/// Of what the owner asked for, whoever asks under which name.
Digest content_of(const Submit& submit) {
  Submit content = submit;
  content.stream = {};
  content.owner = {};
  content.epoch = 0;
  const std::string bytes = encode(content);
  Digest digest;
  crypto_hash_sha256(digest.data(), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size());
  return digest;
}

constexpr double ns_per_s = 1e9;

/// Connections that wait for one undecided stream. More than a few are no honest owner.
constexpr std::size_t waiting_max = 16;

}  // namespace

struct Session::State {
  enum class Phase : std::uint8_t { deciding, running, ended };

  struct Stream {
    CurveKey client;  // with CURVE: its owner
    OwnerSecret owner{};
    Digest content{};
    std::uint64_t epoch = 0;
    Phase phase = Phase::deciding;
    Accepted accepted;              // from `running` on
    Peer submitter;                 // while deciding
    std::vector<Peer> again;        // submitted it again while it was undecided
    std::vector<Follow> attaching;  // wanted to follow while it was undecided
  };

  struct Tombstone {
    std::uint64_t ended_ns = 0;
    StreamId stream{};
    std::uint64_t epoch = 0;
  };

  /// What a client has used of its grant.
  struct Use {
    double allowance = 0;  // submits that it may send at once
    std::uint64_t counted_ns = 0;
    std::uint32_t open = 0;
  };

  explicit State(SessionConfig with) : config(std::move(with)) {}

  SessionConfig config;
  bool draining = false;
  std::uint32_t open = 0;
  // Ordered, because clients choose the ids: a hash table could be filled with collisions.
  std::map<StreamId, Stream> streams;
  std::deque<Tombstone> tombstones;  // oldest first
  std::map<CurveKey, Use> uses;      // of clients in the allow list, or with open streams

  // Of the message that is being handled.
  CurveKey client;
  std::uint64_t now_ns = 0;

  using Actions = std::vector<SessionAction>;

  static void refuse(Actions& out, const Peer& peer, const StreamId& stream, std::uint64_t epoch,
                     Error error) {
    out.push_back(Reply{peer, Failed{stream, epoch, std::move(error)}});
  }

  /// Without CURVE the secrets are compared in constant time: a comparison that stops early tells a
  /// secret byte by byte.
  bool owns(const OwnerSecret& claimed, const Stream& stream) const {
    if (!client.empty() || !stream.client.empty()) return client == stream.client;
    return sodium_memcmp(claimed.data(), stream.owner.data(), claimed.size()) == 0;
  }

  /// Takes what a run needs out of its client's grant; else why not.
  std::optional<Error> spend(bool another_stream) {
    const auto granted = config.clients.find(client);
    if (granted == config.clients.end()) return std::nullopt;  // without CURVE
    const ClientGrant& grant = granted->second;
    Use& use = uses[client];
    if (another_stream && grant.streams != 0 && use.open >= grant.streams)
      return Error{ErrorCode::overloaded,
                   fmt::format("client {} may have {} streams open at once; wait for one to end",
                               grant.name, grant.streams),
                   config.overloaded_retry_ms};
    if (grant.requests_per_s <= 0) return std::nullopt;
    const double burst = std::max(1.0, grant.requests_per_s);
    const double elapsed_s = static_cast<double>(now_ns - use.counted_ns) / ns_per_s;
    use.allowance = use.counted_ns == 0
                        ? burst
                        : std::min(burst, use.allowance + elapsed_s * grant.requests_per_s);
    use.counted_ns = now_ns;
    if (use.allowance < 1) {
      const double wait_ms = std::ceil((1 - use.allowance) / grant.requests_per_s * 1000);
      return Error{ErrorCode::overloaded,
                   fmt::format("client {} may send {} requests a second; wait", grant.name,
                               grant.requests_per_s),
                   static_cast<std::uint32_t>(std::clamp(wait_ms, 1.0, 3'600'000.0))};
    }
    use.allowance -= 1;
    return std::nullopt;
  }

  void opened() {
    ++open;
    if (!client.empty()) ++uses[client].open;
  }

  void closed(const Stream& stream) {
    --open;
    const auto found = uses.find(stream.client);
    if (found == uses.end()) return;
    --found->second.open;
    if (found->second.open == 0 && !config.clients.contains(stream.client)) uses.erase(found);
  }

  void bury(std::uint64_t at_ns) {
    while (!tombstones.empty() && (tombstones.size() > config.tombstones_max ||
                                   at_ns - tombstones.front().ended_ns >= config.tombstone_ns)) {
      const Tombstone& oldest = tombstones.front();
      const auto found = streams.find(oldest.stream);
      // Another epoch of it may be running, or have ended later.
      if (found != streams.end() && found->second.phase == Phase::ended &&
          found->second.epoch == oldest.epoch)
        streams.erase(found);
      tombstones.pop_front();
    }
  }

  void handle(const Peer& peer, Hello& hello, Actions& out) {
    if (hello.version_min <= protocol_version && protocol_version <= hello.version_max)
      return out.push_back(Reply{peer, config.welcome});
    out.push_back(
        Reply{peer, Failed{std::nullopt,
                           0,
                           {ErrorCode::unsupported,
                            fmt::format("versions {} to {} of the protocol are asked for; "
                                        "this node speaks {}",
                                        hello.version_min, hello.version_max, protocol_version),
                            0}}});
  }

  void start(const Peer& peer, Submit& submit, Digest content, Actions& out) {
    const auto refused = [&](ErrorCode code, std::string_view why, std::uint32_t retry_ms) {
      refuse(out, peer, submit.stream, submit.epoch, {code, std::string(why), retry_ms});
    };
    if (draining)
      return refused(ErrorCode::unavailable, "the node is shutting down; use another", 0);
    const auto found = streams.find(submit.stream);
    const bool resubmitted = found != streams.end() && found->second.phase != Phase::ended;
    if (!resubmitted && open >= config.streams_max)
      return refused(ErrorCode::overloaded, "too many streams are open here; try again later",
                     config.overloaded_retry_ms);
    if (const auto why = spend(!resubmitted))
      return refused(why->code, why->message, why->retry_after_ms);
    if (resubmitted) {
      out.push_back(Stop{submit.stream, found->second.epoch});
    } else {
      opened();
    }
    Stream& stream = streams[submit.stream];
    stream = Stream();
    stream.client = client;
    stream.owner = submit.owner;
    stream.content = content;
    stream.epoch = submit.epoch;
    stream.submitter = peer;
    // After its content was remembered: a tenant that changes does not make it another request.
    if (const auto granted = config.clients.find(client); granted != config.clients.end())
      submit.tenant = granted->second.tenant;
    out.push_back(Start{peer, std::move(submit)});
  }

  void handle(const Peer& peer, Submit& submit, Actions& out) {
    const Digest content = content_of(submit);
    const auto found = streams.find(submit.stream);
    if (found == streams.end()) return start(peer, submit, content, out);
    Stream& stream = found->second;
    const auto conflict = [&](std::string why) {
      refuse(out, peer, submit.stream, submit.epoch, {ErrorCode::conflict, std::move(why), 0});
    };
    if (!owns(submit.owner, stream)) return conflict("the stream id is taken; draw another");
    if (submit.epoch < stream.epoch)
      return conflict(
          fmt::format("epoch {} is over; the stream is at epoch {}", submit.epoch, stream.epoch));
    if (submit.epoch > stream.epoch) return start(peer, submit, content, out);
    if (content != stream.content)
      return conflict("the stream was submitted with other content; draw another id");
    if (stream.phase != Phase::deciding) {
      out.push_back(Reply{peer, stream.accepted});
    } else if (peer != stream.submitter && stream.again.size() < waiting_max &&
               std::find(stream.again.begin(), stream.again.end(), peer) == stream.again.end()) {
      stream.again.push_back(peer);
    }
  }

  void handle(const Peer& peer, Cancel& cancel, Actions& out) {
    const auto refused = [&](ErrorCode code, std::string why) {
      refuse(out, peer, cancel.stream, cancel.epoch, {code, std::move(why), 0});
    };
    const auto found = streams.find(cancel.stream);
    if (found == streams.end()) return refused(ErrorCode::not_found, "no such stream");
    const Stream& stream = found->second;
    if (!owns(cancel.owner, stream))
      return refused(ErrorCode::unauthorized, "only its owner can cancel a stream");
    if (cancel.epoch < stream.epoch)
      return refused(ErrorCode::conflict, fmt::format("epoch {} is over; the stream is at epoch {}",
                                                      cancel.epoch, stream.epoch));
    if (stream.phase != Phase::ended) out.push_back(Stop{cancel.stream, stream.epoch});
  }

  void handle(const Peer& peer, Attach& attach, Actions& out) {
    const auto found = streams.find(attach.stream);
    if (found == streams.end())
      return refuse(out, peer, attach.stream, 0, {ErrorCode::not_found, "no such stream", 0});
    Stream& stream = found->second;
    const bool reader = attach.owner == OwnerSecret{};
    if (!reader && !owns(attach.owner, stream))
      return refuse(out, peer, attach.stream, 0,
                    {ErrorCode::unauthorized, "the owner's secret does not fit the stream", 0});
    Follow follow{peer, attach, !reader};
    if (stream.phase != Phase::deciding)
      out.push_back(std::move(follow));
    else if (stream.attaching.size() < waiting_max)
      stream.attaching.push_back(std::move(follow));
  }

  void handle(const Peer& peer, Ack& ack, Actions& out) {
    const auto found = streams.find(ack.stream);
    if (found == streams.end())
      return;  // long over: nothing to say, and nobody waits for an answer
    const Stream& stream = found->second;
    const bool reader = ack.owner == OwnerSecret{};
    if (!reader && !owns(ack.owner, stream))
      return refuse(out, peer, ack.stream, 0,
                    {ErrorCode::unauthorized, "the owner's secret does not fit the stream", 0});
    if (stream.phase != Phase::deciding) out.push_back(Follow{peer, ack, !reader});
  }

  void handle(const Peer& peer, StatsRequest&, Actions& out) { out.push_back(AskStats{peer}); }
  void handle(const Peer& peer, HealthRequest&, Actions& out) { out.push_back(AskHealth{peer}); }

  template <class Answer>
  void handle(const Peer& peer, Answer&, Actions& out) {
    out.push_back(Reply{peer, Failed{std::nullopt,
                                     0,
                                     {ErrorCode::bad_request,
                                      "a node sends this message and does not take it", 0}}});
  }

  /// The stream, if this is its epoch and it is undecided.
  std::map<StreamId, Stream>::iterator deciding(const StreamId& id, std::uint64_t epoch) {
    const auto found = streams.find(id);
    if (found == streams.end() || found->second.epoch != epoch ||
        found->second.phase != Phase::deciding)
      return streams.end();
    return found;
  }
};

Session::Session(SessionConfig config) : state_(std::make_unique<State>(std::move(config))) {}
Session::~Session() = default;

std::vector<SessionAction> Session::on_message(const Peer& peer, Message message,
                                               std::uint64_t now_ns, const CurveKey& client) {
  state_->bury(now_ns);
  std::vector<SessionAction> out;
  if (!client.empty() && !state_->config.clients.contains(client)) {
    // Its key was removed while this was under way.
    out.push_back(
        Reply{peer, Failed{std::nullopt,
                           0,
                           {ErrorCode::unauthorized,
                            fmt::format("key {} is not in the node's allow list", client), 0}}});
    return out;
  }
  state_->client = client;
  state_->now_ns = now_ns;
  std::visit([&](auto& m) { state_->handle(peer, m, out); }, message);
  return out;
}

std::vector<SessionAction> Session::set_clients(ClientGrants clients) {
  std::vector<SessionAction> out;
  for (const auto& [id, stream] : state_->streams)
    if (stream.phase != State::Phase::ended && !stream.client.empty() &&
        !clients.contains(stream.client))
      out.push_back(Stop{id, stream.epoch});
  std::erase_if(state_->uses, [&](const auto& use) {
    return use.second.open == 0 && !clients.contains(use.first);
  });
  state_->config.clients = std::move(clients);
  return out;
}

std::vector<SessionAction> Session::on_accepted(const Accepted& accepted, std::uint64_t) {
  std::vector<SessionAction> out;
  const auto found = state_->deciding(accepted.stream, accepted.epoch);
  if (found == state_->streams.end()) return out;  // superseded meanwhile
  State::Stream& stream = found->second;
  stream.phase = State::Phase::running;
  stream.accepted = accepted;
  for (Peer& peer : std::exchange(stream.again, {}))
    out.push_back(Reply{std::move(peer), accepted});
  for (Follow& follow : std::exchange(stream.attaching, {})) out.push_back(std::move(follow));
  stream.submitter.clear();
  return out;
}

std::vector<SessionAction> Session::on_refused(const StreamId& stream, std::uint64_t epoch,
                                               Error why, std::uint64_t) {
  std::vector<SessionAction> out;
  const auto found = state_->deciding(stream, epoch);
  if (found == state_->streams.end()) return out;
  std::vector<Peer> peers = std::move(found->second.again);
  peers.push_back(std::move(found->second.submitter));
  for (Follow& follow : found->second.attaching)
    if (std::find(peers.begin(), peers.end(), follow.peer) == peers.end())
      peers.push_back(std::move(follow.peer));
  state_->closed(found->second);
  state_->streams.erase(found);
  for (const Peer& peer : peers) State::refuse(out, peer, stream, epoch, why);
  return out;
}

void Session::on_finished(const StreamId& stream, std::uint64_t epoch, std::uint64_t now_ns) {
  const auto found = state_->streams.find(stream);
  if (found == state_->streams.end() || found->second.epoch != epoch ||
      found->second.phase != State::Phase::running)
    return;
  found->second.phase = State::Phase::ended;
  state_->closed(found->second);
  state_->tombstones.push_back({now_ns, stream, epoch});
  state_->bury(now_ns);
}

void Session::drain() { state_->draining = true; }

std::uint32_t Session::open_streams() const { return state_->open; }

}  // namespace sluice::transport
