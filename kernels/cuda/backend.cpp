#include "kernels/cuda/backend.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <utility>

#include "kernels/cuda/device.hpp"
#include "kernels/cuda/flights.hpp"
#include "kernels/cuda/graphs.hpp"
#include "kernels/cuda/group.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/program.hpp"
#include "kernels/cuda/step_plan.hpp"
#include "kernels/cuda/uploader.hpp"

namespace sluice::kernels {
namespace {

using namespace cuda;

// The oldest devices with what the kernels use: bf16 and asynchronous copies.
constexpr int major_min = 8;

// The oldest devices whose kernels can start early (chain.hpp), and the first driver whose graphs
// keep that.
constexpr int early_major_min = 9;
constexpr int early_driver_min = 12030;

// The devices with wide.cuh's products: those instructions are theirs alone.
constexpr int wide_major = 9;

// A step of 17 rows and more takes other products, which read every weight for 64 rows or 128: on
// an H200 those of an 8B model take 6 ms for 32 rows, where a row alone takes 2.7, and 8 for 128.
constexpr std::uint32_t prompt_rows_min = 128;

// Of a block: what an A100 and everything larger has, and smaller devices of its time do not.
constexpr std::size_t shared_bytes_min = std::size_t{163} << 10;

// A launch's second and third dimension; a row there is a row of the batch.
constexpr std::uint32_t rows_most = 65535;

std::string name_of(const cudaDeviceProp& properties) {
  return fmt::format("{} (sm_{}{})", properties.name, properties.major, properties.minor);
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaOptions& options, Completion completion)
      : options_(options), flights_(std::move(completion)) {}

  /// Everything that can fail, before the thread starts.
  Result<void> start() {
    SLUICE_CUDA(cudaSetDevice(options_.device));
    SLUICE_CUDA(cudaGetDeviceProperties(&properties_, options_.device));
    if (properties_.major < major_min) {
      return fail(ErrorCode::unavailable,
                  "device {}, {}, is older than sm_{}0: use the cpu backend", options_.device,
                  name_of(properties_), major_min);
    }
    if (properties_.sharedMemPerBlockOptin < shared_bytes_min) {
      return fail(ErrorCode::unavailable,
                  "device {}, {}, gives a block {} KiB of shared memory, and the kernels need {}: "
                  "use the cpu backend",
                  options_.device, name_of(properties_), properties_.sharedMemPerBlockOptin >> 10,
                  shared_bytes_min >> 10);
    }
    auto stream = make_stream();
    if (!stream) return tl::unexpected(stream.error());
    stream_ = std::move(*stream);
    SLUICE_TRY(check_code());
    std::size_t free = 0, total = 0;
    SLUICE_CUDA(cudaMemGetInfo(&free, &total));
    info_.backend = "cuda";
    info_.device = name_of(properties_);
    const auto exact = ignores_zeros();
    if (!exact) return tl::unexpected(exact.error());
    info_.arithmetic = fmt::format("sm_{}{}{}-bf16-attention-f16{}-split{}/6", properties_.major,
                                   properties_.minor, packs_ ? "-packed" : "",
                                   *exact ? "" : "-inexact", options_.split_tokens);
    info_.bf16_products = true;
    info_.bf16_weights = packs_;
    info_.paths_equal = *exact;
    info_.dedicated_memory = true;
    info_.half_queries = true;
    info_.prompt_rows_min = prompt_rows_min;
    info_.memory_free_bytes = free - std::min(free, options_.reserve_bytes);
    return flights_.start(options_.device);
  }

  ~CudaBackend() override {
    if (!stream_) return;
    flights_.finish();
    cudaSetDevice(options_.device);
    drop_graphs(flights_.group());
  }

  const DeviceInfo& device() const override { return info_; }

