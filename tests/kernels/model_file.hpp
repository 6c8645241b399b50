#pragma once
// A tiny model whose weights are in a file.

#include <sys/mman.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdio>

#include "tests/kernels/harness.hpp"

namespace sluice::kernels::test {

/// A model's tensors one behind the other in a file, and mapped from there.
class ModelFile {
 public:
  explicit ModelFile(TinyModel& model) : file_(std::tmpfile()) {
    BOOST_REQUIRE(file_ != nullptr);
    for (const Tensor& tensor : model.tensors) {
      BOOST_REQUIRE_EQUAL(std::fwrite(tensor.bytes.data(), 1, tensor.bytes.size(), file_),
                          tensor.bytes.size());
      size_ += tensor.bytes.size();
    }
    BOOST_REQUIRE_EQUAL(std::fflush(file_), 0);
    const int descriptor = ::fileno(file_);
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    BOOST_REQUIRE(mapped != MAP_FAILED);
    source = {descriptor, static_cast<const std::byte*>(mapped)};
    const std::byte* at = source.begin;
    for (Tensor& tensor : model.tensors) {
      tensor.host.data = {at, tensor.bytes.size()};
      tensor.host.source = source;
      at += tensor.bytes.size();
    }
  }
  ~ModelFile() {
    ::munmap(const_cast<std::byte*>(source.begin), size_);
    std::fclose(file_);
  }
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  void cut(std::size_t bytes) const {
    BOOST_REQUIRE_EQUAL(::ftruncate(source.descriptor, static_cast<off_t>(bytes)), 0);
  }
  void mend(const Tensor& tensor) const {
    BOOST_REQUIRE_EQUAL(::pwrite(source.descriptor, tensor.bytes.data(), tensor.bytes.size(),
                                 tensor.host.data.data() - source.begin),
                        tensor.bytes.size());
  }

  FileSource source;

 private:
  std::FILE* file_;
  std::size_t size_ = 0;
};

/// Of some prompt's last token.
inline std::vector<float> logits_of(LoadedDevice& device) {
  const TinyModel& model = device.model;
  std::mt19937 random(3);
  const auto tokens = random_tokens(random, model, 9);
  Batch batch = whole_sequence(tokens, 9, 1);
  batch.segments.front().sample = true;
  const StepResult result = device.run(std::move(batch));
  BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
  return device.read(model.logits, 1);
}

inline std::vector<float> logits_of(const Factory& factory, const TinyModel& model) {
  Device device(factory, model);
  return logits_of(device);
}

}  // namespace sluice::kernels::test
