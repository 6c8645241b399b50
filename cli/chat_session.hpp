#pragma once
// A conversation: its messages, what its /commands change, and where it is kept.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/generation.hpp"
#include "kernels/core.hpp"
#include "transport/protocol.hpp"

namespace sluice::cli {

struct ChatSession {
  std::string system;  ///< empty: the model's own
  std::vector<transport::ChatMessage> messages;
  GenerationOptions generation;
  bool show_stats = true;
  std::optional<transport::StreamId> last_stream;  ///< of the last answer

  /// The prompt of the next turn.
  std::vector<transport::ChatMessage> prompt() const;
};

/// What a line that starts with a slash asked for.
struct CommandOutcome {
  std::string say;  ///< printed as it is
  bool quit = false;
};

/// Runs `/name argument`. `bad_request` names the nearest command, or what the command takes.
Result<CommandOutcome> run_chat_command(ChatSession& session, std::string_view line);

}  // namespace sluice::cli
