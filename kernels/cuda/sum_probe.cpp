#include "kernels/cuda/sum_probe.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/chain.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/group.hpp"
#include "kernels/cuda/kernels.hpp"

namespace sluice::kernels::cuda {
namespace {

/// Of one way to sum, one behind the other, so that a launch of the whole is a small part; and how
/// often that is timed.
constexpr int sums_each = 50;
constexpr int repetitions = 21;

/// A rank's value: sums of these round, and in every order another way.
float value_of(std::uint32_t rank, std::size_t i) {
  return static_cast<float>(1 + (i * 37 + rank * 101) % 997) / static_cast<float>(3 + 7 * rank);
}

class Probe {
 public:
  Probe(DeviceGroup& group, const Shard& shard) : group_(group), shard_(shard) {}

  Result<void> prepare(const SumShape& shape) {
    rows_ = shape.rows;
    floats_ = std::size_t{shape.rows} * padded(shape.width);
    if (floats_ == 0 || floats_ > piece_floats) {
      return fail(ErrorCode::bad_request, "{} rows of {}: up to {} floats are summed at once",
                  shape.rows, shape.width, piece_floats);
    }
    auto stream = make_stream();
    if (!stream) return tl::unexpected(stream.error());
    stream_ = std::move(*stream);
    chain_.emplace(stream_.get());
    const std::size_t narrow = narrow_room(padded(shape.width), shape.rows) / 2;  // in floats
    auto memory =
        DeviceMemory::make((2 * floats_ + narrow + padded(shape.width)) * sizeof(float), "sums");
    if (!memory) return tl::unexpected(memory.error());
    memory_ = std::move(*memory);
    SLUICE_CUDA(cudaMemsetAsync(memory_.as<void>(), 0, memory_.bytes(), stream_.get()));
    auto step = DeviceMemory::make(sizeof(StepHeader), "a step's metadata");
    if (!step) return tl::unexpected(step.error());
    step_ = std::move(*step);
    StepHeader header;
    header.rows = shape.rows;
    SLUICE_CUDA(cudaMemcpyAsync(step_.as<StepHeader>(), &header, sizeof header,
                                cudaMemcpyHostToDevice, stream_.get()));
    norm_.step = step_.as<std::byte>();
    norm_.in = {memory_.as<float>(), padded(shape.width)};
    norm_.out = {norm_.in.data + floats_, norm_.in.stride};
    norm_.out.narrow = reinterpret_cast<std::uint16_t*>(norm_.out.data + floats_);
    norm_.width = shape.width;
    norm_.epsilon = 1e-5F;
    float* const gain = norm_.out.data + floats_ + narrow;
    norm_.gain = gain;
    const std::vector<float> gains(shape.width, 1.0F);
    SLUICE_CUDA(cudaMemcpyAsync(gain, gains.data(), gains.size() * sizeof(float),
                                cudaMemcpyHostToDevice, stream_.get()));
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    return {};
  }

  Result<void> fused() {
    auto terms = group_.gather_terms(norm_.in.data, floats_, chain_->interrupted());
    if (!terms) return tl::unexpected(terms.error());
    if (*terms == nullptr) return apart();
    SLUICE_CUDA(add_norm({norm_, *terms, shard_.size, floats_}, rows_, *chain_));
    return {};
  }

  Result<void> apart() {
    SLUICE_TRY(group_.all_reduce(norm_.in.data, floats_, *chain_));
    SLUICE_CUDA(norm(norm_, rows_, *chain_));
    return {};
  }

  Result<void> library() {
    SLUICE_TRY(group_.all_reduce_in_any_order(norm_.in.data, floats_, chain_->interrupted()));
    SLUICE_CUDA(norm(norm_, rows_, *chain_));
    return {};
  }

  using Way = Result<void> (Probe::*)();

  /// Sums values that are known, and compares them and their norms with the other way's.
  Result<void> check() {
    std::vector<float> own(floats_), due(floats_);
    for (std::size_t i = 0; i < floats_; ++i) {
      own[i] = value_of(shard_.rank, i);
      due[i] = value_of(0, i);
      for (std::uint32_t rank = 1; rank < shard_.size; ++rank) due[i] += value_of(rank, i);
    }
    std::array<std::vector<float>, 2> found;
    for (const Way way : {&Probe::apart, &Probe::fused}) {
      std::vector<float>& both = found[way == &Probe::fused];
      both.resize(2 * floats_);
      SLUICE_CUDA(cudaMemcpyAsync(norm_.in.data, own.data(), floats_ * sizeof(float),
                                  cudaMemcpyHostToDevice, stream_.get()));
      SLUICE_TRY((this->*way)());
      SLUICE_CUDA(cudaMemcpyAsync(both.data(), norm_.in.data, both.size() * sizeof(float),
                                  cudaMemcpyDeviceToHost, stream_.get()));
      SLUICE_TRY(wait());
    }
    // What lies behind a row is no sum: the kernel that norms adds up the row alone.
    for (std::vector<float>* values : {&due, &found[0], &found[1]}) {
      for (std::size_t i = 0; i < values->size(); ++i) {
        if (i % norm_.in.stride >= norm_.width) (*values)[i] = 0;
      }
    }
    for (const std::vector<float>& both : found) {
      if (std::memcmp(both.data(), due.data(), floats_ * sizeof(float)) != 0 || both != found[0]) {
        return fail(ErrorCode::internal,
                    "the sum of {} rows of {} is wrong: see that the GPUs and NCCL are sound",
                    rows_, norm_.width);
      }
    }
    return {};
  }

