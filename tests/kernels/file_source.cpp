// Shows that the CPU backend computes the same with weights that it reads from a file, in every
// kind of format, and that a file which was cut short or cannot be read is a typed error that
// leaves the backend as it was.
#include "kernels/file_source.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdio>
#include <string_view>

#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

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

std::vector<float> logits_of(const TinyModel& model) {
  Device device(on_cpu(2), model);
  std::mt19937 random(3);
  const auto tokens = random_tokens(random, model, 9);
  Batch batch = whole_sequence(tokens, 9, 1);
  batch.segments.front().sample = true;
  const StepResult result = device.run(std::move(batch));
  BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
  return device.read(model.logits, 1);
}

void check_io_error(const Error& error, std::string_view says) {
  BOOST_CHECK(error.code == ErrorCode::io);
  BOOST_TEST(error.message.find(says) != std::string::npos, error.message);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(file_source)

BOOST_AUTO_TEST_CASE(weights_read_from_a_file_are_those_in_memory) {
  for (const Format format : {Format::f32, Format::f16, Format::bf16, Format::q4_0, Format::q4_1,
                              Format::q5_0, Format::q8_0, Format::q4_k, Format::q6_k}) {
    TinyModel model = tiny_model({.format = format, .sample = false});
    const std::vector<float> in_memory = logits_of(model);
    const ModelFile file(model);
    BOOST_TEST(logits_of(model) == in_memory, info(format).name);
  }
}

BOOST_AUTO_TEST_CASE(a_file_cut_short_is_an_error_until_it_is_whole) {
  TinyModel model = tiny_model({});
  const ModelFile file(model);
  auto backend = on_cpu(1)([](StepResult&&) {});
  for (const Tensor& tensor : model.tensors) require(backend->load(tensor.host));
  BOOST_REQUIRE(backend->allocate(model.pool()));
  const Tensor& last = model.tensors.back();
  file.cut(static_cast<std::size_t>(last.host.data.data() - file.source.begin));
  const auto refused = backend->record(model.program);
  BOOST_REQUIRE(!refused);
  check_io_error(refused.error(), "it was cut short");
  file.mend(last);
  require(backend->record(model.program));
}

BOOST_AUTO_TEST_CASE(a_vector_that_cannot_be_read_is_not_loaded) {
  TinyModel model = tiny_model({});
  const ModelFile file(model);
  file.cut(0);
  auto backend = on_cpu(1)([](StepResult&&) {});
  HostTensor gain = model.tensors[1].host;
  check_io_error(backend->load(gain).error(), "it was cut short");
  gain.source.descriptor = 1 << 20;
  check_io_error(backend->load(gain).error(), "Bad file descriptor");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
