#pragma once
// A model file on a real backend, and what tests ask of it: logits of every position, or of sampled
// rows in any batching.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/cuda/backend.hpp"
#include "model/decoder.hpp"
#include "tests/wanted.hpp"

namespace sluice::model::testing {

template <class T>
T require(Result<T> result) {
  BOOST_REQUIRE_MESSAGE(result.has_value(), result.error().message);
  return std::move(*result);
}

/// Rows of one sequence in a batch.
struct Part {
  kernels::SlotIndex slot = 0;
  std::uint32_t position = 0;
  std::uint32_t rows = 0;
  bool sample = false;
  kernels::Path path = kernels::Path::prompt;
};

/// The CUDA backend's own sources on the host (tests/kernels/cuda_host), where they are too slow
/// for more than a tiny checkpoint.
inline constexpr const char* emulated = "cuda-host";

/// Those that this machine has, the emulated one last, and that are wanted (tests/wanted.hpp).
inline std::vector<std::string> all_backends() {
  std::vector<std::string> names{"cpu"};
  if (kernels::choose_backend("cuda")) names.push_back("cuda");
  names.emplace_back(emulated);
  std::erase_if(names, [](const std::string& name) { return !tests::wanted(name); });
  BOOST_REQUIRE_MESSAGE(!names.empty(), "SLUICE_TEST_BACKENDS names none that is here");
  return names;
}

/// Of them those that run a real model: the CPU's, and a GPU's where there is one.
inline std::vector<std::string> usable_backends() {
  std::vector<std::string> names = all_backends();
  std::erase(names, emulated);
  return names;
}

inline Result<std::unique_ptr<kernels::Backend>> make_backend(const std::string& name,
                                                              std::uint32_t threads,
                                                              kernels::Completion completion) {
  if (name != emulated) return kernels::make_backend(name, {.threads = threads}, completion);
  return kernels::make_cuda_backend({.reserve_bytes = 0, .split_tokens = 64, .nccl = ""},
                                    completion);
}

class LoadedModel {
 public:
  static constexpr std::uint32_t block_tokens = 16;
  static constexpr std::uint32_t slots = 3;
  static constexpr std::uint32_t rows_max = 64;

  /// With a group, the part of the model that this rank has.
  explicit LoadedModel(const std::string& path, std::uint32_t context_tokens = 128,
                       std::uint32_t threads = 2,
                       const std::shared_ptr<kernels::Communicator>& group = nullptr,
                       const std::string& backend_name = "cpu",
                       Quantization quantization = Quantization::none,
                       kernels::KvFormat kv_format = kernels::KvFormat::f16)
      : file(require(open_checkpoint(path))), config(require(file->config())) {
    backend = require(make_backend(backend_name, threads, [this](kernels::StepResult&& result) {
      const std::lock_guard lock(mutex_);
      results_.push_back(std::move(result));
      arrived_.notify_one();
    }));
    group_ = group;
    kernels::PoolShape pool;
    pool.layers = config.layers;
    const Shard shard = group == nullptr ? Shard{} : group->shard();
    pool.kv_heads = shard_heads(config.heads, shard).kv_heads;
    pool.head_dim = config.heads.head_dim;
    slot_blocks_ = (context_tokens + block_tokens - 1) / block_tokens;
    pool.blocks = slots * slot_blocks_;
    pool.block_tokens = block_tokens;
    pool.slots = slots;
    pool.context_tokens = context_tokens;
    pool.rows_max = rows_max;
    pool.vocabulary = config.vocabulary;
    pool.kv_format = kv_format;
    const auto allocated = backend->allocate(pool);
    BOOST_REQUIRE_MESSAGE(allocated.has_value(), allocated.error().message);
    if (group != nullptr) {
      const auto joined = backend->join(group);
      BOOST_REQUIRE_MESSAGE(joined.has_value(), joined.error().message);
    }
    decoder = require(load_decoder(*file, config, *backend, {}, shard, quantization));
    record_every_row();
  }

