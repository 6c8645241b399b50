// sluice top: a node's figures, live.

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>

#include "cli/command.hpp"
#include "cli/keys.hpp"
#include "cli/terminal.hpp"
#include "cli/top_view.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

namespace {

using Clock = std::chrono::steady_clock;

/// Rates and percentiles are those of so long a time: short enough to be live, long enough to hold
/// still.
constexpr std::chrono::seconds window{10};

struct Options {
  KeyOptions keys;
  std::string connect;
  double interval_s = 1;
  std::uint32_t timeout_ms = 5000;
  bool once = false;
  bool json = false;
};

/// The whole terminal, as a second screen, without a cursor or echo; as it was before at the end.
class Screen {
 public:
  Screen() {
    tcgetattr(STDIN_FILENO, &before_);
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    raw.c_cc[VSUSP] = _POSIX_VDISABLE;  // a stopped program would leave the second screen behind
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    struct sigaction action {};
    action.sa_handler = [](int) {};  // ends the wait for a key; the signal stays known below
    sigaction(SIGWINCH, &action, &resized_before_);
    write("\033[?1049h\033[?25l");
  }
  ~Screen() {
    write("\033[?25h\033[?1049l");
    sigaction(SIGWINCH, &resized_before_, nullptr);
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  static std::size_t columns() {
    winsize size{};
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : 80;
  }

  /// From the top left; each line and what is below it is cleared, so that nothing flickers.
  static void draw(const std::string& text) {
    std::string out = "\033[H";
    for (const char c : text) out += c == '\n' ? std::string("\033[K\r\n") : std::string(1, c);
    write(out + "\033[J");
  }

 private:
  static void write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  termios before_{};
  struct sigaction resized_before_ {};
};

/// Asks a node again and again, and keeps what it said for as long as the window is.
class Watcher {
 public:
  Watcher(const Options& options, transport::Client& client) : options_(options), client_(client) {}

  Result<TopSnapshot> look() {
    const std::chrono::milliseconds timeout(options_.timeout_ms);
    TopSnapshot out;
    auto health = client_.health(timeout);
    if (!health) return tl::unexpected(health.error());
    auto stats = client_.stats(timeout);
    if (!stats) return tl::unexpected(stats.error());
    const auto now = Clock::now();
    out.connect = options_.connect;
    out.welcome = client_.welcome();
    out.health = std::move(*health);
    out.now.insert(stats->values.begin(), stats->values.end());
    while (said_.size() > 1 && now - said_[1].first >= window) said_.pop_front();
    if (!said_.empty()) {
      out.before = said_.front().second;
      out.seconds = std::chrono::duration<double>(now - said_.front().first).count();
    }
    said_.emplace_back(now, out.now);
    return out;
  }

 private:
  const Options& options_;
  transport::Client& client_;
  std::deque<std::pair<Clock::time_point, transport::Values>> said_;
};

/// Waits for the interval's end; true when `q` or Ctrl-C came before.
bool wait_or_quit(double interval_s, bool keys, InterruptGuard& interrupts) {
  const auto until = Clock::now() + std::chrono::duration<double>(interval_s);
  for (;;) {
    if (interrupts.take()) return true;
    const double left_s = std::chrono::duration<double>(until - Clock::now()).count();
    if (left_s <= 0) return false;
    pollfd key{STDIN_FILENO, POLLIN, 0};
    const int ready = poll(&key, keys ? 1 : 0, static_cast<int>(left_s * 1000) + 1);
    if (ready < 0 && errno == EINTR) {
      if (interrupts.take()) return true;
      return false;  // resized: draw anew
    }
    if (ready <= 0) continue;
    char pressed = 0;
    if (read(STDIN_FILENO, &pressed, 1) != 1 || pressed == 'q' || pressed == 'Q') return true;
  }
}

Result<void> print(const TopSnapshot& snapshot, bool json) {
  fmt::print("{}\n", json ? to_json(snapshot) : to_text(snapshot, 0));
  if (std::fflush(stdout) != 0) return fail(ErrorCode::io, "cannot write to standard output");
  return {};
}

Result<void> top(const Options& options) {
  transport::ClientConfig config;
  config.connect = options.connect;
  auto curve = read_keys(options.keys);
  if (!curve) return tl::unexpected(curve.error());
  config.curve = std::move(*curve);
  config.name = "sluice top";
  config.connect_timeout = std::chrono::milliseconds(options.timeout_ms);
  auto client = transport::Client::connect(config);
  if (!client) return tl::unexpected(client.error());
  Watcher watcher(options, **client);
  if (options.once) {
    const auto snapshot = watcher.look();
    if (!snapshot) return tl::unexpected(snapshot.error());
    return print(*snapshot, options.json);
  }
  InterruptGuard interrupts;
  const bool screen_wanted = !options.json && isatty(STDOUT_FILENO) == 1;
  const bool keys = screen_wanted && isatty(STDIN_FILENO) == 1;
  std::optional<Screen> screen;
  if (screen_wanted) screen.emplace();
  do {
    const auto snapshot = watcher.look();
    if (!snapshot && !screen) return tl::unexpected(snapshot.error());
    if (!screen) {
      if (auto printed = print(*snapshot, options.json); !printed) return printed;
    } else if (snapshot) {
      screen->draw(to_text(*snapshot, Screen::columns()) + "\nq quits\n");
    } else {
      screen->draw(fmt::format("sluice top  {}\n\n{}\n\nq quits\n", options.connect,
                               snapshot.error().message));
    }
  } while (!wait_or_quit(options.interval_s, keys, interrupts));
  return {};
}

}  // namespace

Command top_command(CLI::App& root) {
  CLI::App* app = add_command(root, "top", "Watch a node: engines, streams, latencies, refusals",
                              "  sluice top --connect tcp://127.0.0.1:5570\n"
                              "  sluice top --connect tcp://127.0.0.1:5570 --once --json\n"
                              "q or Ctrl-C quits. Rates and latencies are those of the last 10 s;\n"
                              "with --once, those since the node's start.");
  auto options = std::make_shared<Options>();
  app->add_option("--connect", options->connect, "Endpoint of the node")
      ->type_name("EP")
      ->required();
  add_key_options(*app, options->keys);
  app->add_option("--interval", options->interval_s, "Seconds from one look to the next")
      ->type_name("S")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app->add_option("--timeout-ms", options->timeout_ms, "How long to wait for an answer")
      ->type_name("MS")
      ->capture_default_str();
  app->add_flag("--once", options->once, "Print what is now, and exit");
  app->add_flag("--json", options->json, "A JSON object a look, instead of a screen");
  return {app, [options] { return top(*options); }};
}

}  // namespace sluice::cli
