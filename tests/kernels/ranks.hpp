#pragma once
// A group of real processes: each rank is forked, runs a body over a connected communicator, and
// reports a text. The parent carries the addresses, as a node's rendezvous does.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/communicator.hpp"

namespace sluice::kernels::test {

/// How a rank ended: what it reported, or the signal that killed it.
struct RankEnd {
  std::string report;
  int signal = 0;
};

using Addresses = std::vector<std::vector<std::byte>>;

/// What a rank does once it has all addresses, and what it reports.
using StartBody = std::function<std::string(GroupStart&, const Addresses&)>;

/// A process of this test that hangs is a failure, not a wait for ever.
inline constexpr unsigned rank_seconds_max = 280;

/// Ranks of a test wait for each other's loading, on few cores and perhaps sanitized.
inline const CommunicatorOptions patient{"127.0.0.1", 60'000};

namespace ranks {

inline void write_all(int fd, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, at, bytes);
    if (n <= 0) return;
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

inline bool read_all(int fd, void* data, std::size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::read(fd, at, bytes);
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return true;
}

template <class Bytes>
void write_message(int fd, const Bytes& bytes) {
  const std::uint64_t size = bytes.size();
  write_all(fd, &size, sizeof size);
  write_all(fd, bytes.data(), bytes.size());
}

template <class Bytes>
bool read_message(int fd, Bytes& bytes) {
  std::uint64_t size = 0;
  if (!read_all(fd, &size, sizeof size)) return false;
  bytes.resize(size);
  return read_all(fd, bytes.data(), size);
}

/// The child's whole life. Nothing of the parent's may run at its end.
[[noreturn]] inline void live(const Shard& shard, const CommunicatorOptions& options, int in,
                              int out, const StartBody& body) {
  ::alarm(rank_seconds_max);
  // With the test runner's handlers a rank that aborts would go on as a second runner.
  for (const int fatal : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) ::signal(fatal, SIG_DFL);
  std::string report;
  try {
    auto start = prepare_tcp(shard, options);
    if (!start) {
      report = "cannot prepare: " + start.error().message;
      write_message(out, std::vector<std::byte>{});
    } else {
      write_message(out, (*start)->address());
      Addresses addresses(shard.size);
      for (auto& address : addresses) read_message(in, address);
      report = body(**start, addresses);
    }
  } catch (const std::exception& error) {
    report = std::string("exception: ") + error.what();
  } catch (...) {  // as BOOST_REQUIRE throws it
    report = "a requirement failed";
  }
  write_message(out, report);
  ::_exit(0);
}

}  // namespace ranks

/// Runs `size` ranks up to their ends.
inline std::vector<RankEnd> run_starts(std::uint32_t size, const StartBody& body,
                                       const CommunicatorOptions& options = patient) {
  struct Child {
    pid_t process = 0;
    int to = -1, from = -1;
  };
  std::vector<Child> children;
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    std::array<int, 2> down{}, up{};
    BOOST_REQUIRE_EQUAL(::pipe(down.data()), 0);
    BOOST_REQUIRE_EQUAL(::pipe(up.data()), 0);
    const pid_t process = ::fork();
    BOOST_REQUIRE_GE(process, 0);
    if (process == 0) {
      for (const Child& other : children) {  // else a dead rank's pipes would stay open
        ::close(other.to);
        ::close(other.from);
      }
      ::close(down[1]);
      ::close(up[0]);
      ranks::live({rank, size}, options, down[0], up[1], body);
    }
    ::close(down[0]);
    ::close(up[1]);
    children.push_back({process, down[1], up[0]});
  }
  Addresses addresses(size);
  for (std::uint32_t r = 0; r < size; ++r) ranks::read_message(children[r].from, addresses[r]);
  struct sigaction ignore {}, before {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  for (const Child& child : children) {
    for (const auto& address : addresses) ranks::write_message(child.to, address);
  }
  std::vector<RankEnd> ends(size);
  for (std::uint32_t r = 0; r < size; ++r) {
    ranks::read_message(children[r].from, ends[r].report);
    int status = 0;
    ::waitpid(children[r].process, &status, 0);
    if (WIFSIGNALED(status)) ends[r].signal = WTERMSIG(status);
    ::close(children[r].to);
    ::close(children[r].from);
  }
  ::sigaction(SIGPIPE, &before, nullptr);
  return ends;
}

/// Runs `size` connected ranks up to their ends.
inline std::vector<RankEnd> run_ranks(
    std::uint32_t size,
    const std::function<std::string(const std::shared_ptr<Communicator>&)>& body,
    const CommunicatorOptions& options = patient) {
  return run_starts(
      size,
      [&](GroupStart& start, const Addresses& addresses) {
        const auto group = start.connect(addresses, 60'000);
        return group ? body(*group) : "cannot connect: " + group.error().message;
      },
      options);
}

/// Every rank lived to its end and reported this.
inline void check_all(const std::vector<RankEnd>& ends, const std::string& report) {
  for (const RankEnd& end : ends) {
    BOOST_TEST(end.signal == 0);
    BOOST_TEST(end.report == report);
  }
}
inline void check_ok(const std::vector<RankEnd>& ends) { check_all(ends, "ok"); }

/// Another group of the same ranks, arranged over the first.
inline std::shared_ptr<Communicator> another_group(const std::shared_ptr<Communicator>& group) {
  const Shard shard = group->shard();
  const auto start = prepare_tcp(shard, patient).value();
  const std::size_t bytes = start->address().size();
  std::vector<std::byte> all(shard.size * bytes);
  BOOST_REQUIRE(group->all_gather(start->address(), all).has_value());
  Addresses addresses;
  for (std::uint32_t rank = 0; rank < shard.size; ++rank) {
    const auto own = std::span(all).subspan(rank * bytes, bytes);
    addresses.emplace_back(own.begin(), own.end());
  }
  return start->connect(addresses, 60'000).value();
}

}  // namespace sluice::kernels::test
