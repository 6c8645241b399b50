// Fibers and blocks of tests/kernels/cuda_host.

#include "tests/kernels/cuda_host/block.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/kernels/cuda_host/closed_pages.hpp"
#include "tests/kernels/cuda_host/context.hpp"
#include "tests/kernels/cuda_host/shared_memory.hpp"

thread_local constinit uint3 threadIdx, blockIdx;
thread_local constinit dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

struct Stopped {};  ///< unwinds a fiber of a kernel that has failed

class BlockRunner {
 public:
  std::string run(dim3 grid, dim3 block, unsigned cluster, std::size_t shared_bytes,
                  const std::function<void()>& thread, const Turn& turn) {
    body_ = &thread;
    in_turn_ = turn.owed;
    closed_.watch(turn.closed);
    threads_ = block.x * block.y * block.z;
    blocks_.resize(cluster);
    fibers_.resize(std::size_t{threads_} * cluster);
    while (stacks_.size() < fibers_.size()) stacks_.emplace_back();
    const std::uint32_t warps = (threads_ + 31) / 32;
    warps_.resize(std::size_t{warps} * cluster);
    states_.resize(fibers_.size());
    for (std::uint32_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      const std::uint32_t index = i % threads_;
      fiber.thread = {index % block.x, index / block.x % block.y, index / block.x / block.y};
      fiber.rank = i / threads_;
      fiber.warp = &warps_[fiber.rank * warps + index / 32];
      fiber.lane = index % 32;
    }
    failure_.clear();
    blockDim = block;
    gridDim = grid;
    for (Block& each : blocks_) each.shared.prepare(shared_bytes);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x && failure_.empty(); x += cluster) {
          first_ = {x, y, z};
          run_cluster();
        }
      }
    }
    closed_.unwatch();
    return failure_;
  }

  unsigned char* shared() { return mine().shared.begin(); }
  unsigned rank() const { return fibers_[current_].rank; }
  unsigned ranks() const { return static_cast<unsigned>(blocks_.size()); }

  void check_shared_end(const unsigned char* end) {
    const SharedMemory& shared = mine().shared;
    if (end > shared.begin() + shared.bytes()) {
      complain("takes " + std::to_string(end - shared.begin()) + " bytes of shared memory of " +
               std::to_string(shared.bytes()));
    }
  }

  void meet_block(const Where& where) {
    Block& block = mine();
    Fiber& me = fibers_[current_];
    if (block.waiting == 0) block.barrier = where;
    if (!same(block.barrier, where)) {
      complain("threads wait at different barriers, " + text(block.barrier) + " and " +
               text(where));
    }
    me.where = where;
    if (++block.waiting == threads_) {
      block.waiting = 0;
      const std::uint32_t first = rank() * threads_;
      std::fill_n(states_.begin() + first, threads_, State::ready);
      return;
    }
    states_[current_] = State::at_barrier;
    wait();
  }

  void meet_cluster(const Where& where) {
    Fiber& me = fibers_[current_];
    me.where = where;
    if (++in_cluster_ == fibers_.size()) {
      in_cluster_ = 0;
      std::fill(states_.begin(), states_.end(), State::ready);
      return;
    }
    states_[current_] = State::at_cluster;
    wait();
  }

  Payloads meet_warp(unsigned mask, const void* payload, std::size_t bytes, const Where& where,
                     void (*last)(std::byte*)) {
    Fiber& me = fibers_[current_];
    const std::uint32_t lane = me.lane;
    Warp& warp = *me.warp;
    if ((mask >> lane & 1U) == 0) complain("a lane is not in its own mask at " + text(where));
    if (warp.arrived == 0) {
      warp.mask = mask;
      warp.where = where;
    } else if (warp.mask != mask || !same(warp.where, where)) {
      complain("lanes of a warp meet at different places, " + text(warp.where) + " and " +
               text(where));
    }
    // Two buffers: a lane may bring its next payload while others still read this one's.
    std::byte* payloads = warp.payloads[warp.round % 2];
    if (bytes != 0) std::memcpy(payloads + lane * payload_bytes, payload, bytes);
    warp.arrived |= 1U << lane;
    me.where = where;
    if (warp.arrived == mask) {
      warp.arrived = 0;
      ++warp.round;
      if (last != nullptr) last(payloads);
      const std::uint32_t first = current_ - lane;
      const std::uint32_t end = std::min(first + 32, (me.rank + 1) * threads_);
      std::replace(states_.begin() + first, states_.begin() + end, State::in_exchange,
                   State::ready);
      return payloads;
    }
    states_[current_] = State::in_exchange;
    wait();
    return payloads;
  }

  void copy_later(void* shared, const void* from, bool valid) {
    const auto misaligned = [](const void* at) {
      return reinterpret_cast<std::uintptr_t>(at) % copy_bytes != 0;
    };
    if (misaligned(shared) || (valid && misaligned(from))) complain("a misaligned copy");
    check_shared(shared, copy_bytes);
    fibers_[current_].copies.push_back({shared, valid ? from : nullptr, fibers_[current_].commits});
  }

  void commit_copies() { ++fibers_[current_].commits; }

  void wait_copies(int pending) {
    Fiber& me = fibers_[current_];
    const auto later = std::find_if(me.copies.begin(), me.copies.end(), [&](const Copy& copy) {
      return copy.group + pending >= me.commits;
    });
    for (auto copy = me.copies.begin(); copy != later; ++copy) {
      if (copy->from == nullptr) {
        std::memset(copy->to, 0, copy_bytes);
      } else {
        std::memcpy(copy->to, copy->from, copy_bytes);
      }
    }
    me.copies.erase(me.copies.begin(), later);
  }

  void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals) {
    check_shared(barrier, sizeof *barrier);
    const Phases phases{static_cast<std::uint16_t>(arrivals), static_cast<std::uint16_t>(arrivals),
                        0};
    std::memcpy(barrier, &phases, sizeof phases);
  }

  void arrive(std::uint64_t* barrier, std::uint32_t announced_bytes) {
    check_shared(barrier, sizeof *barrier);
    arrive_there(barrier, announced_bytes);
  }

  void arrive_at(std::uint64_t* barrier, unsigned rank) {
    check_shared(barrier, sizeof *barrier);
    arrive_there(at(barrier, rank), 0);
  }

  const float* at_rank(const float* shared, unsigned rank) {
    check_shared(shared, sizeof *shared);
    return at(shared, rank);
  }

  void arrive_there(std::uint64_t* barrier, std::uint32_t announced_bytes) {
    Phases phases = phases_of(barrier);
    phases.bytes_and_parity += 2 * static_cast<std::int32_t>(announced_bytes);
    if (phases.missing-- == 0) complain("more threads arrive than a barrier was made for");
    settle(barrier, phases);
  }

  void await_phase(std::uint64_t* barrier, std::uint32_t parity, const Where& where) {
    check_shared(barrier, sizeof *barrier);
    make_copies(barrier);
    Fiber& me = fibers_[current_];
    me.where = where;
    while ((static_cast<std::uint32_t>(phases_of(barrier).bytes_and_parity) & 1U) == parity) {
      states_[current_] = State::at_phase;
      me.phase_of = barrier;
      wait();
    }
  }

  void copy_bulk(void* shared, const void* from, std::uint32_t bytes, std::uint64_t* barrier,
                 unsigned ranks) {
    const auto odd = [](std::uintptr_t value) { return value % copy_bytes != 0; };
    if (odd(reinterpret_cast<std::uintptr_t>(shared)) || odd(bytes) ||
        odd(reinterpret_cast<std::uintptr_t>(from))) {
      complain("a misaligned copy");
    }
    check_shared(shared, bytes);
    check_shared(barrier, sizeof *barrier);
    if (ranks == 0 || ranks >> blocks_.size() != 0) complain("a copy to blocks that are not");
    for (unsigned rank = 0; rank < blocks_.size(); ++rank) {
      if ((ranks >> rank & 1U) == 0) continue;
      std::uint64_t* const of_rank = at(barrier, rank);
      bulk_copies_.push_back({at(shared, rank), from, bytes, of_rank});
      bool awaited = false;
      for (std::size_t i = 0; i < fibers_.size() && !awaited; ++i) awaited = awaits(i, of_rank);
      if (awaited) make_copies(of_rank);
    }
  }

  void start_next() { fibers_[current_].let_next_start = true; }
  void await_previous(const Where& where) {
    Fiber& me = fibers_[current_];
    if (closed_.any() && !me.waited) {
      meet_cluster(where);
      closed_.open();
      if (closed_.take_touched()) complain("touched, before its wait, what was closed");
    }
    me.waited = true;
  }

  [[noreturn]] void complain(const std::string& what) {
    fail(what);
    throw Stopped();
  }

  SLUICE_NOT_LEFT void enter() {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (std::exchange(from_main_, false)) {
      main_stack_ = bottom;
      main_stack_bytes_ = size;
    }
#endif
    try {
      if (failure_.empty()) (*body_)();
      if (failure_.empty() && !fibers_[current_].copies.empty()) {
        fail("a thread ended with copies that it did not wait for");
      }
      if (in_turn_ && failure_.empty()) check_turn(fibers_[current_]);
    } catch (const Stopped&) {
    }
    states_[current_] = State::ended;
    if (mine().waiting != 0 && failure_.empty()) {
      fail("a thread ended while others wait at the barrier " + text(mine().barrier));
    }
    if (in_cluster_ != 0 && failure_.empty()) {
      fail("a thread ended while others of its cluster wait for all");
    }
    --mine().alive;
    --alive_;
    leave();
  }

 private:
  enum class State : std::uint8_t { ready, at_barrier, at_cluster, in_exchange, at_phase, ended };

  /// Of a cluster.
  struct Block {
    SharedMemory shared;
    std::uint32_t waiting = 0, alive = 0;
    Where barrier;  ///< where they wait
  };

  /// A barrier of eight bytes in shared memory.
  struct Phases {
    std::uint16_t arrivals, missing;
    std::int32_t bytes_and_parity;  ///< twice what has not come, and the phase's parity
  };

  struct BulkCopy {
    void* to;
    const void* from;
    std::uint32_t bytes;
    std::uint64_t* barrier;
  };

  struct Copy {
    void* to;
    const void* from;  ///< null: zeros
    int group;
  };

  struct Warp {
    unsigned mask = 0, arrived = 0, round = 0;
    Where where;
    alignas(16) std::byte payloads[2][32 * payload_bytes];
  };

  struct Fiber {
    Context context;
    uint3 thread;
    std::uint32_t rank = 0;  ///< of its block in the cluster
    Warp* warp = nullptr;
    std::uint32_t lane = 0;
    Where where;
    const void* phase_of = nullptr;  ///< the barrier that it waits at
    std::vector<Copy> copies;        ///< not yet made, in their order
    int commits = 0;
    bool let_next_start = false, waited = false;
  };

  Block& mine() { return blocks_[rank()]; }

  void check_shared(const void* at, std::size_t bytes) {
    if (!mine().shared.has(at, bytes)) complain("a barrier or a copy outside of shared memory");
  }

  /// What lies in another block's shared memory where this does in the running one's.
  template <class T>
  T* at(T* own, unsigned rank) {
    const Block& block = blocks_.at(rank);
    if (block.alive == 0) complain("reaches for a block of its cluster that has ended");
    const auto offset = static_cast<std::size_t>(reinterpret_cast<const unsigned char*>(own) -
                                                 mine().shared.begin());
    return reinterpret_cast<T*>(block.shared.begin() + offset);
  }

  static Phases phases_of(const std::uint64_t* barrier) {
    Phases phases;
    std::memcpy(&phases, barrier, sizeof phases);
    return phases;
  }

  /// Stores a barrier's state, and ends its phase if nothing is missing.
  void settle(std::uint64_t* barrier, Phases phases) {
    const bool ends = phases.missing == 0 && phases.bytes_and_parity / 2 == 0;
    if (ends) {
      phases.missing = phases.arrivals;
      phases.bytes_and_parity ^= 1;
    }
    std::memcpy(barrier, &phases, sizeof phases);
    if (!ends) return;
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      if (awaits(i, barrier)) states_[i] = State::ready;
    }
  }

  bool awaits(std::size_t index, const std::uint64_t* barrier) const {
    return states_[index] == State::at_phase && fibers_[index].phase_of == barrier;
  }

  void make_copies(std::uint64_t* barrier) {
    for (auto copy = bulk_copies_.begin(); copy != bulk_copies_.end();) {
      if (copy->barrier != barrier) {
        ++copy;
        continue;
      }
      std::memcpy(copy->to, copy->from, copy->bytes);
      Phases phases = phases_of(barrier);
      phases.bytes_and_parity -= 2 * static_cast<std::int32_t>(copy->bytes);
      copy = bulk_copies_.erase(copy);
      settle(barrier, phases);
    }
  }

  void check_turn(const Fiber& fiber) {
    if (!fiber.waited) fail("a thread ended and had not waited for the kernels before");
    if (!fiber.let_next_start) fail("a thread ended and never let the next kernel start");
  }

  static bool same(const Where& a, const Where& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
  }
  static std::string text(const Where& where) {
    return std::string(where.file_name()) + ":" + std::to_string(where.line());
  }

  void run_cluster() {
    backwards_ = (first_.x / ranks() + first_.y + first_.z) % 2 != 0;
    alive_ = static_cast<std::uint32_t>(fibers_.size());
    in_cluster_ = 0;
    for (Block& block : blocks_) {
      block.shared.forget();
      block.waiting = 0;
      block.alive = threads_;
    }
    for (Warp& warp : warps_) warp.arrived = 0;
    std::fill(states_.begin(), states_.end(), State::ready);
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      fibers_[i].copies.clear();
      fibers_[i].commits = 0;
      fibers_[i].let_next_start = fibers_[i].waited = false;
      fibers_[i].context.start(stacks_[i].data());
    }
    closed_.close();
    select(backwards_ ? alive_ - 1 : 0);
    from_main_ = true;
    switch_to(main_, fibers_[current_].context, stacks_[current_].data());
    closed_.open();
    if (!bulk_copies_.empty() && failure_.empty()) {
      fail("a block ended with copies that nobody waited for");
    }
    bulk_copies_.clear();
    for (const Block& block : blocks_) {
      if (block.shared.is_sound()) continue;
      fail("wrote beside its " + std::to_string(block.shared.bytes()) + " bytes of shared memory");
    }
  }

  void select(std::uint32_t index) {
    current_ = index;
    blockIdx = {first_.x + fibers_[index].rank, first_.y, first_.z};
    threadIdx = fibers_[index].thread;
  }

  std::uint32_t after(std::uint32_t index) const {
    const auto all = static_cast<std::uint32_t>(fibers_.size());
    if (backwards_) return index == 0 ? all - 1 : index - 1;
    return index + 1 == all ? 0 : index + 1;
  }

  /// The next fiber that can run, in ring order; the current one if it is the only one.
  bool find_ready() {
    std::uint32_t index = current_;
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      index = after(index);
      if (states_[index] != State::ready) continue;
      select(index);
      return true;
    }
    return false;
  }

  void switch_to(Context& from, Context& to, [[maybe_unused]] std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, stack_bytes);
    Context::change(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    Context::change(from, to);
#endif
  }

  void wait() {
    Fiber& me = fibers_[current_];
    if (!find_ready()) stuck();
    Fiber& next = fibers_[current_];
    if (&next != &me) switch_to(me.context, next.context, stacks_[current_].data());
    if (!failure_.empty()) throw Stopped();
  }

  /// The current fiber has ended: on to the next, or back to the caller.
  [[noreturn]] SLUICE_NOT_LEFT void leave() {
    Fiber& me = fibers_[current_];
    if (alive_ != 0 && !find_ready()) stuck();
    Context& to = alive_ == 0 ? main_ : fibers_[current_].context;
#if defined(__SANITIZE_ADDRESS__)
    const void* stack = alive_ == 0 ? main_stack_ : stacks_[current_].data();
    __sanitizer_start_switch_fiber(nullptr, stack, alive_ == 0 ? main_stack_bytes_ : stack_bytes);
#endif
    Context::change(me.context, to);
    std::abort();  // an ended fiber is never resumed
  }

  /// No fiber can run: says who waits where, and lets them all unwind.
  void stuck() {
    std::string who;
    for (std::size_t i = 0; i < fibers_.size() && who.size() < 400; ++i) {
      if (states_[i] != State::ended && states_[i] != State::ready) {
        who += "; thread " + std::to_string(i % threads_) + " waits at " + text(fibers_[i].where);
      }
    }
    fail("no thread can go on" + who);
    if (!find_ready()) std::abort();
  }

  void fail(const std::string& what) {
    if (failure_.empty()) {
      const uint3& b = blockIdx;
      failure_ = "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                 std::to_string(b.z) + ") thread " + std::to_string(current_ % threads_) + ": " +
                 what;
    }
    for (State& state : states_) {
      if (state != State::ended) state = State::ready;
    }
  }

  static constexpr std::size_t copy_bytes = 16;

  const std::function<void()>* body_ = nullptr;
  std::uint32_t threads_ = 0;                   ///< of a block
  std::uint32_t current_ = 0;                   ///< of all fibers, block by block
  std::uint32_t in_cluster_ = 0, alive_ = 0;    ///< of them: waiting for all, not yet ended
  uint3 first_;                                 ///< block of the cluster
  bool backwards_ = false, in_turn_ = false;
  ClosedPages closed_;
  std::vector<Block> blocks_;  ///< of a cluster, which run together
  std::vector<Stack> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<State> states_;  ///< of the fibers
  std::vector<Warp> warps_;
  std::vector<BulkCopy> bulk_copies_;  ///< not yet made
  std::string failure_;
  Context main_;
  bool from_main_ = false;
  const void* main_stack_ = nullptr;
  std::size_t main_stack_bytes_ = 0;
};

