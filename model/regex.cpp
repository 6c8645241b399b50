#include "model/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

namespace sluice::model {

namespace {

/// Unicode's White_Space, for a class. PCRE2's \s also takes U+180E, which no tokenizer does.
constexpr std::string_view kSpaces =
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";
/// Oniguruma's word characters; PCRE2's lack marks.
constexpr std::string_view kWords = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}";

/// Matching steps before a match gives up; ordinary patterns take a few per character.
constexpr std::uint32_t kMatchLimit = 2'000'000;
constexpr std::size_t kJitStackBytes = 1024 * 1024;

tl::unexpected<Error> not_offered(std::string_view what, std::string_view pattern) {
  return fail(
      ErrorCode::unsupported,
      "the tokenizer's pattern \"{}\" uses {}, which is not supported; convert the model to "
      "GGUF with a known tokenizer.ggml.pre",
      pattern, what);
}

/// From Oniguruma's dialect to PCRE2's, where both read the same text differently.
Result<std::string> translate(std::string_view pattern) {
  std::string out;
  int depth = 0;  // of nested classes; PCRE2 has none
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '[') {
      const bool posix = depth > 0 && pattern.substr(i).starts_with("[:");
      if (depth > 0 && !posix) return not_offered("a class within a class", pattern);
      if (posix) {
        const std::size_t end = pattern.find(":]", i);
        if (end == std::string_view::npos) return not_offered("an unclosed class", pattern);
        out.append(pattern.substr(i, end + 2 - i));
        i = end + 1;
        continue;
      }
      ++depth;
      out.push_back(c);
      // A bracket right at a class's start stands for itself.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out.push_back(pattern[++i]);
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out.append("\\]"), ++i;
      continue;
    }
    if (c == ']' && depth > 0) --depth;
    if (depth > 0 && pattern.substr(i).starts_with("&&")) {
      return not_offered("an intersection of classes", pattern);
    }
    if (c != '\\' || i + 1 == pattern.size()) {
      out.push_back(c);
      continue;
    }
    const char escaped = pattern[++i];
    const bool in_class = depth > 0;
    if (escaped == 's') {
      in_class ? out.append(kSpaces) : out.append("[").append(kSpaces).append("]");
    } else if (escaped == 'S' && !in_class) {
      out.append("[^").append(kSpaces).append("]");
    } else if (escaped == 'w') {
      in_class ? out.append(kWords) : out.append("[").append(kWords).append("]");
    } else if (escaped == 'W' && !in_class) {
      out.append("[^").append(kWords).append("]");
    } else if (std::string_view("hHGKXRyYgkOQEW").find(escaped) != std::string_view::npos) {
      return not_offered(std::string{'\\', escaped}, pattern);
    } else {
      out.push_back('\\');
      out.push_back(escaped);
    }
  }
  return out;
}

}  // namespace

std::string quote_regex(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-#&").find(c) != std::string_view::npos)
      out.push_back('\\');
    out.push_back(c);
  }
  return out;
}

Result<Regex> Regex::compile(std::string_view pattern) {
  auto translated = translate(pattern);
  if (!translated) return tl::unexpected(translated.error());
  int error = 0;
  std::size_t at = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (!code) {
    std::array<PCRE2_UCHAR, 200> why{};
    pcre2_get_error_message(error, why.data(), why.size());
    return fail(ErrorCode::bad_file, "the tokenizer's pattern \"{}\" does not compile: {}", pattern,
                reinterpret_cast<const char*>(why.data()));
  }
  // Where the JIT is not built in, matching is interpreted: slower, and the same.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  Regex regex;
  regex.code_ = std::shared_ptr<const pcre2_code>(
      code, [](const pcre2_code* held) { pcre2_code_free(const_cast<pcre2_code*>(held)); });
  return regex;
}

struct Matcher::State {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = nullptr;

  State() {
    SLUICE_ASSERT(data && context, "out of memory for a match");
    pcre2_set_match_limit(context, kMatchLimit);
  }
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Matcher::Matcher() : state_(std::make_unique<State>()) {}
Matcher::~Matcher() = default;

std::optional<std::pair<std::size_t, std::size_t>> Matcher::find(const Regex& regex,
                                                                 std::string_view text,
                                                                 std::size_t from) {
  const auto match = [&](std::uint32_t options) {
    return pcre2_match(regex.code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                       from, PCRE2_NO_UTF_CHECK | options, state_->data, state_->context);
  };
  int got = match(0);
  if (got == PCRE2_ERROR_JIT_STACKLIMIT && !state_->stack) {
    // The JIT's own 32 KiB do for all but deeply nested repeats.
    state_->stack = pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr);
    pcre2_jit_stack_assign(state_->context, nullptr, state_->stack);
    got = match(0);
  }
  if (got == PCRE2_ERROR_JIT_STACKLIMIT) got = match(PCRE2_NO_JIT);
  if (got < 0) return std::nullopt;
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state_->data);
  if (ends[0] > ends[1] || ends[0] < from) return std::nullopt;  // \K within a lookaround
  return std::pair{ends[0], ends[1]};
}

}  // namespace sluice::model
