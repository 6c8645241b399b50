// What ranks have gathered, added up and normed by one kernel: the same bits as by the kernel that
// adds in rank order and the one that norms behind it, for rows that fill a block's turns or not,
// for those too wide to be kept, with and without a residual; rows beyond the step's are left as
// they are, for a graph's launch may have more; and what the latter gives is the norm, by a
// reference in double.

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/device.hpp"
#include "kernels/cuda/kernels.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/rank_data.hpp"

namespace sluice::kernels::test {
namespace {

using namespace cuda;

/// Values on the pretended device.
class OnDevice {
 public:
  OnDevice(const std::vector<float>& values, cudaStream_t stream)
      : memory_(require(DeviceMemory::make(values.size() * sizeof(float), "a test"))),
        count_(values.size()) {
    cudaMemcpyAsync(data(), values.data(), count_ * sizeof(float), cudaMemcpyHostToDevice, stream);
    cudaStreamSynchronize(stream);
  }

  float* data() const { return memory_.as<float>(); }

  std::vector<float> read(cudaStream_t stream) const {
    std::vector<float> values(count_);
    cudaMemcpyAsync(values.data(), data(), count_ * sizeof(float), cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    return values;
  }

 private:
  DeviceMemory memory_;
  std::size_t count_;
};

struct Case {
  std::uint32_t width;
  std::uint32_t ranks;
  bool accumulate;
};

/// The sums, the normed rows and what products read of these.
using Outcome = std::vector<std::vector<float>>;

constexpr std::uint32_t rows = 3;
constexpr std::uint32_t launched_rows = 4;

Outcome run(const Case& one, bool fused) {
  const auto stream = require(make_stream());
  LaunchChain chain(stream.get());
  const std::uint32_t stride = padded(one.width);
  const std::size_t floats = std::size_t{launched_rows} * stride;
  std::vector<float> all, gain = values_of(9, one.width);
  for (std::uint32_t rank = 0; rank < one.ranks; ++rank) {
    const std::vector<float> own = values_of(rank, floats);
    all.insert(all.end(), own.begin(), own.end());
  }
  const OnDevice gathered(all, stream.get()), gains(gain, stream.get());
  const OnDevice in(values_of(8, floats), stream.get());
  const OnDevice out(values_of(7, floats), stream.get());
  const OnDevice narrow(std::vector<float>(narrow_room(stride, launched_rows) / 2), stream.get());
  StepHeader header;
  header.rows = rows;
  const auto step = require(DeviceMemory::make(sizeof header, "a test"));
  cudaMemcpyAsync(step.as<StepHeader>(), &header, sizeof header, cudaMemcpyHostToDevice,
                  stream.get());
  NormArgs norm_args;
  norm_args.step = step.as<std::byte>();
  norm_args.in = {in.data(), stride};
  norm_args.out = {out.data(), stride};
  norm_args.gain = gains.data();
  norm_args.width = one.width;
  norm_args.epsilon = 1e-5F;
  norm_args.accumulate = one.accumulate;
  norm_args.out.narrow = reinterpret_cast<std::uint16_t*>(narrow.data());
  if (fused) {
    const AddNormArgs args{norm_args, gathered.data(), one.ranks, floats};
    BOOST_REQUIRE(add_norm(args, launched_rows, chain) == cudaSuccess);
  } else {
    const std::size_t whole = std::size_t{rows} * stride;  // what is beyond is nobody's
    const std::vector<float> kept = in.read(stream.get());
    BOOST_REQUIRE(add_ranks(gathered.data(), one.ranks, floats, in.data(), chain) == cudaSuccess);
    cudaMemcpyAsync(in.data() + whole, kept.data() + whole, (floats - whole) * sizeof(float),
                    cudaMemcpyHostToDevice, stream.get());
    chain.interrupted();
    BOOST_REQUIRE(norm(norm_args, launched_rows, chain) == cudaSuccess);
    cudaStreamSynchronize(stream.get());
  }
  Outcome outcome{in.read(stream.get()), out.read(stream.get()), narrow.read(stream.get())};
  for (std::uint32_t r = 0; r < rows; ++r) {  // padding is added by one way alone, and read by none
    for (std::uint32_t i = one.width; i < stride; ++i) outcome[0][r * stride + i] = 0;
  }
  return outcome;
}

/// What an element is in double, and how far from it float32 may end.
struct Due {
  double value, most;
};

/// The normed rows of these sums; what is behind a row's width is as it was.
std::vector<Due> normed(const Case& one, const std::vector<float>& sums) {
  const std::uint32_t stride = padded(one.width);
  const std::vector<float> gain = values_of(9, one.width);
  const std::vector<float> before = values_of(7, std::size_t{launched_rows} * stride);
  std::vector<Due> out;
  for (const float value : before) out.push_back({value, 0});
  for (std::uint32_t r = 0; r < rows; ++r) {
    const float* row = sums.data() + std::size_t{r} * stride;
    double squares = 0;
    for (std::uint32_t i = 0; i < one.width; ++i) squares += double{row[i]} * row[i];
    const double scale = 1 / std::sqrt(squares / one.width + 1e-5);
    for (std::uint32_t i = 0; i < one.width; ++i) {
      const double part = row[i] * scale * gain[i];
      double& to = out[std::size_t{r} * stride + i].value;
      out[std::size_t{r} * stride + i].most = 1e-5 * std::abs(part) + 1e-6 * std::abs(to);
      to = part + (one.accumulate ? to : 0.0);
    }
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(add_norm)

BOOST_AUTO_TEST_CASE(a_norm_of_any_width_is_the_row_s) {
  for (const std::uint32_t width : {1U, 6U, 128U, 255U, 576U, 4096U, 8192U, 8193U, 40000U}) {
    for (const bool accumulate : {false, true}) {
      BOOST_TEST_CONTEXT(width << " wide, residual: " << accumulate) {
        const Case one{width, 1, accumulate};
        const Outcome found = run(one, false);
        const std::vector<Due> due = normed(one, found[0]);
        for (std::size_t i = 0; i < due.size(); ++i) {
          BOOST_REQUIRE_MESSAGE(std::abs(found[1][i] - due[i].value) <= due[i].most,
                                i << ": " << found[1][i] << ", not " << due[i].value);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(one_kernel_gives_the_bits_of_two) {
  for (const std::uint32_t width : {1U, 100U, 256U, 576U, 1024U, 4096U, 8193U, 40000U}) {
    for (const std::uint32_t ranks : {1U, 2U, 3U, 8U}) {
      for (const bool accumulate : {false, true}) {
        BOOST_TEST_CONTEXT(width << " wide, " << ranks << " ranks, residual: " << accumulate) {
          const Case one{width, ranks, accumulate};
          const Outcome due = run(one, false), found = run(one, true);
          for (std::size_t i = 0; i < due.size(); ++i) {
            BOOST_TEST(same_bits(found[i], due[i]), "output " << i << " differs");
          }
          BOOST_TEST(found[0][0] == sum_in(ranks_in_order(ranks), found[0].size())[0]);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
