#include "cli/children.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/backends.hpp"

namespace sluice::cli {

namespace {

using Clock = std::chrono::steady_clock;

/// A child that ends sooner than this failed to start: the pause before the next start doubles.
constexpr std::chrono::seconds lived{10};
constexpr std::chrono::milliseconds pause_min{100};
constexpr std::chrono::milliseconds pause_max{5000};

/// A GPU's context is lost for good by one fault, and with it the process that has it.
bool is_worth_isolating(const actors::NodeConfig& node, const actors::EngineConfig& engine) {
  if (!actors::plays(node, "executor") || !actors::plays(node, "engine")) return false;
  const auto choice = kernels::choose_backend(engine.backend, node.backends);
  return choice && choice->name == "cuda";
}

/// How many executors of an engine run in processes beside this one.
std::uint32_t children_of(const actors::NodeConfig& node, const actors::EngineConfig& engine) {
  if (!actors::plays(node, "executor")) return 0;
  const std::uint32_t all = actors::plays(node, "engine") ? engine.tensor_parallel : 1;
  const std::uint32_t ranks =
      engine.ranks == 0 ? all : std::min(engine.ranks, engine.tensor_parallel);
  // The first is this process's own, unless it is to survive that one too.
  return engine.isolate == "on" && actors::plays(node, "engine") ? ranks : ranks - 1;
}

/// The child's configuration: this one's engine and nothing else of it.
Config child_config(const actors::NodeConfig& node, const actors::EngineConfig& engine,
                    std::uint32_t number) {
  Config child;
  child.node.roles = {"executor"};
  child.node.peers = node.peers;
  child.node.peers.name = fmt::format("{}{}.{}.{}", node.peers.name,
                                      node.peers.name.empty() ? "child" : "", getpid(), number);
  child.node.peers.listen.clear();
  child.node.peers.local_listen.clear();
  // An engine elsewhere finds its ranks among the nodes that it is joined by.
  if (plays(node, "engine")) child.node.peers.join = {node.peers.local_listen};
  child.node.insecure = node.insecure;
  child.node.weight_cache = node.weight_cache;
  child.node.weight_cache_bytes = node.weight_cache_bytes;
  child.node.site = node.site;
  child.node.log_level = node.log_level == "off" ? "off" : "warn";
  child.node.engines = {engine};
  child.node.ends_with_executor = true;
  child.node.engines.front().ranks = 1;
  child.node.engines.front().isolate = "off";
  child.node.engines.front().device = engine.device + number - (engine.isolate == "on" ? 1 : 0);
  return child;
}

/// Runs between fork and exec: only what a signal handler may call.
[[noreturn]] void become(int config_fd, int parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it ended before the line above
  setpgid(0, 0);                      // Ctrl-C at the terminal is the parent's affair
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  if (config_fd == 3)
    fcntl(3, F_SETFD, 0);
  else
    dup2(config_fd, 3);  // without close-on-exec
  char self[] = "/proc/self/exe", node[] = "node", option[] = "--config", file[] = "/dev/fd/3";
  char* const argv[] = {self, node, option, file, nullptr};
  execv(self, argv);
  _exit(127);
}

/// The new process; -1 with errno.
int spawn(const std::string& config) {
  const int fd = memfd_create("sluice-child", MFD_CLOEXEC);
  if (fd < 0) return -1;
  int process = -1;
  if (write(fd, config.data(), config.size()) == static_cast<ssize_t>(config.size()) &&
      lseek(fd, 0, SEEK_SET) == 0) {
    const int parent = getpid();
    process = fork();
    if (process == 0) become(fd, parent);
  }
  close(fd);
  return process;
}

}  // namespace

Result<std::unique_ptr<ChildNodes>> ChildNodes::start(Config& config) {
  auto& node = config.node;
  std::uint32_t count = 0;
  for (auto& engine : node.engines)
    if (engine.isolate == "auto") engine.isolate = is_worth_isolating(node, engine) ? "on" : "off";
  for (const auto& engine : node.engines) count += children_of(node, engine);
  if (count == 0) return nullptr;
  if (!plays(node, "engine")) {
    if (node.peers.join.empty())
      return fail(ErrorCode::bad_request,
                  "engine.ranks = {} where the engine is not: further ranks join the engine's node "
                  "themselves, so name it in peers.join",
                  count + 1);
    if (!config.security.keys.empty() || !config.security.node_keys.empty())
      return fail(ErrorCode::bad_request,
                  "engine.ranks = {} where the engine is not: a node's keys are good for one node, "
                  "so start one with ranks = 1 and keys of its own for each rank",
                  count + 1);
  }
  std::string folder = std::filesystem::temp_directory_path() / "sluice-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr)
    return fail(ErrorCode::io,
                "cannot make the folder {}: {}; set TMPDIR to one that can be "
                "written",
                folder, std::strerror(errno));
  node.peers.local_listen = "ipc://" + folder + "/peers";
  auto children = std::unique_ptr<ChildNodes>(new ChildNodes(std::move(folder)));
  for (auto& engine : node.engines) {
    if (engine.name.empty()) engine.name = actors::engine_title(engine.model);
    const std::uint32_t more = children_of(node, engine);
    if (engine.threads == 0 && more > 0) {  // they share the cores
      const std::uint32_t own = engine.isolate == "on" ? 0 : 1;
      engine.threads = std::max(1U, kernels::usable_cores() / (more + own));
    }
    for (std::uint32_t i = 1; i <= more; ++i) {
      auto child = std::make_unique<Child>();
      auto settings = child_config(node, engine, i);
      child->name = settings.node.peers.name;
      child->config = print_config(settings);
      children->children_.push_back(std::move(child));
    }
  }
  for (auto& child : children->children_)
    child->keeper = std::thread([all = children.get(), one = child.get()] { all->keep(*one); });
  return children;
}

/// The thread that forks: the child is told when this thread ends, so it lives as long as it.
void ChildNodes::keep(Child& child) {
  auto pause = pause_min;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto began = Clock::now();
    const int process = spawn(child.config);
    if (process > 0) {
      child.process = process;
      lock.unlock();
      siginfo_t ended{};
      // Reaped under the lock, so that its id is never signalled after another process has it.
      while (waitid(P_PID, static_cast<id_t>(process), &ended, WEXITED | WNOWAIT) != 0 &&
             errno == EINTR) {
      }
      lock.lock();
      waitpid(process, nullptr, 0);
      child.process = 0;
      if (stopping_) return;
      fmt::print(stderr, "sluice: {} ended ({} {}) and is started again\n", child.name,
                 ended.si_code == CLD_EXITED ? "exit" : "signal", ended.si_status);
    }
    pause = Clock::now() - began < lived ? std::min(pause * 2, pause_max) : pause_min;
    changed_.wait_for(lock, pause, [&] { return stopping_; });
  }
}

std::vector<int> ChildNodes::processes() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> all;
  for (const auto& child : children_)
    if (child->process != 0) all.push_back(child->process);
  return all;
}

void ChildNodes::retire() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

ChildNodes::~ChildNodes() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& child : children_)
      if (child->process != 0) kill(child->process, SIGKILL);  // it serves nobody but this node
  }
  changed_.notify_all();
  for (const auto& child : children_) child->keeper.join();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace sluice::cli
