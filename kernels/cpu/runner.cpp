#include "kernels/cpu/runner.hpp"

#include <algorithm>
#include <cstring>
#include <functional>

#include "kernels/cpu/layer_ops.hpp"
#include "kernels/cpu/tiles.hpp"

namespace sluice::kernels::cpu {
namespace {

// Columns of a gate or a soft cap that one task takes: some 2,000 cycles, ten times what fetching a
// task costs.
constexpr std::uint32_t gate_columns = 1024;

// Tasks of a product for each thread. Weights are best read in long stretches, where that bounds;
// with many rows a task takes long, and more of them end together.
constexpr std::uint32_t stream_rows_max = 64;
constexpr std::uint32_t stream_tasks = 2;
constexpr std::uint32_t many_rows_tasks = 16;

// Stages between looks at the clock.
constexpr std::size_t breath_stages = 4;

std::uint32_t divide_up(std::uint32_t a, std::uint32_t b) { return (a + b - 1) / b; }

}  // namespace

StepRunner::StepRunner(ThreadPool& threads, const KvPool& kv, SlotTable& slots)
    : threads_(threads), kv_(kv), slots_(slots), breathers_(threads.threads()),
      cores_(threads.threads()), shares_(threads.threads()) {}

void StepRunner::prepare(const Program& program, const PoolShape& pool) {
  vocabulary_ = pool.vocabulary;
  rows_.reserve(pool.rows_max);
  groups_.reserve(pool.rows_max);
  sampled_.reserve(rows_max(pool, RowSpace::sampled));
  draws_.reserve(sampled_.capacity());
  gathered_.reserve(rows_max(pool, RowSpace::batch));
  if (sample_scratch_.empty())
    sample_scratch_.assign(threads_.threads(), SampleScratch(vocabulary_));
  if (program.scratch_floats() > scratch_floats_) {
    scratch_floats_ = program.scratch_floats();
    scratch_.clear();
    for (std::uint32_t t = 0; t < threads_.threads(); ++t) {
      auto pages = ZeroPages::make(scratch_floats_ * sizeof(float), "a thread's scratch");
      SLUICE_ASSERT(pages.has_value(), "no address space for a thread's scratch");
      scratch_.push_back(std::move(*pages));
    }
  }
}

void StepRunner::place(const Batch& batch, std::vector<SlotTokens>& results) {
  rows_.clear();
  sampled_.clear();
  groups_.clear();
  const PoolShape& pool = kv_.shape();
  for (const Segment& segment : batch.segments) {
    Slot& slot = slots_.at(segment.slot);
    const std::uint32_t end = segment.position + segment.rows;
    SLUICE_ASSERT(segment.rows >= 1 && end <= pool.context_tokens, "a segment beyond the context");
    SLUICE_ASSERT(rows_.size() + segment.rows <= pool.rows_max, "more rows than rows_max");
    for (std::uint32_t block = segment.position / pool.block_tokens;
         block <= (end - 1) / pool.block_tokens; ++block) {
      SLUICE_ASSERT(slot.blocks[block] < pool.blocks, "a segment in a block never granted");
    }
    for (std::uint32_t i = 0; i < segment.rows;) {
      const std::uint32_t together = attention_rows(segment.rows - i);
      groups_.push_back({static_cast<std::uint32_t>(rows_.size()) + i, together});
      i += together;
    }
    for (std::uint32_t i = 0; i < segment.rows; ++i) rows_.push_back({&slot, segment.position + i});
    if (!segment.sample) continue;
    sampled_.push_back(static_cast<std::uint32_t>(rows_.size()) - 1);
    results.emplace_back().slot = segment.slot;
  }
  draws_.assign(sampled_.size(), {});
  tally_bytes_ = 0;
}

void StepRunner::join(std::shared_ptr<Communicator> group) {
  group_ = std::move(group);
  failure_.reset();
  failed_stage_ = none_failed;
  slots_.close_all();
}

void StepRunner::run(const Program& program, const Batch& batch, std::vector<SlotTokens>& results,
                     const std::function<void()>& meanwhile) {
  if (failure_) return;
  for (const SlotOpen& open : batch.opens) slots_.open(open);
  for (const BlockGrant& grant : batch.grants) slots_.grant(grant);
  results.reserve(batch.segments.size());
  place(batch, results);
  program_ = &program;
  batch_ = &batch;
  results_ = &results;
  if (!rows_.empty()) {
    shares_.begin();
    cores_.begin();
    threads_.run([&](std::uint32_t thread) {
      if (thread == 0) {
        meanwhile();
        // Who hears of it may be awake without a core, interrupted as it was about to sleep.
        breathers_[0].breathe_now();
      }
      run_stages(thread);
    });
  } else {
    meanwhile();
  }
  for (const SlotRef& ref : batch.closes) slots_.close(ref);
}

void StepRunner::sample(std::span<const Mask> masks, std::vector<SlotTokens>& results) {
  if (failure_) return;
  for (const Mask& mask : masks) {
    Slot* slot = slots_.find(mask.slot);
    if (slot == nullptr || !slot->held) continue;
    slot->held = false;
    SlotTokens drawn = draw(*slot, {slot->held_logits, vocabulary_}, mask.allowed,
                            sample_scratch_.front());
    const auto entry = std::find_if(results.begin(), results.end(),
                                    [&](const SlotTokens& r) { return r.slot == mask.slot; });
    if (entry != results.end()) {
      *entry = std::move(drawn);
    } else {
      results.push_back(std::move(drawn));
    }
  }
}

/// A stage is over once its tasks are, and not once every thread has been there: where a token on
/// its way to a client takes a core for a while, the other threads go on without that one's.
void StepRunner::run_stages(std::uint32_t thread) {
  const std::span<const Stage> stages = program_->stages();
  std::uint64_t tasks_so_far = 0;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    std::visit(
        [&](const auto& stage) {
          const std::uint32_t count = tasks(stage);
          if (count == 0) return;
          shares_.work(static_cast<std::uint32_t>(i) + 1, count, thread,
                       [&](std::uint32_t index) { task(stage, index, thread); });
          // With nothing in hand: whom this lets in delays no task.
          if (i % breath_stages == 0) {
            breathers_[thread].breathe();
            cores_.keep_apart(thread);
          }
          tasks_so_far += count;
          ThreadPool::wait([&] { return shares_.finished(tasks_so_far); });
        },
        stages[i]);
    if (failed_stage_.load(std::memory_order_relaxed) <= i) return;
  }
}

