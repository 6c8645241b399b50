#pragma once
// The text-shaping components of a tokenizer.json: normalizer, pre-tokenizer, decoder,
// post-processor.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core.hpp"
#include "model/json_text.hpp"
#include "model/normalizer.hpp"
#include "model/pretokenizer.hpp"

namespace sluice::model {

/// The member `key`; nothing when it is absent or null. `bad_file` when it is of another type.
template <class T>
Result<std::optional<T>> json_member(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || found->is_null()) return std::nullopt;
  bool fits = false;
  if constexpr (std::is_same_v<T, bool>) {
    fits = found->is_boolean();
  } else if constexpr (std::is_same_v<T, std::string>) {
    fits = found->is_string();
  } else {
    fits = found->is_number_unsigned();
  }
  if (!fits) {
    return fail(ErrorCode::bad_file,
                "tokenizer.json: \"{}\" is {}, which it must not be; get the file again", key,
                found->type_name());
  }
  return found->template get<T>();
}

/// As above, with a value for what is absent.
template <class T>
Result<T> json_member_or(const Json& object, const char* key, T otherwise) {
  auto found = json_member<T>(object, key);
  if (!found) return tl::unexpected(found.error());
  return found->value_or(std::move(otherwise));
}

/// A component's "type"; "" for null. `bad_file` for what is no component.
Result<std::string> json_type(const Json& component);

/// `component` may be null: no steps. All `unsupported` with the name of a type they do not know.
Result<void> read_normalizer(const Json& component, Normalizer& into);

struct JsonPretokenizer {
  Pretokenizer steps;
  bool byte_level = false;  ///< ends with a ByteLevel: the model sees bytes
};
Result<JsonPretokenizer> read_pretokenizer(const Json& component);

/// How a token's spelling becomes its bytes.
struct JsonDecoder {
  bool byte_level = false;
  bool byte_fallback = false;
  bool drops_leading_space = false;
  std::vector<std::pair<std::string, std::string>> replacements;

  std::string bytes_of(std::string_view spelling) const;
  /// A bound on how many times longer than its spelling a token's bytes can be.
  double growth() const;
};
Result<JsonDecoder> read_decoder(const Json& component);

/// The spelling of the token that starts every text, if one does.
Result<std::optional<std::string>> read_first_token(const Json& post_processor);

}  // namespace sluice::model
