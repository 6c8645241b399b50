// A pretended NCCL over shared memory, for devices that are host memory (tests/kernels/cuda_host).
// Like the real one it starts without blocking, puts a collective on its stream some time after it
// was asked for, gathers in the stream's order, waits without end for ranks that do not come, and
// lets go when it is aborted, which returns when no graph has its collectives any more. Where the
// real one would break or hang, it ends the process: two threads in its calls together; a
// collective that some ranks have in a graph and others not, or of other sizes; an end before that
// of its graphs.
//
// PRETEND_START: what starting ends with once all ranks are there; 7 (in progress): never.
// PRETEND_CAPTURE: what a collective that is captured ends with; 7: nothing, until it is aborted.
// PRETEND_CAPTURED: so many are captured well before it.
// PRETEND_VERSION: of NCCL.
// PRETEND_WRONG: rank 0's part reaches nobody.

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/kernels/cuda_host/cuda_runtime.h"

#if !defined(PRETEND_START)
#define PRETEND_START 0
#endif
#if !defined(PRETEND_CAPTURE)
#define PRETEND_CAPTURE 0
#endif
#if !defined(PRETEND_CAPTURED)
#define PRETEND_CAPTURED 0
#endif
#if !defined(PRETEND_WRONG)
#define PRETEND_WRONG 0
#endif
#if !defined(PRETEND_VERSION)
#define PRETEND_VERSION 22809
#endif

namespace {

constexpr int success = 0, cuda_failed = 1, in_progress = 7;
constexpr std::size_t most_bytes = std::size_t{4} << 20;

struct Id {
  std::array<char, 128> name;
};

constexpr std::size_t ranks_most = 16;

/// What the ranks share; a piece of each follows.
struct Shared {
  std::atomic<std::uint32_t> started;
  std::atomic<std::uint64_t> arrived, left;
  std::array<std::size_t, ranks_most> bytes;  ///< that each brings to the collective
  std::array<bool, ranks_most> captured;
};

struct Comm;

struct Gather {
  Gather(Comm* of, const void* from, void* to, std::size_t size, bool adds, cudaStream_t on)
      : comm(of), own(from), all(to), bytes(size), sums(adds), stream(on) {}
  Gather(const Gather&) = default;
  ~Gather();

  Comm* comm;
  const void* own;
  void* all;
  std::size_t bytes;
  bool sums;  ///< of floats, the last rank's first
  cudaStream_t stream;
  bool captured = false;  ///< run by every launch of its graph, and gone with that
};

struct Comm {
  Shared* shared = nullptr;
  std::size_t bytes = 0;
  std::uint32_t ranks = 0, rank = 0;
  std::uint64_t round = 0;
  std::atomic<bool> aborted{false};
  std::atomic<int> callers{0};
  std::atomic<int> in_graphs{0};  ///< collectives
  int captured = 0;
  std::shared_ptr<Gather> asked_for;  ///< and not on its stream yet
  int looks = 0;                      ///< of who waits for that
  int state = success;

  std::byte* piece(std::uint32_t of) const {
    return reinterpret_cast<std::byte*>(shared) + sizeof(Shared) + of * most_bytes;
  }

  /// False: aborted meanwhile.
  bool wait_for(const std::atomic<std::uint64_t>& count, std::uint64_t due) const {
    while (count.load() < due) {
      if (aborted) return false;
      ::sched_yield();
    }
    return true;
  }
};

/// A thread in a call.
struct Caller {
  explicit Caller(Comm& called) : comm(called) {
    if (++comm.callers > 1) broken("two threads are in its calls");
  }
  ~Caller() { --comm.callers; }

  static void broken(const char* why) {
    std::fprintf(stderr, "pretended NCCL: %s\n", why);
    std::abort();
  }

