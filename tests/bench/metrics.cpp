// Shows that a load run's figures are those of `vllm bench serve`'s definitions: on traces whose
// answer can be read off, and on random ones against numpy (scripts/fixtures/serve_metrics.py).

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/serve/metrics.hpp"

using namespace sluice;
using namespace sluice::bench;
using nlohmann::json;

namespace {

constexpr std::uint64_t ms = 1'000'000;

const auto near = boost::test_tools::tolerance(1e-9);

RequestTrace trace(std::uint64_t sent_ms, std::vector<std::uint64_t> arrivals_ms) {
  RequestTrace out;
  out.sent_ns = sent_ms * ms;
  out.prompt_tokens = 10;
  for (const auto at : arrivals_ms) out.arrivals.push_back({at * ms, 1});
  return out;
}

void check(const Distribution& got, const json& want) {
  BOOST_TEST(got.count == want.at("count").get<std::size_t>());
  BOOST_TEST(got.mean == want.at("mean").get<double>(), near);
  BOOST_TEST(got.std == want.at("std").get<double>(), near);
  BOOST_TEST(got.min == want.at("min").get<double>(), near);
  BOOST_TEST(got.median == want.at("median").get<double>(), near);
  BOOST_TEST(got.p90 == want.at("p90").get<double>(), near);
  BOOST_TEST(got.p95 == want.at("p95").get<double>(), near);
  BOOST_TEST(got.p99 == want.at("p99").get<double>(), near);
  BOOST_TEST(got.max == want.at("max").get<double>(), near);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(metrics)

BOOST_AUTO_TEST_CASE(definitions) {
  const std::vector<RequestTrace> traces = {trace(1000, {1100, 1120, 1160}), trace(1500, {1800})};
  const auto m = measure(traces, 2000 * ms, {});
  BOOST_TEST(m.completed == 2U);
  BOOST_TEST(m.total_input_tokens == 20U);
  BOOST_TEST(m.total_output_tokens == 4U);
  BOOST_TEST(m.ttft.mean == 200.0, near);
  BOOST_TEST(m.tpot.count == 1U);  // one token has no time per further token
  BOOST_TEST(m.tpot.mean == 30.0, near);
  BOOST_TEST(m.itl.count == 2U);
  BOOST_TEST(m.itl.min == 20.0, near);
  BOOST_TEST(m.itl.max == 40.0, near);
  BOOST_TEST(m.e2el.min == 160.0, near);
  BOOST_TEST(m.e2el.max == 300.0, near);
  BOOST_TEST(m.request_throughput == 1.0, near);
  BOOST_TEST(m.output_throughput == 2.0, near);
  BOOST_TEST(m.total_token_throughput == 12.0, near);
  BOOST_TEST(m.max_concurrent_requests == 2U);
  BOOST_TEST(!m.request_goodput);
}

BOOST_AUTO_TEST_CASE(a_chunk_of_several_tokens_is_one_gap_and_several_tokens) {
  RequestTrace one = trace(0, {100});
  one.arrivals.push_back({200 * ms, 4});
  const auto m = measure(std::vector{one}, 1000 * ms, {});
  BOOST_TEST(m.itl.count == 1U);
  BOOST_TEST(m.itl.mean == 100.0, near);
  BOOST_TEST(m.tpot.mean == 25.0, near);
}

BOOST_AUTO_TEST_CASE(failures_count_by_code_and_in_nothing_else) {
  std::vector<RequestTrace> traces = {trace(0, {10, 20}), trace(0, {500}), trace(0, {})};
  traces[1].failure = Error{ErrorCode::deadline, "late"};
  traces[2].failure = Error{ErrorCode::overloaded, "full"};
  const auto m = measure(traces, 1000 * ms, {});
  BOOST_TEST(m.completed == 1U);
  BOOST_TEST(m.failed == 2U);
  BOOST_TEST(m.failures.at("deadline") == 1U);
  BOOST_TEST(m.failures.at("overloaded") == 1U);
  BOOST_TEST(m.ttft.max == 10.0, near);
  BOOST_TEST(m.total_output_tokens == 2U);
}

BOOST_AUTO_TEST_CASE(goodput_needs_every_limit) {
  const std::vector<RequestTrace> traces = {trace(0, {10, 20}), trace(0, {30, 31}),
                                            trace(0, {10, 60})};
  const auto good = [&](Goodput limits) {
    return measure(traces, 1000 * ms, limits).request_goodput.value();
  };
  BOOST_TEST(good({20, {}, {}}) == 2.0, near);
  BOOST_TEST(good({{}, 10, {}}) == 2.0, near);
  BOOST_TEST(good({20, 10, {}}) == 1.0, near);
  BOOST_TEST(good({{}, {}, 31}) == 2.0, near);
}

BOOST_AUTO_TEST_CASE(nothing_measured_is_zero_and_not_a_crash) {
  const auto m = measure({}, 0, {1, 1, 1});
  BOOST_TEST(m.completed == 0U);
  BOOST_TEST(m.ttft.p99 == 0.0);
  BOOST_TEST(json::parse(to_json(m, {})).at("p99_itl_ms") == 0.0);
}

BOOST_AUTO_TEST_CASE(numpy_agrees) {
  std::ifstream file(SLUICE_FIXTURES "/bench/serve_metrics.json");
  const json fixture = json::parse(file);
  std::vector<RequestTrace> traces;
  for (const auto& request : fixture.at("requests")) {
    RequestTrace one;
    one.sent_ns = request.at("sent_ns");
    one.prompt_tokens = request.at("prompt_tokens");
    for (const auto& arrival : request.at("arrivals"))
      one.arrivals.push_back({arrival.at(0), arrival.at(1)});
    if (request.at("failed").get<bool>()) one.failure = Error{ErrorCode::internal, "made to fail"};
    traces.push_back(std::move(one));
  }
  const auto& limits = fixture.at("goodput");
  const auto m = measure(traces, fixture.at("duration_ns"),
                         {limits.at("ttft"), limits.at("tpot"), limits.at("e2el")});
  const auto& want = fixture.at("expected");
  BOOST_REQUIRE(want.at("request_goodput") > 0.0);
  check(m.ttft, want.at("ttft"));
  check(m.tpot, want.at("tpot"));
  check(m.itl, want.at("itl"));
  check(m.e2el, want.at("e2el"));
  // The rest under the names that scripts read.
  const auto out = json::parse(to_json(m, {}));
  for (const std::string name :
       {"completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput",
        "max_output_tokens_per_s", "max_concurrent_requests"})
    BOOST_TEST(out.at(name).get<double>() == want.at(name).get<double>(), near);
  for (const std::string name : {"ttft", "tpot", "itl", "e2el"})
    for (const std::string figure : {"mean", "std", "median", "p90", "p95", "p99"})
      BOOST_TEST(out.at(figure + "_" + name + "_ms").get<double>() ==
                     want.at(name).at(figure).get<double>(),
                 near);
  const auto& other = out.at("aiperf");
  BOOST_TEST(other.at("time_to_first_token").at("avg") == out.at("mean_ttft_ms"));
  BOOST_TEST(other.at("inter_token_latency").at("p99") == out.at("p99_tpot_ms"));
  BOOST_TEST(other.at("output_token_throughput").at("avg") == out.at("output_throughput"));
}

BOOST_AUTO_TEST_CASE(a_sweep_is_drawn_to_scale) {
  std::vector<std::pair<RunSettings, ServeMetrics>> runs(2);
  runs[0].first.request_rate = 1;
  runs[1].first.request_rate = 2;
  runs[0].second.ttft.median = 50;
  runs[1].second.ttft.median = 100;
  runs[1].second.ttft.p99 = 100;
  const std::string svg = to_svg(runs);
  // The left panel is 420 x 300 at (70, 50); 100 ms is its top and 2/s its right edge.
  BOOST_TEST(svg.find("points=\"280.0,200.0 490.0,50.0 \"") != std::string::npos, svg);
  BOOST_TEST(svg.rfind("<svg ", 0) == 0U);
  BOOST_TEST(svg.substr(svg.size() - 7) == "</svg>\n");
}

BOOST_AUTO_TEST_SUITE_END()
