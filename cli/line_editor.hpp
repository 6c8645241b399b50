#pragma once
// One line of input: edited, with a history, at a terminal; plain otherwise.

#include <memory>
#include <string>

namespace sluice::cli {

enum class LineEnd {
  line,         ///< a line was read
  interrupted,  ///< Ctrl-C at the prompt
  end,          ///< Ctrl-D, or the end of the input
};

class LineEditor {
 public:
  /// Edits when stdin is a terminal. `history_file` is read now and written after every line; a
  /// history that cannot be kept is no error.
  LineEditor(std::string prompt, std::string history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  /// Reads a line, without its newline. A line that ends in a backslash goes on in the next.
  LineEnd read(std::string& line);

  bool interactive() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::cli
