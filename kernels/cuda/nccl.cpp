#include "kernels/cuda/nccl.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/device.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/shared_library.hpp"

#if SLUICE_NCCL
#include <nccl.h>

namespace {

namespace own = sluice::kernels::cuda::nccl;
static_assert(own::success == ncclSuccess && own::in_progress == ncclInProgress);
static_assert(own::float32 == ncclFloat32 && own::sum == ncclSum);
static_assert(sizeof(own::UniqueId) == sizeof(ncclUniqueId));
static_assert(offsetof(own::Config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(own::Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(own::Config, blocking) == offsetof(ncclConfig_t, blocking));

}  // namespace
#endif

namespace sluice::kernels::cuda {
namespace nccl {

sluice::Result<Library> load(const std::string& file) {
  // Never closed: it has threads of its own.
  void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return fail(ErrorCode::unsupported, "NCCL does not load: {}", last_dl_error());
  }
  Library library;
  if (!find_symbol(handle, "ncclGetVersion", library.version) ||
      !find_symbol(handle, "ncclGetErrorString", library.error_text) ||
      !find_symbol(handle, "ncclGetLastError", library.last_error) ||
      !find_symbol(handle, "ncclGetUniqueId", library.unique_id) ||
      !find_symbol(handle, "ncclCommInitRankConfig", library.start) ||
      !find_symbol(handle, "ncclCommGetAsyncError", library.state) ||
      !find_symbol(handle, "ncclAllGather", library.all_gather) ||
      !find_symbol(handle, "ncclAllReduce", library.all_reduce) ||
      !find_symbol(handle, "ncclCommAbort", library.abort) ||
      !find_symbol(handle, "ncclCommDestroy", library.destroy)) {
    return fail(ErrorCode::unsupported, "{} is no NCCL of version 2.14 or later", file);
  }
  return library;
}

std::string to_text(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace nccl

namespace {

using Clock = std::chrono::steady_clock;

/// A collective is on the stream some ten microseconds after it is asked for, on a thread of NCCL's
/// that ends then: who slept would find it late, and a step has a hundred of them.
constexpr std::chrono::milliseconds awake{1};
constexpr std::chrono::microseconds look_interval{200};

/// Sums are gathered, and added here: NCCL's own all-reduce adds in an order that depends on size
/// and topology.
class NcclGroup final : public DeviceGroup {
 public:
  NcclGroup(const nccl::Library& library, std::shared_ptr<Communicator> group, bool captures)
      : library_(library),
        group_(std::move(group)),
        shard_(group_->shard()),
        captures_(captures) {}

  ~NcclGroup() override {
    if (comm_ != nullptr && failure()) give_up();
    {
      const std::lock_guard lock(calls_);
      ended_ = true;
    }
    wake_.notify_one();
    if (aborter_.joinable()) aborter_.join();
    if (comm_ != nullptr && !given_up_) library_.destroy(comm_);
  }

  Result<void> start(const nccl::UniqueId& id, std::uint32_t start_ms) {
    auto memory = DeviceMemory::make(shard_.size * piece_floats * sizeof(float), "the ranks' sums");
    if (!memory) return tl::unexpected(memory.error());
    gathered_ = std::move(*memory);
    library_.version(&version_);
    try {
      aborter_ = std::thread([this] { abort_once_given_up(); });
    } catch (const std::system_error& error) {
      return fail(ErrorCode::unavailable, "cannot start a thread: {}", error.what());
    }
    until_ = Clock::now() + std::chrono::milliseconds(start_ms);
    nccl::Config config;
    SLUICE_TRY(
        settled("ncclCommInitRankConfig", library_.start(&comm_, static_cast<int>(shard_.size), id,
                                                         static_cast<int>(shard_.rank), &config)));
    until_ = Clock::time_point::max();
    return {};
  }

  /// Whether a graph with a collective can be captured and runs, on all ranks; if not, nothing is
  /// known of NCCL's state, and the group is given up. An error is the ranks' own end.
  Result<bool> try_graph(std::uint32_t first_graph_ms) {
    const auto until = Clock::now() + std::chrono::milliseconds(first_graph_ms);
    const auto stream = make_stream();
    const auto end = make_event();
    auto graph = stream ? capture_one(stream->get(), until) : tl::unexpected(stream.error());
    auto all = all_agree(graph && end);
    if (all && *all) {
      const bool launched = cudaGraphLaunch(graph->get(), stream->get()) == cudaSuccess &&
                            cudaEventRecord(end->get(), stream->get()) == cudaSuccess;
      all = all_agree(launched && reached(end->get(), until));
    }
    if (!all || !*all) give_up();
    if (stream) cudaStreamSynchronize(stream->get());
    cudaGetLastError();
    return all;
  }

  std::string name() const override {
    return fmt::format("NCCL {}, {} rank{}{}", nccl::to_text(version_), shard_.size,
                       shard_.size == 1 ? "" : "s", captures_ ? "" : ", without graphs");
  }

  Result<void> all_gather(const float* own, float* all, std::size_t floats,
                          cudaStream_t stream) override {
    SLUICE_ASSERT(floats <= piece_floats, "a piece's room");
    if (auto why = failure()) return tl::unexpected(*why);
    return settled("ncclAllGather", alone([&] {
                     return library_.all_gather(own, all, floats, nccl::float32, comm_, stream);
                   }));
  }

  Result<const float*> gather_terms(const float* values, std::size_t floats,
                                    cudaStream_t stream) override {
    SLUICE_TRY(all_gather(values, gathered_.as<float>(), floats, stream));
    return gathered_.as<float>();
  }

  Result<void> all_reduce_in_any_order(float* values, std::size_t floats,
                                       cudaStream_t stream) override {
    if (auto why = failure()) return tl::unexpected(*why);
    return settled("ncclAllReduce", alone([&] {
                     return library_.all_reduce(values, values, floats, nccl::float32, nccl::sum,
                                                comm_, stream);
                   }));
  }

  std::optional<Error> failure() const override {
    if (auto why = group_->failure()) return why;
    nccl::Result state = nccl::success;
    {
      const std::unique_lock lock(calls_, std::try_to_lock);
      if (!lock || given_up_ || comm_ == nullptr) return std::nullopt;  // or told by the caller
      if (library_.state(comm_, &state) != nccl::success) return std::nullopt;
    }
    if (state == nccl::success || state == nccl::in_progress) return std::nullopt;
    // The other ranks learn of it over the communicator.
    const Error error = said("a collective", state);
    group_->abort(error.message);
    return error;
  }

  bool captures() const override { return captures_; }

  Result<bool> all_agree(bool own) override {
    std::vector<std::uint8_t> all(shard_.size);
    const std::uint8_t mine = own ? 1 : 0;
    SLUICE_TRY(group_->all_gather(std::as_bytes(std::span(&mine, 1)),
                                  std::as_writable_bytes(std::span(all))));
    return std::find(all.begin(), all.end(), 0) == all.end();
  }

  void give_up() override {
    {
      const std::lock_guard lock(calls_);
      given_up_ = true;
    }
    wake_.notify_one();
  }

 private:
  /// A graph of one collective, which ran before so that its connections are there.
  Result<GraphExec> capture_one(cudaStream_t stream, Clock::time_point until) {
    constexpr std::size_t floats = 4;
    auto* const own = gathered_.as<float>();
    const auto gathers = [&] {
      return outcome(alone([&] {
                       return library_.all_gather(own, own + floats, floats, nccl::float32, comm_,
                                                  stream);
                     }),
                     until) == nccl::success;
    };
    if (!gathers()) return fail(ErrorCode::unsupported, "a collective does not run");
    return capture_graph(stream, [&]() -> Result<void> {
      if (gathers()) return {};
      return fail(ErrorCode::unsupported, "a collective cannot be captured");
    });
  }

  bool reached(cudaEvent_t event, Clock::time_point until) const {
    cudaError_t status = cudaEventQuery(event);
    for (; status == cudaErrorNotReady; status = cudaEventQuery(event)) {
      if (group_->failure() || Clock::now() >= until) return false;
      std::this_thread::yield();
    }
    return status == cudaSuccess;
  }

  /// What waits on the device is let go at once, but ncclCommAbort returns only when every graph
  /// with the group's collectives is gone, and those go when nothing is under way. So nobody who
  /// is waited for may wait for it.
  void abort_once_given_up() {
    {
      std::unique_lock lock(calls_);
      wake_.wait(lock, [this] { return given_up_ || ended_; });
      if (!given_up_) return;
    }
    library_.abort(comm_);
  }

  Result<void> reduce_piece(float* values, std::size_t floats, LaunchChain& chain) override {
    SLUICE_TRY(all_gather(values, gathered_.as<float>(), floats, chain.interrupted()));
    SLUICE_CUDA(add_ranks(gathered_.as<float>(), shard_.size, floats, values, chain));
    return {};
  }

  /// One at a time: who asks for NCCL's state also ends what NCCL began on a thread of its own, and
  /// two that do both free it. After the group was given up there is nothing left to call.
  template <class Call>
  nccl::Result alone(Call call) {
    const std::lock_guard lock(calls_);
    return given_up_ ? nccl::in_progress : call();
  }

  nccl::Result state() {
    return alone([this] {
      nccl::Result state = nccl::success;
      const nccl::Result status = library_.state(comm_, &state);
      return status == nccl::success ? state : status;
    });
  }

  /// Calls do not block: what is in progress is waited for here. Still in progress: the group ended
  /// meanwhile, or the time.
  nccl::Result outcome(nccl::Result status, Clock::time_point until) {
    for (const auto began = Clock::now(); status == nccl::in_progress; status = state()) {
      const auto now = Clock::now();
      if (now >= until || group_->failure()) break;
      if (now - began < awake) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(look_interval);
      }
    }
    return status;
  }

  Result<void> settled(const char* call, nccl::Result status) {
    status = outcome(status, until_);
    if (status == nccl::success) return {};
    if (status != nccl::in_progress) return given_up_by(said(call, status));
    if (auto why = group_->failure()) return given_up_by(*why);
    return given_up_by({ErrorCode::deadline,
                        fmt::format("rank {} of {}: {} did not end in time: see that every rank's "
                                    "host can be reached, and set NCCL_DEBUG=INFO to see how far "
                                    "it comes",
                                    shard_.rank, shard_.size, call),
                        0});
  }

  tl::unexpected<Error> given_up_by(Error error) {
    if (comm_ != nullptr) give_up();
    group_->abort(error.message);
    return tl::unexpected(std::move(error));
  }

  Error said(const char* what, nccl::Result status) const {
    const char* more = library_.last_error(nullptr);
    return {ErrorCode::internal,
            fmt::format("rank {} of {}: {}: NCCL says: {} ({})", shard_.rank, shard_.size, what,
                        library_.error_text(status), more == nullptr ? "" : more),
            0};
  }

  const nccl::Library library_;
  const std::shared_ptr<Communicator> group_;
  const Shard shard_;
  int version_ = 0;
  nccl::Comm* comm_ = nullptr;
  DeviceMemory gathered_;  ///< a piece of every rank's
  Clock::time_point until_;
  const bool captures_;
  mutable std::mutex calls_;  ///< of NCCL; but for the one that ends them
  std::condition_variable wake_;
  bool given_up_ = false;
  bool ended_ = false;
  std::thread aborter_;
};

}  // namespace

Result<std::unique_ptr<DeviceGroup>> make_nccl_group(const nccl::Library& library,
                                                     const nccl::UniqueId& id,
                                                     std::shared_ptr<Communicator> group,
                                                     bool captures, std::uint32_t start_ms,
                                                     std::uint32_t first_graph_ms) {
  auto made = std::make_unique<NcclGroup>(library, std::move(group), captures);
  SLUICE_TRY(made->start(id, start_ms));
  if (!captures) return made;
  const auto works = made->try_graph(first_graph_ms);
  if (!works) return tl::unexpected(works.error());
  if (!*works) return nullptr;
  return made;
}

}  // namespace sluice::kernels::cuda