  Comm& comm;
};

Gather::~Gather() {
  if (captured) --comm->in_graphs;
}

void gather(const Gather& work) {
  Comm& comm = *work.comm;
  if (comm.aborted) return;
  ++comm.round;
  if (comm.rank > 0 || !PRETEND_WRONG) {
    std::memcpy(comm.piece(comm.rank), work.own, work.bytes);
  }
  comm.shared->bytes[comm.rank] = work.bytes;
  comm.shared->captured[comm.rank] = work.captured;
  ++comm.shared->arrived;
  if (!comm.wait_for(comm.shared->arrived, comm.round * comm.ranks)) return;
  for (std::uint32_t rank = 0; rank < comm.ranks; ++rank) {
    if (comm.shared->bytes[rank] != work.bytes) Caller::broken("sizes differ");
    if (comm.shared->captured[rank] != work.captured) Caller::broken("in some ranks' graphs alone");
  }
  for (std::size_t i = 0; work.sums && i < work.bytes / sizeof(float); ++i) {
    float sum = 0;
    for (std::uint32_t rank = comm.ranks; rank-- > 0;) {
      sum += reinterpret_cast<const float*>(comm.piece(rank))[i];
    }
    static_cast<float*>(work.all)[i] = sum;
  }
  for (std::uint32_t rank = 0; !work.sums && rank < comm.ranks; ++rank) {
    std::memcpy(static_cast<std::byte*>(work.all) + rank * work.bytes, comm.piece(rank),
                work.bytes);
  }
  ++comm.shared->left;
  comm.wait_for(comm.shared->left, comm.round * comm.ranks);
}

void gather_once(void* data) {
  gather(*static_cast<Gather*>(data));
  delete static_cast<Gather*>(data);
}

void gather_again(void* data) { gather(*static_cast<Gather*>(data)); }

/// Puts it on its stream, or into the graph that is being captured there.
int put(const std::shared_ptr<Gather>& work) {
  Gather* one = work.get();
  auto run = gather_again;
  if (cuda_host::keep_with_capture(one->stream, work)) {
    one->captured = true;
    ++one->comm->in_graphs;
    if (++one->comm->captured > PRETEND_CAPTURED && PRETEND_CAPTURE != success) {
      return PRETEND_CAPTURE;
    }
  } else {
    one = new Gather(*work);
    run = gather_once;
  }
  return cudaLaunchHostFunc(one->stream, run, one) == cudaSuccess ? success : cuda_failed;
}

int ask(const void* own, void* all, std::size_t count, bool sums, Comm* comm,
        cudaStream_t stream) {
  const std::size_t bytes = count * sizeof(float);
  if (bytes > most_bytes) return 4;
  const Caller caller(*comm);
  if (comm->asked_for != nullptr) Caller::broken("a collective before the last is on its stream");
  comm->asked_for = std::make_shared<Gather>(comm, own, all, bytes, sums, stream);
  comm->looks = 0;
  return in_progress;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = PRETEND_VERSION;
  return success;
}

const char* ncclGetErrorString(int) { return "remote process exited or there was a network error"; }
const char* ncclGetLastError(Comm*) { return "a pretended reason"; }

int ncclGetUniqueId(Id* id) {
  static int count = 0;
  *id = {};
  std::snprintf(id->name.data(), id->name.size(), "/sluice-nccl-%d-%d", ::getpid(), ++count);
  return success;
}

int ncclCommInitRankConfig(Comm** comm, int ranks, Id id, int rank, void*) {
  *comm = new Comm;
  (*comm)->ranks = static_cast<std::uint32_t>(ranks);
  (*comm)->rank = static_cast<std::uint32_t>(rank);
  (*comm)->bytes = sizeof(Shared) + static_cast<std::size_t>(ranks) * most_bytes;
  const int file = ::shm_open(id.name.data(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>((*comm)->bytes)) != 0) return 2;
  void* memory = ::mmap(nullptr, (*comm)->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (memory == MAP_FAILED) return 2;
  (*comm)->shared = static_cast<Shared*>(memory);
  if (++(*comm)->shared->started == (*comm)->ranks) ::shm_unlink(id.name.data());
  return in_progress;
}

int ncclCommGetAsyncError(Comm* comm, int* state) {
  const Caller caller(*comm);
  *state = comm->shared->started < comm->ranks ? in_progress : PRETEND_START;
  if (*state != success) return success;
  if (comm->asked_for && ++comm->looks > 2) {
    comm->state = put(std::exchange(comm->asked_for, nullptr));
  }
  *state = comm->asked_for ? in_progress : comm->state;
  return success;
}

int ncclAllGather(const void* own, void* all, std::size_t count, int, Comm* comm,
                  cudaStream_t stream) {
  return ask(own, all, count, false, comm, stream);
}

int ncclAllReduce(const void* own, void* all, std::size_t count, int, int, Comm* comm,
                  cudaStream_t stream) {
  return ask(own, all, count, true, comm, stream);
}

int ncclCommAbort(Comm* comm) {
  static std::mutex mutex;
  static std::vector<Comm*> kept;  // the stream may still come to them
  comm->aborted = true;
  while (comm->in_graphs > 0) ::sched_yield();
  const std::lock_guard lock(mutex);
  kept.push_back(comm);
  return success;
}

int ncclCommDestroy(Comm* comm) {
  if (comm->in_graphs > 0) Caller::broken("an end before its graphs'");
  ::munmap(comm->shared, comm->bytes);
  delete comm;
  return success;
}
}