std::uint32_t StepRunner::row_count(RowSpace space) const {
  return static_cast<std::uint32_t>(space == RowSpace::batch ? rows_.size() : sampled_.size());
}

/// How many of the rows left of a segment attend together.
std::uint32_t StepRunner::attention_rows(std::uint32_t left) const {
  return std::min(left, kv_.paired() && has_tiles() ? tiled_group_rows : group_rows);
}

/// Rows that one task of a cheap row-wise stage takes.
std::uint32_t StepRunner::row_chunk(std::uint32_t rows) const {
  return std::clamp(rows / (4 * threads_.threads()), 1U, 8U);
}

/// Strips of a stage's products, one product behind the other.
std::uint32_t StepRunner::strips(const LinearStage& stage) const {
  std::uint32_t count = 0;
  for (const Product& product : stage.products) count += product.weight->strips();
  return count;
}

/// Strips that tasks do not part: those that lie interleaved, and the pairs that share what they
/// load of several rows, where a thread has enough of them that one more does not count.
std::uint32_t StepRunner::strips_together(const LinearStage& stage) const {
  const std::uint32_t rows = row_count(stage.space);
  if (rows > stream_rows_max) return 2;
  if (rows >= paired_rows && strips(stage) >= 16 * threads_.threads()) return 2;
  return stage.products.front().weight->beside();
}

