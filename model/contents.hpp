#pragma once
// What a model's files hold, as plain data for people.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sluice::model {

/// A metadata value, or one element of an array. Strings longer than 256 bytes are cut at a
/// character's border and end in "…"; bytes that are no UTF-8 come out as U+FFFD.
using InspectValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string>;

struct InspectEntry {
  std::string key;
  std::string type;                   ///< unsigned, signed, float, bool, string; of the elements
  bool array = false;
  std::uint64_t count = 1;            ///< elements of an array
  std::vector<InspectValue> values;   ///< the value, or the first 8 of an array
};

inline constexpr std::size_t inspect_elements_max = 8;

struct InspectTensor {
  std::string name;
  std::string format;                 ///< "Q4_1"
  std::vector<std::uint64_t> shape;   ///< innermost first
  std::uint64_t bytes = 0;
};

struct FileContents {
  std::string format;                 ///< "GGUF"
  std::uint32_t version = 0;          ///< of the format; 0: it has none
  std::uint64_t file_bytes = 0;
  std::vector<InspectEntry> metadata;   ///< in the file's order
  std::vector<InspectTensor> tensors;   ///< in the file's order
};

/// A text from a file as an InspectValue has it.
std::string cleaned(std::string_view text);

}  // namespace sluice::model