  /// Starts a sequence in a slot with all its tokens; one batch later it can be computed.
  void open(kernels::SlotIndex slot, const std::vector<Token>& tokens) {
    opens_.push_back(
        {{slot, ++generations_[slot]}, tokens, static_cast<std::uint32_t>(tokens.size()), {}});
    opens_.back().sampling.temperature = 0;
    kernels::BlockGrant grant{slot, 0, {}};
    // The slots' blocks lie interleaved and backwards: no position may rely on neighbours.
    for (std::uint32_t b = 0; b < slot_blocks_; ++b) {
      grant.blocks.push_back((slot_blocks_ - 1 - b) * slots + slot);
    }
    grants_.push_back(grant);
  }

  void close(kernels::SlotIndex slot) { closes_.push_back({slot, generations_[slot]}); }

  /// Runs one step; returns the tokens that the sampled parts drew.
  std::vector<Token> run(const std::vector<Part>& parts) { return run(decoder.program, parts); }

  /// Runs one step, which may fail.
  kernels::StepResult step(const std::vector<Part>& parts) { return step(decoder.program, parts); }

  /// The logits of the last step's n-th sampled row. All ranks of a group call it: each has those
  /// of its own tokens.
  std::vector<float> sampled_logits(std::size_t n) {
    if (group_ != nullptr && group_->shard().size > 1) return gathered_logits(n);
    auto rows = read(decoder.program, decoder.logits, n + 1);
    rows.erase(rows.begin(), rows.end() - static_cast<std::ptrdiff_t>(config.vocabulary));
    return rows;
  }

  /// Computes a sequence by the prompt path in chunks of `chunk` rows, and shows each position's
  /// logits. The output layer is applied to every row, by a program of the test's own.
  void every_row(const std::vector<Token>& tokens, std::uint32_t chunk,
                 const std::function<void(std::size_t, std::span<const float>)>& visit) {
    open(0, tokens);
    const auto total = static_cast<std::uint32_t>(tokens.size());
    for (std::uint32_t at = 0; at < total; at += chunk) {
      const std::uint32_t rows = std::min(chunk, total - at);
      if (at + rows == total) close(0);
      run(every_row_, {{0, at, rows}});
      const auto logits = read(every_row_, row_logits_, rows);
      for (std::uint32_t r = 0; r < rows; ++r) {
        visit(at + r,
              std::span(logits).subspan(std::size_t{r} * config.vocabulary, config.vocabulary));
      }
    }
  }

  std::shared_ptr<const Checkpoint> file;
  ModelConfig config;
  Decoder decoder;
  std::unique_ptr<kernels::Backend> backend;  ///< declared after what it reads in place

 private:
  std::vector<float> gathered_logits(std::size_t n) {
    const Shard shard = group_->shard();
    const auto gather = std::get<kernels::AllGather>(*(decoder.steps.ops.end() - 2));
    const std::uint32_t width = decoder.steps.buffers[gather.in.index].width;
    const std::size_t widest = (config.vocabulary + shard.size - 1) / shard.size;
    std::vector<float> own((n + 1) * width), all(shard.size * widest), row;
    BOOST_REQUIRE(backend->read(decoder.program, gather.in, own).has_value());
    own.erase(own.begin(), own.end() - width);
    own.resize(widest);
    BOOST_REQUIRE(group_->all_gather(std::as_bytes(std::span(own)),
                                     std::as_writable_bytes(std::span(all))).has_value());
    for (std::uint32_t rank = 0; rank < shard.size; ++rank) {
      const std::uint32_t count = kernels::shard_count(config.vocabulary, {rank, shard.size});
      const auto from = all.begin() + static_cast<std::ptrdiff_t>(rank * widest);
      row.insert(row.end(), from, from + count);
    }
    return row;
  }