  Result<Weight> load(const HostTensor& tensor) override {
    auto shape = check_weight(tensor);
    if (!shape) return tl::unexpected(shape.error());
    SLUICE_CUDA(cudaSetDevice(options_.device));
    const std::size_t row = row_bytes(tensor.format, tensor.cols);
    const std::size_t stride = device_stride(tensor.format, tensor.cols);
    auto memory = make_weight(stride * tensor.rows);
    if (!memory) return tl::unexpected(memory.error());
    SLUICE_TRY(
        uploader_.copy(tensor.data, row, row_stride(tensor), memory->as<std::byte>(), stride));
    DeviceWeight device{memory->as<std::uint8_t>(), stride, tensor.rows, tensor.cols,
                        tensor.format};
    if (tensor.as_e4m3) SLUICE_TRY(narrow(device, *memory));
    // A row alone is no product's: a gain, or a bias.
    if (packs_ && takes_narrow(device) && tensor.rows > 1) SLUICE_TRY(pack(device, *memory));
    memory_.push_back(std::move(*memory));
    weights_.push_back({*shape, device, tensor});
    return Weight{static_cast<std::uint32_t>(weights_.size() - 1)};
  }

  Result<void> allocate(const PoolShape& shape) override {
    if (allocated_) return fail(ErrorCode::bad_request, "the KV pool is allocated already");
    SLUICE_TRY(check_pool(shape));
    if (shape.rows_max > rows_most) {
      return fail(ErrorCode::bad_request, "{} rows in a step: a launch takes at most {}",
                  shape.rows_max, rows_most);
    }
    SLUICE_CUDA(cudaSetDevice(options_.device));
    SLUICE_TRY(allocate_pool(shape));
    SLUICE_TRY(allocate_slots(shape));
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    pool_ = shape;
    slots_ = SlotMirror(shape);
    allocated_ = true;
    return {};
  }

  Result<void> join(std::shared_ptr<Communicator> group) override {
    SLUICE_ASSERT(group != nullptr, "a group to join");
    if (!programs_.empty() && shard_ != group->shard()) {
      const Shard was = shard_.value_or(Shard{});
      return fail(ErrorCode::bad_request,
                  "rank {} of {}: this backend's programs are recorded for rank {} of {}",
                  group->shard().rank, group->shard().size, was.rank, was.size);
    }
    auto left = flights_.leave_group();
    if (!left) return tl::unexpected(left.error());
    SLUICE_CUDA(cudaSetDevice(options_.device));
    drop_graphs(left->get());
    left->reset();
    if (allocated_) slots_ = SlotMirror(pool_);
    shard_ = group->shard();
    const bool graphs = options_.graphs && std::none_of(graphs_.begin(), graphs_.end(),
                                                        [](const StepGraphs& of_program) {
                                                          return of_program.unusable();
                                                        });
    auto made = make_device_group(std::move(group), {.device = options_.device,
                                                     .library = options_.nccl,
                                                     .graphs = graphs,
                                                     .first_graph_ms = options_.first_graph_ms});
    if (!made) return tl::unexpected(made.error());
    info_.collectives = (*made)->name();
    flights_.enter_group(std::move(*made));
    return {};
  }

  Result<ProgramId> record(const StepProgram& steps) override {
    if (!allocated_) return fail(ErrorCode::bad_request, "record before allocate");
    SLUICE_CUDA(cudaSetDevice(options_.device));
    SLUICE_TRY(uploader_.finish());
    auto program = Program::compile(steps, weights_, pool_, shard_, state_, stream_.get());
    if (!program) return tl::unexpected(program.error());
    programs_.push_back(std::move(*program));
    graphs_.emplace_back();
    return ProgramId{static_cast<std::uint32_t>(programs_.size() - 1)};
  }

  void submit(ProgramId program, Ticket ticket, Batch batch) override {
    SLUICE_ASSERT(program.index < programs_.size(), "a program never recorded");
    SLUICE_ASSERT(ticket > last_ticket_ || last_ticket_ == 0, "tickets must increase");
    last_ticket_ = ticket;
    plan_batch(batch, pool_, state_, slots_, plan_);
    flights_.expect(ticket, plan_.drawn);
    if (!batch.sample_now) plan_.drawn.clear();
    fly(ticket, batch.sample_now,
        [&](LaunchChain& chain) { return enqueue(program.index, chain); });
  }

