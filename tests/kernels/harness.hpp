#pragma once
// A backend with a tiny model loaded, and random ragged batches for it.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/communicator.hpp"
#include "tests/kernels/reference.hpp"

namespace sluice::kernels::test {

/// How a test gets the backend it is run against; none when this machine lacks the device.
using Factory = std::function<std::unique_ptr<Backend>(Completion)>;

/// Completions of a backend, taken in order.
class Results {
 public:
  Completion completion() {
    return [this](StepResult&& result) {
      const std::lock_guard lock(mutex_);
      results_.push_back(std::move(result));
      arrived_.notify_one();
    };
  }

  StepResult take() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !results_.empty(); });
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  bool empty() {
    const std::lock_guard lock(mutex_);
    return results_.empty();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<StepResult> results_;
};

template <class T>
T require(Result<T> result) {
  BOOST_REQUIRE_MESSAGE(result.has_value(), result.error().message);
  return std::move(*result);
}

/// A backend with a model's weights, and no program yet.
class LoadedDevice {
 public:
  LoadedDevice(const Factory& factory, const TinyModel& tiny)
      : LoadedDevice(factory, tiny, tiny.pool()) {}
  LoadedDevice(const Factory& factory, const TinyModel& tiny, const PoolShape& pool)
      : model(tiny), backend(factory(results.completion())) {
    for (const Tensor& tensor : model.tensors) require(backend->load(tensor.host));
    const auto allocated = backend->allocate(pool);
    BOOST_REQUIRE_MESSAGE(allocated.has_value(), allocated.error().message);
  }

  void join(const std::shared_ptr<Communicator>& group) {
    const auto joined = backend->join(group);
    BOOST_REQUIRE_MESSAGE(joined.has_value(), joined.error().message);
  }

  void record() { program = require(backend->record(model.program)); }

  void submit(Batch batch) { backend->submit(program, ++ticket, std::move(batch)); }

  StepResult run(Batch batch) {
    submit(std::move(batch));
    StepResult result = results.take();
    BOOST_REQUIRE_EQUAL(result.ticket, ticket);
    return result;
  }

  std::vector<float> read(Buffer buffer, std::size_t rows) {
    std::vector<float> values(rows * model.program.buffers[buffer.index].width);
    const auto done = backend->read(program, buffer, values);
    BOOST_REQUIRE_MESSAGE(done.has_value(), done.error().message);
    return values;
  }

  const TinyModel& model;
  Results results;
  std::unique_ptr<Backend> backend;
  ProgramId program;
  Ticket ticket = 0;
};

class Device : public LoadedDevice {
 public:
  Device(const Factory& factory, const TinyModel& tiny) : LoadedDevice(factory, tiny) { record(); }
};

inline std::vector<Token> random_tokens(std::mt19937& random, const TinyModel& model,
                                        std::size_t count) {
  std::vector<Token> tokens(count);
  for (Token& t : tokens) t = static_cast<Token>(random() % model.traits.vocabulary);
  return tokens;
}

/// The first `rows` of a sequence, alone in a step that opens slot 0 for it and closes it again; in
/// block 0, which holds them all. Nothing is drawn.
inline Batch whole_sequence(const std::vector<Token>& tokens, std::uint32_t rows,
                            std::uint32_t generation) {
  Batch batch;
  const SlotRef slot{0, generation};
  batch.opens.push_back({slot, {tokens.begin(), tokens.begin() + rows}, rows, {}});
  batch.grants.push_back({slot.slot, 0, {0}});
  batch.segments.push_back({slot, 0, rows, Path::prompt, false});
  batch.closes.push_back(slot);
  return batch;
}

/// Pool blocks in shuffled order, handed out and taken back.
class Blocks {
 public:
  Blocks(const TinyModel& model, std::mt19937& random) : free_(model.pool().blocks) {
    std::iota(free_.begin(), free_.end(), 0U);
    std::shuffle(free_.begin(), free_.end(), random);
  }
  std::uint32_t take() {
    BOOST_REQUIRE(!free_.empty());
    const std::uint32_t block = free_.back();
    free_.pop_back();
    return block;
  }
  void give(const std::vector<std::uint32_t>& blocks) {
    free_.insert(free_.begin(), blocks.begin(), blocks.end());
  }

 private:
  std::vector<std::uint32_t> free_;
};

/// A sequence on its way: what a scheduler would know of it.
struct Sequence {
  SlotRef slot;
  std::vector<Token> tokens;
  std::uint32_t prompt_tokens = 0;
  SamplingParams sampling;
  std::uint32_t computed = 0;
  std::vector<std::uint32_t> blocks;
  bool opened = false;

  /// Adds the next `rows` rows to a batch, and what they need.
  void plan(Batch& batch, std::uint32_t rows, bool sample, Blocks& pool,
            std::uint32_t block_tokens) {
    if (!opened) batch.opens.push_back({slot, tokens, prompt_tokens, sampling});
    opened = true;
    BlockGrant grant{slot.slot, static_cast<std::uint32_t>(blocks.size()), {}};
    while (blocks.size() * block_tokens < computed + rows) {
      grant.blocks.push_back(pool.take());
      blocks.push_back(grant.blocks.back());
    }
    if (!grant.blocks.empty()) batch.grants.push_back(grant);
    const Path path = computed < prompt_tokens ? Path::prompt : Path::decode;
    batch.segments.push_back({slot, computed, rows, path, sample});
    computed += rows;
  }
};

}  // namespace sluice::kernels::test
