#include "model/json_parts.hpp"

#include <sodium.h>

#include <algorithm>

#include "model/vocabulary.hpp"

namespace sluice::model {

namespace {

constexpr int kNestingMax = 8;  // of Sequence in Sequence

tl::unexpected<Error> unknown_type(std::string_view what, std::string_view type) {
  return fail(
      ErrorCode::unsupported,
      "tokenizer.json: the {} \"{}\" is not supported; use the model's GGUF file, or another "
      "model",
      what, type);
}

tl::unexpected<Error> malformed(std::string_view what) {
  return fail(ErrorCode::bad_file, "tokenizer.json: {} is malformed; get the file again", what);
}

/// The list `key` of a Sequence.
Result<const Json*> children_of(const Json& component, const char* key, int depth) {
  const auto list = component.find(key);
  if (list == component.end() || !list->is_array() || depth >= kNestingMax) return malformed(key);
  return &*list;
}

/// {"String": "x"} or {"Regex": "x"}: the text, and whether it is a pattern.
Result<std::pair<std::string, bool>> read_pattern(const Json& component) {
  const auto pattern = component.find("pattern");
  if (pattern == component.end()) return malformed("a component without pattern");
  auto literal = json_member<std::string>(*pattern, "String");
  if (!literal) return tl::unexpected(literal.error());
  auto regex = json_member<std::string>(*pattern, "Regex");
  if (!regex) return tl::unexpected(regex.error());
  if (*literal) return std::pair{**literal, false};
  if (*regex) return std::pair{**regex, true};
  return malformed("a pattern");
}

Result<void> read_replace(const Json& component, Normalizer& into) {
  auto pattern = read_pattern(component);
  if (!pattern) return tl::unexpected(pattern.error());
  auto content = json_member_or<std::string>(component, "content", "");
  if (!content) return tl::unexpected(content.error());
  if (!pattern->second) {
    into.add(ReplaceStep{pattern->first, *content});
    return {};
  }
  auto regex = Regex::compile(pattern->first);
  if (!regex) return tl::unexpected(regex.error());
  into.add(ReplaceRegexStep{*regex, *content});
  return {};
}

Result<void> read_strip(const Json& component, Normalizer& into) {
  auto left = json_member_or<bool>(component, "strip_left", true);
  if (!left) return tl::unexpected(left.error());
  auto right = json_member_or<bool>(component, "strip_right", true);
  if (!right) return tl::unexpected(right.error());
  into.add(StripStep{*left, *right});
  return {};
}

Result<void> read_precompiled(const Json& component, Normalizer& into) {
  auto text = json_member_or<std::string>(component, "precompiled_charsmap", "");
  if (!text) return tl::unexpected(text.error());
  std::string blob(text->size(), '\0');
  std::size_t bytes = 0;
  if (sodium_base642bin(reinterpret_cast<unsigned char*>(blob.data()), blob.size(), text->data(),
                        text->size(), nullptr, &bytes, nullptr,
                        sodium_base64_VARIANT_ORIGINAL) != 0) {
    return malformed("precompiled_charsmap");
  }
  blob.resize(bytes);
  auto map = CharacterMap::parse(blob);
  if (!map) return tl::unexpected(map.error());
  into.add(std::move(*map));
  return {};
}

Result<void> read_normalizer(const Json& component, Normalizer& into, int depth) {
  auto type = json_type(component);
  if (!type) return tl::unexpected(type.error());
  if (type->empty()) return {};
  if (*type == "Sequence") {
    auto list = children_of(component, "normalizers", depth);
    if (!list) return tl::unexpected(list.error());
    for (const Json& child : **list) {
      if (auto done = read_normalizer(child, into, depth + 1); !done) return done;
    }
    return {};
  }
  if (*type == "Replace") return read_replace(component, into);
  if (*type == "Strip") return read_strip(component, into);
  if (*type == "Precompiled") return read_precompiled(component, into);
  if (*type == "Prepend") {
    auto text = json_member_or<std::string>(component, "prepend", "");
    if (!text) return tl::unexpected(text.error());
    into.add(PrependStep{*text});
  } else if (*type == "NFC") {
    into.add(UnicodeForm::nfc);
  } else if (*type == "NFD") {
    into.add(UnicodeForm::nfd);
  } else if (*type == "NFKC") {
    into.add(UnicodeForm::nfkc);
  } else if (*type == "NFKD") {
    into.add(UnicodeForm::nfkd);
  } else if (*type == "Lowercase") {
    into.add(LowercaseStep{});
  } else {
    return unknown_type("normalizer", *type);
  }
  return {};
}

Result<SplitBehavior> read_behavior(const Json& component) {
  auto name = json_member_or<std::string>(component, "behavior", "Isolated");
  if (!name) return tl::unexpected(name.error());
  if (*name == "Isolated") return SplitBehavior::isolated;
  if (*name == "Removed") return SplitBehavior::removed;
  if (*name == "Contiguous") return SplitBehavior::contiguous;
  if (*name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (*name == "MergedWithNext") return SplitBehavior::merged_with_next;
  return unknown_type("split behavior", *name);
}

Result<void> add_split(std::string_view pattern, SplitBehavior behavior, bool invert,
                       Pretokenizer& into) {
  auto regex = Regex::compile(pattern);
  if (!regex) return tl::unexpected(regex.error());
  into.add(SplitStep{*regex, behavior, invert});
  return {};
}

Result<void> read_split(const Json& component, Pretokenizer& into) {
  auto pattern = read_pattern(component);
  if (!pattern) return tl::unexpected(pattern.error());
  auto behavior = read_behavior(component);
  if (!behavior) return tl::unexpected(behavior.error());
  auto invert = json_member_or<bool>(component, "invert", false);
  if (!invert) return tl::unexpected(invert.error());
  return add_split(pattern->second ? pattern->first : quote_regex(pattern->first), *behavior,
                   *invert, into);
}

/// Whether and where a Metaspace puts its mark in front; older files have a flag instead.
Result<MetaspaceStep::Prepend> read_prepend(const Json& component) {
  auto flag = json_member_or<bool>(component, "add_prefix_space", true);
  if (!flag) return tl::unexpected(flag.error());
  auto scheme =
      json_member_or<std::string>(component, "prepend_scheme", *flag ? "always" : "never");
  if (!scheme) return tl::unexpected(scheme.error());
  if (*scheme == "always") return MetaspaceStep::Prepend::always;
  if (*scheme == "first") return MetaspaceStep::Prepend::first;
  if (*scheme == "never") return MetaspaceStep::Prepend::never;
  return unknown_type("prepend_scheme", *scheme);
}

Result<void> read_metaspace(const Json& component, Pretokenizer& into) {
  MetaspaceStep step;
  auto mark = json_member_or<std::string>(component, "replacement", step.mark);
  if (!mark) return tl::unexpected(mark.error());
  if (mark->empty()) return malformed("replacement");
  auto prepend = read_prepend(component);
  if (!prepend) return tl::unexpected(prepend.error());
  auto split = json_member_or<bool>(component, "split", true);
  if (!split) return tl::unexpected(split.error());
  step.mark = *mark;
  step.prepend = *prepend;
  step.split = *split;
  into.add(std::move(step));
  return {};
}

Result<void> read_byte_level(const Json& component, JsonPretokenizer& into) {
  auto prefix = json_member_or<bool>(component, "add_prefix_space", true);
  if (!prefix) return tl::unexpected(prefix.error());
  auto regex = json_member_or<bool>(component, "use_regex", true);
  if (!regex) return tl::unexpected(regex.error());
  into.byte_level = true;
  if (*prefix) into.steps.add(PrefixSpaceStep{});
  if (!*regex) return {};
  return add_split(gpt2_pattern(), SplitBehavior::isolated, false, into.steps);
}

Result<void> read_pretokenizer(const Json& component, JsonPretokenizer& into, int depth) {
  auto type = json_type(component);
  if (!type) return tl::unexpected(type.error());
  if (type->empty()) return {};
  if (*type == "Sequence") {
    auto list = children_of(component, "pretokenizers", depth);
    if (!list) return tl::unexpected(list.error());
    for (const Json& child : **list) {
      if (auto done = read_pretokenizer(child, into, depth + 1); !done) return done;
    }
    return {};
  }
  // After ByteLevel the text is spelled in another alphabet, where patterns mean something else.
  if (into.byte_level) return unknown_type("pre-tokenizer after ByteLevel", *type);
  if (*type == "ByteLevel") return read_byte_level(component, into);
  if (*type == "Split") return read_split(component, into.steps);
  if (*type == "Metaspace") return read_metaspace(component, into.steps);
  if (*type == "Whitespace") {
    return add_split(R"(\w+|[^\w\s]+)", SplitBehavior::removed, true, into.steps);
  }
  if (*type == "WhitespaceSplit") {
    return add_split(R"(\s)", SplitBehavior::removed, false, into.steps);
  }
  if (*type == "Digits") {
    auto single = json_member_or<bool>(component, "individual_digits", false);
    if (!single) return tl::unexpected(single.error());
    return add_split(R"(\p{N})", *single ? SplitBehavior::isolated : SplitBehavior::contiguous,
                     false, into.steps);
  }
  if (*type == "Punctuation") {
    auto behavior = read_behavior(component);
    if (!behavior) return tl::unexpected(behavior.error());
    return add_split(R"([\p{P}!-/:-@\[-`{-~])", *behavior, false, into.steps);
  }
  return unknown_type("pre-tokenizer", *type);
}

Result<void> read_decoder(const Json& component, JsonDecoder& into, int depth) {
  auto type = json_type(component);
  if (!type) return tl::unexpected(type.error());
  if (*type == "Sequence") {
    auto list = children_of(component, "decoders", depth);
    if (!list) return tl::unexpected(list.error());
    for (const Json& child : **list) {
      if (auto done = read_decoder(child, into, depth + 1); !done) return done;
    }
  } else if (*type == "ByteLevel") {
    into.byte_level = true;
  } else if (*type == "ByteFallback") {
    into.byte_fallback = true;
  } else if (*type == "Replace") {
    auto pattern = read_pattern(component);
    if (!pattern) return tl::unexpected(pattern.error());
    if (pattern->second) return unknown_type("decoder", "Replace with a Regex");
    auto content = json_member_or<std::string>(component, "content", "");
    if (!content) return tl::unexpected(content.error());
    into.replacements.emplace_back(pattern->first, *content);
  } else if (*type == "Metaspace") {
    auto mark = json_member_or<std::string>(component, "replacement", "\u2581");
    if (!mark) return tl::unexpected(mark.error());
    auto prepend = read_prepend(component);
    if (!prepend) return tl::unexpected(prepend.error());
    into.replacements.emplace_back(*mark, " ");
    into.drops_leading_space = *prepend != MetaspaceStep::Prepend::never;
  } else if (*type == "Strip") {
    auto content = json_member_or<std::string>(component, "content", " ");
    if (!content) return tl::unexpected(content.error());
    auto start = json_member_or<std::uint64_t>(component, "start", 0);
    if (!start) return tl::unexpected(start.error());
    auto stop = json_member_or<std::uint64_t>(component, "stop", 0);
    if (!stop) return tl::unexpected(stop.error());
    if (*content != " " || *start > 1 || *stop > 0) return unknown_type("decoder", "Strip");
    into.drops_leading_space = *start == 1;
  } else if (*type != "Fuse") {
    return unknown_type("decoder", type->empty() ? "null" : std::string_view(*type));
  }
  return {};
}

Result<std::optional<std::string>> read_template(const Json& component) {
  const auto single = component.find("single");
  if (single == component.end() || !single->is_array()) return malformed("TemplateProcessing");
  std::optional<std::string> first;
  for (const Json& item : *single) {
    if (!item.is_object()) return malformed("TemplateProcessing");
    const auto token = item.find("SpecialToken");
    if (token == item.end()) break;
    if (first) return unknown_type("post-processor with", "two tokens before the text");
    auto id = json_member<std::string>(*token, "id");
    if (!id) return tl::unexpected(id.error());
    if (!*id) return malformed("TemplateProcessing");
    first = **id;
  }
  return first;
}

}  // namespace

Result<std::string> json_type(const Json& component) {
  if (component.is_null()) return std::string();
  if (!component.is_object()) return malformed("a component that is no object");
  auto type = json_member<std::string>(component, "type");
  if (!type) return tl::unexpected(type.error());
  if (!*type) return malformed("a component without type");
  return **type;
}

Result<void> read_normalizer(const Json& component, Normalizer& into) {
  return read_normalizer(component, into, 0);
}

Result<JsonPretokenizer> read_pretokenizer(const Json& component) {
  JsonPretokenizer read;
  if (auto done = read_pretokenizer(component, read, 0); !done) return tl::unexpected(done.error());
  return read;
}

Result<JsonDecoder> read_decoder(const Json& component) {
  JsonDecoder read;
  if (auto done = read_decoder(component, read, 0); !done) return tl::unexpected(done.error());
  return read;
}

double JsonDecoder::growth() const {
  double growth = 1.0;
  for (const auto& [find, replace] : replacements) {
    if (!find.empty()) {
      growth *=
          std::max(1.0, static_cast<double>(replace.size()) / static_cast<double>(find.size()));
    }
  }
  return growth;
}

std::string JsonDecoder::bytes_of(std::string_view spelling) const {
  if (byte_level) {
    auto bytes = bytes_of_byte_level(spelling);
    return bytes ? *bytes : std::string(spelling);
  }
  if (byte_fallback) {
    if (const auto byte = byte_of_hex_spelling(spelling)) return std::string(1, *byte);
  }
  std::string out(spelling);
  for (const auto& [find, replace] : replacements) {
    for (std::size_t at = 0; !find.empty() && (at = out.find(find, at)) != std::string::npos;) {
      out.replace(at, find.size(), replace);
      at += replace.size();
    }
  }
  return out;
}

Result<std::optional<std::string>> read_first_token(const Json& post_processor) {
  auto type = json_type(post_processor);
  if (!type) return tl::unexpected(type.error());
  if (type->empty() || *type == "ByteLevel") return std::nullopt;
  if (*type == "TemplateProcessing") return read_template(post_processor);
  if (*type != "Sequence") return unknown_type("post-processor", *type);
  auto list = children_of(post_processor, "processors", 0);
  if (!list) return tl::unexpected(list.error());
  std::optional<std::string> first;
  for (const Json& child : **list) {
    auto child_type = json_type(child);
    if (!child_type) return tl::unexpected(child_type.error());
    if (*child_type == "ByteLevel") continue;
    if (*child_type != "TemplateProcessing") return unknown_type("post-processor", *child_type);
    auto found = read_template(child);
    if (!found) return tl::unexpected(found.error());
    if (*found) first = **found;
  }
  return first;
}

}  // namespace sluice::model
