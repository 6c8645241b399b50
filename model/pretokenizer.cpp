#include "model/pretokenizer.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "model/unicode.hpp"

namespace sluice::model {

namespace {

// The patterns are facts of the checkpoints; llama.cpp's names for them are those of GGUF files.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kDigits = R"(\p{N}+)";
constexpr std::string_view kDefaultPunctuation = R"([\p{P}\$\+<=>\^~\|]+)";
constexpr std::string_view kThreeDigits = "[0-9][0-9][0-9]";
constexpr std::string_view kFalconPunctuation = R"([\p{P}\$\+<=>\^~\|`]+)";
constexpr std::string_view kUpToThreeDigits = R"(\p{N}{1,3})";
constexpr std::string_view kDeepseek3Scripts =
    R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)";
constexpr std::string_view kDeepseek3Words =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kNewline = R"([\r\n])";
constexpr std::string_view kSpacedLetters = R"(\s?\p{L}+)";
constexpr std::string_view kSpacedPunctuation = R"(\s?\p{P}+)";
constexpr std::string_view kDeepseekScripts =
    R"([\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+)";

/// Names that share patterns, in the order they are applied.
struct Named {
  std::array<std::string_view, 12> names;
  std::array<std::string_view, 5> patterns;
  bool ignore_merges = false;
  bool add_begin = false;
};

constexpr Named kNamed[] = {
    {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
     {kDigit, kGpt2}},
    {{"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v2-es",
      "jina-v2-de", "roberta-bpe", "granite-docling"},
     {kGpt2}},
    {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
     {kLlama3},
     true,
     true},
    {{"dbrx", "smaug-bpe"}, {kLlama3}},
    {{"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"}, {kQwen2}},
    {{"tekken", "mistral-nemo"}, {kTekken}, true, true},
    {{"gpt-4o", "llama4"}, {kGpt4o}},
    {{"default"}, {kDefaultPunctuation, kGpt2, kDigits, kThreeDigits}},
    {{"falcon"}, {kFalconPunctuation, kGpt2, kThreeDigits}},
    {{"deepseek-v3"}, {kUpToThreeDigits, kDeepseek3Scripts, kDeepseek3Words}},
    {{"deepseek-coder"}, {kNewline, kSpacedLetters, kSpacedPunctuation, kDeepseekScripts, kDigit}},
};

const Named* find_named(std::string_view name) {
  if (name.empty()) return nullptr;
  for (const Named& entry : kNamed) {
    if (std::find(entry.names.begin(), entry.names.end(), name) != entry.names.end()) return &entry;
  }
  return nullptr;
}

/// A run of text that is a match of the pattern, or lies between two.
struct Run {
  std::size_t start, end;
  bool match;
};

std::vector<Run> find_runs(const SplitStep& step, std::string_view text, Matcher& matcher) {
  std::vector<Run> runs;
  std::size_t done = 0;
  for (std::size_t from = 0; from < text.size();) {
    const auto found = matcher.find(step.pattern, text, from);
    if (!found) break;
    const auto [start, end] = *found;
    if (start == end) {  // An empty match cuts nothing.
      if (start >= text.size()) break;
      from = start + announced_bytes(text[start]);
      continue;
    }
    if (start > done) runs.push_back({done, start, step.invert});
    runs.push_back({start, end, !step.invert});
    done = from = end;
  }
  if (done < text.size()) runs.push_back({done, text.size(), step.invert});
  return runs;
}

void split_piece(const SplitStep& step, std::string_view text, Matcher& matcher,
                 std::vector<std::string_view>& out) {
  const std::vector<Run> runs = find_runs(step, text, matcher);
  const auto emit = [&](std::size_t start, std::size_t end) {
    if (end > start) out.push_back(text.substr(start, end - start));
  };
  std::size_t start = 0;  // of the piece that is still open
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    const bool last = i + 1 == runs.size();
    const bool next_is_match = !last && runs[i + 1].match;
    bool open = false;  // whether the next run goes on with this piece
    switch (step.behavior) {
      case SplitBehavior::isolated: break;
      case SplitBehavior::removed:
        if (run.match) start = run.end;
        break;
      case SplitBehavior::contiguous: open = !last && run.match == next_is_match; break;
      case SplitBehavior::merged_with_previous: open = !run.match && next_is_match; break;
      case SplitBehavior::merged_with_next: open = run.match && !last && !next_is_match; break;
    }
    if (open) continue;
    emit(start, run.end);
    start = run.end;
  }
}

void metaspace_piece(const MetaspaceStep& step, std::string_view text, bool first,
                     std::deque<std::string>& storage, std::vector<std::string_view>& out) {
  std::string marked;
  marked.reserve(text.size() + text.size() / 2 + step.mark.size());
  for (const char c : text) c == ' ' ? marked.append(step.mark) : marked.append(1, c);
  const bool wanted = step.prepend == MetaspaceStep::Prepend::always ||
                      (step.prepend == MetaspaceStep::Prepend::first && first);
  if (wanted && !marked.starts_with(step.mark)) marked.insert(0, step.mark);
  const std::string_view kept = storage.emplace_back(std::move(marked));
  std::size_t start = 0;
  while (step.split && start < kept.size()) {
    const std::size_t next = kept.find(step.mark, start + 1);
    if (next == std::string_view::npos) break;
    out.push_back(kept.substr(start, next - start));
    start = next;
  }
  if (start < kept.size()) out.push_back(kept.substr(start));
}

}  // namespace

std::vector<std::string_view> Pretokenizer::split(std::string_view text, bool first,
                                                  Matcher& matcher,
                                                  std::deque<std::string>& storage) const {
  std::vector<std::string_view> pieces{text}, next;
  for (const PretokenizerStep& step : steps_) {
    next.clear();
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::string_view piece = pieces[i];
      if (const auto* split = std::get_if<SplitStep>(&step)) {
        split_piece(*split, piece, matcher, next);
      } else if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) {
        metaspace_piece(*metaspace, piece, first && i == 0, storage, next);
      } else if (piece.starts_with(' ')) {
        next.push_back(piece);
      } else {
        next.push_back(storage.emplace_back(" ").append(piece));
      }
    }
    pieces.swap(next);
  }
  return pieces;
}

Result<Pretokenizer> named_pretokenizer(std::string_view name) {
  const Named* entry = find_named(name);
  if (!entry) {
    return fail(
        ErrorCode::unsupported,
        "the pre-tokenizer \"{}\" (tokenizer.ggml.pre) is not known; a wrong one would give "
        "wrong tokens without a word, so use a model with one of: smollm, gpt-2, llama-bpe, "
        "qwen2, tekken, gpt-4o, deepseek-v3, deepseek-coder, falcon, default",
        name);
  }
  Pretokenizer steps;
  for (const std::string_view pattern : entry->patterns) {
    if (pattern.empty()) break;
    auto regex = Regex::compile(pattern);
    SLUICE_ASSERT(regex.has_value(), "a built-in pattern compiles");
    steps.add(SplitStep{*regex});
  }
  return steps;
}

std::string_view gpt2_pattern() { return kGpt2; }

bool ignores_merges(std::string_view pretokenizer_name) {
  const Named* entry = find_named(pretokenizer_name);
  return entry && entry->ignore_merges;
}

bool adds_begin_by_default(std::string_view pretokenizer_name) {
  const Named* entry = find_named(pretokenizer_name);
  return entry && entry->add_begin;
}

}  // namespace sluice::model
