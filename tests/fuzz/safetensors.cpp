// libFuzzer target: any bytes are either refused or make a safetensors file whose every part can be
// read; as text, an index is refused or names plain files alone.
#include "model/safetensors.hpp"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto index = model::parse_safetensors_index(text, "fuzz")) {
    for (const std::string& file : index->files) {
      if (file.empty() || file.front() == '.' || file.find('/') != file.npos) std::abort();
    }
  }
  const auto file = model::SafetensorsFile::parse(bytes, "fuzz");
  if (!file) {
    if (file.error().message.empty()) std::abort();
    return 0;
  }
  unsigned sum = 0;
  const std::byte* next = nullptr;
  for (const auto& tensor : (*file)->tensors()) {
    if ((*file)->find(tensor.name) != &tensor) std::abort();
    std::uint64_t bits = tensor.type->bits;
    for (const std::uint64_t dimension : tensor.shape) bits *= dimension;
    if (bits != tensor.data.size() * 8) std::abort();
    if (next != nullptr && tensor.data.data() != next) std::abort();
    next = tensor.data.data() + tensor.data.size();
    for (const std::byte byte : tensor.data) sum += static_cast<unsigned>(byte);
  }
  if (next != nullptr && next != bytes.data() + size) std::abort();
  // The sum keeps the reads; it is never this value, for it counts fewer than 2^24 bytes.
  return sum == ~0U ? -1 : 0;
}
