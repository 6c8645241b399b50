#pragma once
// The actor that keeps a shard of the streams: formats, never decides.

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "actors/actors.hpp"
#include "actors/outbox.hpp"
#include "engine/detokenizer.hpp"
#include "transport/figures.hpp"
#include "transport/stream.hpp"

namespace sluice::actors {

struct StreamerState {
  static inline const char* name = "streamer";
  struct Choice {
    engine::TextStream text;
    std::uint32_t tokens = 0;
    std::uint64_t news_ns = 0;  ///< when tokens came last; before the first, when it was received
    engine::FinishReason finish = engine::FinishReason::none;
    transport::Receipt receipt{};
  };
  struct Kept {
    transport::StreamState stream;
    std::vector<Choice> choices;
    EngineFactsPtr engine;
    std::uint64_t epoch = 0;
    std::optional<std::uint64_t> finished_ns{};
    bool abandoned = false;  ///< its cancellation is on the way
  };
  OutboxPtr outbox;
  transport::StreamConfig config;
  SessionActor session;
  std::map<transport::StreamId, Kept> streams;
  std::vector<transport::Delivery> deliveries;  ///< reused by every message
  std::vector<transport::Outgoing> leaving;     ///< what a message has for the outbox
  std::vector<caf::typed_response_promise<bool>> drains;
  bool ticking = false;
  std::uint64_t chunks = 0;
  transport::Histogram ttft, itl;
  transport::RateWindow token_rate;
};

/// Frames go straight to the I/O thread through the outbox: no further hop.
StreamerActor::behavior_type streamer(StreamerActor::stateful_pointer<StreamerState> self,
                                      OutboxPtr outbox, transport::StreamConfig config,
                                      SessionActor session);

}  // namespace sluice::actors
