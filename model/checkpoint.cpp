#include "model/checkpoint.hpp"

#include <filesystem>

#include "model/gguf.hpp"
#include "model/hf_checkpoint.hpp"

namespace sluice::model {

kernels::HostTensor Tensor::matrix() const {
  std::uint64_t rows = 1;
  for (std::size_t d = 1; d < shape.size(); ++d) rows *= shape[d];
  return {format, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(shape.front()),
          data, source};
}

Error named(const Checkpoint& file, Error error) {
  if (error.code == ErrorCode::io) error.message = file.name() + ": " + error.message;
  return error;
}

Result<std::shared_ptr<const Checkpoint>> open_checkpoint(const std::string& path) {
  std::error_code none;
  const bool hf = std::filesystem::is_directory(path, none) || path.ends_with(".safetensors") ||
                  path.ends_with(".safetensors.index.json");
  if (hf) return open_hf_checkpoint(path);
  return GgufFile::open(path);
}

}  // namespace sluice::model
