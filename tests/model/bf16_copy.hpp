#pragma once
// A model file with its matrices in BF16, made of one in another format as llama.cpp's quantizer
// makes it by way of F16: what tests of BF16 run, with nothing more to fetch.

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <variant>
#include <vector>

#include "kernels/quant.hpp"
#include "model/gguf.hpp"
#include "tests/model/gguf_builder.hpp"
#include "tests/model/loaded_model.hpp"

namespace sluice::model::testing {

/// Keeps the metadata but for its arrays, which are the tokenizer's. A temporary file, for as long
/// as this lives.
class Bf16Copy {
 public:
  explicit Bf16Copy(const std::string& original)
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("sluice-bf16-{}.gguf", ::getpid())) {
    const auto file = require(GgufFile::open(original));
    GgufBuilder out;
    for (const GgufFile::Entry& entry : file->metadata()) {
      if (const auto* count = std::get_if<std::uint64_t>(&entry.value)) {
        out.value(entry.key, type_u64, *count);
      } else if (const auto* number = std::get_if<double>(&entry.value)) {
        out.value(entry.key, type_f64, *number);
      } else if (const auto* text = std::get_if<std::string_view>(&entry.value)) {
        out.text(entry.key, *text);
      }
    }
    for (const Tensor& tensor : file->tensors()) {
      if (tensor.shape.size() == 1) {
        out.tensor(tensor.name, tensor.shape, kernels::info(tensor.format).gguf_id, tensor.data);
        continue;
      }
      const std::vector<std::uint16_t> narrowed = in_bf16(tensor);
      out.tensor(tensor.name, tensor.shape, kernels::info(kernels::Format::bf16).gguf_id,
                 std::as_bytes(std::span(narrowed)));
    }
    const std::vector<std::byte> bytes = out.build();
    std::ofstream to(path_, std::ios::binary);
    to.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
    to.close();
    BOOST_REQUIRE_MESSAGE(to.good(), "cannot write " << path_);
  }
  ~Bf16Copy() { std::filesystem::remove(path_); }
  Bf16Copy(const Bf16Copy&) = delete;
  Bf16Copy& operator=(const Bf16Copy&) = delete;

  std::string path() const { return path_.string(); }

 private:
  static std::vector<std::uint16_t> in_bf16(const Tensor& tensor) {
    const kernels::HostTensor matrix = tensor.matrix();
    const std::size_t stride = kernels::row_bytes(matrix.format, matrix.cols);
    std::vector<std::uint16_t> narrowed;
    std::vector<float> row(matrix.cols);
    for (std::size_t r = 0; r < matrix.rows; ++r) {
      kernels::dequantize(matrix.format, matrix.data.subspan(r * stride, stride), row);
      for (const float x : row) {
        narrowed.push_back(kernels::f32_to_bf16(kernels::f16_to_f32(kernels::f32_to_f16(x))));
      }
    }
    return narrowed;
  }

  std::filesystem::path path_;
};

}  // namespace sluice::model::testing
