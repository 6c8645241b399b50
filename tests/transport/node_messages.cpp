#include "tests/transport/node_messages.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::transport::testing {

StreamId NodeRandom::id() {
  StreamId out;
  for (auto& byte : out) byte = static_cast<std::uint8_t>(below(256));
  out[0] |= 1;
  return out;
}

std::string NodeRandom::text() {
  static const std::string pieces[] = {"a", "Ω", "€", "👋", "\n", std::string(1, '\0'), " the"};
  std::string out;
  for (auto n = below(20); n > 0; --n) out += pieces[below(7)];
  return out;
}

std::string NodeRandom::bytes() {
  std::string out(coin() ? below(5) : below(256), '\0');
  for (char& byte : out) byte = static_cast<char>(below(256));
  return out;
}

namespace {

using Logprobs = std::vector<std::vector<engine::TokenLogprob>>;

Logprobs random_logprobs(NodeRandom& r) {
  return r.list(3, [&] {
    return r.list(21, [&] { return engine::TokenLogprob{r.u32(), r.real()}; });
  });
}

engine::SamplingParams random_sampling(NodeRandom& r) {
  engine::SamplingParams s;
  for (float* value : {&s.temperature, &s.top_p, &s.min_p, &s.repetition_penalty,
                       &s.presence_penalty, &s.frequency_penalty})
    *value = r.real();
  s.top_k = r.u32();
  s.logit_bias = r.list(4, [&] { return std::pair(Token{r.u32()}, r.real()); });
  s.seed = r.u64();
  s.min_tokens = r.u32();
  s.stop_tokens = r.tokens(20);
  s.logprobs = static_cast<std::int32_t>(r.u64());
  return s;
}

RunPlan random_plan(NodeRandom& r) {
  RunPlan m{r.u64(), {}};
  m.batch.opens = r.list(3, [&] {
    return kernels::SlotOpen{r.slot(), r.tokens(300), r.u32(), random_sampling(r)};
  });
  m.batch.grants = r.list(4, [&] {
    return kernels::BlockGrant{r.u32(), r.u32(), r.list(20, [&] { return r.u32(); })};
  });
  m.batch.segments = r.list(40, [&] {
    return kernels::Segment{r.slot(), r.u32(), r.u32(),
                            r.coin() ? kernels::Path::prompt : kernels::Path::decode, r.coin()};
  });
  m.batch.closes = r.list(4, [&] { return r.slot(); });
  m.batch.sample_now = r.coin();
  return m;
}

SampleMasks random_masks(NodeRandom& r) {
  SampleMasks m{r.u64(), {}};
  m.masks = r.list(5, [&] { return kernels::Mask{r.slot(), r.list(40, [&] { return r.u64(); })}; });
  return m;
}

engine::StepResult random_result(NodeRandom& r) {
  engine::StepResult m;
  m.ticket = r.u64();
  m.slots = r.list(40, [&] {
    kernels::SlotTokens slot{r.slot(), r.tokens(3), random_logprobs(r), {}};
    if (r.coin()) slot.error = r.error();
    return slot;
  });
  m.device_ns = r.u64();
  m.error = r.error();
  m.failed = r.coin();
  return m;
}

engine::Request random_request(NodeRandom& r) {
  engine::Request m;
  m.id = r.u64();
  m.prompt = r.tokens(100);
  m.resumed = r.tokens(10);
  m.sampling = random_sampling(r);
  m.max_tokens = r.u32();
  m.stops = r.list(4, [&] { return r.text(); });
  m.constraint = {static_cast<engine::Constraint::Kind>(r.below(3)), r.text()};
  m.continues_text = r.coin();
  m.priority = static_cast<std::int32_t>(r.u32());
  m.tenant = r.bytes();
  return m;
}

std::vector<ResumedChoice> random_choices(NodeRandom& r) {
  return r.list(3, [&] { return ResumedChoice{r.tokens(10), r.u64()}; });
}

Accepted random_accepted(NodeRandom& r) { return {r.id(), r.u64(), r.text(), r.u32(), r.id()}; }

StreamEvent random_event(NodeRandom& r) {
  StreamEvent m{r.id(), r.u32(), r.u64(), {}, {}};
  auto& event = m.event;
  event.id = r.u64();
  event.first_index = r.u32();
  event.tokens = r.tokens(4);
  event.logprobs = random_logprobs(r);
  event.finish = static_cast<engine::FinishReason>(r.below(5));
  if (r.coin()) event.text_bytes = r.u64();
  if (event.finish == engine::FinishReason::none) return m;
  event.error = r.error();
  m.receipt = {r.text(),   r.text(),   r.text(),   r.text(), r.text(), r.amount(), r.amount(),
               r.amount(), r.amount(), r.amount(), r.u32(),  r.u32(),  r.u32()};
  return m;
}

Submit random_submit(NodeRandom& r) {
  Submit m;
  m.stream = r.id();
  m.owner = r.id();
  m.epoch = r.u64();
  switch (r.below(3)) {
    case 0:
      m.prompt = r.text();
      break;
    case 1:
      m.prompt = std::vector<Token>{r.u32(), r.u32()};
      break;
    default:
      m.prompt = std::vector<ChatMessage>{{r.text(), r.text()}, {r.text(), r.text()}};
  }
  m.sampling.seed = r.u64();
  m.n = 2;
  if (r.coin()) m.resume_tokens = {r.tokens(5), r.tokens(5)};
  m.resume_text_bytes.resize(m.resume_tokens.size());
  m.tenant = r.text();
  return m;
}

ChannelOpened random_opened(NodeRandom& r) {
  ChannelOpened m;
  m.engine = r.text();
  m.numerics = r.text();
  m.backend = r.text();
  m.site = {r.text(), r.text(), r.text(), r.text(), r.amount()};
  m.tokenizer = r.text();
  m.scheduler = {1 + r.u32() / 2, r.u32(), 1 + r.u32() / 2, r.u32(), 1 + r.u32() / 2, r.u64(),
                 r.u32(),         r.u32(), 1 + r.u32() / 2, {},      r.coin()};
  if (r.coin()) m.scheduler.prefix_root = r.id();
  return m;
}

Admit random_admit(NodeRandom& r) {
  Admit m{r.bytes(), r.id(), random_request(r), random_choices(r), random_accepted(r), r.u64(), {}};
  if (r.coin()) m.remaining = r.u64();
  return m;
}

// What a message holds. Structured bindings name every field, so that none is left uncompared.

auto parts(const Error& m) {
  const auto& [a, b, c] = m;
  return std::tie(a, b, c);
}
auto parts(const engine::TokenLogprob& m) {
  const auto& [a, b] = m;
  return std::tie(a, b);
}
auto parts(const kernels::SlotOpen& m) {
  const auto& [a, b, c, d] = m;
  return std::tie(a, b, c, d);
}
auto parts(const kernels::BlockGrant& m) {
  const auto& [a, b, c] = m;
  return std::tie(a, b, c);
}
auto parts(const kernels::Segment& m) {
  const auto& [a, b, c, d, e] = m;
  return std::tie(a, b, c, d, e);
}
auto parts(const kernels::Mask& m) {
  const auto& [a, b] = m;
  return std::tie(a, b);
}
auto parts(const kernels::SlotTokens& m) {
  const auto& [a, b, c, d] = m;
  return std::tie(a, b, c, d);
}
auto parts(const kernels::Batch& m) {
  const auto& [a, b, c, d, e] = m;
  return std::tie(a, b, c, d, e);
}
auto parts(const RunPlan& m) {
  const auto& [a, b] = m;
  return std::tie(a, b);
}
auto parts(const SampleMasks& m) {
  const auto& [a, b] = m;
  return std::tie(a, b);
}
auto parts(const engine::StepResult& m) {
  const auto& [a, b, c, d, e] = m;
  return std::tie(a, b, c, d, e);
}
auto parts(const StepDone& m) {
  const auto& [a, b] = m;
  return std::tie(a, b);
}
auto parts(const engine::Request& m) {
  const auto& [a, b, c, d, e, f, g, h, i, j, k] = m;
  return std::tie(a, b, c, d, e, f, g, h, i, j, k);
}
auto parts(const Admit& m) {
  const auto& [a, b, c, d, e, f, g] = m;
  return std::tie(a, b, c, d, e, f, g);
}
auto parts(const Refusal& m) {
  const auto& [a, b, c] = m;
  return std::tie(a, b, c);
}
auto parts(const engine::SequenceEvent& m) {
  const auto& [a, b, c, d, e, f, g] = m;
  return std::tie(a, b, c, d, e, f, g);
}
auto parts(const StreamEvent& m) {
  const auto& [a, b, c, d, e] = m;
  return std::tie(a, b, c, d, e);
}
auto parts(const StepEvents& m) {
  const auto& [a] = m;
  return std::tie(a);
}
auto parts(const engine::SchedulerConfig& m) {
  const auto& [a, b, c, d, e, f, g, h, i, j, k] = m;
  return std::tie(a, b, c, d, e, f, g, h, i, j, k);
}
auto parts(const ChannelOpened& m) {
  const auto& [a, b, c, d, e, f] = m;
  return std::tie(a, b, c, d, e, f);
}
auto parts(const ChannelFailed& m) {
  const auto& [a] = m;
  return std::tie(a);
}

template <class T>
bool equal(const T& a, const T& b);
template <class T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const T& x, const T& y) { return equal(x, y); });
}
template <class T>
bool equal(const std::optional<T>& a, const std::optional<T>& b) {
  return a.has_value() == b.has_value() && (!a || equal(*a, *b));
}
template <class T>
bool equal(const T& a, const T& b) {
  if constexpr (requires { parts(a); }) {
    const auto x = parts(a);
    const auto y = parts(b);
    return [&]<std::size_t... i>(std::index_sequence<i...>) {
      return (equal(std::get<i>(x), std::get<i>(y)) && ...);
    }
    (std::make_index_sequence<std::tuple_size_v<decltype(x)>>());
  } else {
    return a == b;
  }
}

}  // namespace

