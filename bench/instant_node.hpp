#pragma once
// A whole node in a process of its own, whose device answers at once.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "actors/node.hpp"
#include "bench/instant_backend.hpp"

namespace sluice::bench {

/// Lets results through, or keeps them: so a stream can be looked at before its first token.
class Gate {
 public:
  kernels::Completion behind(kernels::Completion completion) {
    completion_ = std::move(completion);
    return [this](kernels::StepResult&& result) {
      const std::lock_guard lock(mutex_);
      if (open_) completion_(std::move(result));
      else held_.push_back(std::move(result));
    };
  }
  void set(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    if (!open) return;
    for (auto& result : std::exchange(held_, {})) completion_(std::move(result));
  }

 private:
  std::mutex mutex_;
  kernels::Completion completion_;
  std::vector<kernels::StepResult> held_;
  bool open_ = true;
};

/// The child: says where it listens, then obeys 'h' (hold the device), 'g' (go) and 'q' or the end.
[[noreturn]] inline void serve(actors::NodeConfig config, int orders, int answers, bool instant) {
  int status = 1;
  {
    zmq::context_t context;
    Gate gate;
    if (instant)
      config.make_backend = [&gate](const actors::EngineConfig&, kernels::Completion completion) {
        return Result<std::unique_ptr<kernels::Backend>>(
            std::make_unique<InstantBackend>(gate.behind(std::move(completion)), false));
      };
    auto node = actors::Node::start(std::move(config), context);
    const std::string said = (node ? (*node)->address() : "failed: " + node.error().message) + "\n";
    if (::write(answers, said.data(), said.size()) > 0 && node) {
      for (char order = 0; ::read(orders, &order, 1) == 1 && order != 'q';) gate.set(order == 'g');
      status = 0;
    }
  }
  std::exit(status);  // through the leak check of a sanitized build
}

/// A node in a child process, so that its memory and processor time can be told from the caller's.
/// To be made before the caller has threads.
class NodeProcess {
 public:
  /// `instant`: the device answers at once; else it is the one that the configuration names.
  explicit NodeProcess(const actors::NodeConfig& config, bool instant = true) {
    int down[2], up[2];
    if (::pipe2(down, O_CLOEXEC) != 0 || ::pipe2(up, O_CLOEXEC) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      serve(config, down[0], up[1], instant);
    }
    ::close(down[0]);
    ::close(up[1]);
    orders_ = down[1];
    for (char c = 0; ::read(up[0], &c, 1) == 1 && c != '\n';) address_ += c;
    ::close(up[0]);
  }
  ~NodeProcess() { stop(); }
  NodeProcess(const NodeProcess&) = delete;
  NodeProcess& operator=(const NodeProcess&) = delete;

  /// Where it listens; "failed: ..." when it does not.
  const std::string& address() const { return address_; }

  /// Ends it; its exit status, or -1 when a signal did or it was over before.
  int stop() {
    if (pid_ <= 0) return -1;
    order('q');
    ::close(orders_);
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  void order(char what) const { (void)!::write(orders_, &what, 1); }

  double memory_kb() const { return value("status", "VmRSS:"); }

  /// Of all its threads.
  double cpu_seconds() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    std::string skipped;
    for (int i = 0; i < 11; ++i) fields >> skipped;
    double user = 0, system = 0;
    fields >> user >> system;
    return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }

 private:
  double value(const std::string& file, const std::string& key) const {
    std::ifstream in("/proc/" + std::to_string(pid_) + "/" + file);
    for (std::string word; in >> word;)
      if (word == key && in >> word) return std::stod(word);
    return 0;
  }

  pid_t pid_ = 0;
  int orders_ = -1;
  std::string address_;
};

}  // namespace sluice::bench