/// Heads that attend together: those of one key head, which share its keys and values; single ones
/// where some threads would have none.
std::uint32_t StepRunner::heads_per_task(const HeadShape& shape) const {
  const auto groups = static_cast<std::uint32_t>(groups_.size());
  if (groups * shape.kv_heads < threads_.threads()) return 1;
  return std::min(group_heads, shape.heads / shape.kv_heads);
}

std::uint32_t StepRunner::tasks(const EmbedStage&) const {
  const std::uint32_t rows = row_count(RowSpace::batch);
  return divide_up(rows, row_chunk(rows));
}

void StepRunner::task(const EmbedStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t rows = row_count(RowSpace::batch);
  const std::uint32_t chunk = row_chunk(rows);
  for (std::uint32_t r = index * chunk; r < std::min(rows, (index + 1) * chunk); ++r) {
    const Token token = rows_[r].slot->input(rows_[r].position);
    const Token first = stage.first_token.value_or(0);
    if (stage.first_token && (token < first || token - first >= stage.table.rows)) {
      std::fill_n(stage.out.row(r), stage.out.stride, 0.0F);
    } else {
      embed_row(stage.table, token - first, stage.scale, stage.out.row(r));
    }
  }
}

std::uint32_t StepRunner::tasks(const NormStage& stage) const {
  const std::uint32_t rows = row_count(stage.space);
  return divide_up(rows, row_chunk(rows));
}

void StepRunner::task(const NormStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t rows = row_count(stage.space);
  const std::uint32_t chunk = row_chunk(rows);
  for (std::uint32_t r = index * chunk; r < std::min(rows, (index + 1) * chunk); ++r) {
    norm_row(stage.in.row(r), stage.gain, stage.width, stage.epsilon, stage.accumulate,
             stage.out.row(r));
    round_row(stage.out.row(r), 0, stage.width, stage.rounded, r, rows);
  }
}

std::uint32_t StepRunner::tasks(const LinearStage& stage) const {
  const std::uint32_t rows = row_count(stage.space);
  if (rows == 0) return 0;
  const std::uint32_t each = rows <= stream_rows_max ? stream_tasks : many_rows_tasks;
  return std::min(divide_up(strips(stage), strips_together(stage)), each * threads_.threads());
}

void StepRunner::task(const LinearStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t rows = row_count(stage.space);
  const std::uint32_t all = strips(stage);
  const std::uint32_t count = tasks(stage);
  const std::uint32_t together = strips_together(stage);
  const auto cut = [&](std::uint32_t task) {
    const std::uint64_t units = divide_up(all, together);
    return std::min(all, static_cast<std::uint32_t>(units * task / count * together));
  };
  std::uint32_t first = cut(index), last = cut(index + 1);
  for (const Product& product : stage.products) {
    const std::uint32_t size = product.weight->strips();
    if (first < size && first < last) multiply(product, rows, first, std::min(last, size));
    first -= std::min(first, size);
    last -= std::min(last, size);
  }
}

std::uint32_t StepRunner::tasks(const RoundStage& stage) const {
  const std::uint32_t rows = row_count(stage.space);
  return divide_up(rows, row_chunk(rows));
}

void StepRunner::task(const RoundStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t rows = row_count(stage.space);
  const std::uint32_t chunk = row_chunk(rows);
  for (std::uint32_t r = index * chunk; r < std::min(rows, (index + 1) * chunk); ++r) {
    round_row(stage.in.row(r), 0, stage.width, stage.rounded, r, rows);
  }
}

std::uint32_t StepRunner::tasks(const AnglesStage&) const {
  const std::uint32_t rows = row_count(RowSpace::batch);
  return divide_up(rows, row_chunk(rows));
}

void StepRunner::task(const AnglesStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t rows = row_count(RowSpace::batch);
  const std::uint32_t chunk = row_chunk(rows);
  for (std::uint32_t r = index * chunk; r < std::min(rows, (index + 1) * chunk); ++r) {
    angles_row(rows_[r].position, stage.inverse_frequencies, stage.pairs, stage.magnitude,
               stage.out.row(r));
  }
}

