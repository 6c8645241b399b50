#pragma once
// The actor around the front's session: routes what clients say to tokenizers, batchers, streamers.

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "actors/actors.hpp"
#include "actors/log.hpp"
#include "actors/outbox.hpp"
#include "actors/status.hpp"

namespace sluice::actors {

struct SessionSetup {
  OutboxPtr outbox;
  transport::SessionConfig config;  ///< `welcome.models` fills as engines come up
  std::size_t engines = 0;          ///< how many are expected
  std::shared_ptr<RequestLog> log;
  std::shared_ptr<NodeStatus> status;            ///< told when clients are greeted
  std::function<NamedValues()> more_stats = {};  ///< beside those of the parts; any thread
};

struct SessionState {
  static inline const char* name = "session";
  struct Engine {
    EngineFactsPtr facts;
    EngineActor batcher;
    bool away = false;  ///< its executor was lost; streams wait for the next
  };
  struct Open {
    EngineFactsPtr engine;
    std::uint64_t epoch = 0;
    bool admitted = false;  ///< with the batcher; before, a cancel waits here
    bool accepted = false;  ///< a streamer keeps it
    bool cancelled = false;
  };
  SessionSetup setup;
  std::unique_ptr<transport::Session> session;
  std::vector<Engine> engines;
  std::vector<TokenizerActor> tokenizers;
  std::vector<StreamerActor> streamers;
  FrontPtr front;  ///< itself and the streamers, for batchers
  std::size_t next_tokenizer = 0;
  std::map<transport::StreamId, Open> open;
  std::vector<caf::typed_response_promise<bool>> drains;
  bool draining = false;
  std::map<std::string, std::uint64_t> refused;   ///< by error code
  std::map<std::string, std::uint64_t> finished;  ///< by finish
};

/// Answers `unavailable` until its parts and every engine are there.
SessionActor::behavior_type session(SessionActor::stateful_pointer<SessionState> self,
                                    SessionSetup setup);

}  // namespace sluice::actors
