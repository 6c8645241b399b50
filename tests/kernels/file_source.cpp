// Shows that the CPU backend computes the same with weights that it reads from a file, in every
// kind of format, and that a file which was cut short or cannot be read is a typed error that
// leaves the backend as it was.
#include "kernels/file_source.hpp"

#include <boost/test/unit_test.hpp>
#include <string_view>

#include "tests/kernels/model_file.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

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
    const std::vector<float> in_memory = logits_of(on_cpu(2), model);
    const ModelFile file(model);
    BOOST_TEST(logits_of(on_cpu(2), model) == in_memory, info(format).name);
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
