#include "model/inspect.hpp"

#include <algorithm>
#include <array>
#include <type_traits>

#include "model/decoder.hpp"
#include "model/gguf.hpp"
#include "model/weights.hpp"

namespace sluice::model {
namespace {

constexpr std::size_t shown_elements = 8;
constexpr std::size_t shown_bytes = 256;

/// Bytes of the UTF-8 character that starts here (no surrogate, none longer than needed), or 0.
std::size_t character_bytes(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return 0;
  }
  const unsigned second = byte(1);
  const bool too_long = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second >= 0xA0;
  const bool beyond = first == 0xF4 && second >= 0x90;
  return too_long || surrogate || beyond ? 0 : size;
}

std::string cleaned(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t size = character_bytes(text);
    if (out.size() + std::max<std::size_t>(size, 3) > shown_bytes) return out + "…";
    if (size == 0) {
      out += "\xEF\xBF\xBD";
      text.remove_prefix(1);
    } else {
      out += text.substr(0, size);
      text.remove_prefix(size);
    }
  }
  return out;
}

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
      for (std::size_t i = 0; i < std::min(values.size(), shown_elements); ++i) {
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

std::vector<InspectFormat> sum_formats(const GgufFile& file) {
  std::array<InspectFormat, kernels::format_count> sums;
  for (const GgufTensor& tensor : file.tensors()) {
    InspectFormat& sum = sums[static_cast<std::size_t>(tensor.format)];
    sum.format = info(tensor.format).name;
    ++sum.tensors;
    sum.bytes += tensor.data.size();
  }
  std::vector<InspectFormat> used;
  for (const InspectFormat& sum : sums) {
    if (sum.tensors > 0) used.push_back(sum);
  }
  std::stable_sort(used.begin(), used.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return used;
}

}  // namespace

Result<FileDescription> describe_file(const std::string& path) {
  const auto opened = GgufFile::open(path);
  if (!opened) return tl::unexpected<Error>(opened.error());
  const GgufFile& file = **opened;
  FileDescription out;
  out.path = path;
  out.version = file.version();
  out.file_bytes = file.file_bytes();
  for (const GgufFile::Entry& entry : file.metadata()) out.metadata.push_back(describe(entry));
  for (const GgufTensor& tensor : file.tensors()) {
    const kernels::HostTensor matrix = tensor.matrix();
    out.tensors.push_back({cleaned(tensor.name), std::string(info(tensor.format).name),
                           tensor.shape, tensor.data.size()});
    out.parameters += std::uint64_t{matrix.rows} * matrix.cols;
    out.tensor_bytes += tensor.data.size();
  }
  out.formats = sum_formats(file);
  out.fingerprint = weights_fingerprint(file);
  auto config = read_config(file);
  if (!config) {
    out.refusal = config.error();
    return out;
  }
  if (const auto tensors = find_tensors(file, *config); !tensors) out.refusal = tensors.error();
  out.config = std::move(*config);
  return out;
}

}  // namespace sluice::model
