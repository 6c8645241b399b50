#pragma once
// Writes safetensors bytes by hand, true or lying.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/model/gguf_builder.hpp"

namespace sluice::model::testing {

/// A header as it stands, its length before it, and data.
inline std::vector<std::byte> safetensors_bytes(std::string_view header,
                                                std::span<const std::byte> data) {
  ByteWriter out;
  out.put(std::uint64_t{header.size()}).raw(header);
  out.bytes.insert(out.bytes.end(), data.begin(), data.end());
  return out.bytes;
}

/// Tensors one after the other.
class SafetensorsBuilder {
 public:
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::vector<std::byte> data;

  SafetensorsBuilder& tensor(const std::string& name, const std::string& type,
                             const std::vector<std::uint64_t>& shape,
                             std::span<const std::byte> bytes) {
    header[name] = {{"dtype", type},
                    {"shape", shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data.insert(data.end(), bytes.begin(), bytes.end());
    return *this;
  }

  /// As the reference writes it: the header padded so that the data lies at a multiple of 8.
  std::vector<std::byte> build() const {
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return safetensors_bytes(text, data);
  }
};

}  // namespace sluice::model::testing
