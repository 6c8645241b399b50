#pragma once
// Kernels one behind the other on a stream, each of which may start before the one before it has
// ended: programmatic dependent launch, of devices since sm_90.
//
// The rule, which every kernel keeps (device.cuh has the two calls, and the host's shim refuses a
// kernel that misses one):
//   - at its begin it lets the next kernel start (start_next), and then waits until those before it
//     have ended and what they wrote can be seen (await_previous);
//   - before that wait it touches only what no kernel behind the step's first writes: arguments,
//     weights, the step's metadata, the slots' blocks, and keys and values of earlier steps. A
//     step's first kernel starts when what writes these has ended;
//   - the wait comes before the end of every thread, also of one that has nothing to do.
// So that a kernel has ended tells that all before it have: whoever waits for one waits for all,
// also a copy, an event, a graph or a collective, and what a kernel writes nobody still reads.
// Behind anything but a kernel of this folder a launch is a plain one: what others put on the
// stream need not keep the rule.
//
// The next kernel starts when the last block of this one has started, which is when none of these
// needs the room any more: its blocks take what becomes free, and products ask for their first
// weights, as many as they have room for, while others finish. A kernel of one block lets several
// behind it come that far. A layer of a decoding step is six kernels or more, and between two of
// them the memory would idle until the last block has ended, the next has started and its first
// read has come. Seen on an H200, when they were nine: a step of an 8B model in bf16 takes 4.13 ms
// so, and 4.39 ms without.
//
// What becomes free is free on some multiprocessors before others. Of a kernel of many small blocks
// some would get most, others none: products so lost on an H200 what they had gained, and more. So
// linear_stream.cu's blocks fill a multiprocessor.

#include <cuda_runtime.h>

namespace sluice::kernels::cuda {

/// The order of launches on a stream. One thread's at a time.
class LaunchChain {
 public:
  /// `early`: whether kernels may start early, which takes a device, a driver and code for it.
  explicit LaunchChain(cudaStream_t stream, bool early = false) : stream_(stream), early_(early) {}

  /// The stream, for what is no launch of this folder's kernels: the kernel behind it starts when
  /// all before has ended.
  cudaStream_t interrupted() {
    behind_kernel_ = false;
    return stream_;
  }

  // For launch() (device.cuh) alone.
  cudaStream_t stream() const { return stream_; }
  bool next_starts_early() const { return early_ && behind_kernel_; }
  void launched() { behind_kernel_ = true; }

 private:
  cudaStream_t stream_;
  bool early_;
  bool behind_kernel_ = false;
};

}  // namespace sluice::kernels::cuda