std::uint32_t StepRunner::tasks(const RopeStage& stage) const {
  return row_count(RowSpace::batch) * stage.shape.kv_heads;
}

void StepRunner::task(const RopeStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t r = index / stage.shape.kv_heads;
  const std::uint32_t kv_head = index % stage.shape.kv_heads;
  const std::uint32_t head_dim = stage.shape.head_dim;
  const std::uint32_t shared = stage.shape.heads / stage.shape.kv_heads;
  float* row = stage.qkv.row(r);
  const float* angles = stage.angles.row(r);
  for (std::uint32_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
    float* head = row + h * head_dim;
    if (stage.q_gain != nullptr) norm_head(head, stage.q_gain, head_dim, stage.epsilon, head);
    rotate_head(head, angles, stage.pairs, stage.order);
  }
  const std::uint32_t block_tokens = kv_.shape().block_tokens;
  const std::uint32_t position = rows_[r].position;
  const std::uint32_t block = rows_[r].slot->blocks[position / block_tokens];
  const KvPlace place = kv_.place(stage.layer, block, kv_head, position % block_tokens);
  const float* key = row + (stage.shape.heads + kv_head) * head_dim;
  const float* value = key + stage.shape.kv_heads * head_dim;
  float normed[head_dim_max];
  if (stage.k_gain != nullptr) {
    norm_head(key, stage.k_gain, head_dim, stage.epsilon, normed);
    key = normed;
  }
  store_head(key, value, head_dim, angles, stage.pairs, stage.order, place);
}

std::uint32_t StepRunner::tasks(const AttentionStage& stage) const {
  const HeadShape& shape = stage.work.shape;
  const std::uint32_t shared = shape.heads / shape.kv_heads;
  return static_cast<std::uint32_t>(groups_.size()) * shape.kv_heads *
         divide_up(shared, heads_per_task(shape));
}

void StepRunner::task(const AttentionStage& stage, std::uint32_t index, std::uint32_t thread) {
  const HeadShape& shape = stage.work.shape;
  const std::uint32_t shared = shape.heads / shape.kv_heads;
  const std::uint32_t heads = heads_per_task(shape);
  const std::uint32_t splits = divide_up(shared, heads);
  const std::uint32_t per_group = shape.kv_heads * splits;
  // Later rows see more keys: the longest tasks go first.
  const RowGroup& rows = groups_[groups_.size() - 1 - index / per_group];
  const std::uint32_t kv_head = index % per_group / splits;
  const std::uint32_t first = index % splits * heads;
  QueryGroup group;
  group.slot = rows_[rows.row].slot;
  group.row = rows.row;
  group.position = rows_[rows.row].position;
  group.rows = rows.rows;
  group.head = kv_head * shared + first;
  group.heads = std::min(heads, shared - first);
  attend(stage.work, kv_, group, scratch_[thread].as<float>());
  for (std::uint32_t r = group.row; r < group.row + group.rows; ++r) {
    round_row(stage.work.out.row(r), group.head * shape.head_dim,
              (group.head + group.heads) * shape.head_dim, stage.rounded, r, rows_.size());
  }
}

std::uint32_t StepRunner::tasks(const GateStage& stage) const {
  return row_count(stage.space) * divide_up(stage.width, gate_columns);
}

void StepRunner::task(const GateStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t per_row = divide_up(stage.width, gate_columns);
  const std::uint32_t r = index / per_row;
  const std::uint32_t first = index % per_row * gate_columns;
  const std::uint32_t last = std::min(stage.width, first + gate_columns);
  gate_row(stage.in.row(r), stage.activation, stage.width, first, last, stage.out.row(r));
  round_row(stage.out.row(r), first, last, stage.rounded, r, row_count(stage.space));
}

