#include "model/inspect.hpp"

#include <algorithm>

#include "model/checkpoint.hpp"
#include "model/weights.hpp"

namespace sluice::model {
namespace {

std::vector<InspectFormat> sum_formats(const std::vector<InspectTensor>& tensors) {
  std::vector<InspectFormat> sums;
  for (const InspectTensor& tensor : tensors) {
    auto sum = std::find_if(sums.begin(), sums.end(),
                            [&](const auto& one) { return one.format == tensor.format; });
    if (sum == sums.end()) sum = sums.insert(sums.end(), {tensor.format});
    ++sum->tensors;
    sum->bytes += tensor.bytes;
  }
  std::stable_sort(sums.begin(), sums.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return sums;
}

}  // namespace

Result<FileDescription> describe_file(const std::string& path) {
  const auto opened = open_checkpoint(path);
  if (!opened) return tl::unexpected<Error>(opened.error());
  const Checkpoint& checkpoint = **opened;
  FileDescription out;
  static_cast<FileContents&>(out) = checkpoint.contents();
  out.path = path;
  for (const InspectTensor& tensor : out.tensors) {
    std::uint64_t elements = 1;
    for (const std::uint64_t size : tensor.shape) elements *= size;
    out.parameters += elements;
    out.tensor_bytes += tensor.bytes;
  }
  out.formats = sum_formats(out.tensors);
  auto config = checkpoint.config();
  if (!config) {
    out.refusal = config.error();
    return out;
  }
  auto fingerprint = weights_fingerprint(checkpoint);
  if (!fingerprint) return tl::unexpected(fingerprint.error());
  out.fingerprint = std::move(*fingerprint);
  if (const auto tensors = find_tensors(checkpoint, *config); !tensors) {
    out.refusal = tensors.error();
  }
  out.config = std::move(*config);
  return out;
}

}  // namespace sluice::model
