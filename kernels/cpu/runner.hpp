#pragma once
// Runs one step: opens slots, gives every thread its share of each stage, closes slots.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cpu/cores.hpp"
#include "kernels/cpu/program.hpp"
#include "kernels/cpu/sample.hpp"
#include "kernels/cpu/state.hpp"
#include "kernels/cpu/task_shares.hpp"
#include "kernels/cpu/thread_pool.hpp"

namespace sluice::kernels::cpu {

class StepRunner {
 public:
  StepRunner(ThreadPool& threads, const KvPool& kv, SlotTable& slots);

  /// Makes room for a program, so that its steps allocate nothing.
  void prepare(const Program& program, const PoolShape& pool);

  /// Closes all slots and forgets a failure; collectives go to `group` from now on.
  void join(std::shared_ptr<Communicator> group);

  /// Why a step failed; no step runs after that. None: all is well.
  const std::optional<Error>& failure() const { return failure_; }

  /// Runs a batch. Afterwards `results` has an entry for each sampled segment, with its token if
  /// the batch samples now, unless the step failed. Thread 0 calls `meanwhile` once the others are
  /// at work.
  void run(const Program& program, const Batch& batch, std::vector<SlotTokens>& results,
           const std::function<void()>& meanwhile);

  /// Draws for the masks' slots; fills their entries in `results`, or appends them.
  void sample(std::span<const Mask> masks, std::vector<SlotTokens>& results);

 private:
  struct Row {
    Slot* slot = nullptr;
    std::uint32_t position = 0;
  };

  /// Rows of one segment that attend together.
  struct RowGroup {
    std::uint32_t row = 0;
    std::uint32_t rows = 0;
  };

  /// A sampled row on its way from candidates to a token.
  struct Draw {
    Peak peak;  ///< of all ranks' tokens
    TokenValues adjusted;
    std::size_t tally_at = 0;  ///< bytes behind the first row's
    std::size_t tally_bytes = 0;
    bool settled = false;
  };

  void place(const Batch& batch, std::vector<SlotTokens>& results);
  void run_stages(std::uint32_t thread);
  Result<void> gather(const AllGatherStage& stage);
  Result<void> meet_peaks(const CandidateStage& stage);
  Result<void> meet_tallies(const CandidateStage& stage);
  Tallies tallies(const CandidateStage& stage, std::uint32_t row) const;
  Slot& sampled_slot(std::uint32_t index) const;
  void note(Result<void> done, std::size_t stage);

  std::uint32_t row_count(RowSpace space) const;
  std::uint32_t attention_rows(std::uint32_t left) const;
  std::uint32_t row_chunk(std::uint32_t rows) const;
  std::uint32_t strips(const LinearStage& stage) const;
  std::uint32_t strips_together(const LinearStage& stage) const;
  std::uint32_t heads_per_task(const HeadShape& shape) const;

  std::uint32_t tasks(const EmbedStage& stage) const;
  std::uint32_t tasks(const NormStage& stage) const;
  std::uint32_t tasks(const LinearStage& stage) const;
  std::uint32_t tasks(const RoundStage& stage) const;
  std::uint32_t tasks(const AnglesStage& stage) const;
  std::uint32_t tasks(const RopeStage& stage) const;
  std::uint32_t tasks(const AttentionStage& stage) const;
  std::uint32_t tasks(const GateStage& stage) const;
  std::uint32_t tasks(const SoftCapStage& stage) const;
  std::uint32_t tasks(const AllReduceStage& stage) const;
  std::uint32_t tasks(const CandidateStage& stage) const;
  std::uint32_t tasks(const AllGatherStage& stage) const;
  std::uint32_t tasks(const SelectStage& stage) const;
  std::uint32_t tasks(const SampleStage& stage) const;

  void task(const EmbedStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const NormStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const LinearStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const RoundStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const AnglesStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const RopeStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const AttentionStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const GateStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const SoftCapStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const AllReduceStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const CandidateStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const AllGatherStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const SelectStage& stage, std::uint32_t index, std::uint32_t thread);
  void task(const SampleStage& stage, std::uint32_t index, std::uint32_t thread);

  ThreadPool& threads_;
  const KvPool& kv_;
  SlotTable& slots_;
  std::vector<Breather> breathers_;  ///< one a thread
  CoreKeeper cores_;
  std::shared_ptr<Communicator> group_;
  std::uint32_t vocabulary_ = 0;

  std::vector<ZeroPages> scratch_;  ///< one a thread
  std::size_t scratch_floats_ = 0;
  std::vector<SampleScratch> sample_scratch_;  ///< one a thread
  TaskShares shares_;

  std::optional<Error> failure_;
  /// The stage whose collective failed. Threads leave at its end: all of them, for a later
  /// stage's failure is none of one that is still on its way.
  std::atomic<std::size_t> failed_stage_{none_failed};
  static constexpr std::size_t none_failed = SIZE_MAX;

  // The step that is running.
  const Program* program_ = nullptr;
  const Batch* batch_ = nullptr;
  std::vector<SlotTokens>* results_ = nullptr;
  std::vector<Row> rows_;
  std::vector<std::uint32_t> sampled_;   ///< rows
  std::vector<Draw> draws_;              ///< of these
  std::vector<std::uint32_t> gathered_;  ///< rows, where not all are
  std::size_t tally_bytes_ = 0;          ///< of a rank's, all rows
  std::vector<RowGroup> groups_;
};

}  // namespace sluice::kernels::cpu
