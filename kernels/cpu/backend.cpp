#include "kernels/cpu/targets.hpp"
// The targets must be chosen before Highway's headers.
#include <hwy/nanobenchmark.h>
#include <hwy/targets.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <mutex>
#include <system_error>
#include <thread>

#include "kernels/backends.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cpu/bandwidth.hpp"
#include "kernels/cpu/machine.hpp"
#include "kernels/cpu/packed_weights.hpp"
#include "kernels/cpu/program.hpp"
#include "kernels/cpu/runner.hpp"
#include "kernels/cpu/state.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/program.hpp"

/// Instead of the library's, which every program that loads it runs before main: 3 ms of measuring
/// a clock that only Highway's benchmarks read.
std::uint64_t hwy::platform::TimerResolution() { return 1; }

namespace sluice::kernels {
namespace {

using cpu::CpuWeight;
using cpu::Program;

constexpr std::uint32_t threads_max = 1024;

// Who has had nothing to do for so long is a service between streams, and not a command that is
// about to end and needs no memory ahead.
constexpr std::chrono::milliseconds idle_time{100};

std::string processor_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

std::string target_name() {
  const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(targets & -targets);  // the lowest bit is the best
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::uint32_t threads, cpu::WeightCache cache, Completion completion)
      : completion_(std::move(completion)),
        packed_(std::move(cache)),
        pool_(threads),
        runner_(pool_, kv_, slots_) {
    info_.backend = "cpu";
    info_.device =
        fmt::format("{}, {} thread{}", cpu_device_name(), threads, threads == 1 ? "" : "s");
    info_.arithmetic = "int8-blocks-16-of-32,f32-chains-fma,bf16-16-of-32-odd-first/11";
    info_.paths_equal = true;
    info_.int8_block_columns = cpu::step_cols;
    info_.bf16_inputs = true;
    info_.bf16_attention = true;
    info_.threads = threads;
    info_.queues_steps = true;
    info_.memory_free_bytes = cpu::available_memory_bytes();
    driver_ = std::thread([this] { drive(); });
  }

  ~CpuBackend() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    driver_.join();
  }

  const DeviceInfo& device() const override { return info_; }

  Result<Weight> load(const HostTensor& tensor) override {
    auto shape = check_weight(tensor);
    if (!shape) return tl::unexpected(shape.error());
    if (tensor.as_e4m3) {
      return fail(ErrorCode::unsupported,
                  "the cpu backend has no 8-bit floats: leave the quantization out, or use a file "
                  "in Q8_0 or Q4_K_M");
    }
    CpuWeight weight{*shape, row_stride(tensor), tensor.data.data(), tensor.source, nullptr};
    if (tensor.source && tensor.data.size() <= cpu::copied_bytes) {
      std::vector<std::byte> copy(tensor.data.size());
      auto read = tensor.source.read(tensor.data.data(), copy);
      if (!read) return tl::unexpected(read.error());
      weight.data = copies_.emplace_back(std::move(copy)).data();
      weight.source = {};
    }
    weights_.push_back(weight);
    return Weight{static_cast<std::uint32_t>(weights_.size() - 1)};
  }

  Result<void> allocate(const PoolShape& shape) override {
    if (allocated_) return fail(ErrorCode::bad_request, "the KV pool is allocated already");
    if (auto fits = check_pool(shape); !fits) return fits;
    if (shape.kv_format != KvFormat::f16) {
      return fail(ErrorCode::unsupported,
                  "the cpu backend keeps keys and values in 16 bits alone: leave the "
                  "kv_cache_dtype out, or use the cuda backend");
    }
    if (auto made = kv_.allocate(shape); !made) return made;
    if (auto made = slots_.allocate(shape); !made) return made;
    allocated_ = true;
    shape_ = shape;
    return {};
  }

  Result<void> join(std::shared_ptr<Communicator> group) override {
    SLUICE_ASSERT(group != nullptr, "a group to join");
    std::unique_lock lock(mutex_);
    if (!programs_.empty() && shard_ != group->shard()) {
      const Shard was = shard_.value_or(Shard{});
      return fail(ErrorCode::bad_request,
                  "rank {} of {}: this backend's programs are recorded for rank {} of {}",
                  group->shard().rank, group->shard().size, was.rank, was.size);
    }
    shard_ = group->shard();
    info_.collectives = group->name();
    Item item;
    item.group = std::move(group);
    queue_.push_back(std::move(item));
    wake_.notify_one();
    wait_idle(lock);  // steps before it run in the old group
    return {};
  }

