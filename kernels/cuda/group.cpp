#include "kernels/cuda/group.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/cuda/device.hpp"
#include "kernels/cuda/nccl.hpp"

namespace sluice::kernels::cuda {
namespace {

/// Copies to pinned memory, has a thread of CUDA's call the communicator, copies back.
class HostGroup final : public DeviceGroup {
 public:
  HostGroup(std::shared_ptr<Communicator> group, std::string why)
      : group_(std::move(group)), why_(std::move(why)) {}

  Result<void> prepare() {
    const std::size_t ranks = group_->shard().size;
    auto memory = PinnedMemory::make((1 + ranks) * piece_floats * sizeof(float));
    if (!memory) return tl::unexpected(memory.error());
    memory_ = std::move(*memory);
    return {};
  }

  std::string name() const override {
    return fmt::format("{}, through host memory ({})", group_->name(), why_);
  }

  Result<void> all_gather(const float* own, float* all, std::size_t floats,
                          cudaStream_t stream) override {
    SLUICE_ASSERT(floats <= piece_floats, "a piece's room");
    const std::size_t bytes = floats * sizeof(float);
    SLUICE_CUDA(cudaMemcpyAsync(own_piece(), own, bytes, cudaMemcpyDeviceToHost, stream));
    SLUICE_TRY(call(false, floats, stream));
    SLUICE_CUDA(cudaMemcpyAsync(all, all_pieces(), group_->shard().size * bytes,
                                cudaMemcpyHostToDevice, stream));
    return {};
  }

  std::optional<Error> failure() const override { return group_->failure(); }

  void give_up() override {}  // the communicator's own deadline ends it

 private:
  /// What CUDA's thread is to do. Kept by the group: a device that is lost never comes to it.
  struct Call {
    HostGroup* self = nullptr;
    bool reduces = false;
    std::size_t floats = 0;
  };

  Result<void> reduce_piece(float* values, std::size_t floats, LaunchChain& chain) override {
    const cudaStream_t stream = chain.interrupted();
    const std::size_t bytes = floats * sizeof(float);
    SLUICE_CUDA(cudaMemcpyAsync(own_piece(), values, bytes, cudaMemcpyDeviceToHost, stream));
    SLUICE_TRY(call(true, floats, stream));
    SLUICE_CUDA(cudaMemcpyAsync(values, own_piece(), bytes, cudaMemcpyHostToDevice, stream));
    return {};
  }

  Result<void> call(bool reduces, std::size_t floats, cudaStream_t stream) {
    Call* call = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (idle_.empty()) idle_.push_back(&calls_.emplace_back());
      call = idle_.back();
      idle_.pop_back();
    }
    *call = {this, reduces, floats};
    SLUICE_CUDA(cudaLaunchHostFunc(stream, &HostGroup::on_stream, call));
    return {};
  }

  static void on_stream(void* data) {
    auto* call = static_cast<Call*>(data);
    HostGroup& self = *call->self;
    // What fails is the communicator's failure from then on.
    const std::span<float> own(self.own_piece(), call->floats);
    if (call->reduces) {
      (void)self.group_->all_reduce(own);
    } else {
      const std::span<float> all(self.all_pieces(), call->floats * self.group_->shard().size);
      (void)self.group_->all_gather(std::as_bytes(own), std::as_writable_bytes(all));
    }
    const std::lock_guard lock(self.mutex_);
    self.idle_.push_back(call);
  }

  float* own_piece() const { return memory_.as<float>(); }
  float* all_pieces() const { return memory_.as<float>() + piece_floats; }

  const std::shared_ptr<Communicator> group_;
  const std::string why_;
  PinnedMemory memory_;  ///< used by one collective at a time, as the stream has them in order
  std::mutex mutex_;
  std::deque<Call> calls_;
  std::vector<Call*> idle_;
};

Result<std::unique_ptr<DeviceGroup>> through_host(std::shared_ptr<Communicator> group,
                                                  std::string why) {
  auto made = std::make_unique<HostGroup>(std::move(group), std::move(why));
  SLUICE_TRY(made->prepare());
  return made;
}

/// What a rank tells the others, so that all choose alike.
struct Means {
  std::int32_t version = 0;  ///< of NCCL; 0: none
  std::int32_t graphs = 0;   ///< whether it wants them
  std::array<char, 16> device{};
};

/// Why NCCL cannot serve these ranks; empty: it can.
std::string obstacle(const std::vector<Means>& all, bool share_device) {
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].version == 0) return fmt::format("rank {} has no NCCL", rank);
    if (all[rank].version != all[0].version) {
      return fmt::format("rank 0 has NCCL {}, rank {} has {}", nccl::to_text(all[0].version), rank,
                         nccl::to_text(all[rank].version));
    }
    for (std::size_t other = 0; other < rank; ++other) {
      if (!share_device && all[other].device == all[rank].device) {
        return fmt::format("ranks {} and {} share a device", other, rank);
      }
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<DeviceGroup>> make_device_group(std::shared_ptr<Communicator> group,
                                                       const DeviceGroupOptions& options) {
  const Shard shard = group->shard();
  Means own;
  own.graphs = options.graphs ? 1 : 0;
  nccl::Library library;
  std::string missing = "NCCL is switched off";
  if (!options.library.empty()) {
    auto loaded = nccl::load(options.library);
    int version = 0;
    if (loaded && loaded->version(&version) == nccl::success) {
      library = *loaded;
      own.version = version;
    } else {
      missing = loaded ? options.library + " does not tell its version" : loaded.error().message;
    }
  }
  cudaDeviceProp properties{};
  SLUICE_CUDA(cudaGetDeviceProperties(&properties, options.device));
  static_assert(sizeof properties.uuid == sizeof own.device);
  std::memcpy(own.device.data(), &properties.uuid, own.device.size());
  std::vector<Means> all(shard.size);
  SLUICE_TRY(
      group->all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(all))));
  if (std::string why = obstacle(all, options.share_device); !why.empty()) {
    return through_host(std::move(group), own.version == 0 ? missing : why);
  }
  bool captures =
      own.version >= nccl::captures_from &&
      std::all_of(all.begin(), all.end(), [](const Means& rank) { return rank.graphs != 0; });
  for (;;) {
    // All zeros: rank 0 could not make one.
    nccl::UniqueId id;
    if (shard.rank == 0 && library.unique_id(&id) != nccl::success) id = {};
    SLUICE_TRY(group->broadcast(std::as_writable_bytes(std::span(id.bytes)), 0));
    if (id.bytes == nccl::UniqueId{}.bytes) {
      return through_host(std::move(group), "NCCL finds no network interface on rank 0's host");
    }
    auto made = make_nccl_group(library, id, group, captures, options.start_ms,
                                options.first_graph_ms);
    if (!made || *made != nullptr) return made;
    captures = false;
  }
}

}  // namespace sluice::kernels::cuda
