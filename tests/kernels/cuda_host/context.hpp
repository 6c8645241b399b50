#pragma once
// Where a fiber of tests/kernels/cuda_host stands, and the change from one to another. Included by
// block.cpp alone, whose thread_entry() is what fibers run.

#include <cstddef>

#include "tests/kernels/cuda_host/stack.hpp"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
}
#endif

/// Of functions that end in another fiber: ThreadSanitizer, to which all fibers of a thread are
/// one, would keep their frames.
#define SLUICE_NOT_LEFT __attribute__((no_sanitize("thread")))

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
  SLUICE_NOT_LEFT static void change(Context& from, Context& to) {
    sluice_switch_stack(&from.pointer, to.pointer);
  }
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
  SLUICE_NOT_LEFT static void change(Context& from, Context& to) {
    swapcontext(&from.state, &to.state);
  }
};
#endif

}  // namespace
}  // namespace cuda_host