  Result<ProgramId> record(const StepProgram& steps) override {
    if (!allocated_) return fail(ErrorCode::bad_request, "record before allocate");
    std::unique_lock lock(mutex_);
    wait_idle(lock);
    const bool in_pairs = kv_.can_pair() && rounds_to_int8(steps);
    if (programs_.empty()) {
      kv_.pair(in_pairs);
    } else if (in_pairs != kv_.paired()) {
      return fail(ErrorCode::bad_request,
                  "programs with quantized weights and without cannot share a KV pool: give each a "
                  "backend of its own");
    }
    if (auto made = pack(steps); !made) return tl::unexpected(made.error());
    auto program = Program::compile(steps, weights_, shape_, shard_);
    if (!program) return tl::unexpected(program.error());
    programs_.push_back(std::move(*program));
    runner_.prepare(programs_.back(), shape_);
    wake_.notify_one();  // there is something to find memory for
    return ProgramId{static_cast<std::uint32_t>(programs_.size() - 1)};
  }

  void submit(ProgramId program, Ticket ticket, Batch batch) override {
    SLUICE_ASSERT(program.index < programs_.size(), "a program never recorded");
    SLUICE_ASSERT(ticket > last_ticket_ || last_ticket_ == 0, "tickets must increase");
    last_ticket_ = ticket;
    push({program.index, ticket, std::move(batch), {}, false, nullptr});
  }

  void sample(Ticket ticket, std::vector<Mask> masks) override {
    push({0, ticket, {}, std::move(masks), true, nullptr});
  }

  Result<double> read_bandwidth(std::size_t bytes) override {
    return cpu::read_bandwidth(bytes, info_.threads);
  }

  Result<void> read(ProgramId program, Buffer buffer, std::span<float> out) override {
    std::unique_lock lock(mutex_);
    wait_idle(lock);
    if (program.index >= programs_.size() ||
        buffer.index >= programs_[program.index].shapes().size()) {
      return fail(ErrorCode::bad_request, "no such program or buffer");
    }
    const Program& source = programs_[program.index];
    const BufferShape& shape = source.shapes()[buffer.index];
    const cpu::RowView view = source.view(buffer);
    const std::size_t held = std::size_t{rows_max(shape_, shape.rows)} * shape.width;
    if (out.size() > held) {
      return fail(ErrorCode::bad_request, "{} floats asked of a buffer of {}", out.size(), held);
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = view.row(i / shape.width)[i % shape.width];
    }
    return {};
  }

 private:
  bool rounds_to_int8(const StepProgram& steps) const {
    return std::any_of(steps.ops.begin(), steps.ops.end(), [&](const Op& op) {
      const auto* linear = std::get_if<Linear>(&op);
      if (linear == nullptr || linear->weight.index >= weights_.size()) return false;
      return cpu::activations_of(weights_[linear->weight.index].format) == cpu::Activations::int8;
    });
  }

  /// Packs the weights of products that are not packed yet, in the order of their use. The driver
  /// is idle.
  Result<void> pack(const StepProgram& steps) {
    std::vector<CpuWeight*> fresh;
    for (const Op& op : steps.ops) {
      const auto* linear = std::get_if<Linear>(&op);
      if (linear == nullptr || linear->weight.index >= weights_.size()) continue;
      CpuWeight* weight = &weights_[linear->weight.index];
      if (weight->packed != nullptr || std::ranges::count(fresh, weight) > 0) continue;
      fresh.push_back(weight);
    }
    return packed_.add(fresh, pool_);
  }

  /// A step, or with `masks_came` the second half of one.
  struct Item {
    std::uint32_t program = 0;
    Ticket ticket = 0;
    Batch batch;
    std::vector<Mask> masks;
    bool masks_came = false;
    std::shared_ptr<Communicator> group;  ///< no step: joins it
  };

  /// A step whose completion is still owed.
  struct Pending {
    StepResult result;
    bool done = false;
  };

