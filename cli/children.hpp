#pragma once
// Executors in processes of their own, on this host: further ranks of a tensor-parallel engine, and
// executors that may be lost without the node.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/config.hpp"
#include "kernels/core.hpp"

namespace sluice::cli {

/// Nodes with the role `executor` that join the node they are started for. One that ends is started
/// again; all end with this object, and with the process however that ends.
class ChildNodes {
 public:
  /// Starts what `config` needs beside its own process, and makes it listen for them. None: null.
  /// `io` when a folder or a process cannot be made.
  static Result<std::unique_ptr<ChildNodes>> start(Config& config);
  ~ChildNodes();

  /// From now on nothing is started again: the node that they join is about to stop.
  void retire();

  /// Process ids, those of children that are being started again left out.
  std::vector<int> processes() const;

 private:
  struct Child {
    std::string name;
    std::string config;  ///< TOML
    int process = 0;     ///< 0: none
    std::thread keeper;
  };
  explicit ChildNodes(std::string folder) : folder_(std::move(folder)) {}
  void keep(Child& child);

  std::string folder_;  ///< with the socket that only this user may connect to
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Child>> children_;
};

}  // namespace sluice::cli
