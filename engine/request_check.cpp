#include "engine/request_check.hpp"

#include <cmath>
#include <span>
#include <string_view>

#include "model/unicode.hpp"

namespace sluice::engine {

namespace {

Result<void> check_ids(std::string_view what, std::span<const Token> ids,
                       std::uint32_t vocabulary) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocabulary) {
      return fail(ErrorCode::bad_request, "{}[{}] is {}; the vocabulary has ids 0 to {}", what, i,
                  ids[i], vocabulary - 1);
    }
  }
  return {};
}

// Written so that NaN is refused too.
Result<void> check_range(std::string_view what, float value, bool inside, std::string_view range) {
  if (std::isfinite(value) && inside) return {};
  return fail(ErrorCode::bad_request, "{} is {}; it must be {}", what, value, range);
}

Result<void> check_bias(const SamplingParams& s, std::uint32_t vocabulary) {
  for (std::size_t i = 0; i < s.logit_bias.size(); ++i) {
    const auto [token, bias] = s.logit_bias[i];
    if (token >= vocabulary) {
      return fail(ErrorCode::bad_request,
                  "logit_bias names token {}; the vocabulary has ids 0 to {}", token,
                  vocabulary - 1);
    }
    if (i > 0 && s.logit_bias[i - 1].first >= token) {
      return fail(ErrorCode::bad_request,
                  "logit_bias must ascend by token, each once: {} follows {}", token,
                  s.logit_bias[i - 1].first);
    }
    if (!std::isfinite(bias)) {
      return fail(ErrorCode::bad_request, "logit_bias of token {} is {}; it must be finite", token,
                  bias);
    }
  }
  return {};
}

Result<void> check_numbers(const SamplingParams& s) {
  struct Rule {
    std::string_view what;
    float value;
    bool inside;
    std::string_view range;
  };
  const Rule rules[] = {
      {"temperature", s.temperature, s.temperature >= 0, "0 (greedy) or more"},
      {"top_p", s.top_p, s.top_p > 0 && s.top_p <= 1, "above 0 and at most 1"},
      {"min_p", s.min_p, s.min_p >= 0 && s.min_p <= 1, "from 0 to 1"},
      {"repetition_penalty", s.repetition_penalty, s.repetition_penalty > 0, "above 0"},
      {"presence_penalty", s.presence_penalty, true, "finite"},
      {"frequency_penalty", s.frequency_penalty, true, "finite"},
  };
  for (const Rule& rule : rules) {
    if (auto ok = check_range(rule.what, rule.value, rule.inside, rule.range); !ok) return ok;
  }
  if (s.logprobs < -1 || s.logprobs > logprobs_max) {
    return fail(ErrorCode::bad_request, "logprobs is {}; it must be -1 (none) to {}", s.logprobs,
                logprobs_max);
  }
  return {};
}

}  // namespace

Result<void> check_sampling(const SamplingParams& sampling, std::uint32_t vocabulary) {
  if (auto ok = check_ids("stop_tokens", sampling.stop_tokens, vocabulary); !ok) return ok;
  if (auto ok = check_numbers(sampling); !ok) return ok;
  return check_bias(sampling, vocabulary);
}

Result<void> check_request(const Request& request, std::uint32_t vocabulary) {
  const SamplingParams& s = request.sampling;
  if (request.prompt.empty()) {
    return fail(ErrorCode::bad_request, "the prompt has no token; give at least one");
  }
  if (auto ok = check_ids("prompt", request.prompt, vocabulary); !ok) return ok;
  if (auto ok = check_ids("resume_tokens", request.resumed, vocabulary); !ok) return ok;
  if (auto ok = check_sampling(s, vocabulary); !ok) return ok;
  if (request.max_tokens > 0 && s.min_tokens > request.max_tokens) {
    return fail(ErrorCode::bad_request, "min_tokens {} exceeds max_tokens {}", s.min_tokens,
                request.max_tokens);
  }
  for (std::size_t i = 0; i < request.stops.size(); ++i) {
    if (request.stops[i].empty() || !model::is_valid_utf8(request.stops[i])) {
      return fail(ErrorCode::bad_request, "stop string {} is {}; leave it out or mend it", i,
                  request.stops[i].empty() ? "empty" : "not valid UTF-8");
    }
  }
  return {};
}

}  // namespace sluice::engine
