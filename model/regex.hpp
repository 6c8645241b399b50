#pragma once
// PCRE2 as tokenizers need it: Unicode, compiled once, matched from any thread.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/core.hpp"

struct pcre2_real_code_8;

namespace sluice::model {

/// Escapes the characters that mean something in a pattern.
std::string quote_regex(std::string_view text);

/// A compiled pattern; copies share it. Any thread may match at once, each with its own Matcher.
class Regex {
 public:
  /// `pattern` in the syntax of Hugging Face's tokenizers (Oniguruma): white space and word
  /// characters are Unicode's. `unsupported` for what PCRE2 reads otherwise, `bad_file` for a
  /// pattern that does not compile.
  static Result<Regex> compile(std::string_view pattern);

 private:
  friend class Matcher;
  std::shared_ptr<const pcre2_real_code_8> code_;
};

/// The memory one match needs. One thread at a time.
class Matcher {
 public:
  Matcher();
  ~Matcher();
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  /// The first match at or after `from`, as [start, end). `text` must be valid UTF-8, but for
  /// surrogates. A pattern that exceeds PCRE2's limits there does not match.
  std::optional<std::pair<std::size_t, std::size_t>> find(const Regex& regex, std::string_view text,
                                                          std::size_t from);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::model
