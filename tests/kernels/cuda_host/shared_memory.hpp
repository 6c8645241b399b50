#pragma once
// A block's shared memory under tests/kernels/cuda_host, between guards.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_poison_memory_region(const volatile void* at, std::size_t bytes);
void __asan_unpoison_memory_region(const volatile void* at, std::size_t bytes);
}
#endif

namespace cuda_host {

class SharedMemory {
 public:
  void prepare(std::size_t bytes) {
    constexpr std::size_t guard = 256;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(all_.data(), all_.size());
#endif
    all_.resize(bytes + 2 * guard);
    auto* begin = all_.data() + guard;
    begin_ = begin + (16 - reinterpret_cast<std::uintptr_t>(begin) % 16) % 16;
    bytes_ = bytes;
    std::fill(all_.begin(), all_.end(), guard_byte);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(begin_ + bytes, 128);
#endif
  }

  /// All ones: not-a-number for whoever reads what nobody wrote.
  void forget() { std::memset(begin_, 0xFF, bytes_); }

  unsigned char* begin() const { return begin_; }
  std::size_t bytes() const { return bytes_; }

  bool has(const void* at, std::size_t bytes) const {
    const auto* first = static_cast<const unsigned char*>(at);
    return first >= begin_ && first + bytes <= begin_ + bytes_;
  }

  /// Whether nobody wrote beside it; where a sanitizer sees the access itself, always.
  bool is_sound() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    const auto whole = [](const unsigned char* from, const unsigned char* to) {
      return std::all_of(from, to, [](unsigned char b) { return b == guard_byte; });
    };
    return whole(all_.data(), begin_) && whole(begin_ + bytes_, all_.data() + all_.size());
#endif
  }

 private:
  static constexpr unsigned char guard_byte = 0xA5;

  std::vector<unsigned char> all_;
  unsigned char* begin_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace cuda_host
