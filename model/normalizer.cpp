#include "model/normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "model/unicode.hpp"

namespace sluice::model {

namespace {

std::string normalize(std::string_view text, UnicodeForm form) {
  const bool ascii = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii) return std::string(text);
  int options = UTF8PROC_STABLE;
  const bool composes = form == UnicodeForm::nfc || form == UnicodeForm::nfkc;
  options |= composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::nfkc || form == UnicodeForm::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &out, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> held(out, &std::free);
  // A surrogate that was repaired to three bytes is all that utf8proc refuses here.
  if (bytes < 0) return std::string(text);
  return std::string(reinterpret_cast<const char*>(out), static_cast<std::size_t>(bytes));
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    if (!c.valid) {
      out.push_back(text[at]);
    } else if (c.code == 0x130) {
      out.append("i\u0307");  // the one letter whose lower case is two characters
    } else {
      append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<std::int32_t>(c.code))));
    }
    at += c.bytes;
  }
  return out;
}

std::string replace_all(std::string_view text, std::string_view find, std::string_view with) {
  std::string out;
  std::size_t done = 0;
  while (!find.empty()) {
    const std::size_t at = text.find(find, done);
    if (at == std::string_view::npos) break;
    out.append(text.substr(done, at - done)).append(with);
    done = at + find.size();
  }
  out.append(text.substr(done));
  return out;
}

std::string replace_all(std::string_view text, const Regex& pattern, std::string_view with,
                        Matcher& matcher) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t from = 0; from < text.size();) {
    const auto found = matcher.find(pattern, text, from);
    if (!found) break;
    const auto [start, end] = *found;
    if (start == end) {  // An empty match replaces nothing.
      if (start >= text.size()) break;
      from = start + announced_bytes(text[start]);
      continue;
    }
    out.append(text.substr(done, start - done)).append(with);
    done = from = end;
  }
  out.append(text.substr(done));
  return out;
}

std::string collapse_spaces(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out.push_back(c);
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

/// Rust's trim, which is Unicode's white space and no more.
std::string trim(std::string_view text, const StripStep& step) {
  std::size_t start = 0, end = text.size();
  while (step.left && start < end) {
    const Utf8Char c = decode_utf8(text, start);
    if (!c.valid || !is_space(c.code)) break;
    start += c.bytes;
  }
  while (step.right && end > start) {
    std::size_t at = end - 1;
    while (at > start && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const Utf8Char c = decode_utf8(text, at);
    if (!c.valid || at + c.bytes != end || !is_space(c.code)) break;
    end = at;
  }
  return std::string(text.substr(start, end - start));
}

// Units of a Darts double array, as its clone in SentencePiece lays them out.
bool has_leaf(std::uint32_t unit) { return (unit >> 8) & 1; }
std::uint32_t value_of(std::uint32_t unit) { return unit & 0x7FFFFFFF; }
std::uint32_t label_of(std::uint32_t unit) { return unit & 0x800000FF; }
std::uint32_t offset_of(std::uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }

}  // namespace

Result<CharacterMap> CharacterMap::parse(std::string_view blob) {
  CharacterMap map;
  if (blob.empty()) return map;
  std::uint32_t trie_bytes = 0;
  if (blob.size() >= 4) std::memcpy(&trie_bytes, blob.data(), 4);
  if (blob.size() < 4 || trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes > blob.size() - 4) {
    return fail(
        ErrorCode::bad_file,
        "the tokenizer's precompiled_charsmap of {} bytes says that its trie has {}; the file "
        "is damaged: get it again",
        blob.size(), trie_bytes);
  }
  map.units_.resize(trie_bytes / 4);
  std::memcpy(map.units_.data(), blob.data() + 4, trie_bytes);
  map.replacements_ = blob.substr(4 + trie_bytes);
  if (map.replacements_.empty() || map.replacements_.back() != '\0') {
    map.replacements_.push_back('\0');
  }
  return map;
}

double CharacterMap::growth() const {
  std::size_t longest_bytes = 1;
  for (std::size_t at = 0; at < replacements_.size();) {
    const std::size_t end = replacements_.find('\0', at);
    longest_bytes = std::max(longest_bytes, end - at);
    at = end + 1;
  }
  return static_cast<double>(longest_bytes);
}

/// Bytes of the longest key at `offset` and what replaces it; 0 bytes when there is none. An array
/// that leads outside of itself has no key there.
std::pair<std::size_t, std::string_view> CharacterMap::longest(std::string_view text,
                                                               std::size_t offset) const {
  std::pair<std::size_t, std::string_view> best{0, {}};
  std::size_t node = offset_of(units_[0]);
  for (std::size_t at = offset; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label_of(units_[node]) != byte) break;
    const bool leaf = has_leaf(units_[node]);
    node ^= offset_of(units_[node]);
    if (!leaf) continue;
    if (node >= units_.size()) break;
    const std::size_t start = value_of(units_[node]);
    if (start >= replacements_.size()) break;
    best = {at + 1 - offset, std::string_view(replacements_.c_str() + start)};
  }
  return best;
}

std::string CharacterMap::apply(std::string_view text) const {
  if (units_.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto [bytes, replacement] = longest(text, at);
    if (bytes > 0) {
      out.append(replacement);
      at += bytes;
    } else {
      const std::size_t kept = decode_utf8(text, at).bytes;
      out.append(text.substr(at, kept));
      at += kept;
    }
  }
  return out;
}

void Normalizer::add(NormalizerStep step) {
  const auto ratio = [](std::size_t with, std::size_t find) {
    return std::max(
        1.0, static_cast<double>(with) / static_cast<double>(std::max<std::size_t>(1, find)));
  };
  if (const auto* prepend = std::get_if<PrependStep>(&step)) {
    growth_ *= static_cast<double>(1 + prepend->text.size());
  } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
    growth_ *= ratio(replace->replace.size(), replace->find.size());
  } else if (const auto* regex = std::get_if<ReplaceRegexStep>(&step)) {
    growth_ *= ratio(regex->replace.size(), 1);
  } else if (const auto* map = std::get_if<CharacterMap>(&step)) {
    growth_ *= map->growth();
  } else if (std::holds_alternative<UnicodeForm>(step)) {
    growth_ *= 18.0;  // U+FDFA in NFKC, the worst there is, counted as characters
  }
  steps_.push_back(std::move(step));
}

std::string Normalizer::apply(std::string text, Matcher& matcher) const {
  for (const NormalizerStep& step : steps_) {
    if (const auto* form = std::get_if<UnicodeForm>(&step)) {
      text = normalize(text, *form);
    } else if (std::holds_alternative<LowercaseStep>(step)) {
      text = lowercase(text);
    } else if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      if (!text.empty()) text.insert(0, prepend->text);
    } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
      text = replace_all(text, replace->find, replace->replace);
    } else if (const auto* regex = std::get_if<ReplaceRegexStep>(&step)) {
      text = replace_all(text, regex->pattern, regex->replace, matcher);
    } else if (const auto* strip_ends = std::get_if<StripStep>(&step)) {
      text = trim(text, *strip_ends);
    } else if (const auto* map = std::get_if<CharacterMap>(&step)) {
      text = map->apply(text);
    } else {
      text = collapse_spaces(text);
    }
  }
  return text;
}

}  // namespace sluice::model
