// libzmq takes the memory of its handshakes from libsodium's sodium_allocarray: pages of their own
// between two that fault, locked, wiped when freed. Making and unmaking such pages takes 50 us of
// system calls, as much as a multiplication of keys, which hold the process's memory map meanwhile
// and interrupt its other processors; a stranger's handshake has several. Defined in the program,
// these two functions come before libsodium's: pages are made as ever, and kept for the next.
//
// A kept block is handed out for just its own size, so that its end still lies at the page that
// faults, and is wiped before it is kept. libsodium's check of the bytes before a block comes when
// the block is given up.

#include "transport/curve_memory.hpp"

#include <dlfcn.h>
#include <sodium.h>

#include <array>
#include <atomic>
#include <mutex>

namespace {

/// More than the handshakes of libzmq's few threads hold at a time. A stranger chooses some of the
/// sizes: where all are kept for others, one that nobody uses gives way.
constexpr std::size_t kept_max = 64;

struct Block {
  void* memory = nullptr;
  std::size_t bytes = 0;
  bool used = false;
};

struct Blocks {
  std::mutex mutex;
  std::array<Block, kept_max> kept;
  std::size_t next_to_go = 0;
  std::atomic<std::uint64_t> reused{0};

  void* take(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    for (Block& block : kept) {
      if (block.memory == nullptr || block.used || block.bytes != bytes) continue;
      block.used = true;
      reused.fetch_add(1, std::memory_order_relaxed);
      return block.memory;
    }
    return nullptr;
  }

  /// Returns a block that went for it; none for most.
  void* keep(void* memory, std::size_t bytes) {
    const std::lock_guard lock(mutex);
    for (std::size_t tried = 0; tried < kept_max; ++tried) {
      Block& block = kept[next_to_go];
      next_to_go = (next_to_go + 1) % kept_max;
      if (block.used) continue;
      void* const gone = block.memory;
      block = {memory, bytes, true};
      return gone;
    }
    return nullptr;
  }

  /// Whether it was one of these.
  bool put_back(void* memory) {
    const std::lock_guard lock(mutex);
    for (Block& block : kept) {
      if (block.memory != memory) continue;
      ::sodium_memzero(memory, block.bytes);
      block.used = false;
      return true;
    }
    return false;
  }
};

/// Never destroyed: libzmq's threads may outlive what is static here.
Blocks& blocks() {
  static auto* const all = new Blocks;
  return *all;
}

void give_up(void* memory) {
  using Free = void (*)(void*);
  static const auto next = reinterpret_cast<Free>(::dlsym(RTLD_NEXT, "sodium_free"));
  if (next != nullptr) next(memory);
}

}  // namespace

extern "C" {

void* sodium_allocarray(std::size_t count, std::size_t size) {
  if (size != 0 && count > SIZE_MAX / size) return nullptr;
  const std::size_t bytes = count * size;
  if (void* const kept = blocks().take(bytes)) return kept;
  void* const memory = ::sodium_malloc(bytes);
  if (memory == nullptr) return nullptr;
  if (void* const gone = blocks().keep(memory, bytes)) give_up(gone);
  return memory;
}

void sodium_free(void* memory) {
  if (memory != nullptr && !blocks().put_back(memory)) give_up(memory);
}

}  // extern "C"

namespace sluice::transport {

std::uint64_t handshake_memory_reused() { return blocks().reused.load(std::memory_order_relaxed); }

}  // namespace sluice::transport
