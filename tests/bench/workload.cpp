// Shows that a load run's prompts and times follow from its seed, keep to the rate, and that data
// sets are read or refused with the place.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <set>

#include "bench/serve/workload.hpp"

using namespace sluice;
using namespace sluice::bench;

namespace {

std::vector<std::string> texts(const std::vector<transport::Prompt>& prompts) {
  std::vector<std::string> out;
  for (const auto& prompt : prompts) out.push_back(std::get<std::string>(prompt));
  return out;
}

/// Standard deviation of the gaps between due times, over their mean.
double unevenness(const std::vector<std::uint64_t>& due) {
  double sum = 0, squares = 0;
  const auto count = static_cast<double>(due.size() - 1);
  for (std::size_t i = 1; i < due.size(); ++i) {
    const auto gap = static_cast<double>(due[i] - due[i - 1]);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / count;
  return std::sqrt(squares / count - mean * mean) / mean;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(workload)

BOOST_AUTO_TEST_CASE(due_times_keep_to_rate_burstiness_and_seed) {
  const auto due = due_times_ns(2000, 100, 1, 7);
  BOOST_TEST(std::is_sorted(due.begin(), due.end()));
  BOOST_TEST(static_cast<double>(due.back()) == 20e9, boost::test_tools::tolerance(1e-6));
  BOOST_TEST(unevenness(due) == 1.0, boost::test_tools::tolerance(0.1));
  BOOST_TEST(unevenness(due_times_ns(2000, 100, 100, 7)) < 0.2);
  BOOST_TEST(unevenness(due_times_ns(2000, 100, 0.1, 7)) > 2.0);
  BOOST_TEST((due == due_times_ns(2000, 100, 1, 7)));
  BOOST_TEST((due != due_times_ns(2000, 100, 1, 8)));
  BOOST_TEST((due_times_ns(3, 0, 1, 7) == std::vector<std::uint64_t>{0, 0, 0}));
}

BOOST_AUTO_TEST_CASE(random_prompts_share_only_the_prefix) {
  const auto prompts = random_prompts(20, {1000, 30, 10}, 7);
  std::set<std::vector<Token>> prefixes, rests;
  for (const auto& prompt : prompts) {
    const auto& tokens = std::get<std::vector<Token>>(prompt);
    BOOST_REQUIRE(tokens.size() == 40U);
    BOOST_TEST(*std::max_element(tokens.begin(), tokens.end()) < 1000U);
    prefixes.emplace(tokens.begin(), tokens.begin() + 10);
    rests.emplace(tokens.begin() + 10, tokens.end());
  }
  BOOST_TEST(prefixes.size() == 1U);
  BOOST_TEST(rests.size() == 20U);
  BOOST_TEST((prompts == random_prompts(20, {1000, 30, 10}, 7)));
}

BOOST_AUTO_TEST_CASE(data_sets_are_read) {
  const auto lines = parse_dataset("one\r\n\n{\"prompt\": \"two\\n\"}\nthree", "x").value();
  BOOST_TEST(texts(lines) == (std::vector<std::string>{"one", "two\n", "three"}),
             boost::test_tools::per_element());
  const auto chats = parse_dataset(
      R"( [{"id": "a", "conversations": [{"from": "system", "value": "s"},
           {"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]},
           {"conversations": []}, 7, {"conversations": [{"from": "user", "value": "how?"}]}])",
      "x");
  BOOST_TEST(texts(chats.value()) == (std::vector<std::string>{"why?", "how?"}),
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(what_is_no_data_set_is_refused_with_the_place) {
  for (const auto& [text, named] : std::vector<std::pair<std::string, std::string>>{
           {"", "no prompt"},
           {"[]", "no prompt"},
           {"[{", "conversations"},
           {"a\n{\"prompt\": 1}", "line 2"},
           {"{\"text\": \"a\"}", "line 1"}}) {
    const auto read = parse_dataset(text, "set.json");
    BOOST_REQUIRE(!read);
    BOOST_TEST((read.error().code == ErrorCode::bad_file));
    BOOST_TEST(read.error().message.find("set.json") == 0U);
    BOOST_TEST(read.error().message.find(named) != std::string::npos, read.error().message);
  }
  BOOST_TEST((read_dataset("/nowhere/set.json").error().code == ErrorCode::io));
}

BOOST_AUTO_TEST_CASE(a_small_data_set_is_used_evenly) {
  const auto all = parse_dataset("a\nb\nc\n", "x").value();
  const auto picked = texts(pick_prompts(all, 7, 3));
  BOOST_TEST(picked.size() == 7U);
  for (const std::string one : {"a", "b", "c"})
    BOOST_TEST(std::count(picked.begin(), picked.end(), one) >= 2);
  BOOST_TEST((picked == texts(pick_prompts(all, 7, 3))));
  BOOST_TEST(pick_prompts(all, 2, 3).size() == 2U);
}

BOOST_AUTO_TEST_SUITE_END()
