// Fibers and blocks of tests/kernels/cuda_host.

#include "tests/kernels/cuda_host/block.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/kernels/cuda_host/closed_pages.hpp"
#include "tests/kernels/cuda_host/stack.hpp"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
void __asan_poison_memory_region(const volatile void* at, std::size_t bytes);
}
#endif

thread_local constinit uint3 threadIdx, blockIdx;
thread_local constinit dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

void thread_entry();

/// The frames of a fiber that has ended never returned: the sanitizer still guards their edges.
void clean_end_of([[maybe_unused]] std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack + stack_bytes - 8192, 8192);
#endif
}

#if defined(__x86_64__)
// Saves what the calling convention asks for, and nothing else: a switch is some 5 ns, where
// swapcontext's system call takes 300.
extern "C" void sluice_switch_stack(void** from, void* to);
asm(R"(
.text
.type sluice_switch_stack,@function
sluice_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

struct Context {
  void* pointer = nullptr;

  void start(std::byte* stack) {
    clean_end_of(stack);
    auto** top = reinterpret_cast<void**>(stack + stack_bytes);
    *--top = nullptr;  // where the entry would return to
    *--top = reinterpret_cast<void*>(&thread_entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer = top;
  }
  static void change(Context& from, Context& to) { sluice_switch_stack(&from.pointer, to.pointer); }
};
#else
struct Context {
  ucontext_t state;

  void start(std::byte* stack) {
    clean_end_of(stack);
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = stack_bytes;
    state.uc_link = nullptr;
    makecontext(&state, &thread_entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};
#endif

struct Stopped {};  ///< unwinds a fiber of a kernel that has failed

class BlockRunner {
 public:
  std::string run(dim3 grid, dim3 block, std::size_t shared_bytes,
                  const std::function<void()>& thread, const Turn& turn) {
    body_ = &thread;
    in_turn_ = turn.owed;
    closed_.watch(turn.closed);
    threads_ = block.x * block.y * block.z;
    while (stacks_.size() < threads_) stacks_.emplace_back();
    fibers_.resize(threads_);
    warps_.resize((threads_ + 31) / 32);
    failure_.clear();
    blockDim = block;
    gridDim = grid;
    prepare_shared(shared_bytes);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x && failure_.empty(); ++x) {
          blockIdx = {x, y, z};
          run_block();
        }
      }
    }
    closed_.unwatch();
    return failure_;
  }

  unsigned char* shared() { return shared_begin_; }

  void check_shared_end(const unsigned char* end) {
    if (end > shared_begin_ + shared_bytes_) {
      complain("takes " + std::to_string(end - shared_begin_) + " bytes of shared memory of " +
               std::to_string(shared_bytes_));
    }
  }

  void meet_block(const Where& where) {
    Fiber& me = fibers_[current_];
    if (waiting_ == 0) barrier_ = where;
    if (!same(barrier_, where)) {
      complain("threads wait at different barriers, " + text(barrier_) + " and " + text(where));
    }
    me.where = where;
    if (++waiting_ == threads_) {
      waiting_ = 0;
      for (Fiber& fiber : fibers_) fiber.state = State::ready;
      return;
    }
    me.state = State::at_barrier;
    wait();
  }

  Payloads meet_warp(unsigned mask, const void* payload, std::size_t bytes, const Where& where,
                     void (*last)(std::byte*)) {
    const std::uint32_t lane = current_ % 32;
    Warp& warp = warps_[current_ / 32];
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
    Fiber& me = fibers_[current_];
    me.where = where;
    if (warp.arrived == mask) {
      warp.arrived = 0;
      ++warp.round;
      if (last != nullptr) last(payloads);
      const std::uint32_t first = current_ / 32 * 32;
      for (std::uint32_t i = first; i < std::min(first + 32, threads_); ++i) {
        if (fibers_[i].state == State::in_exchange) fibers_[i].state = State::ready;
      }
      return payloads;
    }
    me.state = State::in_exchange;
    wait();
    return payloads;
  }

  void copy_later(void* shared, const void* from, bool valid) {
    const auto misaligned = [](const void* at) {
      return reinterpret_cast<std::uintptr_t>(at) % copy_bytes != 0;
    };
    const auto* to = static_cast<unsigned char*>(shared);
    if (misaligned(shared) || (valid && misaligned(from))) complain("a misaligned copy");
    if (to < shared_begin_ || to + copy_bytes > shared_begin_ + shared_bytes_) {
      complain("a copy to outside of shared memory");
    }
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
    Phases phases = phases_of(barrier);
    phases.bytes_and_parity += 2 * static_cast<std::int32_t>(announced_bytes);
    if (phases.missing-- == 0) complain("more threads arrive than a barrier was made for");
    settle(barrier, phases);
  }

  void await_phase(std::uint64_t* barrier, std::uint32_t parity, const Where& where) {
    make_copies(barrier);
    Fiber& me = fibers_[current_];
    me.where = where;
    while ((static_cast<std::uint32_t>(phases_of(barrier).bytes_and_parity) & 1U) == parity) {
      me.state = State::at_phase;
      me.phase_of = barrier;
      wait();
    }
  }

  void copy_bulk(void* shared, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
    const auto odd = [](std::uintptr_t value) { return value % copy_bytes != 0; };
    if (odd(reinterpret_cast<std::uintptr_t>(shared)) || odd(bytes) ||
        odd(reinterpret_cast<std::uintptr_t>(from))) {
      complain("a misaligned copy");
    }
    check_shared(shared, bytes);
    bulk_copies_.push_back({shared, from, bytes, barrier});
    const bool awaited = std::any_of(fibers_.begin(), fibers_.end(), [&](const Fiber& fiber) {
      return fiber.state == State::at_phase && fiber.phase_of == barrier;
    });
    if (awaited) make_copies(barrier);
  }

  void start_next() { fibers_[current_].let_next_start = true; }
  void await_previous(const Where& where) {
    Fiber& me = fibers_[current_];
    if (closed_.any() && !me.waited) {
      meet_block(where);
      closed_.open();
      if (closed_.take_touched()) complain("touched, before its wait, what is no weight");
    }
    me.waited = true;
  }

  [[noreturn]] void complain(const std::string& what) {
    fail(what);
    throw Stopped();
  }

  void enter() {
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
    fibers_[current_].state = State::ended;
    if (waiting_ != 0 && failure_.empty()) {
      fail("a thread ended while others wait at the barrier " + text(barrier_));
    }
    --alive_;
    leave();
  }

 private:
  enum class State : std::uint8_t { ready, at_barrier, in_exchange, at_phase, ended };

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

  struct Fiber {
    Context context;
    State state = State::ready;
    Where where;
    const void* phase_of = nullptr;  ///< the barrier that it waits at
    std::vector<Copy> copies;        ///< not yet made, in their order
    int commits = 0;
    bool let_next_start = false, waited = false;
  };

  struct Warp {
    unsigned mask = 0, arrived = 0, round = 0;
    Where where;
    alignas(16) std::byte payloads[2][32 * payload_bytes];
  };

  void check_shared(const void* at, std::size_t bytes) {
    const auto* begin = static_cast<const unsigned char*>(at);
    if (begin < shared_begin_ || begin + bytes > shared_begin_ + shared_bytes_) {
      complain("a barrier or a copy outside of shared memory");
    }
  }

  Phases phases_of(std::uint64_t* barrier) {
    check_shared(barrier, sizeof *barrier);
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
    for (Fiber& fiber : fibers_) {
      if (fiber.state == State::at_phase && fiber.phase_of == barrier) fiber.state = State::ready;
    }
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

  void prepare_shared(std::size_t bytes) {
    constexpr std::size_t guard = 256;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared_.data(), shared_.size());
#endif
    shared_.resize(bytes + 2 * guard);
    auto* begin = shared_.data() + guard;
    shared_begin_ = begin + (16 - reinterpret_cast<std::uintptr_t>(begin) % 16) % 16;
    shared_bytes_ = bytes;
    std::fill(shared_.begin(), shared_.end(), guard_byte);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(shared_begin_ + bytes, 128);
#endif
  }

  void check_guards() {
#if !defined(__SANITIZE_ADDRESS__)  // which sees the access itself
    const auto* end = shared_.data() + shared_.size();
    const auto whole = [](const unsigned char* from, const unsigned char* to) {
      return std::all_of(from, to, [](unsigned char b) { return b == guard_byte; });
    };
    if (!whole(shared_.data(), shared_begin_) || !whole(shared_begin_ + shared_bytes_, end)) {
      fail("wrote beside its " + std::to_string(shared_bytes_) + " bytes of shared memory");
    }
#endif
  }

  void run_block() {
    backwards_ = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 != 0;
    // All ones: not-a-number for whoever reads what nobody wrote.
    std::memset(shared_begin_, 0xFF, shared_bytes_);
    waiting_ = 0;
    alive_ = threads_;
    for (Warp& warp : warps_) warp.arrived = 0;
    for (std::uint32_t i = 0; i < threads_; ++i) {
      fibers_[i].state = State::ready;
      fibers_[i].copies.clear();
      fibers_[i].commits = 0;
      fibers_[i].let_next_start = fibers_[i].waited = false;
      fibers_[i].context.start(stacks_[i].data());
    }
    closed_.close();
    select(backwards_ ? threads_ - 1 : 0);
    from_main_ = true;
    switch_to(main_, fibers_[current_].context, stacks_[current_].data());
    closed_.open();
    if (!bulk_copies_.empty() && failure_.empty()) {
      fail("a block ended with copies that nobody waited for");
    }
    bulk_copies_.clear();
    check_guards();
  }

  void select(std::uint32_t index) {
    current_ = index;
    threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y,
                 index / blockDim.x / blockDim.y};
  }

  std::uint32_t after(std::uint32_t index) const {
    if (backwards_) return index == 0 ? threads_ - 1 : index - 1;
    return index + 1 == threads_ ? 0 : index + 1;
  }

  /// The next fiber that can run, in ring order; the current one if it is the only one.
  bool find_ready() {
    std::uint32_t index = current_;
    for (std::uint32_t i = 0; i < threads_; ++i) {
      index = after(index);
      if (fibers_[index].state != State::ready) continue;
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
  [[noreturn]] void leave() {
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
    for (std::uint32_t i = 0; i < threads_ && who.size() < 400; ++i) {
      const Fiber& fiber = fibers_[i];
      if (fiber.state != State::ended && fiber.state != State::ready) {
        who += "; thread " + std::to_string(i) + " waits at " + text(fiber.where);
      }
    }
    fail("no thread can go on" + who);
    if (!find_ready()) std::abort();
  }

  void fail(const std::string& what) {
    if (failure_.empty()) {
      const uint3& b = blockIdx;
      failure_ = "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                 std::to_string(b.z) + ") thread " + std::to_string(current_) + ": " + what;
    }
    for (Fiber& fiber : fibers_) {
      if (fiber.state != State::ended) fiber.state = State::ready;
    }
  }

  static constexpr unsigned char guard_byte = 0xA5;
  static constexpr std::size_t copy_bytes = 16;

  const std::function<void()>* body_ = nullptr;
  std::uint32_t threads_ = 0, current_ = 0, waiting_ = 0, alive_ = 0;
  bool backwards_ = false, in_turn_ = false;
  ClosedPages closed_;
  Where barrier_;
  std::vector<Stack> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<BulkCopy> bulk_copies_;  ///< not yet made
  std::string failure_;
  Context main_;
  bool from_main_ = false;
  const void* main_stack_ = nullptr;
  std::size_t main_stack_bytes_ = 0;
  std::vector<unsigned char> shared_;
  unsigned char* shared_begin_ = nullptr;
  std::size_t shared_bytes_ = 0;
};

thread_local BlockRunner runner;

void thread_entry() { runner.enter(); }

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
  runner.copy_bulk(shared, from, bytes, barrier);
}
void start_next() { runner.start_next(); }
void await_previous(const Where& where) { runner.await_previous(where); }
void complain(const std::string& what) { runner.complain(what); }
std::string run_grid(dim3 grid, dim3 block, std::size_t shared_bytes,
                     const std::function<void()>& thread, const Turn& turn) {
  return runner.run(grid, block, shared_bytes, thread, turn);
}

}  // namespace cuda_host
