#include "cli/line_editor.hpp"

#include <histedit.h>
#include <langinfo.h>
#include <signal.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string_view>

namespace sluice::cli {

namespace {

constexpr int history_lines = 1000;

/// libedit decodes what is typed by the locale: make sure that it is UTF-8.
void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::string_view(nl_langinfo(CODESET)) != "UTF-8") std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

struct LineEditor::State {
  std::string prompt;
  std::string history_file;
  EditLine* edit = nullptr;
  History* history = nullptr;
  HistEvent event{};
  bool dropped = false;  // Ctrl-C ended the line

  ~State() {
    if (history != nullptr) history_end(history);
    if (edit != nullptr) el_end(edit);
  }

  static char* show_prompt(EditLine* edit) {
    State* state = nullptr;
    el_get(edit, EL_CLIENTDATA, &state);
    return state->prompt.data();
  }

  static unsigned char drop_line(EditLine* edit, int) {
    State* state = nullptr;
    el_get(edit, EL_CLIENTDATA, &state);
    state->dropped = true;
    return CC_NEWLINE;
  }

  static unsigned char suspend(EditLine* edit, int) {
    el_set(edit, EL_PREP_TERM, 0);
    kill(0, SIGTSTP);  // the whole job, as the terminal would
    el_set(edit, EL_PREP_TERM, 1);
    return CC_REDISPLAY;
  }

  void open() {
    use_utf8();
    edit = el_init("sluice", stdin, stdout, stderr);
    if (edit == nullptr) return;  // a terminal that cannot be edited on is read plainly
    history = history_init();
    el_set(edit, EL_CLIENTDATA, this);
    el_set(edit, EL_PROMPT, &State::show_prompt);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, ::history, history);
    el_set(edit, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    // While a line is edited Ctrl-C and Ctrl-Z are keys like others: libedit reads on after a
    // signal, and nothing can be lost between a look for one and the next read.
    el_set(edit, EL_SETTY, "-d", "-isig", nullptr);
    el_wset(edit, EL_ADDFN, L"drop-line", L"Drop the line", &State::drop_line);
    el_set(edit, EL_BIND, "^C", "drop-line", nullptr);
    el_wset(edit, EL_ADDFN, L"suspend", L"Stop until the shell goes on", &State::suspend);
    el_set(edit, EL_BIND, "^Z", "suspend", nullptr);
    ::history(history, &event, H_SETSIZE, history_lines);
    ::history(history, &event, H_SETUNIQUE, 1);
    if (!history_file.empty()) ::history(history, &event, H_LOAD, history_file.c_str());
  }

  void remember(const std::string& line) {
    if (line.find_first_not_of(" \t") == std::string::npos) return;
    ::history(history, &event, H_ENTER, line.c_str());
    if (!history_file.empty()) ::history(history, &event, H_SAVE, history_file.c_str());
  }

  LineEnd read_edited(std::string& line) {
    int count = 0;
    dropped = false;
    el_resize(edit);
    el_set(edit, EL_PREP_TERM, 1);  // before the prompt: nothing typed at it is echoed twice
    const char* const text = el_gets(edit, &count);
    if (dropped) {
      std::fputs("^C\n", stdout);
      return LineEnd::interrupted;
    }
    if (text == nullptr || count <= 0) return LineEnd::end;
    line.assign(text, static_cast<std::size_t>(count));
    if (line.back() == '\n') line.pop_back();
    return LineEnd::line;
  }

  LineEnd read_one(std::string& line) {
    if (edit != nullptr) return read_edited(line);
    if (std::getline(std::cin, line)) return LineEnd::line;
    return LineEnd::end;
  }
};

LineEditor::LineEditor(std::string prompt, std::string history_file)
    : state_(std::make_unique<State>()) {
  state_->prompt = std::move(prompt);
  state_->history_file = std::move(history_file);
  if (isatty(STDIN_FILENO) == 1) state_->open();
}

LineEditor::~LineEditor() = default;

bool LineEditor::interactive() const { return state_->edit != nullptr; }

LineEnd LineEditor::read(std::string& line) {
  line.clear();
  std::string part;
  while (true) {
    const LineEnd end = state_->read_one(part);
    if (end == LineEnd::end && !line.empty()) break;
    if (end != LineEnd::line) return end;
    line += part;
    if (line.empty() || line.back() != '\\') break;
    line.back() = '\n';
  }
  if (interactive()) state_->remember(line);
  return LineEnd::line;
}

}  // namespace sluice::cli
