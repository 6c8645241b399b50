#pragma once
// JSON that came with a model: bounded before it becomes a tree.

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::model {

using Json = nlohmann::json;

/// The object in `text`. `bad_file`, beginning with `name`, for what is no JSON object, is no
/// UTF-8, or nests deeper than any such file does.
Result<Json> parse_json_object(std::string_view text, std::string_view name);

}  // namespace sluice::model
