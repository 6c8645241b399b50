#pragma once
// What a model's files hold and whether they can be run: `sluice inspect` prints it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core.hpp"
#include "model/config.hpp"
#include "model/contents.hpp"

namespace sluice::model {

struct InspectFormat {
  std::string format;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;
};

struct FileDescription : FileContents {
  std::string path;
  std::vector<InspectFormat> formats;   ///< the formats in use, most bytes first
  std::uint64_t parameters = 0;         ///< elements of all tensors
  std::uint64_t tensor_bytes = 0;
  std::optional<ModelConfig> config;    ///< as recognised
  std::string fingerprint;              ///< weights_fingerprint; empty without `config`
  /// Why the decoder would refuse the model; none: it would load.
  std::optional<Error> refusal;
};

/// Reads the whole headers and no weights but the fingerprint's samples. The errors of
/// open_checkpoint; a model that is sound but not supported is described, with `refusal`.
Result<FileDescription> describe_file(const std::string& path);

}  // namespace sluice::model
