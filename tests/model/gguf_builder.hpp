#pragma once
// Writes GGUF bytes by hand, true or lying: what tests of the reader and of its users parse.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::model::testing {

/// Value types of the GGUF specification.
enum : std::uint32_t {
  type_u8, type_i8, type_u16, type_i16, type_u32, type_i32, type_f32, type_bool, type_string,
  type_array, type_u64, type_i64, type_f64,
};

/// Little-endian bytes, appended one number after the other.
class ByteWriter {
 public:
  template <class T>
  ByteWriter& put(T value) {
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), raw, raw + sizeof value);
    return *this;
  }
  ByteWriter& string(std::string_view text) {
    put(std::uint64_t{text.size()});
    return raw(text);
  }
  ByteWriter& raw(std::string_view text) {
    const auto* from = reinterpret_cast<const std::byte*>(text.data());
    bytes.insert(bytes.end(), from, from + text.size());
    return *this;
  }
  std::vector<std::byte> bytes;
};

/// A file in parts; every part can be made to lie before `build`.
class GgufBuilder {
 public:
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  ///< of the data section as laid out; not written as a key
  std::int64_t extra_tensors = 0;  ///< added to the written count
  std::int64_t extra_entries = 0;

  /// Starts an entry; the caller appends its value.
  ByteWriter& entry(std::string_view key, std::uint32_t type) {
    ++entries_;
    return metadata_.string(key).put(type);
  }
  template <class T>
  GgufBuilder& value(std::string_view key, std::uint32_t type, T number) {
    entry(key, type).put(number);
    return *this;
  }
  GgufBuilder& u32(std::string_view key, std::uint32_t number) {
    return value(key, type_u32, number);
  }
  GgufBuilder& f32(std::string_view key, float number) { return value(key, type_f32, number); }
  GgufBuilder& boolean(std::string_view key, bool flag) {
    return value(key, type_bool, static_cast<std::uint8_t>(flag));
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    entry(key, type_string).string(value);
    return *this;
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    auto& out = entry(key, type_array).put(std::uint32_t{type_string});
    out.put(std::uint64_t{values.size()});
    for (const std::string& one : values) out.string(one);
    return *this;
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, std::uint32_t type, const std::vector<T>& values) {
    auto& out = entry(key, type_array).put(type).put(std::uint64_t{values.size()});
    for (const T one : values) out.put(one);
    return *this;
  }

  /// A tensor record, whatever it says.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
                      std::uint32_t ggml_type, std::uint64_t offset) {
    ++tensors_;
    records_.string(name).put(static_cast<std::uint32_t>(shape.size()));
    for (const std::uint64_t size : shape) records_.put(size);
    records_.put(ggml_type).put(offset);
    return *this;
  }
  /// A tensor with its bytes, placed after the one before.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
                      std::uint32_t ggml_type, std::span<const std::byte> data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    tensor(name, shape, ggml_type, std::uint64_t{data_.size()});
    data_.insert(data_.end(), data.begin(), data.end());
    return *this;
  }

  /// The file, with at least `data_bytes` of data.
  std::vector<std::byte> build(std::size_t data_bytes = 0) const {
    ByteWriter out;
    out.raw(magic).put(version);
    out.put(tensors_ + static_cast<std::uint64_t>(extra_tensors));
    out.put(entries_ + static_cast<std::uint64_t>(extra_entries));
    out.bytes.insert(out.bytes.end(), metadata_.bytes.begin(), metadata_.bytes.end());
    out.bytes.insert(out.bytes.end(), records_.bytes.begin(), records_.bytes.end());
    if (tensors_ > 0) out.bytes.resize((out.bytes.size() + alignment - 1) / alignment * alignment);
    out.bytes.insert(out.bytes.end(), data_.begin(), data_.end());
    if (data_.size() < data_bytes) out.bytes.resize(out.bytes.size() + data_bytes - data_.size());
    return out.bytes;
  }

 private:
  ByteWriter metadata_;
  ByteWriter records_;
  std::vector<std::byte> data_;
  std::uint64_t entries_ = 0;
  std::uint64_t tensors_ = 0;
};

}  // namespace sluice::model::testing