std::uint32_t StepRunner::tasks(const SoftCapStage& stage) const {
  return row_count(stage.space) * divide_up(stage.width, gate_columns);
}

void StepRunner::task(const SoftCapStage& stage, std::uint32_t index, std::uint32_t) {
  const std::uint32_t per_row = divide_up(stage.width, gate_columns);
  const std::uint32_t first = index % per_row * gate_columns;
  soft_cap_row(stage.cap, first, std::min(stage.width, first + gate_columns),
               stage.values.row(index / per_row));
}

/// By the one thread that runs a collective.
void StepRunner::note(Result<void> done, std::size_t stage) {
  if (done) return;
  failure_ = std::move(done.error());
  failed_stage_.store(stage, std::memory_order_relaxed);
}

std::uint32_t StepRunner::tasks(const AllReduceStage& stage) const {
  return std::min(1U, row_count(stage.space));
}

void StepRunner::task(const AllReduceStage& stage, std::uint32_t, std::uint32_t) {
  const std::size_t floats = row_count(stage.space) * stage.values.stride;
  note(group_->all_reduce({stage.values.data, floats}), stage.index);
}

/// The slot of a row whose logits are of its last token.
Slot& StepRunner::sampled_slot(std::uint32_t index) const {
  const Row& row = rows_[sampled_[index]];
  SLUICE_ASSERT(row.slot->error || row.position + 1 == row.slot->token_count,
                "only a sequence's last token can be followed by a drawn one");
  return *row.slot;
}

std::uint32_t StepRunner::tasks(const CandidateStage& stage) const {
  using Part = CandidateStage::Part;
  const std::uint32_t rows = batch_->sample_now ? row_count(RowSpace::sampled) : 0;
  if (stage.part == Part::meet_peaks) return std::min(1U, rows);
  if (stage.part == Part::tally && tally_bytes_ == 0) return 0;
  if (stage.part == Part::meet_tallies) return tally_bytes_ == 0 ? 0 : 1;
  return rows;
}

void StepRunner::task(const CandidateStage& stage, std::uint32_t index, std::uint32_t thread) {
  using Part = CandidateStage::Part;
  if (stage.part == Part::meet_peaks) return note(meet_peaks(stage), stage.index);
  if (stage.part == Part::meet_tallies) return note(meet_tallies(stage), stage.index);
  Slot& slot = sampled_slot(index);
  Draw& row = draws_[index];
  const Shard shard = group_->shard();
  Peak& own = stage.peaks[shard.rank * draws_.size() + index];
  if (stage.part == Part::find_peaks) {
    const Token first = shard_begin(vocabulary_, shard.rank, shard.size);
    own = find_peak(slot, {first, {stage.in.row(index), stage.width}},
                    {stage.adjusted.row(index), stage.adjusted.stride}, row.adjusted);
  } else if (stage.part == Part::tally) {
    if (row.tally_bytes == 0) return;
    tally(slot, row.adjusted, own.best, row.peak, vocabulary_, sample_scratch_[thread],
          tallies(stage, index), shard.rank);
  } else if (auto drawn = settle(slot, row.peak, tallies(stage, index), vocabulary_,
                                 sample_scratch_[thread])) {
    (*results_)[index] = std::move(*drawn);
    row.settled = true;
  }
}

Tallies StepRunner::tallies(const CandidateStage& stage, std::uint32_t row) const {
  const Draw& draw = draws_[row];
  return {stage.tallies + draw.tally_at, draw.tally_bytes, tally_bytes_, group_->shard().size};
}

