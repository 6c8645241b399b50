#pragma once
// libzmq hands memory from thread to thread by means that ThreadSanitizer cannot see in a library
// that is not instrumented. These two say so in such builds: what was done before a send is seen
// after a receive. In all others they are nothing.

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace sluice::transport {

#if defined(__SANITIZE_THREAD__)
inline char handed_over;
inline void before_send() { __tsan_release(&handed_over); }
inline void after_receive() { __tsan_acquire(&handed_over); }
#else
inline void before_send() {}
inline void after_receive() {}
#endif

}  // namespace sluice::transport
