// What collectives between processes on this machine take: real ranks over loopback, each with one
// thread, as a tensor-parallel step runs them. With a model, what its decoding steps take instead.
// `--sealed`: as between hosts, where every message is encrypted. `--gpu`: what a decode step's
// sums take on GPUs, as we take them and as the library does; of one rank unless told otherwise, of
// several with a GPU each, or with one together if NCCL lets them.
//   sluice-bench-collectives [--ranks 2,3] [--rounds N] [--sealed] [--model FILE [--rows 1,16]
//                            [--temperature 0] [--top-k 0] [--top-p 1]]
//   sluice-bench-collectives --gpu [--ranks 1] [--rows 1,2,4] [--widths 4096,8192] [--device N]
//                            [--share-device] [--json]

#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/collectives/gpus.hpp"
#include "bench/collectives/steps.hpp"
#include "bench/quantile.hpp"
#include "kernels/communicator.hpp"

namespace {

using namespace sluice::kernels;
using sluice::bench::quantile;
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
    const auto gather_us =
        times_us(count, [&] { return group.all_gather(std::as_bytes(std::span(values)), all); });
    if (gather_us.empty()) return false;
    if (shard.rank != 0) continue;
    fmt::print("{:5} {:9} {:13.1f} {:8.1f} {:13.1f} {:8.1f}\n", shard.size, bytes,
               quantile(reduce_us, 0.5), quantile(reduce_us, 0.99), quantile(gather_us, 0.5),
               quantile(gather_us, 0.99));
    std::fflush(stdout);
  }
  return true;
}

struct Options {
  std::vector<std::uint32_t> ranks;  ///< 2 and 3, or on GPUs 1
  int rounds = 4000;
  std::string model;
  std::vector<std::uint32_t> rows = {1, 16};
  SamplingParams sampling;
  bool sealed = false;
  bool gpu = false;
  sluice::bench::GpuSums gpu_sums;
};

/// Rank 0 prints; the others take part.
bool measure_model(const std::shared_ptr<Communicator>& group, const Options& options) {
  for (const std::uint32_t rows : options.rows) {
    const auto steps = static_cast<std::uint32_t>(std::min(options.rounds, 200));
    const auto step_us =
        sluice::bench::measure_steps(options.model, group, rows, steps, options.sampling);
    if (!step_us) {
      fmt::print(stderr, "{}\n", step_us.error().message);
      return false;
    }
    if (group->shard().rank != 0) continue;
    fmt::print("{:5} {:5} {:13.1f}\n", group->shard().size, rows, *step_us);
    std::fflush(stdout);
  }
  return true;
}

[[noreturn]] void live(const Shard& shard, const Options& options, int in, int out) {
  CommunicatorOptions how;
  how.seal_loopback = options.sealed;
  auto start = prepare_tcp(shard, how);
  if (!start) ::_exit(1);
  const Bytes own = (*start)->address();
  write_all(out, own);
  std::vector<Bytes> addresses(shard.size, Bytes(own.size()));
  for (Bytes& address : addresses) {
    if (!read_all(in, address)) ::_exit(1);
  }
  const auto group = (*start)->connect(addresses, 10'000);
  if (!group) fmt::print(stderr, "{}\n", group.error().message);
  if (!group) ::_exit(1);
  const bool well = options.gpu             ? measure_gpu_sums(options.gpu_sums, *group)
                    : options.model.empty() ? measure(**group, options.rounds)
                                            : measure_model(*group, options);
  ::_exit(well ? 0 : 1);
}

bool run(std::uint32_t size, const Options& options) {
  std::vector<std::array<int, 2>> pipes;  // to a rank, from it
  std::vector<pid_t> processes;
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    std::array<int, 2> down{}, up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0) return false;
    processes.push_back(::fork());
    if (processes.back() == 0) live({rank, size}, options, down[0], up[1]);
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
    if (WIFSIGNALED(status)) {
      fmt::print(stderr, "a rank ended by signal {} ({})\n", WTERMSIG(status),
                 ::strsignal(WTERMSIG(status)));
    }
    well = well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return well;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  options.sampling.temperature = 0;
  const auto numbers = [](const char* text) {
    std::vector<std::uint32_t> list;
    for (char* end = nullptr; *text != '\0'; text = *end == ',' ? end + 1 : end) {
      list.push_back(static_cast<std::uint32_t>(std::strtoul(text, &end, 10)));
      if (end == text || list.back() == 0) return std::vector<std::uint32_t>{};
    }
    return list;
  };
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const char* value = i + 1 < count ? arguments[i + 1] : "";
    if (argument == "--sealed" || argument == "--gpu" || argument == "--share-device" ||
        argument == "--json") {
      (argument == "--sealed" ? options.sealed
       : argument == "--gpu"  ? options.gpu
       : argument == "--json" ? options.gpu_sums.json
                              : options.gpu_sums.share_device) = true;
      continue;
    }
    if (argument == "--rounds") {
      options.rounds = std::max(40, std::atoi(value));
    } else if (argument == "--ranks") {
      options.ranks = numbers(value);
    } else if (argument == "--model") {
      options.model = value;
    } else if (argument == "--rows") {
      options.rows = options.gpu_sums.rows = numbers(value);
    } else if (argument == "--temperature") {
      options.sampling.temperature = std::strtof(value, nullptr);
    } else if (argument == "--top-k") {
      options.sampling.top_k = static_cast<std::uint32_t>(std::strtoul(value, nullptr, 10));
    } else if (argument == "--top-p") {
      options.sampling.top_p = std::strtof(value, nullptr);
    } else if (argument == "--widths") {
      options.gpu_sums.widths = numbers(value);
    } else if (argument == "--device") {
      options.gpu_sums.device = static_cast<std::uint32_t>(std::strtoul(value, nullptr, 10));
    } else {
      fmt::print(
          "usage: sluice-bench-collectives [--ranks 2,3] [--rounds N] [--sealed] "
          "[--model FILE [--rows 1,16]\n"
          "                                [--temperature 0] [--top-k 0] [--top-p 1]]\n"
          "       sluice-bench-collectives --gpu [--ranks 1] [--rows 1,2,4] "
          "[--widths 4096,8192]\n"
          "                                [--device N] [--share-device] [--json]\n");
      return argument == "--help" ? 0 : 2;
    }
    ++i;
  }
  if (options.ranks.empty()) {
    options.ranks = options.gpu ? std::vector<std::uint32_t>{1} : std::vector<std::uint32_t>{2, 3};
  }
  if (options.gpu) {
    // Each group's heading names what carries it.
  } else if (options.model.empty()) {
    fmt::print("ranks     bytes  reduce us p50      p99  gather us p50      p99\n");
  } else {
    fmt::print("ranks  rows   step us p50\n");
  }
  std::fflush(stdout);  // else each rank would have it too
  for (const std::uint32_t size : options.ranks) {
    if (!run(size, options)) return 1;
  }
  return 0;
}
