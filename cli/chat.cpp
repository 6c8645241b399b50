// sluice chat: a conversation at the terminal, or line by line from a pipe.

#include <cstdio>
#include <memory>

#include "cli/chat_session.hpp"
#include "cli/command.hpp"
#include "cli/connection.hpp"
#include "cli/generation.hpp"
#include "cli/line_editor.hpp"
#include "cli/user_folders.hpp"

namespace sluice::cli {

namespace {

struct Options {
  ConnectionOptions connection;
  ChatSession session;
  bool no_stats = false;
};

std::string stats_line(const Generation& generation) {
  const transport::Receipt& receipt = generation.done.receipt;
  const double tpot = generation.tpot_ms();
  return fmt::format("[{} tokens, first after {:.0f} ms, {:.1f} tokens/s{}]",
                     receipt.completion_tokens, generation.ttft_ms, tpot > 0 ? 1000 / tpot : 0.0,
                     generation.interrupted ? ", stopped" : "");
}

/// One conversation over one connection.
class Chat {
 public:
  Chat(Connection& connection, ChatSession session)
      : connection_(connection), session_(std::move(session)) {}

  /// Reads until /quit or the end of the input. The first error of a turn is the result when the
  /// input is no terminal; at a terminal the person has seen it.
  Result<void> run() {
    LineEditor editor("> ", state_file("chat_history"));
    if (editor.interactive()) greet();
    std::string line;
    Result<void> result;
    while (!quit_) {
      const LineEnd end = editor.read(line);
      if (end == LineEnd::end) break;
      interrupts_.take();
      if (end == LineEnd::interrupted || line.empty()) continue;
      const auto done = line.front() == '/' ? command(line) : turn(line);
      if (done) continue;
      if (editor.interactive()) {
        fmt::print(stderr, "{}: {}\n", to_string(done.error().code), done.error().message);
      } else if (result) {
        result = done;
      }
    }
    if (editor.interactive()) fmt::print("\n");
    return result;
  }

 private:
  void greet() {
    const auto* const info = connection_.model_info();
    fmt::print("{}. /help lists the commands; Ctrl-C stops an answer.\n",
               info == nullptr ? "Connected" : info->name + " on " + info->backend);
  }

  Result<void> command(const std::string& line) {
    const auto outcome = run_chat_command(session_, line);
    if (!outcome) return tl::unexpected(outcome.error());
    fmt::print("{}", outcome->say);
    std::fflush(stdout);
    quit_ = outcome->quit;
    return {};
  }

  Result<void> turn(const std::string& line) {
    session_.messages.push_back({"user", line});
    transport::Submit submit = make_submit(session_.generation);
    submit.model = connection_.model();
    submit.prompt = session_.prompt();
    session_.last_stream = submit.stream;
    const auto generation = generate(connection_.client(), submit, interrupts_,
                                     [](std::uint32_t, const std::string& text) {
                                       std::fwrite(text.data(), 1, text.size(), stdout);
                                       std::fflush(stdout);
                                     });
    fmt::print("\n");
    std::fflush(stdout);
    if (!generation) {
      // As if it had not been said: the next turn starts from what both sides have.
      session_.messages.pop_back();
      Error error = generation.error();
      if (error.code == ErrorCode::too_long) error.message += " (/clear starts anew)";
      return tl::unexpected(std::move(error));
    }
    session_.messages.push_back({"assistant", generation->choices.front().text});
    if (session_.show_stats) {
      fmt::print(stderr, "{}\n", stats_line(*generation));
    }
    return {};
  }

  Connection& connection_;
  ChatSession session_;
  InterruptGuard interrupts_;
  bool quit_ = false;
};

Result<void> chat(const Options& options) {
  auto connection = Connection::open(options.connection);
  if (!connection) return tl::unexpected(connection.error());
  ChatSession session = options.session;
  if (options.no_stats) session.show_stats = false;
  return Chat(**connection, std::move(session)).run();
}

}  // namespace

Command chat_command(CLI::App& root) {
  CLI::App* app = add_command(root, "chat", "Talk with a model",
                              "  sluice chat --model models/SmolLM2-135M-Instruct-Q4_1.gguf\n"
                              "  sluice chat --connect tcp://127.0.0.1:5570 --system 'Be brief.'\n"
                              "  echo 'What is a sluice?' | sluice chat --connect EP --no-stats\n"
                              "At the prompt, /help lists the commands.");
  auto options = std::make_shared<Options>();
  app->add_option("--system", options->session.system, "What the model is told first")
      ->type_name("TEXT");
  app->add_flag("--no-stats", options->no_stats, "No line with times after each answer");
  add_connection_options(*app, options->connection);
  // Small models wander at temperature 1; a conversation wants the likelier words.
  options->session.generation.submit.sampling.temperature = 0.6F;
  options->session.generation.submit.sampling.top_p = 0.9F;
  add_generation_options(*app, options->session.generation);
  return {app, [options] { return chat(*options); }};
}

}  // namespace sluice::cli