  void sample(Ticket ticket, std::vector<Mask> masks) override {
    plan_masks(masks, slots_, plan_);
    fly(ticket, true, [&](LaunchChain& chain) -> Result<void> {
      if (plan_.held == 0) return {};
      const SampleArgs args{state_.step, state_.slots, {}, state_.adjusted, state_.drawn};
      SLUICE_CUDA(sample_held(args, plan_.held, chain));
      return {};
    });
  }

  Result<double> read_bandwidth(std::size_t bytes) override {
    constexpr int passes = 12;
    SLUICE_CUDA(cudaSetDevice(options_.device));
    const std::size_t count = std::max<std::size_t>(bytes / sizeof(uint4), 1);
    auto words = DeviceMemory::make(count * sizeof(uint4), "the bandwidth probe");
    if (!words) return tl::unexpected(words.error());
    auto sum = DeviceMemory::make(sizeof(std::uint32_t), "the bandwidth probe");
    if (!sum) return tl::unexpected(sum.error());
    auto begin = make_event(), end = make_event();
    if (!begin) return tl::unexpected(begin.error());
    if (!end) return tl::unexpected(end.error());
    SLUICE_CUDA(cudaMemsetAsync(words->as<void>(), 1, count * sizeof(uint4), stream_.get()));
    SLUICE_CUDA(cudaMemsetAsync(sum->as<void>(), 0, sizeof(std::uint32_t), stream_.get()));
    const auto blocks = static_cast<std::uint32_t>(8 * properties_.multiProcessorCount);
    float best_ms = std::numeric_limits<float>::infinity();
    LaunchChain chain(stream_.get());
    for (int pass = 0; pass < passes; ++pass) {
      SLUICE_CUDA(cudaEventRecord(begin->get(), stream_.get()));
      SLUICE_CUDA(add_words(words->as<uint4>(), count, sum->as<std::uint32_t>(), blocks, chain));
      SLUICE_CUDA(cudaEventRecord(end->get(), stream_.get()));
      SLUICE_CUDA(cudaEventSynchronize(end->get()));
      float ms = 0;
      SLUICE_CUDA(cudaEventElapsedTime(&ms, begin->get(), end->get()));
      best_ms = std::min(best_ms, ms);
    }
    std::uint32_t found = 0;
    SLUICE_CUDA(cudaMemcpyAsync(&found, sum->as<std::uint32_t>(), sizeof found,
                                cudaMemcpyDeviceToHost, stream_.get()));
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    SLUICE_ASSERT(found == static_cast<std::uint32_t>(passes * 4 * count * 0x01010101U),
                  "the probe read every word it was timed for");
    return static_cast<double>(count * sizeof(uint4)) / best_ms * 1e3;
  }

  Result<void> read(ProgramId program, Buffer buffer, std::span<float> out) override {
    SLUICE_TRY(flights_.wait_idle());
    if (program.index >= programs_.size() ||
        buffer.index >= programs_[program.index].shapes().size()) {
      return fail(ErrorCode::bad_request, "no such program or buffer");
    }
    if (!programs_[program.index].keeps(buffer)) {
      return fail(ErrorCode::unsupported,
                  "buffer {} is not kept, for the gate that reads it is part of the products that "
                  "write it: make the backend without fuse_gates",
                  buffer.index);
    }
    SLUICE_CUDA(cudaSetDevice(options_.device));
    const BufferShape& shape = programs_[program.index].shapes()[buffer.index];
    const Rows rows = programs_[program.index].rows(buffer);
    const std::size_t held = std::size_t{rows_max(pool_, shape.rows)} * shape.width;
    if (out.size() > held) {
      return fail(ErrorCode::bad_request, "{} floats asked of a buffer of {}", out.size(), held);
    }
    const std::size_t whole = out.size() / shape.width, rest = out.size() % shape.width;
    const std::size_t width = shape.width * sizeof(float);
    if (whole > 0) {
      SLUICE_CUDA(cudaMemcpy2DAsync(out.data(), width, rows.data, rows.stride * sizeof(float),
                                    width, whole, cudaMemcpyDeviceToHost, stream_.get()));
    }
    if (rest > 0) {
      SLUICE_CUDA(cudaMemcpyAsync(out.data() + whole * shape.width, rows.data + whole * rows.stride,
                                  rest * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()));
    }
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    return {};
  }

