#pragma once
// Signals are the business of who started a node, not of its threads: none is interrupted in
// libzmq, whose calls would report it as an error.

#include <pthread.h>
#include <signal.h>

namespace sluice::transport {

/// Keeps signals from this thread while it lives, and for ever from threads that it makes then.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace sluice::transport