thread_local BlockRunner runner;

SLUICE_NOT_LEFT void thread_entry() { runner.enter(); }

}  // namespace

unsigned char* dynamic_shared() { return runner.shared(); }
void check_shared_end(const unsigned char* end) { runner.check_shared_end(end); }
void meet_block(const Where& where) { runner.meet_block(where); }
Payloads meet_warp(unsigned mask, const void* payload, std::size_t bytes, const Where& where,
                   void (*last)(std::byte* payloads)) {
  return runner.meet_warp(mask, payload, bytes, where, last);
}
void copy_later(void* shared, const void* from, bool valid) {
  runner.copy_later(shared, from, valid);
}
void commit_copies() { runner.commit_copies(); }
void wait_copies(int pending) { runner.wait_copies(pending); }
void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals) {
  runner.init_barrier(barrier, arrivals);
}
void arrive(std::uint64_t* barrier, std::uint32_t announced_bytes) {
  runner.arrive(barrier, announced_bytes);
}
void await_phase(std::uint64_t* barrier, std::uint32_t parity, const Where& where) {
  runner.await_phase(barrier, parity, where);
}
void copy_bulk(void* shared, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  runner.copy_bulk(shared, from, bytes, barrier, 1U << runner.rank());
}
void copy_bulk_to_cluster(void* shared, const void* from, std::uint32_t bytes,
                          std::uint64_t* barrier, unsigned ranks) {
  runner.copy_bulk(shared, from, bytes, barrier, ranks);
}
void arrive_at(std::uint64_t* barrier, unsigned rank) { runner.arrive_at(barrier, rank); }
const float* at_rank(const float* shared, unsigned rank) { return runner.at_rank(shared, rank); }
void meet_cluster(const Where& where) { runner.meet_cluster(where); }
unsigned cluster_rank() { return runner.rank(); }
void start_next() { runner.start_next(); }
void await_previous(const Where& where) { runner.await_previous(where); }
void complain(const std::string& what) { runner.complain(what); }
std::string run_grid(dim3 grid, dim3 block, std::size_t shared_bytes,
                     const std::function<void()>& thread, const Turn& turn, unsigned cluster) {
  return runner.run(grid, block, cluster, shared_bytes, thread, turn);
}

}  // namespace cuda_host
