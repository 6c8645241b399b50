#pragma once
// Runs the built binary as a user would: as a process, over pipes or at a terminal.

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/scratch_folder.hpp"

namespace sluice::test {

struct Exit {
  int code = -1;  ///< 128 + the signal when one ended it
  std::string out;
  std::string err;
};

class Process {
 public:
  enum class Input { pipes, terminal };

  explicit Process(std::vector<std::string> arguments, Input input = Input::pipes,
                   const std::string& program = SLUICE_BINARY) {
    int in[2], out[2], err[2], terminal = -1;
    BOOST_REQUIRE(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    BOOST_REQUIRE(pipe2(err, O_CLOEXEC) == 0);
    pid_ = input == Input::terminal ? forkpty(&terminal, nullptr, nullptr, nullptr) : fork();
    BOOST_REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      if (input == Input::pipes) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
      }
      arguments.insert(arguments.begin(), program);
      std::vector<char*> argv;
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    if (input == Input::terminal) {
      close(in[1]);
      close(out[0]);
      close(err[0]);
      fcntl(terminal, F_SETFD, FD_CLOEXEC);
      in_ = out_ = terminal;
    } else {
      in_ = in[1];
      out_ = out[0];
      err_ = err[0];
    }
  }

  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close_input();
    if (out_ >= 0) close(out_);
    if (err_ >= 0) close(err_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::write(in_, text.data(), text.size());
      if (n <= 0) return;  // it ended: what it said is judged by the caller
      text.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  void close_input() {
    if (in_ >= 0 && in_ != out_) close(in_);
    in_ = -1;
  }

  /// Processes that it started and that run.
  std::vector<pid_t> children() const {
    std::vector<pid_t> all;
    const std::string tasks = "/proc/" + std::to_string(pid_) + "/task";
    for (const auto& task : std::filesystem::directory_iterator(tasks)) {
      std::ifstream list(task.path() / "children");
      for (pid_t child = 0; list >> child;) all.push_back(child);
    }
    return all;
  }

  void send_signal(int number) const { kill(pid_, number); }

  /// Everything up to and including `needle` that was not read before; all there is when the
  /// output ends without it.
  std::string read_until(std::string_view needle) {
    while (true) {
      const std::size_t at = out_text_.find(needle, read_);
      if (at != std::string::npos) {
        const std::size_t end = at + needle.size();
        return out_text_.substr(std::exchange(read_, end), end - read_);
      }
      if (!pump()) return out_text_.substr(std::exchange(read_, out_text_.size()));
    }
  }

  /// Reads until stderr has `needle`, or ends without it.
  void read_error_until(std::string_view needle) {
    while (err_text_.find(needle) == std::string::npos && pump()) {
    }
  }

  /// Reads what is left and waits for the end.
  Exit finish() {
    if (in_ != out_) close_input();
    while (pump()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), out_text_, err_text_};
  }

 private:
  // A hang becomes a failure after this; nothing waits for time to pass.
  static constexpr int hang_ms = 120'000;

  /// Reads some output; false when both ends are closed.
  bool pump() {
    pollfd files[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
    if (out_ < 0 && err_ < 0) return false;
    const int ready = poll(files, 2, hang_ms);
    BOOST_REQUIRE_MESSAGE(ready > 0, "no output for long; so far: " + out_text_ + err_text_);
    if (files[0].revents != 0) take(out_, out_text_);
    if (files[1].revents != 0) take(err_, err_text_);
    return true;
  }

  void take(int& file, std::string& text) {
    char buffer[4096];
    const ssize_t n = read(file, buffer, sizeof buffer);
    if (n > 0) {
      text.append(buffer, static_cast<std::size_t>(n));
      return;
    }
    if (in_ == file) in_ = -1;
    close(file);
    file = -1;
  }

  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  std::string out_text_, err_text_;
  std::size_t read_ = 0;
};

/// Runs to the end with `input` on stdin.
inline Exit run(std::vector<std::string> arguments, std::string_view input = {}) {
  Process process(std::move(arguments));
  process.write(input);
  return process.finish();
}

/// The same for another program.
inline Exit run_program(const std::string& program, std::vector<std::string> arguments) {
  return Process(std::move(arguments), Process::Input::pipes, program).finish();
}

inline const std::string model = SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf";

/// A node on loopback that is ready.
class NodeProcess {
 public:
  explicit NodeProcess(std::vector<std::string> more = {})
      : process_(arguments(std::move(more))) {
    const std::string line = process_.read_until("\n");
    BOOST_REQUIRE_MESSAGE(line.rfind("ready ", 0) == 0, "instead of ready: " + line);
    endpoint_ = line.substr(6, line.size() - 7);
  }

  const std::string& endpoint() const { return endpoint_; }
  Process& process() { return process_; }

  Exit stop() {
    process_.send_signal(SIGTERM);
    return process_.finish();
  }

 private:
  static std::vector<std::string> arguments(std::vector<std::string> more) {
    std::vector<std::string> all = {"node", "--model", model};
    if (std::find(more.begin(), more.end(), "--listen") == more.end())
      all.insert(all.end(), {"--listen", "tcp://127.0.0.1:0"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  Process process_;
  std::string endpoint_;
};

/// Ended with 0; says what it wrote when it did not.
inline void check_clean(const Exit& exit) { BOOST_TEST(exit.code == 0, exit.err); }

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace sluice::test