std::vector<NodeMessage> random_node_messages(NodeRandom& r) {
  const auto values = r.list(40, [&] { return std::pair(r.text(), r.amount()); });
  return {random_plan(r),
          random_masks(r),
          StepDone{random_result(r), r.u64()},
          random_admit(r),
          CancelStream{r.id(), r.u64()},
          StatsAsk{r.u64()},
          ChannelJoined{},
          Refusal{r.id(), r.u64(), r.error()},
          OpenStream{r.id(), r.u64()},
          StepEvents{r.list(40, [&] { return random_event(r); })},
          StatsAnswer{r.u64(), values},
          Tokenize{r.bytes(), random_submit(r)},
          OpenChannel{r.u32(), r.text(), r.text(), r.u32(), r.u32(), r.u64()},
          random_opened(r),
          ChannelFailed{r.error()},
          CloseChannel{r.u32()},
          RankBlob{r.bytes()},
          RankBlobs{r.list(8, [&] { return r.bytes(); })},
          Offers{r.list(8, [&] {
            return Offer{r.text(), r.text()};
          })}};
}

RunPlan decode_plan(std::uint32_t rows) {
  RunPlan plan{123456, {}};
  for (std::uint32_t i = 0; i < rows; ++i) {
    if (i % 16 == 0) plan.batch.grants.push_back({i, 40 + i, {1000 + i}});
    plan.batch.segments.push_back({{i, 7 + i}, 500 + 13 * i, 1, kernels::Path::decode, true});
  }
  return plan;
}

bool same(const NodeMessage& a, const NodeMessage& b) {
  return a.index() == b.index() &&
         std::visit([&]<class T>(const T& x) { return equal(x, std::get<T>(b)); }, a);
}

}  // namespace sluice::transport::testing
