// Shows that latencies counted in buckets give percentiles within a bucket's width, that counts
// add, subtract and travel without loss, and that a rate is that of the last whole seconds.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>

#include "transport/figures.hpp"

using namespace sluice::transport;

namespace {

constexpr std::uint64_t second = 1'000'000'000;

Values travelled(const Histogram& histogram) {
  std::vector<std::pair<std::string, double>> values;
  histogram.put("x", values);
  return {values.begin(), values.end()};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(figures)

BOOST_AUTO_TEST_CASE(a_value_lies_between_its_buckets_bounds) {
  for (std::size_t bucket = 0; bucket + 1 < Histogram::bucket_count; ++bucket) {
    Histogram at, above;
    at.add(Histogram::upper_ms(bucket));
    above.add(Histogram::upper_ms(bucket) * 1.0001);
    BOOST_TEST(at.in_bucket(bucket) == 1U, bucket);
    BOOST_TEST(above.in_bucket(bucket + 1) == 1U, bucket);
  }
  Histogram ends;
  ends.add(0);
  ends.add(1e12);
  ends.add(INFINITY);
  BOOST_TEST(ends.in_bucket(0) == 1U);
  BOOST_TEST(ends.in_bucket(Histogram::bucket_count - 1) == 2U);
  BOOST_TEST(std::isfinite(ends.percentile_ms(99)));
}

BOOST_AUTO_TEST_CASE(percentiles_are_right_to_within_a_bucket) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> latency(3, 1.5);
  std::vector<double> values(5000);
  Histogram histogram;
  for (double& value : values) histogram.add(value = latency(random));
  std::sort(values.begin(), values.end());
  for (const double p : {1.0, 25.0, 50.0, 90.0, 99.0, 99.9}) {
    const double exact = values[static_cast<std::size_t>(p / 100 * 4999)];
    BOOST_TEST(histogram.percentile_ms(p) / exact == 1.0, boost::test_tools::tolerance(0.19));
  }
  BOOST_TEST(Histogram().percentile_ms(99) == 0.0);
}

BOOST_AUTO_TEST_CASE(counts_travel_and_subtract) {
  Histogram before;
  for (const double ms : {0.05, 3.0, 3.0, 1e9}) before.add(ms);
  Histogram after = before;
  after.add(700);
  after.add(800);
  const auto back = Histogram::from("x", travelled(after));
  for (std::size_t i = 0; i < Histogram::bucket_count; ++i)
    BOOST_TEST(back.in_bucket(i) == after.in_bucket(i));
  BOOST_TEST(back.count() == 6U);
  BOOST_TEST(back.sum_ms() == after.sum_ms());
  const auto news = after.since(before);
  BOOST_TEST(news.count() == 2U);
  BOOST_TEST(news.percentile_ms(50) == 700.0, boost::test_tools::tolerance(0.19));
  BOOST_TEST(before.since(after).count() == 4U);  // a node that was started anew
}

BOOST_AUTO_TEST_CASE(strange_values_do_no_harm) {
  const auto odd = Histogram::from(
      "x", {{"x.bucket.", 3}, {"x.bucket.999", 3}, {"x.bucket.5", -1}, {"x.bucket.4", NAN}});
  BOOST_TEST(odd.percentile_ms(99) <= Histogram::upper_ms(0));
}

BOOST_AUTO_TEST_CASE(a_rate_is_that_of_the_last_whole_seconds) {
  RateWindow window;
  const std::uint64_t start = 1000 * second;
  BOOST_TEST(window.per_second(start) == 0.0);
  for (std::uint64_t i = 0; i < 20; ++i) window.add(start + i * second, 50);
  BOOST_TEST(window.per_second(start + 19 * second) == 50.0);
  BOOST_TEST(window.per_second(start + 20 * second) == 50.0);
  BOOST_TEST(window.per_second(start + 25 * second) == 25.0);
  BOOST_TEST(window.per_second(start + 60 * second) == 0.0);
}

BOOST_AUTO_TEST_CASE(derived_figures) {
  Histogram ttft;
  for (int i = 0; i < 100; ++i) ttft.add(10);
  std::vector<std::pair<std::string, double>> put;
  ttft.put("streams.ttft_ms", put);
  Values values(put.begin(), put.end());
  values["engine.blocks_total"] = 40;
  values["engine.blocks_free"] = 30;
  values["engine.prompt_tokens"] = 200;
  values["engine.cached_tokens"] = 50;
  add_derived(values);
  BOOST_TEST(values.at("streams.ttft_ms.mean") == 10.0);
  BOOST_TEST(values.at("streams.ttft_ms.p99") == 10.0, boost::test_tools::tolerance(0.19));
  BOOST_TEST(values.at("engine.kv_use") == 0.25);
  BOOST_TEST(values.at("engine.prefix_hit_rate") == 0.25);
  Values empty;
  add_derived(empty);
  for (const auto& [name, value] : empty) BOOST_TEST(value == 0.0, name);
}

BOOST_AUTO_TEST_SUITE_END()