  /// Microseconds of one.
  Result<double> time_us(Way way) {
    SLUICE_CUDA(cudaMemsetAsync(norm_.in.data, 0, floats_ * sizeof(float), stream_.get()));
    SLUICE_TRY((this->*way)());  // connections, and whether it works at all
    SLUICE_TRY(wait());
    std::optional<GraphExec> graph;
    if (group_.captures()) {
      auto captured = capture_graph(stream_.get(), [&] { return repeat(way); });
      if (!captured) return tl::unexpected(captured.error());
      graph = std::move(*captured);
    }
    auto begin = make_event(), end = make_event();
    if (!begin || !end) return tl::unexpected((begin ? end : begin).error());
    std::vector<float> times_ms;
    for (int i = 0; i < repetitions; ++i) {
      SLUICE_CUDA(cudaEventRecord(begin->get(), stream_.get()));
      if (graph) {
        SLUICE_CUDA(cudaGraphLaunch(graph->get(), stream_.get()));
      } else {
        SLUICE_TRY(repeat(way));
      }
      SLUICE_CUDA(cudaEventRecord(end->get(), stream_.get()));
      SLUICE_TRY(wait());
      SLUICE_CUDA(cudaEventElapsedTime(&times_ms.emplace_back(), begin->get(), end->get()));
    }
    std::nth_element(times_ms.begin(), times_ms.begin() + repetitions / 2, times_ms.end());
    return static_cast<double>(times_ms[repetitions / 2]) * 1e3 / sums_each;
  }

 private:
  Result<void> repeat(Way way) {
    for (int k = 0; k < sums_each; ++k) SLUICE_TRY((this->*way)());
    return {};
  }

  /// Until the stream's end, or the group's.
  Result<void> wait() {
    auto end = make_event();
    if (!end) return tl::unexpected(end.error());
    SLUICE_CUDA(cudaEventRecord(end->get(), stream_.get()));
    cudaError_t status = cudaEventQuery(end->get());
    for (; status == cudaErrorNotReady; status = cudaEventQuery(end->get())) {
      if (group_.failure()) group_.give_up();
      std::this_thread::yield();
    }
    SLUICE_CUDA(status);
    if (auto why = group_.failure()) return tl::unexpected(*why);
    return {};
  }

  DeviceGroup& group_;
  const Shard shard_;
  std::uint32_t rows_ = 0;
  std::size_t floats_ = 0;
  Stream stream_;
  std::optional<LaunchChain> chain_;  ///< without early launches
  DeviceMemory memory_;               ///< rows in and out, out's narrow ones, gain
  DeviceMemory step_;
  NormArgs norm_;
};

}  // namespace

Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const std::string& nccl) {
  const int device = static_cast<int>(probe.device);
  SLUICE_CUDA(cudaSetDevice(device));
  const Shard shard = group->shard();
  auto made = make_device_group(std::move(group), {.device = device,
                                                   .library = nccl,
                                                   .first_graph_ms = probe.first_graph_ms,
                                                   .start_ms = probe.start_ms,
                                                   .share_device = probe.share_device});
  if (!made) return tl::unexpected(made.error());
  SumReport report{(*made)->name(), (*made)->captures(), {}};
  for (const SumShape& shape : probe.shapes) {
    Probe sums(**made, shard);
    SLUICE_TRY(sums.prepare(shape));
    SLUICE_TRY(sums.check());
    SumTimes times{shape, 0, 0, 0};
    for (const auto& [way, us] :
         {std::pair{&Probe::fused, &times.fused_us}, std::pair{&Probe::apart, &times.apart_us},
          std::pair{&Probe::library, &times.library_us}}) {
      const auto found = sums.time_us(way);
      if (found) *us = *found;
      if (!found && found.error().code != ErrorCode::unsupported) {
        return tl::unexpected(found.error());
      }
    }
    report.times.push_back(times);
  }
  return report;
}

}  // namespace sluice::kernels::cuda
