#include "bench/serve/load.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

namespace sluice::bench {
namespace {

using std::chrono::milliseconds;

/// How often the watcher is called.
constexpr std::uint64_t watch_every_ns = 100'000'000;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

struct Run {
  transport::Client& client;
  Load load;
  LoadResult result{};
  LoadProgress progress{};
  std::map<transport::StreamId, std::size_t> running{};  // to the index of the request
  std::uint64_t start_ns = now_ns();

  bool may_send() const {
    return progress.sent < load.requests.size() &&
           (load.concurrency_max == 0 || running.size() < load.concurrency_max);
  }

  void end(std::size_t index, std::optional<Error> failure) {
    ++progress.ended;
    if (failure) ++progress.failed;
    result.traces[index].failure = std::move(failure);
  }

  void send_due() {
    while (may_send() && now_ns() - start_ns >= load.due_ns[progress.sent]) {
      const std::size_t index = progress.sent++;
      result.traces[index].sent_ns = now_ns();
      const auto id = load.requests[index].stream;
      if (auto sent = client.submit(std::move(load.requests[index])); !sent)
        end(index, sent.error());
      else
        running.emplace(id, index);
    }
  }

  /// How long nothing needs to be done but to listen.
  milliseconds idle(std::uint64_t watch_ns) const {
    std::uint64_t until = watch_ns;
    if (may_send()) until = std::min(until, start_ns + load.due_ns[progress.sent]);
    const std::uint64_t now = now_ns();
    return std::chrono::ceil<milliseconds>(std::chrono::nanoseconds(until > now ? until - now : 0));
  }

  void take(const transport::Client::Event& news) {
    const std::uint64_t now = now_ns();
    const auto found = running.find(news.stream);
    if (found == running.end()) return;
    auto& trace = result.traces[found->second];
    const auto& event = news.event;
    if (event.accepted) trace.prompt_tokens = event.accepted->prompt_tokens;
    if (!event.tokens.empty()) {
      trace.arrivals.push_back({now, static_cast<std::uint32_t>(event.tokens.size())});
      progress.output_tokens += event.tokens.size();
    }
    if (!event.done && !event.failed) return;
    std::optional<Error> failure;
    if (event.failed) failure = event.failed->error;
    if (event.done) {
      trace.cached_tokens = event.done->receipt.cached_tokens;
      const auto& finish = event.done->finish;
      if (finish.empty() || finish.front() == engine::FinishReason::cancelled)
        failure = Error{ErrorCode::cancelled, "the node cancelled the stream"};
      else if (trace.arrivals.empty())
        failure = Error{ErrorCode::internal, "the stream ended without a token"};
    }
    end(found->second, std::move(failure));
    running.erase(found);
  }

  /// False when the run was stopped.
  bool watch(const LoadWatcher& watcher) {
    progress.elapsed_s = static_cast<double>(now_ns() - start_ns) / 1e9;
    return !watcher || watcher(progress);
  }
};

}  // namespace

Result<LoadResult> run_load(transport::Client& client, Load load, const LoadWatcher& watcher) {
  SLUICE_ASSERT(load.due_ns.size() == load.requests.size(), "a time for each request");
  Run run{client, std::move(load)};
  run.progress.total = run.load.requests.size();
  run.result.traces.resize(run.progress.total);
  std::uint64_t watch_ns = run.start_ns;
  while (run.progress.ended < run.progress.total) {
    run.send_due();
    if (now_ns() >= watch_ns) {
      watch_ns = now_ns() + watch_every_ns;
      if (!run.watch(watcher)) {
        for (const auto& [id, index] : run.running) client.cancel(id);
        return fail(ErrorCode::cancelled, "stopped after {} of {} requests", run.progress.ended,
                    run.progress.total);
      }
    }
    if (const auto event = client.next(run.idle(watch_ns))) run.take(*event);
  }
  run.result.duration_ns = now_ns() - run.start_ns;
  run.watch(watcher);
  return std::move(run.result);
}

}  // namespace sluice::bench