  void push(Item item) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
    }
    wake_.notify_one();
  }

  void wait_idle(std::unique_lock<std::mutex>& lock) {
    idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
  }

  void drive() {
    cpu::let_others_in();
    std::unique_lock lock(mutex_);
    const auto called = [this] { return !queue_.empty() || stop_; };
    for (;;) {
      wake_.wait(lock, [&] { return called() || (!programs_.empty() && kv_.lags()); });
      wake_.wait_for(lock, idle_time, called);
      while (!called() && kv_.lags()) {
        lock.unlock();
        kv_.find_memory();
        lock.lock();
      }
      if (!called()) continue;
      if (queue_.empty()) break;
      const Item item = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      run(item);
      lock.lock();
      if (queue_.empty()) {  // else the next step tells, once it is under way
        lock.unlock();
        complete_done();
        lock.lock();
      }
      busy_ = false;
      if (queue_.empty()) idle_.notify_all();
    }
    lock.unlock();
    fail_pending("the backend closed before the step's masks came");
  }

  void fail_pending(const char* why) {
    for (Pending& pending : pending_) {
      if (pending.done) continue;
      pending.done = true;
      pending.result.failed = true;
      pending.result.error = {ErrorCode::unavailable, why, 0};
    }
    complete_done();
  }

  void run(const Item& item) {
    if (item.group != nullptr) {
      fail_pending("the group was left before the step's masks came");
      runner_.join(item.group);
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    Pending* pending = nullptr;
    if (item.masks_came) {
      for (Pending& owed : pending_) {
        if (owed.result.ticket == item.ticket && !owed.done) pending = &owed;
      }
      // A failed step was answered at once, and its masks may be on their way by then.
      if (pending == nullptr && runner_.failure()) return;
      SLUICE_ASSERT(pending != nullptr, "masks for a step that was not held back");
      complete_done();
      runner_.sample(item.masks, pending->result.slots);
    } else {
      for (const BlockGrant& grant : item.batch.grants) kv_.use(grant.blocks);
      pending = &pending_.emplace_back();
      pending->result.ticket = item.ticket;
      runner_.run(programs_[item.program], item.batch, pending->result.slots,
                  [this] { complete_done(); });
    }
    const std::optional<Error>& failure = runner_.failure();
    if (failure) {
      pending->result.failed = true;
      pending->result.error = *failure;
      pending->result.slots.clear();
    }
    pending->done = item.masks_came || item.batch.sample_now || failure.has_value();
    const auto time = std::chrono::steady_clock::now() - start;
    pending->result.device_ns += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
  }

  /// Tickets are answered in order: one that waits for its masks holds back those behind it.
  void complete_done() {
    while (!pending_.empty() && pending_.front().done) {
      StepResult result = std::move(pending_.front().result);
      pending_.pop_front();
      completion_(std::move(result));
    }
  }

  DeviceInfo info_;
  Completion completion_;
  PoolShape shape_;
  std::optional<Shard> shard_;  ///< place in the group that was joined last
  bool allocated_ = false;
  Ticket last_ticket_ = 0;
  std::vector<CpuWeight> weights_;
  std::vector<std::vector<std::byte>> copies_;
  cpu::PackedWeights packed_;
  std::deque<Program> programs_;  ///< never moves one that a step may be running
  cpu::KvPool kv_;
  cpu::SlotTable slots_;
  cpu::ThreadPool pool_;
  cpu::StepRunner runner_;
  std::deque<Pending> pending_;  ///< the driver's own

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::deque<Item> queue_;
  bool busy_ = false;
  bool stop_ = false;
  std::thread driver_;
};

}  // namespace

std::string cpu_device_name() { return fmt::format("{}, {}", processor_name(), target_name()); }

Result<std::unique_ptr<Backend>> make_cpu_backend(CpuConfig config, Completion completion) {
  const std::uint32_t threads = config.threads == 0 ? usable_cores() : config.threads;
  if (threads > threads_max) {
    return fail(ErrorCode::bad_request, "{} threads: ask for at most {}", threads, threads_max);
  }
  try {
    cpu::WeightCache cache(std::move(config.weight_cache), config.weight_cache_bytes);
    return std::make_unique<CpuBackend>(threads, std::move(cache), std::move(completion));
  } catch (const std::system_error& error) {
    return fail(ErrorCode::unavailable, "cannot start {} threads: {}; ask for fewer", threads,
                error.what());
  }
}

}  // namespace sluice::kernels
