#pragma once
// What a model file holds, as plain data: `sluice inspect FILE` prints it.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/core.hpp"
#include "model/config.hpp"

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

struct InspectTensor {
  std::string name;
  std::string format;                 ///< "Q4_1"
  std::vector<std::uint64_t> shape;   ///< innermost first, as the file has it
  std::uint64_t bytes = 0;
};

struct InspectFormat {
  std::string format;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;
};

struct FileDescription {
  std::string path;
  std::uint32_t version = 0;          ///< of GGUF
  std::uint64_t file_bytes = 0;
  std::vector<InspectEntry> metadata;   ///< in the file's order
  std::vector<InspectTensor> tensors;   ///< in the file's order
  std::vector<InspectFormat> formats;   ///< the formats in use, most bytes first
  std::uint64_t parameters = 0;         ///< elements of all tensors
  std::uint64_t tensor_bytes = 0;
  std::optional<ModelConfig> config;    ///< as recognised
  std::string fingerprint;              ///< weights_fingerprint
  /// Why the decoder would refuse the file; none: it would load.
  std::optional<Error> refusal;
};

/// Reads the whole header and no weights but the fingerprint's samples. The errors of
/// GgufFile::open; a file that is sound but not supported is described, with `refusal`.
Result<FileDescription> describe_file(const std::string& path);

}  // namespace sluice::model