 private:
  /// Once nothing is under way: the graphs of the group that ends now.
  void drop_graphs(DeviceGroup* group) {
    // A step that failed on its way has left collectives behind that no rank comes to any more.
    if (group != nullptr && group->failure()) group->give_up();
    cudaStreamSynchronize(stream_.get());
    for (StepGraphs& graphs : graphs_) graphs.forget();
  }

  /// The planned step's launches.
  Result<void> enqueue(std::uint32_t program, LaunchChain& chain) {
    if (options_.graphs) {
      const auto launched = graphs_[program].launch(programs_[program], plan_.counts, pool_, state_,
                                                    flights_.group(), chain);
      if (!launched) return tl::unexpected(launched.error());
      if (*launched) return {};
    }
    return programs_[program].enqueue(plan_.counts, flights_.group(), chain);
  }

  /// Whether a tensor core's sums do not feel factors of zero: attention weighs with 0 what a row
  /// does not see, and where a prompt is cut into steps decides what lies there.
  Result<bool> ignores_zeros() {
    auto memory = DeviceMemory::make(probe_zeros_floats * sizeof(float), "a probe");
    if (!memory) return tl::unexpected(memory.error());
    float sums[probe_zeros_floats] = {};
    LaunchChain chain(stream_.get());
    SLUICE_CUDA(probe_zeros(memory->as<float>(), chain));
    SLUICE_CUDA(cudaMemcpyAsync(sums, memory->as<float>(), sizeof sums, cudaMemcpyDeviceToHost,
                                stream_.get()));
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    return sums[0] != 0.0F && sums[0] == sums[1] && sums[2] == sums[3];
  }

  /// The kernels' bits are the project's only if the compiler left products and sums apart; and
  /// they may start early only if they were compiled for devices that have the wait.
  Result<void> check_code() {
    auto memory = DeviceMemory::make(probe_floats * sizeof(float), "a probe");
    if (!memory) return tl::unexpected(memory.error());
    float values[probe_floats] = {1.0F + 0x1p-12F, 0.0F, 0.0F};
    SLUICE_CUDA(cudaMemcpyAsync(memory->as<float>(), values, sizeof values, cudaMemcpyHostToDevice,
                                stream_.get()));
    LaunchChain chain(stream_.get());
    SLUICE_CUDA(probe_code(memory->as<float>(), chain));
    SLUICE_CUDA(cudaMemcpyAsync(values, memory->as<float>(), sizeof values, cudaMemcpyDeviceToHost,
                                stream_.get()));
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    int driver = 0;
    SLUICE_CUDA(cudaDriverGetVersion(&driver));
    early_ = options_.early_launches && values[1] == code_waits &&
             properties_.major >= early_major_min && driver >= early_driver_min;
    packs_ = values[2] == code_widens && properties_.major == wide_major;
    if (values[0] == uncontracted) return {};
    return fail(ErrorCode::unsupported,
                "the CUDA kernels were compiled with contraction: build them with -fmad=false");
  }

  Result<DeviceMemory> make_weight(std::size_t bytes) const {
    SLUICE_TRY(leave_reserve(bytes, "a weight"));
    return DeviceMemory::make(bytes, "a weight");
  }

