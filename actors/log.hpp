#pragma once
// One structured line a request, and a few about the node. Never a prompt, unless asked to.

#include <memory>
#include <string>

#include "actors/actors.hpp"
#include "actors/node.hpp"

namespace sluice::actors {

/// Lines of JSON on stderr or in a file. Any thread.
class RequestLog {
 public:
  /// `io` when the file cannot be opened, `bad_request` for an unknown level.
  static Result<std::shared_ptr<RequestLog>> open(const NodeConfig& config);
  ~RequestLog();

  /// A finished request: `info`.
  void request(const StreamEnd& end);

  /// A refused one: `info`.
  void refused(const Refusal& refusal);

  /// With `log_prompts` only: what was asked, at `debug`.
  void prompt(const transport::Submit& submit);

  /// Something about the node itself: `info`, `warn`, or `error` with a failure.
  void node(std::string_view event, std::string_view detail);
  void node_warning(std::string_view event, std::string_view detail);
  void node_failed(std::string_view event, const Error& why);

 private:
  struct State;
  explicit RequestLog(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::actors