  /// What comes after the selections, over all rows of the batch instead.
  void record_every_row() {
    kernels::StepProgram steps = decoder.steps;
    const auto select = std::find_if(steps.ops.begin(), steps.ops.end(), [](const auto& op) {
      return std::holds_alternative<kernels::Select>(op);
    });
    BOOST_REQUIRE(select != steps.ops.end());
    std::vector<kernels::Op> rest(select, steps.ops.end());
    steps.ops.erase(select, steps.ops.end());
    std::vector<kernels::Buffer> over_rows;
    const std::size_t count = steps.buffers.size();
    for (std::uint32_t i = 0; i < count; ++i) {
      over_rows.push_back({i});
      if (steps.buffers[i].rows == kernels::RowSpace::batch) continue;
      over_rows[i] = {static_cast<std::uint32_t>(steps.buffers.size())};
      steps.buffers.push_back({kernels::RowSpace::batch, steps.buffers[i].width});
    }
    for (const kernels::Op& op : rest) {
      if (const auto* one = std::get_if<kernels::Select>(&op)) over_rows[one->out.index] = one->in;
    }
    row_logits_ = over_rows[decoder.logits.index];
    for (kernels::Op& op : rest) {
      if (std::holds_alternative<kernels::Select>(op)) continue;
      std::visit(
          [&](auto& one) {
            if constexpr (requires { one.in; }) one.in = over_rows[one.in.index];
            if constexpr (requires { one.out; }) one.out = over_rows[one.out.index];
            if constexpr (requires { one.values; }) one.values = over_rows[one.values.index];
          },
          op);
      if (!std::holds_alternative<kernels::Sample>(op)) steps.ops.push_back(op);
    }
    every_row_ = require(backend->record(steps));
  }

  std::vector<Token> run(kernels::ProgramId program, const std::vector<Part>& parts) {
    const kernels::StepResult result = step(program, parts);
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    std::vector<Token> tokens;
    for (const auto& slot : result.slots) {
      tokens.insert(tokens.end(), slot.tokens.begin(), slot.tokens.end());
    }
    return tokens;
  }

  kernels::StepResult step(kernels::ProgramId program, const std::vector<Part>& parts) {
    kernels::Batch batch;
    batch.opens = std::move(opens_);
    batch.grants = std::move(grants_);
    batch.closes = std::move(closes_);
    opens_.clear();
    grants_.clear();
    closes_.clear();
    for (const Part& part : parts) {
      batch.segments.push_back(
          {{part.slot, generations_[part.slot]}, part.position, part.rows, part.path, part.sample});
    }
    backend->submit(program, ++ticket_, std::move(batch));
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !results_.empty(); });
    kernels::StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  std::vector<float> read(kernels::ProgramId program, kernels::Buffer buffer, std::size_t rows) {
    std::vector<float> values(rows * config.vocabulary);
    const auto done = backend->read(program, buffer, values);
    BOOST_REQUIRE_MESSAGE(done.has_value(), done.error().message);
    return values;
  }

  std::shared_ptr<kernels::Communicator> group_;
  kernels::ProgramId every_row_;
  kernels::Buffer row_logits_;
  std::uint32_t slot_blocks_ = 0;
  std::uint32_t generations_[slots] = {};
  std::vector<kernels::SlotOpen> opens_;
  std::vector<kernels::BlockGrant> grants_;
  std::vector<kernels::SlotRef> closes_;
  kernels::Ticket ticket_ = 0;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<kernels::StepResult> results_;
};

/// A fixture of u32 and f32 words, read from front to back.
class WordReader {
 public:
  explicit WordReader(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    BOOST_REQUIRE_MESSAGE(file.good(), "cannot open " << path);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    words_.resize(bytes.size() / 4);
    std::copy_n(bytes.begin(), words_.size() * 4, reinterpret_cast<char*>(words_.data()));
  }

  std::uint32_t u32() {
    BOOST_REQUIRE(at_ < words_.size());
    return words_[at_++];
  }
  float f32() { return std::bit_cast<float>(u32()); }
  std::vector<std::uint32_t> u32s(std::size_t count) {
    std::vector<std::uint32_t> values(count);
    for (auto& value : values) value = u32();
    return values;
  }
  std::vector<float> f32s(std::size_t count) {
    std::vector<float> values(count);
    for (auto& value : values) value = f32();
    return values;
  }
  bool at_end() const { return at_ == words_.size(); }

 private:
  std::vector<std::uint32_t> words_;
  std::size_t at_ = 0;
};

}  // namespace sluice::model::testing