  /// Replaces a weight, and the memory that it lies in, by itself in e4m3, scales behind its rows.
  Result<void> narrow(DeviceWeight& weight, DeviceMemory& memory) {
    DeviceWeight narrowed = weight;
    narrowed.stride = padded(weight.cols);
    const std::size_t bytes = narrowed.stride * weight.rows;
    auto made = make_weight(bytes + weight.rows * sizeof(float));
    if (!made) return tl::unexpected(made.error());
    narrowed.data = made->as<std::uint8_t>();
    narrowed.scales = reinterpret_cast<const float*>(narrowed.data + bytes);
    SLUICE_TRY(uploader_.finish());
    SLUICE_CUDA(cudaMemsetAsync(made->as<void>(), 0, bytes, stream_.get()));
    LaunchChain chain(stream_.get());
    SLUICE_CUDA(narrow_weight({weight, narrowed}, chain));
    return replace(weight, memory, narrowed, std::move(*made));
  }

  /// Replaces a weight, and the memory that it lies in, by its panels, scales behind them.
  Result<void> pack(DeviceWeight& weight, DeviceMemory& memory) {
    DeviceWeight packed = weight;
    packed.stride = packed_stride(weight);
    packed.packed = true;
    const std::size_t bytes = packed.stride * ((weight.rows + panel_rows - 1) / panel_rows);
    const std::size_t scales = weight.scales != nullptr ? weight.rows * sizeof(float) : 0;
    auto made = make_weight(bytes + scales);
    if (!made) return tl::unexpected(made.error());
    packed.data = made->as<std::uint8_t>();
    SLUICE_TRY(uploader_.finish());
    if (scales > 0) {
      auto* to = made->as<std::uint8_t>() + bytes;
      SLUICE_CUDA(cudaMemcpyAsync(to, weight.scales, scales, cudaMemcpyDeviceToDevice,
                                  stream_.get()));
      packed.scales = reinterpret_cast<const float*>(to);
    }
    LaunchChain chain(stream_.get());
    SLUICE_CUDA(pack_weight({weight, packed}, chain));
    return replace(weight, memory, packed, std::move(*made));
  }

  /// Once what made it has been done; what it was made of is freed.
  Result<void> replace(DeviceWeight& weight, DeviceMemory& memory, const DeviceWeight& by,
                       DeviceMemory made) {
    SLUICE_CUDA(cudaStreamSynchronize(stream_.get()));
    weight = by;
    memory = std::move(made);
    return {};
  }

  /// Bytes of a weight's row on the device.
  static std::size_t device_stride(Format format, std::uint32_t cols) {
    const bool plain = info(format).block_elements == 1;
    constexpr std::size_t whole = 32;
    return (row_bytes(format, plain ? padded(cols) : cols) + whole - 1) / whole * whole;
  }

  /// Refuses what would eat into the reserve.
  Result<void> leave_reserve(std::size_t bytes, const char* what) const {
    std::size_t free = 0, total = 0;
    SLUICE_CUDA(cudaMemGetInfo(&free, &total));
    if (bytes + options_.reserve_bytes <= free) return {};
    return fail(ErrorCode::out_of_memory,
                "{} needs {} MiB of device memory; {} of {} MiB are free, and {} are kept in "
                "reserve: ask for fewer blocks or slots, or a smaller model",
                what, bytes >> 20, free >> 20, total >> 20, options_.reserve_bytes >> 20);
  }

  Result<void> allocate_pool(const PoolShape& shape) {
    KvArrays& kv = state_.kv;
    kv.blocks = shape.blocks;
    kv.kv_heads = shape.kv_heads;
    kv.block_tokens = shape.block_tokens;
    kv.block_shift = static_cast<std::uint32_t>(std::countr_zero(shape.block_tokens));
    kv.format = shape.kv_format;
    const std::uint32_t bytes = element_bytes(kv.format), sixteen = 16 / bytes;
    kv.head_stride = (shape.head_dim + sixteen - 1) / sixteen * sixteen;
    kv.block_stride = std::size_t{2} * shape.kv_heads * shape.block_tokens * kv.head_stride;
    return give(kv.data, std::size_t{shape.layers} * shape.blocks * kv.block_stride * bytes,
                "the KV pool");
  }

