// Shows that the page is the Prometheus text format, by reading every line of it strictly, and that
// the values are those of stats.

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <regex>
#include <set>
#include <sstream>

#include "transport/metrics_text.hpp"

using namespace sluice::transport;

namespace {

struct Page {
  std::map<std::string, std::string> types;       // by metric
  std::vector<std::pair<std::string, double>> samples;  // with labels, in order

  double at(const std::string& sample) const {
    for (const auto& [name, value] : samples)
      if (name == sample) return value;
    BOOST_FAIL("no sample " + sample);
    return 0;
  }
};

/// Reads a page as strictly as its format says: HELP, TYPE, then samples of that metric only.
Page read(const std::string& text) {
  static const std::regex help(R"(# HELP ([a-z_]+) \S.*)");
  static const std::regex type(R"(# TYPE ([a-z_]+) (counter|gauge|histogram))");
  static const std::regex sample(
      R"(([a-z_]+)((?:\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"\})?) (\+Inf|-?[0-9.e+-]+))");
  Page page;
  std::string current;
  BOOST_REQUIRE(text.ends_with('\n'));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch found;
    if (std::regex_match(line, found, help)) {
      current = found[1];
      BOOST_REQUIRE_MESSAGE(!page.types.contains(current), "twice: " + current);
      BOOST_REQUIRE(std::getline(lines, line));
      BOOST_REQUIRE_MESSAGE(std::regex_match(line, found, type), line);
      BOOST_TEST(found[1] == current);
      page.types[current] = found[2];
      continue;
    }
    BOOST_REQUIRE_MESSAGE(std::regex_match(line, found, sample), line);
    std::string metric = found[1];
    if (page.types[current] == "histogram")
      metric = std::regex_replace(metric, std::regex("_(bucket|sum|count)$"), "");
    BOOST_TEST(metric == current, line);
    page.samples.emplace_back(found[1].str() + found[2].str(), std::stod(found[3]));
  }
  for (const auto& [name, kind] : page.types) {
    BOOST_TEST(name.starts_with("sluice_"));
    BOOST_TEST(name.ends_with("_total") == (kind == "counter"), name);
  }
  return page;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(metrics_text)

BOOST_AUTO_TEST_CASE(a_page_is_read_back) {
  Histogram itl;
  for (const double ms : {0.05, 12.0, 13.0, 5000.0, 1e9}) itl.add(ms);
  std::vector<std::pair<std::string, double>> put;
  itl.put("streams.itl_ms", put);
  Values values(put.begin(), put.end());
  add_derived(values);
  const std::string odd = "a.b\"c\\d\ne";
  values["engine." + odd + ".blocks_total"] = 64;
  values["engine." + odd + ".tokens"] = 123456789;
  values["engine.m.blocks_total"] = 32;
  values["engine.m.tokens"] = 5;
  values["engine.tokens"] = 123456794;
  values["session.open"] = 3;
  values["security.keys_refused"] = 4;
  values["refused.overloaded"] = 7;
  values["refused.too_long"] = 1;
  values["finished.stop"] = 9;
  const Page page = read(sluice::transport::metrics_text(values));
  BOOST_TEST(page.at(R"(sluice_generation_tokens_total{model_name="a.b\"c\\d\ne"})") == 123456789);
  BOOST_TEST(page.at(R"(sluice_kv_cache_blocks{model_name="m"})") == 32);
  BOOST_TEST(page.at("sluice_streams_open") == 3);
  BOOST_TEST(page.at("sluice_connections_refused_total") == 4);
  BOOST_TEST(page.at(R"(sluice_requests_refused_total{code="overloaded"})") == 7);
  BOOST_TEST(page.at(R"(sluice_requests_finished_total{finished_reason="stop"})") == 9);
  BOOST_TEST(page.at("sluice_inter_token_latency_seconds_count") == 5);
  BOOST_TEST(page.at("sluice_inter_token_latency_seconds_sum") == 1e6 + 5.02505,
             boost::test_tools::tolerance(1e-9));
}

BOOST_AUTO_TEST_CASE(buckets_cumulate_and_stay_the_same) {
  const auto bounds = [](const Histogram& histogram, std::vector<double>& counts) {
    std::vector<std::pair<std::string, double>> put;
    histogram.put("streams.ttft_ms", put);
    const Page page = read(sluice::transport::metrics_text({put.begin(), put.end()}));
    std::vector<std::string> names;
    for (const auto& [name, value] : page.samples)
      if (name.starts_with("sluice_time_to_first_token_seconds_bucket")) {
        names.push_back(name);
        counts.push_back(value);
      }
    return names;
  };
  Histogram some;
  for (int i = 1; i < 200; ++i) some.add(i * 7.3);
  std::vector<double> none, counts;
  BOOST_TEST((bounds({}, none) == bounds(some, counts)));
  BOOST_TEST(std::is_sorted(counts.begin(), counts.end()));
  BOOST_TEST(counts.back() == 199);
  BOOST_TEST(none.back() == 0);
  BOOST_TEST(counts.size() > 20U);
  // 409.6 ms is a bound: 56 of the values are not above it.
  const auto names = bounds(some, counts);
  const auto at = std::find(names.begin(), names.end(),
                            "sluice_time_to_first_token_seconds_bucket{le=\"0.4096\"}");
  BOOST_REQUIRE((at != names.end()));
  BOOST_TEST(counts[static_cast<std::size_t>(at - names.begin())] == 56);
}

BOOST_AUTO_TEST_SUITE_END()
