#pragma once
// One simulated client process with one stream, and the judge of all that it is handed.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulate/node.hpp"
#include "transport/client_state.hpp"

namespace sluice::simulate {

enum class Role : std::uint8_t { owner, reader, subscriber };

class Client {
 public:
  /// The stream's owner.
  Client(transport::Submit submit, std::vector<Expected> choices, const NodeShape& shape);
  /// Somebody who follows another's stream, its first choice from token `from` on.
  Client(const Client& owner, Role role, std::uint32_t from);

  /// A connection was made. The first thing that a client says is hello.
  void connected(std::uint64_t now_ns, std::vector<transport::Message>& send);
  void disconnected(std::size_t host, std::uint64_t now_ns);
  /// An attach of it arrived at a node. A connection alone makes no follower: it may be lost with
  /// what is under way.
  void followed(std::size_t host, std::uint64_t now_ns);
  void hear(std::size_t host, const std::string& frame, std::uint64_t now_ns,
            std::vector<transport::Message>& send);
  void tick(std::uint64_t now_ns, std::vector<transport::Message>& send);
  void cancel(std::vector<transport::Message>& send);

  /// The process is killed. Whoever starts it anew knows the request, and that it was submitted
  /// before, and no token of it.
  void restart();

  bool over() const { return terminal_.has_value(); }
  /// How it ended, for tallies.
  const std::string& ending() const { return *terminal_; }
  bool whole() const { return whole_; }

  Role role() const { return role_; }
  const transport::StreamId& stream() const { return submit_.stream; }
  std::uint64_t tokens() const;                                             ///< of all choices
  std::uint64_t first_tokens() const { return choices_[0].tokens.size(); }  ///< of the first
  std::uint64_t resumptions() const { return resumptions_; }

  /// Judges the end; throws a Violation. No loss of a connection, node or device excuses an error,
  /// unless one device after another was lost under a request, or a step failed: the request may be
  /// the cause.
  void judge(bool steps_failed, std::uint32_t devices_lost) const;

  std::uint64_t began_ns = 0;
  std::uint64_t ended_ns = 0;

 private:
  void take(std::vector<transport::ClientEvent> events, std::uint64_t now_ns);
  void follow();

  Role role_;
  transport::Submit submit_;
  /// What came of a choice, and what must come.
  struct Choice {
    Expected expected;
    std::uint32_t from = 0;  ///< where a follower began
    std::vector<Token> tokens;
    std::string text;

    std::size_t held() const { return from + tokens.size(); }
  };

  std::vector<Choice> choices_;
  NodeShape shape_;

  std::unique_ptr<transport::ClientStream> state_;
  bool greeted_ = false;
  bool cancelled_ = false;
  bool accepted_ = false;
  std::uint64_t epoch_ = 0;
  std::uint64_t resumptions_ = 0;
  std::uint64_t barren_ = 0;  // of these, since the latest token
  /// Two nodes may run one epoch of a stream, of which each ends its own for want of followers.
  struct Absence {
    std::uint64_t since_ns = 0;  // its connection was lost, until it follows again
    std::uint64_t longest_ns = 0;
  };
  std::map<std::size_t, Absence> absences_;  // by node
  std::uint64_t absent_ns_ = 0;              // longest, from the node that told the end

  bool whole_ = false;
  std::optional<std::string> terminal_;
  std::optional<transport::Done> done_;
  std::optional<Error> error_;
};

}  // namespace sluice::simulate
