#pragma once
// Every actor's protocol, a line a message. Payloads are plain structs of the layers below; an
// actor receives, asks a pure object, and sends.
//
//   bridge ──▶ session ──▶ tokenizer ──▶ session ──▶ batcher ──▶ executor
//                 │                                    │  ▲          │
//                 └────────────▶ streamer ◀────────────┘  └──────────┘
//                                   │
//                       Outbox ◀────┘        supervisor starts and watches them all

#include <caf/all.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "actors/admission.hpp"
#include "actors/outbox.hpp"
#include "engine/step.hpp"
#include "transport/node_protocol.hpp"
#include "transport/session.hpp"

namespace sluice::actors {

using run_atom = caf::atom_constant<caf::atom("run")>;
using sample_atom = caf::atom_constant<caf::atom("sample")>;
using admit_atom = caf::atom_constant<caf::atom("admit")>;
using cancel_atom = caf::atom_constant<caf::atom("cancel")>;
using inbound_atom = caf::atom_constant<caf::atom("inbound")>;
using lost_atom = caf::atom_constant<caf::atom("lost")>;
using tokenize_atom = caf::atom_constant<caf::atom("tokenize")>;
using accepted_atom = caf::atom_constant<caf::atom("accepted")>;
using refused_atom = caf::atom_constant<caf::atom("refused")>;
using finished_atom = caf::atom_constant<caf::atom("finished")>;
using open_atom = caf::atom_constant<caf::atom("open")>;
using follow_atom = caf::atom_constant<caf::atom("follow")>;
using events_atom = caf::atom_constant<caf::atom("events")>;
using tick_atom = caf::atom_constant<caf::atom("tick")>;
using stats_atom = caf::atom_constant<caf::atom("stats")>;
using ready_atom = caf::atom_constant<caf::atom("ready")>;
using engine_atom = caf::atom_constant<caf::atom("engine")>;
using clients_atom = caf::atom_constant<caf::atom("clients")>;
using drain_atom = caf::atom_constant<caf::atom("drain")>;

// Payloads that also travel between nodes.
using transport::Refusal;
using transport::StepEvents;
using transport::StreamEvent;

/// A message from a client, as the I/O thread decoded it.
struct Inbound {
  transport::Peer peer;
  transport::Message message;
  transport::CurveKey client = {};  ///< that the connection proved; empty without CURVE
};

/// A stream the batcher admitted: what its keeper needs to format it.
struct StreamOpen {
  transport::Peer owner;
  EngineFactsPtr engine;
  transport::Accepted accepted;
  engine::Request request;  ///< without its prompt: what decides the text
  std::vector<ResumedChoice> choices;
  engine::Nanoseconds received = 0;  ///< when the node took it up
};

/// A stream's end, for the session's table and the request log.
struct StreamEnd {
  transport::StreamId stream{};
  std::uint64_t epoch = 0;
  engine::FinishReason finish = engine::FinishReason::none;
  transport::Receipt receipt;
  Error error;
};

/// What an executor reports when its model cannot be loaded.
struct EngineFailed {
  std::size_t engine = 0;
  Error error;
};

/// Runs plans on its device, in order; answers each with one result to the batcher. Owns the
/// backend; spawned detached, for loading blocks, and nothing else delays a step.
using ExecutorActor = caf::typed_actor<caf::reacts_to<run_atom, engine::StepPlan>,
                                       caf::reacts_to<sample_atom, engine::StepMasks>>;

/// What an executor reports once its model is loaded.
struct EngineReady {
  std::size_t engine = 0;
  EngineFactsPtr facts;
  ExecutorActor steps;  ///< takes the plans: it, or one that ends with it; none of a batcher's
};

/// Where an executor's results go: to a batcher, or towards one on another node.
using ResultSink = caf::typed_actor<caf::reacts_to<engine::StepResult>>;

/// Where a front hears what became of an admission: its session.
using FrontNews = caf::typed_actor<caf::reacts_to<accepted_atom, transport::Accepted>,
                                   caf::reacts_to<refused_atom, Refusal>>;

/// Where a front's streams go: its streamers.
using StreamSink = caf::typed_actor<caf::reacts_to<open_atom, StreamOpen>,
                                    caf::reacts_to<events_atom, StepEvents>>;

/// One front as a batcher sees it, here or on another node.
struct Front {
  FrontNews session;
  std::vector<StreamSink> streamers;  ///< a stream's is picked by `shard_of`
};
using FrontPtr = std::shared_ptr<const Front>;

/// An engine as fronts know it: a batcher here, or the proxy of one on another node.
using EngineActor =
    caf::typed_actor<caf::reacts_to<admit_atom, FrontPtr, Admission>,
                     caf::reacts_to<cancel_atom, transport::StreamId, std::uint64_t>,  ///< stream,
                                                                                       ///< epoch
                     caf::reacts_to<lost_atom, FrontPtr>,  ///< its streams have no keeper any more
                     caf::replies_to<stats_atom>::with<NamedValues>>;

/// Owns one engine's scheduler; serves any number of fronts.
using BatcherActor = EngineActor::extend_with<ResultSink>::extend<
    caf::reacts_to<lost_atom>,                   ///< its executor ended
    caf::reacts_to<engine_atom, ExecutorActor>,  ///< another takes over, its device empty
    caf::reacts_to<tick_atom>>;

/// Where a tokenizer's answers go: a session.
using AdmissionSink = caf::typed_actor<caf::reacts_to<tokenize_atom, Admission>,
                                       caf::reacts_to<refused_atom, Refusal>>;

/// Text and chat messages to ids; a pool, spawned detached, for a long text takes its time.
using TokenizerActor = caf::typed_actor<
    caf::reacts_to<tokenize_atom, EngineFactsPtr, transport::Peer, transport::Submit>>;

/// Keeps a shard of the streams: text, chunks, log, followers.
using StreamerActor =
    caf::typed_actor<caf::reacts_to<open_atom, StreamOpen>, caf::reacts_to<events_atom, StepEvents>,
                     caf::reacts_to<follow_atom, transport::Follow>,
                     caf::reacts_to<lost_atom, transport::Peer>,
                     caf::reacts_to<engine_atom, EngineFactsPtr, Error>,  ///< that engine is lost
                     caf::replies_to<stats_atom>::with<NamedValues>,
                     caf::replies_to<drain_atom>::with<bool>,  ///< when no owner lacks anything
                     caf::reacts_to<tick_atom>>;

/// The actors a session works with.
struct FrontParts {
  std::vector<TokenizerActor> tokenizers;
  std::vector<StreamerActor> streamers;
  std::string publish;  ///< where subscribers connect
};

/// The front: one for all clients of a node.
using SessionActor = caf::typed_actor<
    caf::reacts_to<ready_atom, FrontParts>, caf::reacts_to<inbound_atom, Inbound>,
    caf::reacts_to<lost_atom, transport::Peer>, caf::reacts_to<tokenize_atom, Admission>,
    caf::reacts_to<accepted_atom, transport::Accepted>, caf::reacts_to<refused_atom, Refusal>,
    caf::reacts_to<finished_atom, StreamEnd>,
    caf::reacts_to<cancel_atom, transport::StreamId, std::uint64_t>,  ///< nobody follows it
    caf::reacts_to<engine_atom, EngineFactsPtr, EngineActor>,         ///< serves from now on
    caf::reacts_to<engine_atom, EngineFactsPtr, Error>,               ///< no longer
    caf::reacts_to<clients_atom, transport::ClientGrants>,            ///< the new allow list
    caf::reacts_to<engine_atom, EngineFactsPtr, bool>,  ///< its executor is there, or is not
    caf::replies_to<stats_atom>::with<NamedValues>,     ///< sums over all parts, and what follows
    caf::replies_to<drain_atom>::with<bool>>;           ///< when every stream ended and arrived

/// Where an executor says that its model is loaded, or why not.
using LoadNews = caf::typed_actor<caf::reacts_to<ready_atom, EngineReady>,
                                  caf::reacts_to<ready_atom, EngineFailed>>;

}  // namespace sluice::actors

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::Inbound)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::Refusal)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::FrontParts)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::FrontPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::StreamOpen)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::StepEvents)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::StreamEnd)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::EngineReady)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::EngineFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::EngineFactsPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::Admission)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::NamedValues)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::Error)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::kernels::StepResult)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::engine::StepPlan)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::engine::StepMasks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::StreamId)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::ClientGrant)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::ClientGrants)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::Submit)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::Accepted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::Follow)
