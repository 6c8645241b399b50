// Runs seeds of the simulator and says what came of them.
//   test_simulate [--fleets] [--seeds N] [--from SEED] [--jobs J] [--verbose]
// With --fleets every address leads to a fleet: roles in several processes, linked.
// A seed that fails is named, with what repeats it. The last line counts seeds, failures and
// simulated request-hours. Exit code 0: none failed; 1: some did; 2: wrong usage.

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "tests/simulate/world.hpp"

namespace {

using namespace sluice;

struct Options {
  std::uint64_t seeds = 300;
  std::uint64_t from = 0;
  std::uint64_t jobs = 2;
  bool verbose = false;
  bool fleets = false;
};

/// Runs one seed; an assertion that fails ends the process.
bool run_seed(std::uint64_t seed, const Options& options, simulate::Tally& tally) {
  const auto once = [seed, &options](simulate::Tally& into, bool narrate) {
    simulate::World world(seed, options.fleets, into, narrate);
    world.run();
    return world.trace();
  };
  try {
    const std::uint64_t trace = once(tally, options.verbose);
    // What cannot be repeated cannot be debugged: a few are run twice.
    simulate::Tally again;
    if (seed % 50 == 0 && once(again, false) != trace)
      throw simulate::Violation("the same seed went another way");
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "seed %lu FAILED: %s\n  repeat it: test_simulate%s --from %lu --seeds 1\n",
                 seed, error.what(), options.fleets ? " --fleets" : "", seed);
    return false;
  }
}

// From a worker to its parent, over a pipe: one line a seed and the tally at the end.
//   b SEED         begins          f SEED         failed
//   t NAME\tCOUNT  of its tally    h HOURS        request-hours    e   all done
void work(const Options& options, std::uint64_t first, std::FILE* out) {
  simulate::Tally tally;
  for (std::uint64_t i = first; i < options.seeds; i += options.jobs) {
    std::fprintf(out, "b %lu\n", i);
    std::fflush(out);
    if (!run_seed(options.from + i, options, tally)) std::fprintf(out, "f %lu\n", i);
  }
  for (const auto& [name, count] : tally.counts)
    std::fprintf(out, "t %s\t%lu\n", name.c_str(), count);
  std::fprintf(out, "h %.17g\ne\n", tally.request_hours);
  std::fflush(out);
}

/// A process that takes every `jobs`th seed; when an assertion ends it, another goes on.
struct Worker {
  pid_t process = -1;
  std::FILE* in = nullptr;
  std::uint64_t current = 0;

  void start(const Options& options, std::uint64_t first) {
    int ends[2];
    if (pipe(ends) != 0) std::exit(1);
    std::fflush(nullptr);
    process = fork();
    if (process < 0) std::exit(1);
    if (process == 0) {
      close(ends[0]);
      work(options, first, fdopen(ends[1], "w"));
      std::fflush(nullptr);
      _exit(0);
    }
    close(ends[1]);
    in = fdopen(ends[0], "r");
    current = first;
  }
};

struct Outcome {
  simulate::Tally tally;
  std::uint64_t failures = 0;
};

/// Takes a worker's lines until it ends; true when it came to the end of its seeds.
bool follow(Worker& worker, Outcome& outcome) {
  char line[512];
  bool whole = false;
  while (std::fgets(line, sizeof line, worker.in) != nullptr) {
    const std::string_view rest(line + 2);
    if (line[0] == 'b') {
      worker.current = std::strtoull(line + 2, nullptr, 10);
    } else if (line[0] == 'f') {
      ++outcome.failures;
    } else if (line[0] == 't') {
      const std::size_t tab = rest.find('\t');
      outcome.tally.counts[std::string(rest.substr(0, tab))] +=
          std::strtoull(line + 2 + tab + 1, nullptr, 10);
    } else if (line[0] == 'h') {
      outcome.tally.request_hours += std::strtod(line + 2, nullptr);
    } else {
      whole = true;
    }
  }
  std::fclose(worker.in);
  int status = 0;
  waitpid(worker.process, &status, 0);
  return whole && status == 0;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    std::uint64_t* number = name == "--seeds"  ? &options.seeds
                            : name == "--from" ? &options.from
                            : name == "--jobs" ? &options.jobs
                                               : nullptr;
    if (number != nullptr && i + 1 < argc) {
      const char* end = argv[i + 1] + std::strlen(argv[i + 1]);
      if (std::from_chars(argv[++i], end, *number).ptr != end) return false;
    } else if (name == "--fleets") {
      options.fleets = true;
    } else if (name == "--verbose") {
      options.verbose = true;
    } else {
      return false;
    }
  }
  return options.jobs > 0 && options.seeds > 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(
        stderr,
        "usage: test_simulate [--fleets] [--seeds N] [--from SEED] [--jobs J] [--verbose]\n");
    return 2;
  }
  options.jobs = std::min(options.jobs, options.seeds);
  std::vector<Worker> workers(options.jobs);
  for (std::uint64_t i = 0; i < options.jobs; ++i) workers[i].start(options, i);
  Outcome outcome;
  for (Worker& worker : workers) {
    while (!follow(worker, outcome)) {
      ++outcome.failures;
      std::fprintf(stderr,
                   "seed %lu FAILED: its process ended\n  repeat it: test_simulate --from "
                   "%lu --seeds 1 --jobs 1\n",
                   options.from + worker.current, options.from + worker.current);
      const std::uint64_t next = worker.current + options.jobs;
      if (next >= options.seeds) break;
      worker.start(options, next);
    }
  }
  for (const auto& [name, count] : outcome.tally.counts)
    std::printf("%10lu  %s\n", count, name.c_str());
  std::printf("%lu seeds, %lu failures, %.2f simulated request-hours\n", options.seeds,
              outcome.failures, outcome.tally.request_hours);
  return outcome.failures == 0 ? 0 : 1;
}
