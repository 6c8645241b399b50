#pragma once
// A fiber's stack.

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_unpoison_memory_region(const volatile void* at, std::size_t bytes);
#endif

namespace cuda_host {

// A kernel's frames are small, the sanitizer's larger.
inline constexpr std::size_t stack_bytes = std::size_t{128} << 10;

class Stack {
 public:
  Stack() {
    void* data = ::mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) std::abort();
    data_ = static_cast<std::byte*>(data);
  }
  Stack(Stack&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Stack& operator=(Stack&&) = delete;
  ~Stack() {
    if (data_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(data_, stack_bytes);
#endif
    ::munmap(data_, stack_bytes);
  }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

}  // namespace cuda_host
