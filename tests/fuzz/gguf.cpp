// libFuzzer target: any bytes are either refused or make a GGUF file whose every part can be read.
#include "model/gguf.hpp"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = model::GgufFile::parse(bytes, "fuzz");
  if (!file) {
    if (file.error().message.empty()) std::abort();
    return 0;
  }
  unsigned sum = 0;
  for (const auto& entry : (*file)->metadata()) {
    if ((*file)->find(entry.key) != &entry.value) std::abort();
    if (const auto* text = std::get_if<std::string_view>(&entry.value)) {
      for (const char c : *text) sum += static_cast<unsigned char>(c);
    }
  }
  for (const auto& tensor : (*file)->tensors()) {
    const auto matrix = tensor.matrix();
    if (matrix.data.size() != matrix.rows * kernels::row_bytes(matrix.format, matrix.cols)) {
      std::abort();
    }
    for (const std::byte byte : matrix.data) sum += static_cast<unsigned>(byte);
  }
  // The sum keeps the reads; it is never this value, for it counts fewer than 2^24 bytes.
  return sum == ~0U ? -1 : 0;
}