/// Then every rank knows the rows' peaks, and how long their tallies will be.
Result<void> StepRunner::meet_peaks(const CandidateStage& stage) {
  const Shard shard = group_->shard();
  const std::size_t rows = draws_.size();
  const std::span<const Peak> own(stage.peaks + shard.rank * rows, rows);
  const std::span<Peak> all(stage.peaks, shard.size * rows);
  if (auto met = group_->all_gather(std::as_bytes(own), std::as_writable_bytes(all)); !met) {
    return met;
  }
  for (std::size_t r = 0; r < rows; ++r) {
    Draw& row = draws_[r];
    row.peak = all[r];
    for (std::uint32_t rank = 1; rank < shard.size; ++rank) {
      row.peak = higher(row.peak, all[rank * rows + r]);
    }
    row.tally_at = tally_bytes_;
    row.tally_bytes = tally_bytes(*rows_[sampled_[r]].slot, row.peak, vocabulary_);
    tally_bytes_ += row.tally_bytes;
  }
  return {};
}

Result<void> StepRunner::meet_tallies(const CandidateStage& stage) {
  const Shard shard = group_->shard();
  const std::span<std::byte> all(stage.tallies, shard.size * tally_bytes_);
  return group_->all_gather(all.subspan(shard.rank * tally_bytes_, tally_bytes_), all);
}

std::uint32_t StepRunner::tasks(const AllGatherStage& stage) const {
  return std::min(1U, row_count(stage.space));
}

void StepRunner::task(const AllGatherStage& stage, std::uint32_t, std::uint32_t) {
  note(gather(stage), stage.index);
}

/// Ranks' columns differ by one at most: what is sent is as wide as the widest.
Result<void> StepRunner::gather(const AllGatherStage& stage) {
  const Shard shard = group_->shard();
  gathered_.clear();
  for (std::uint32_t r = 0; r < row_count(stage.space); ++r) {
    if (!stage.unsettled || !draws_[r].settled) gathered_.push_back(r);
  }
  const auto rows = static_cast<std::uint32_t>(gathered_.size());
  const std::size_t own_width = shard_count(stage.width, shard);
  for (std::uint32_t first = 0; first < rows; first += stage.rows) {
    const std::uint32_t count = std::min(stage.rows, rows - first);
    const std::size_t floats = std::size_t{count} * stage.widest;
    for (std::uint32_t r = 0; r < count; ++r) {
      std::copy_n(stage.in.row(gathered_[first + r]), own_width,
                  stage.own + std::size_t{r} * stage.widest);
    }
    const std::span<const float> own(stage.own, floats);
    const std::span<float> all(stage.all, floats * shard.size);
    if (auto done = group_->all_gather(std::as_bytes(own), std::as_writable_bytes(all)); !done) {
      return done;
    }
    for (std::uint32_t rank = 0; rank < shard.size; ++rank) {
      const std::uint32_t column = shard_begin(stage.width, rank, shard.size);
      const std::size_t width = shard_count(stage.width, {rank, shard.size});
      for (std::uint32_t r = 0; r < count; ++r) {
        std::copy_n(stage.all + rank * floats + std::size_t{r} * stage.widest, width,
                    stage.out.row(gathered_[first + r]) + column);
      }
    }
  }
  return {};
}

std::uint32_t StepRunner::tasks(const SelectStage&) const { return row_count(RowSpace::sampled); }

void StepRunner::task(const SelectStage& stage, std::uint32_t index, std::uint32_t) {
  std::memcpy(stage.out.row(index), stage.in.row(sampled_[index]), stage.width * sizeof(float));
  round_row(stage.out.row(index), 0, stage.width, stage.rounded, index, sampled_.size());
}

std::uint32_t StepRunner::tasks(const SampleStage&) const { return row_count(RowSpace::sampled); }

void StepRunner::task(const SampleStage& stage, std::uint32_t index, std::uint32_t thread) {
  if (draws_[index].settled) return;
  Slot& slot = sampled_slot(index);
  const float* logits = stage.logits.row(index);
  if (batch_->sample_now) {
    (*results_)[index] = draw(slot, {logits, vocabulary_}, {}, sample_scratch_[thread]);
  } else {
    std::memcpy(slot.held_logits, logits, vocabulary_ * sizeof(float));
    slot.held = true;
  }
}

}  // namespace sluice::kernels::cpu