  Result<void> allocate_slots(const PoolShape& shape) {
    SlotArrays& slots = state_.slots;
    const std::size_t count = shape.slots, sampled = rows_max(shape, RowSpace::sampled);
    slots.vocabulary = shape.vocabulary;
    slots.token_capacity = shape.context_tokens + 1;
    slots.block_capacity = (shape.context_tokens + shape.block_tokens - 1) / shape.block_tokens;
    slots.list_capacity = list_capacity(shape);
    SLUICE_TRY(give(slots.states, count, "the slots"));
    SLUICE_TRY(give(slots.tokens, count * slots.token_capacity, "the slots' tokens"));
    SLUICE_TRY(give(slots.blocks, count * slots.block_capacity, "the slots' blocks"));
    SLUICE_TRY(give(slots.biases, count * slots.list_capacity, "the slots' biases"));
    SLUICE_TRY(give(slots.stops, count * slots.list_capacity, "the slots' stop tokens"));
    SLUICE_TRY(give(slots.uses, count * shape.vocabulary, "the slots' penalties"));
    SLUICE_TRY(give(slots.held, count * shape.vocabulary, "the slots' held logits"));
    SLUICE_TRY(give(state_.adjusted, sampled * shape.vocabulary, "the sampler's logits"));
    // Masks may name more slots than a batch has sampled rows.
    drawn_max_ = std::max<std::size_t>(sampled, count);
    SLUICE_TRY(give(state_.drawn, drawn_max_, "the sampler's results"));
    std::byte* step = nullptr;
    step_bytes_ = step_bytes_max(shape);
    SLUICE_TRY(give(step, step_bytes_, "a step's metadata"));
    state_.step = step_ = step;
    state_.split_tokens = options_.split_tokens;
    state_.splits_max = split_room(shape, options_.split_tokens);
    state_.processors = static_cast<std::uint32_t>(properties_.multiProcessorCount);
    state_.clustered = packs_ ? count_clustered(state_.processors) : state_.processors;
    state_.fuse_gates = options_.fuse_gates;
    state_.fuse_norms = options_.fuse_norms;
    state_.wide_attention = packs_ && options_.wide_attention;
    return {};
  }

  /// Zeroed memory for the backend's life.
  template <class T>
  Result<void> give(T*& data, std::size_t count, const char* what) {
    const std::size_t bytes = count * sizeof(T);
    SLUICE_TRY(leave_reserve(bytes, what));
    auto memory = DeviceMemory::make(bytes, what);
    if (!memory) return tl::unexpected(memory.error());
    if (bytes > 0) SLUICE_CUDA(cudaMemsetAsync(memory->as<void>(), 0, bytes, stream_.get()));
    data = memory->as<T>();
    memory_.push_back(std::move(*memory));
    return {};
  }

  /// Sends the planned step off: metadata there, launches, results back, and the waiter told. What
  /// fails on the way is the flight's own error.
  template <class Launches>
  void fly(Ticket ticket, bool closes, Launches launches) {
    std::unique_ptr<Flight> flight = flights_.take();
    flight->ticket = ticket;
    flight->closes = closes;
    flight->drawn = plan_.drawn;
    flight->error.reset();
    if (auto sent = send(*flight, launches); !sent) flight->error = sent.error();
    flights_.send(std::move(flight));
  }

  template <class Launches>
  Result<void> send(Flight& flight, Launches launches) {
    if (auto why = flights_.lost()) return tl::unexpected(*why);
    SLUICE_CUDA(cudaSetDevice(options_.device));
    SLUICE_ASSERT(plan_.bytes.size() <= step_bytes_, "a step's metadata outgrew its room");
    SLUICE_TRY(make_room(flight));
    std::memcpy(flight.input.as<std::byte>(), plan_.bytes.data(), plan_.bytes.size());
    SLUICE_CUDA(cudaEventRecord(flight.begin.get(), stream_.get()));
    SLUICE_CUDA(cudaMemcpyAsync(step_, flight.input.as<std::byte>(), plan_.bytes.size(),
                                cudaMemcpyHostToDevice, stream_.get()));
    LaunchChain chain(stream_.get(), early_);
    SLUICE_CUDA(open_slots(state_.step, state_.slots, plan_.opens, plan_.grants, chain));
    chain.interrupted();  // the step's first kernel waits, so that none reads older blocks
    SLUICE_TRY(launches(chain));
    if (!flight.drawn.empty()) {
      SLUICE_CUDA(cudaMemcpyAsync(flight.output.as<DrawnRow>(), state_.drawn,
                                  flight.drawn.size() * sizeof(DrawnRow), cudaMemcpyDeviceToHost,
                                  stream_.get()));
    }
    SLUICE_CUDA(cudaEventRecord(flight.end.get(), stream_.get()));
    return {};
  }

