#pragma once
// What a front knows of the streams that it gave to another node's engine. That engine says which
// of them it took and what they yield; all else is as the front sent it. Pure.

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "actors/actors.hpp"

namespace sluice::actors {

class StreamLedger {
 public:
  /// Of an engine whose embedding has so many rows.
  explicit StreamLedger(std::uint32_t vocabulary = 0) : vocabulary_(vocabulary) {}

  /// The admission is on its way to the engine.
  void admit(const Admission& admission);

  /// The engine took it: what its keeper and its owner are told, with nothing in it of the engine's
  /// own. It takes a lower epoch's place, which goes on for as long as it may still be refused.
  /// None: nobody asked for that.
  std::optional<StreamOpen> open(const transport::StreamId& stream, std::uint64_t epoch);

  /// The engine did not take it. False: it was not asked.
  bool refused(const transport::StreamId& stream, std::uint64_t epoch);

  /// False for news of what is over or was never asked. `bad_request` for a choice that the stream
  /// has not, tokens that leave a gap or are none, or news behind an end: the engine is not one.
  Result<bool> take(const StreamEvent& news);

  std::size_t size() const { return streams_.size(); }

 private:
  struct Choice {
    std::uint64_t tokens = 0;
    bool ended = false;
  };
  struct Stream {
    std::optional<StreamOpen> asked;  ///< until the engine took it
    std::vector<Choice> choices;
  };

  using Key = std::pair<transport::StreamId, std::uint64_t>;  ///< and its epoch

  Stream* find(const Key& key);

  std::uint32_t vocabulary_;
  std::map<Key, Stream> streams_;
};

}  // namespace sluice::actors
