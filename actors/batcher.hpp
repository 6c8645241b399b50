#pragma once
// The actor around one engine's scheduler.

#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "actors/actors.hpp"
#include "engine/scheduler.hpp"

namespace sluice::actors {

/// Which of `count` streamers keeps a stream.
std::size_t shard_of(const transport::StreamId& stream, std::size_t count);

struct BatcherState {
  static inline const char* name = "batcher";
  struct Sequence {
    transport::StreamId stream{};
    std::uint64_t epoch = 0;
    std::uint32_t choice = 0;
    FrontPtr front;
  };
  /// A stream's sequences have consecutive ids.
  struct Running {
    engine::SequenceId first = 0;
    std::uint32_t choices = 0;
    std::uint32_t unfinished = 0;
    std::uint64_t epoch = 0;
    FrontPtr front;
  };
  EngineFactsPtr engine;
  ExecutorActor executor;  ///< none while another is awaited
  std::unique_ptr<engine::Scheduler> scheduler;
  std::unordered_map<engine::SequenceId, Sequence> sequences;
  std::map<transport::StreamId, Running> by_stream;
  engine::SequenceId next_id = 1;
};

/// Admits, plans ahead as far as the scheduler allows, and hands every step's news to the streamers
/// in one message each. It outlives its executor: until it is given another, streams wait.
BatcherActor::behavior_type batcher(BatcherActor::stateful_pointer<BatcherState> self,
                                    EngineFactsPtr engine, ExecutorActor executor);

}  // namespace sluice::actors