  /// Pinned memory grows to what the longest prompt needed, and stays.
  static Result<void> make_room(Flight& flight, std::size_t input, std::size_t output) {
    if (flight.input.bytes() < input) {
      auto memory = PinnedMemory::make(std::max(input, 2 * flight.input.bytes()));
      if (!memory) return tl::unexpected(memory.error());
      flight.input = std::move(*memory);
    }
    if (flight.output.bytes() < output) {
      auto memory = PinnedMemory::make(output);
      if (!memory) return tl::unexpected(memory.error());
      flight.output = std::move(*memory);
    }
    if (flight.begin && flight.end) return {};
    auto begin = make_event();
    if (!begin) return tl::unexpected(begin.error());
    auto end = make_event();
    if (!end) return tl::unexpected(end.error());
    flight.begin = std::move(*begin);
    flight.end = std::move(*end);
    return {};
  }

  Result<void> make_room(Flight& flight) const {
    // A page at least, so that ordinary decode steps never need more.
    return make_room(flight, std::max<std::size_t>(plan_.bytes.size(), 65536),
                     drawn_max_ * sizeof(DrawnRow));
  }

  const CudaOptions options_;
  cudaDeviceProp properties_{};
  DeviceInfo info_;
  bool early_ = false;  ///< whether kernels start early
  bool packs_ = false;  ///< whether there are wide.cuh's products, for which weights are packed

  // The caller's own.
  Stream stream_;
  Uploader uploader_;
  std::vector<LoadedWeight> weights_;
  std::vector<DeviceMemory> memory_;  ///< of weights, pool and slots
  std::vector<Program> programs_;
  std::vector<StepGraphs> graphs_;  ///< of each
  PoolShape pool_;
  bool allocated_ = false;
  DeviceState state_;
  std::byte* step_ = nullptr;
  std::size_t step_bytes_ = 0;
  std::size_t drawn_max_ = 0;
  SlotMirror slots_;
  StepPlan plan_;
  Ticket last_ticket_ = 0;
  std::optional<Shard> shard_;
  Flights flights_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options,
                                                   Completion completion) {
  if (options.split_tokens == 0 || options.split_tokens % tile_tokens != 0 ||
      options.split_tokens > split_tiles_max * tile_tokens) {
    return fail(ErrorCode::bad_request,
                "splits of {} positions: a multiple of {} is needed, {} at most",
                options.split_tokens, tile_tokens, split_tiles_max * tile_tokens);
  }
  auto devices = cuda_devices();
  if (!devices) return tl::unexpected(devices.error());
  if (options.device < 0 || static_cast<std::size_t>(options.device) >= devices->size()) {
    return fail(ErrorCode::bad_request, "there is no CUDA device {}: this machine has {}",
                options.device, devices->size());
  }
  auto backend = std::make_unique<CudaBackend>(options, std::move(completion));
  SLUICE_TRY(backend->start());
  return backend;
}

Result<std::vector<std::string>> cuda_devices() {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    return fail(ErrorCode::unavailable, "no usable CUDA device: {}", cudaGetErrorString(status));
  }
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    SLUICE_CUDA(cudaGetDeviceProperties(&properties, i));
    names.push_back(name_of(properties));
  }
  if (names.empty()) return fail(ErrorCode::unavailable, "the driver sees no CUDA device");
  return names;
}

}  // namespace sluice::kernels
