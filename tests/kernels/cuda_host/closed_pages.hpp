#pragma once
// Memory that a kernel may not touch before it has waited for those before it.

#include <signal.h>
#include <sys/mman.h>

#include <cstdlib>
#include <utility>

#include "tests/kernels/cuda_host/block.hpp"

namespace cuda_host {

/// Memory that faults while it is closed: whoever touches it is noted, and goes on.
class ClosedPages {
 public:
  /// Until the grid's end.
  void watch(const Pages& pages) {
    pages_ = pages;
    if (!any()) return;
    watching = this;
    struct sigaction action {};
    action.sa_sigaction = &on_fault;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &action, &before_);
  }
  void unwatch() {
    if (any()) ::sigaction(SIGSEGV, &before_, nullptr);
    watching = nullptr;
  }

  bool any() const { return pages_.bytes != 0; }
  void close() { protect(PROT_NONE); }
  void open() { protect(PROT_READ | PROT_WRITE); }
  bool take_touched() { return std::exchange(touched_, false); }

 private:
  void protect(int access) const {
    if (any() && ::mprotect(pages_.begin, pages_.bytes, access) != 0) std::abort();
  }

  static void on_fault(int, siginfo_t* info, void*) {
    const auto* at = static_cast<const std::byte*>(info->si_addr);
    const Pages& pages = watching->pages_;
    if (at < pages.begin || at >= pages.begin + pages.bytes) {
      ::sigaction(SIGSEGV, &watching->before_, nullptr);  // faults again, for whoever had it before
      return;
    }
    watching->open();
    watching->touched_ = true;
  }

  static inline thread_local ClosedPages* watching = nullptr;

  Pages pages_;
  struct sigaction before_ {};
  bool touched_ = false;
};

}  // namespace cuda_host
