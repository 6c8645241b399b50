#include "model/json_text.hpp"

#include <algorithm>

namespace sluice::model {
namespace {

// Configurations nest to about 4, tokenizers to 8. Copying and writing a tree recurse.
constexpr std::size_t depth_max = 64;

/// How deep brackets outside of strings nest: at least the depth of any tree that parses.
std::size_t depth_of(std::string_view text) {
  std::size_t depth = 0;
  std::size_t deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

Result<Json> parse_json_object(std::string_view text, std::string_view name) {
  if (const std::size_t depth = depth_of(text); depth > depth_max) {
    return fail(ErrorCode::bad_file, "{}: its JSON nests {} deep, at most {} are allowed: fetch it "
                "again", name, depth, depth_max);
  }
  Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) {
    return fail(ErrorCode::bad_file, "{}: it is no JSON object, or cut short: fetch it again",
                name);
  }
  return root;
}

}  // namespace sluice::model
