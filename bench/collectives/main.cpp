// What collectives between processes on this machine take: real ranks over loopback, each with one
// thread, as a tensor-parallel step runs them.
//   sluice-bench-collectives [--ranks 2,3] [--rounds N]

#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/communicator.hpp"

namespace {

using namespace sluice::kernels;
using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

constexpr std::size_t sizes[] = {std::size_t{576} * 4, 4096, 16384, 32768, 65536, 262144, 1048576};

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return true;
}

bool read_all(int fd, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::read(fd, bytes.data(), bytes.size());
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return true;
}

double quantile(std::vector<double> values, double q) {
  const auto at = static_cast<std::size_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

/// Times of one collective after another, in microseconds. Empty: one failed.
template <class Collective>
std::vector<double> times_us(int rounds, Collective collective) {
  std::vector<double> times;
  for (int i = 0; i < rounds + rounds / 10; ++i) {
    const auto start = Clock::now();
    const auto done = collective();
    const std::chrono::duration<double, std::micro> time = Clock::now() - start;
    if (!done) {
      fmt::print(stderr, "{}\n", done.error().message);
      return {};
    }
    if (i >= rounds / 10) times.push_back(time.count());  // warm by then
  }
  return times;
}

/// Rank 0 prints; the others take part. False: a collective failed.
bool measure(Communicator& group, int rounds) {
  const Shard shard = group.shard();
  for (const std::size_t bytes : sizes) {
    std::vector<float> values(bytes / sizeof(float));
    std::vector<std::byte> all(bytes * shard.size);
    const int count = bytes > 100'000 ? rounds / 4 : rounds;
    const auto reduce_us = times_us(count, [&] { return group.all_reduce(values); });
    if (reduce_us.empty()) return false;
    const auto gather_us = times_us(
        count, [&] { return group.all_gather(std::as_bytes(std::span(values)), all); });
    if (gather_us.empty()) return false;
    if (shard.rank != 0) continue;
    fmt::print("{:5} {:9} {:13.1f} {:8.1f} {:13.1f} {:8.1f}\n", shard.size, bytes,
               quantile(reduce_us, 0.5), quantile(reduce_us, 0.99), quantile(gather_us, 0.5),
               quantile(gather_us, 0.99));
    std::fflush(stdout);
  }
  return true;
}

[[noreturn]] void live(const Shard& shard, int rounds, int in, int out) {
  auto start = prepare_tcp(shard);
  if (!start) ::_exit(1);
  const Bytes own = (*start)->address();
  write_all(out, own);
  std::vector<Bytes> addresses(shard.size, Bytes(own.size()));
  for (Bytes& address : addresses) {
    if (!read_all(in, address)) ::_exit(1);
  }
  const auto group = (*start)->connect(addresses, 10'000);
  if (!group) fmt::print(stderr, "{}\n", group.error().message);
  ::_exit(group && measure(**group, rounds) ? 0 : 1);
}

bool run(std::uint32_t size, int rounds) {
  std::vector<std::array<int, 2>> pipes;  // to a rank, from it
  std::vector<pid_t> processes;
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    std::array<int, 2> down{}, up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0) return false;
    processes.push_back(::fork());
    if (processes.back() == 0) live({rank, size}, rounds, down[0], up[1]);
    ::close(down[0]);
    ::close(up[1]);
    pipes.push_back({down[1], up[0]});
  }
  const std::size_t address_bytes = prepare_tcp({0, size}).value()->address().size();
  Bytes all(size * address_bytes);
  for (std::uint32_t r = 0; r < size; ++r) {
    read_all(pipes[r][1], std::span(all).subspan(r * address_bytes, address_bytes));
  }
  for (const auto& pipe : pipes) write_all(pipe[0], all);
  bool well = true;
  for (const pid_t process : processes) {
    int status = 0;
    ::waitpid(process, &status, 0);
    well = well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return well;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::uint32_t> sizes_asked = {2, 3};
  int rounds = 4000;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--rounds" && i + 1 < count) {
      rounds = std::max(40, std::atoi(arguments[++i]));
    } else if (argument == "--ranks" && i + 1 < count) {
      sizes_asked.clear();
      for (const char* at = arguments[++i]; *at != '\0'; ++at) {
        if (*at >= '1' && *at <= '9') sizes_asked.push_back(static_cast<std::uint32_t>(*at - '0'));
      }
    } else {
      fmt::print("usage: sluice-bench-collectives [--ranks 2,3] [--rounds N]\n");
      return argument == "--help" ? 0 : 2;
    }
  }
  fmt::print("ranks     bytes  reduce us p50      p99  gather us p50      p99\n");
  std::fflush(stdout);  // else each rank would have it too
  for (const std::uint32_t size : sizes_asked) {
    if (!run(size, rounds)) return 1;
  }
  return 0;
}
