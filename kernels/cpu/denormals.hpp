#pragma once
// Arithmetic without denormals, as the processors' bfloat16 dot products have it.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace sluice::kernels::cpu {

/// While it lives, this thread's arithmetic takes denormal operands for zeros and makes zeros of
/// denormal results. Code that must have it is to be in a function of its own, not inlined: no
/// compiler knows what it changes. Elsewhere than on x86-64 and 64-bit ARM it does nothing.
class NoDenormals {
 public:
  NoDenormals() : before_(get()) { set(before_ | bits); }
  ~NoDenormals() { set(before_); }
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  static constexpr Register bits = _MM_FLUSH_ZERO_ON | 0x40;  // and denormals are zeros
  static Register get() { return _mm_getcsr(); }
  static void set(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = std::uint64_t;
  static constexpr Register bits = 1U << 24;  // FZ, both
  static Register get() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(Register value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
  using Register = unsigned;
  static constexpr Register bits = 0;
  static Register get() { return 0; }
  static void set(Register) {}
#endif

  Register before_;
};

}  // namespace sluice::kernels::cpu
