#include "bench/serve/workload.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

namespace sluice::bench {
namespace {

using Json = nlohmann::json;
using Prompts = std::vector<transport::Prompt>;

/// What a person said first; a conversation may begin with the model or the system.
const std::string* first_question(const Json& entry) {
  const auto turns = entry.is_object() ? entry.find("conversations") : entry.end();
  if (!entry.is_object() || turns == entry.end() || !turns->is_array()) return nullptr;
  for (const Json& turn : *turns) {
    if (!turn.is_object() || !turn.contains("from") || !turn.contains("value")) continue;
    const Json& from = turn.at("from");
    if ((from == "human" || from == "user") && turn.at("value").is_string())
      return turn.at("value").get_ptr<const std::string*>();
  }
  return nullptr;
}

Result<Prompts> parse_sharegpt(std::string_view text, const std::string& source) {
  const Json all = Json::parse(text, nullptr, false);
  if (!all.is_array())
    return fail(ErrorCode::bad_file,
                "{} is not JSON that can be read: expected an array of objects with "
                "`conversations`, as ShareGPT's",
                source);
  Prompts prompts;
  for (const Json& entry : all)
    if (const std::string* question = first_question(entry); question && !question->empty())
      prompts.emplace_back(*question);
  return prompts;
}

Result<Prompts> parse_lines(std::string_view text, const std::string& source) {
  Prompts prompts;
  std::size_t number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    if (line.front() != '{') {
      prompts.emplace_back(std::string(line));
      continue;
    }
    const Json entry = Json::parse(line, nullptr, false);
    if (!entry.is_object() || !entry.contains("prompt") || !entry.at("prompt").is_string())
      return fail(ErrorCode::bad_file, "{}, line {}: expected an object with a string `prompt`",
                  source, number);
    prompts.emplace_back(entry.at("prompt").get<std::string>());
  }
  return prompts;
}

}  // namespace

std::vector<std::uint64_t> due_times_ns(std::size_t count, double rate_per_s, double burstiness,
                                        std::uint64_t seed) {
  std::vector<std::uint64_t> due(count, 0);
  if (rate_per_s <= 0 || count == 0) return due;
  std::mt19937_64 random(seed);
  std::gamma_distribution<double> gaps(burstiness, 1 / (rate_per_s * burstiness));
  std::vector<double> at_s(count);
  double sum = 0;
  for (double& at : at_s) at = sum += gaps(random);
  const double target = static_cast<double>(count) / rate_per_s;
  const double stretch = sum > 0 ? target / sum : 0;
  for (std::size_t i = 0; i < count; ++i)
    due[i] = static_cast<std::uint64_t>(at_s[i] * stretch * 1e9);
  return due;
}

std::vector<transport::Prompt> random_prompts(std::size_t count, const RandomPrompts& options,
                                              std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::uint32_t vocabulary = std::max(options.vocabulary, 1U);
  const auto draw = [&] { return static_cast<Token>(random() % vocabulary); };
  std::vector<Token> prefix(options.prefix_tokens);
  std::ranges::generate(prefix, draw);
  std::vector<transport::Prompt> prompts;
  prompts.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<Token> tokens = prefix;
    tokens.reserve(prefix.size() + options.input_tokens);
    std::generate_n(std::back_inserter(tokens), options.input_tokens, draw);
    prompts.emplace_back(std::move(tokens));
  }
  return prompts;
}

Result<Prompts> parse_dataset(std::string_view text, const std::string& source) {
  const std::size_t start = text.find_first_not_of(" \t\r\n");
  const bool array = start != std::string_view::npos && text[start] == '[';
  auto prompts = array ? parse_sharegpt(text, source) : parse_lines(text, source);
  if (prompts && prompts->empty())
    return fail(ErrorCode::bad_file,
                "{} holds no prompt: expected a prompt a line, JSON Lines with `prompt`, or "
                "ShareGPT's JSON",
                source);
  return prompts;
}

Result<Prompts> read_dataset(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) text.assign(std::istreambuf_iterator<char>(file), {});
  if (!file || file.bad())
    return fail(ErrorCode::io, "cannot read the data set {}: {}", path, std::strerror(errno));
  return parse_dataset(text, path);
}

std::vector<transport::Prompt> pick_prompts(const Prompts& from, std::size_t count,
                                            std::uint64_t seed) {
  Prompts picked = from;
  std::mt19937_64 random(seed);
  for (std::size_t i = picked.size(); i > 1; --i)  // std::shuffle is each library's own
    std::swap(picked[i - 1], picked[random() % i]);
  const std::size_t distinct = picked.size();
  picked.resize(std::min(count, distinct));
  picked.reserve(count);
  while (picked.size() < count) picked.push_back(picked[picked.size() % distinct]);
  return picked;
}

}  // namespace sluice::bench
