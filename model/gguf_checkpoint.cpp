// A GGUF file as a checkpoint.

#include <algorithm>
#include <bit>
#include <filesystem>
#include <type_traits>

#include "model/contents.hpp"
#include "model/gguf.hpp"
#include "model/tokenizer.hpp"

namespace sluice::model {
namespace {

InspectValue plain(std::uint64_t value) { return value; }
InspectValue plain(std::int64_t value) { return value; }
InspectValue plain(double value) { return value; }
InspectValue plain(bool value) { return value; }
InspectValue plain(std::string_view value) { return cleaned(value); }

template <class T>
std::string_view type_of() {
  if constexpr (std::is_same_v<T, std::uint64_t>) return "unsigned";
  if constexpr (std::is_same_v<T, std::int64_t>) return "signed";
  if constexpr (std::is_same_v<T, double>) return "float";
  if constexpr (std::is_same_v<T, bool>) return "bool";
  return "string";
}

InspectEntry describe(const GgufFile::Entry& entry) {
  InspectEntry out;
  out.key = cleaned(entry.key);
  if (const auto* array = std::get_if<GgufArray>(&entry.value)) {
    out.array = true;
    std::visit([&out](const auto& values) {
      using T = typename std::decay_t<decltype(values)>::value_type;
      out.type = type_of<T>();
      out.count = values.size();
      for (std::size_t i = 0; i < std::min(values.size(), inspect_elements_max); ++i) {
        out.values.push_back(plain(static_cast<T>(values[i])));
      }
    }, *array);
    return out;
  }
  std::visit([&out](const auto& value) {
    using T = std::decay_t<decltype(value)>;
    if constexpr (!std::is_same_v<T, GgufArray>) {
      out.type = type_of<T>();
      out.values.push_back(plain(value));
    }
  }, entry.value);
  return out;
}

/// Appends values so that no two different lists give the same bytes.
class SettingsWriter {
 public:
  void add(std::uint64_t number) {
    bytes_.append(reinterpret_cast<const char*>(&number), sizeof number);
  }
  void add(std::string_view text) {
    add(std::uint64_t{text.size()});
    bytes_ += text;
  }
  void add(const GgufValue& value) {
    add(std::uint64_t{value.index()});
    std::visit([this](const auto& held) { add_held(held); }, value);
  }
  std::string take() { return std::move(bytes_); }

 private:
  void add_held(std::uint64_t number) { add(number); }
  void add_held(std::int64_t number) { add(static_cast<std::uint64_t>(number)); }
  void add_held(double number) { add(std::bit_cast<std::uint64_t>(number)); }
  void add_held(bool flag) { add(std::uint64_t{flag}); }
  void add_held(std::string_view text) { add(text); }
  void add_held(const GgufArray& array) {
    std::visit([this](const auto& values) {
      add(std::uint64_t{values.size()});
      for (const auto& value : values) add_held(value);
    }, array);
  }

  std::string bytes_;
};

}  // namespace

std::string GgufFile::title() const { return std::filesystem::path(name()).stem().string(); }

Result<ModelConfig> GgufFile::config() const { return read_config(*this); }

Result<std::shared_ptr<const Tokenizer>> GgufFile::tokenizer() const {
  return load_tokenizer(*this);
}

Result<std::optional<std::string>> GgufFile::chat_template() const {
  constexpr std::string_view key = "tokenizer.chat_template";
  if (find(key) == nullptr) return std::nullopt;
  const auto jinja = string_value(key);
  if (!jinja) return tl::unexpected<Error>(jinja.error());
  return std::string(*jinja);
}

/// The architecture's own keys (rope, epsilon, window): the same weights under others are another
/// model. Names, licences and the tokenizer are not part of it.
std::string GgufFile::settings() const {
  const std::string prefix = std::string(string_value("general.architecture").value_or("")) + ".";
  std::vector<const Entry*> entries;
  for (const Entry& entry : metadata()) {
    if (entry.key.starts_with(prefix)) entries.push_back(&entry);
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto* a, const auto* b) { return a->key < b->key; });
  SettingsWriter out;
  out.add(std::string_view(prefix));
  for (const Entry* entry : entries) {
    out.add(entry->key);
    out.add(entry->value);
  }
  return out.take();
}

FileContents GgufFile::contents() const {
  FileContents out;
  out.format = "GGUF";
  out.version = version();
  out.file_bytes = file_bytes();
  for (const Entry& entry : metadata()) out.metadata.push_back(describe(entry));
  for (const Tensor& tensor : tensors()) {
    out.tensors.push_back({cleaned(tensor.name), std::string(info(tensor.format).name),
                           tensor.shape, tensor.data.size()});
  }
  return out;
}

}  // namespace sluice::model
