// Shows that every message between nodes survives its bytes, that the bytes are those an
// independent msgpack library writes (scripts/fixtures/node_protocol.py), and that whatever was
// cut, damaged or lies about its size is refused, naming the field, before memory is spent on it.

#include "transport/node_protocol.hpp"

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <set>

#include "tests/transport/node_messages.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;

namespace {

const NodeLimits limits;

std::map<std::string, std::string> golden_frames() {
  std::map<std::string, std::string> out;
  for (const auto& file :
       std::filesystem::directory_iterator(SLUICE_FIXTURES "/../fuzz/corpus/node_protocol")) {
    std::ifstream in(file.path(), std::ios::binary);
    out[file.path().filename()] = {std::istreambuf_iterator<char>(in), {}};
  }
  return out;
}

Error refusal(std::string_view frame, const NodeLimits& bounds = limits) {
  const auto routed = decode(frame, bounds);
  BOOST_REQUIRE(!routed);
  return routed.error();
}

void check_message(const Error& error, ErrorCode code, std::string_view text) {
  BOOST_CHECK_MESSAGE(error.code == code && error.message.find(text) != std::string::npos,
                      error.message);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(node_protocol)

BOOST_AUTO_TEST_CASE(random_messages_survive) {
  NodeRandom r{std::mt19937_64(1)};
  for (int round = 0; round < 300; ++round) {
    const auto messages = random_node_messages(r);
    BOOST_REQUIRE_EQUAL(messages.size(), std::variant_size_v<NodeMessage>);
    for (std::size_t kind = 0; kind < messages.size(); ++kind) {
      const NodeMessage& message = messages[kind];
      BOOST_REQUIRE_EQUAL(message.index(), kind);
      const std::uint32_t channel = r.u32();
      const auto routed = decode(encode(channel, message), limits);
      BOOST_REQUIRE_MESSAGE(routed, name_of(message) << ": " << routed.error().message);
      BOOST_REQUIRE_EQUAL(routed->channel, channel);
      BOOST_REQUIRE_MESSAGE(same(routed->message, message), name_of(message));
    }
  }
}

BOOST_AUTO_TEST_CASE(golden_messages) {
  std::set<std::size_t> kinds;
  for (const auto& [name, frame] : golden_frames()) {
    const auto routed = decode(frame, limits);
    BOOST_REQUIRE_MESSAGE(routed, name << ": " << routed.error().message);
    BOOST_CHECK_EQUAL(routed->channel, 70000U);
    BOOST_CHECK_MESSAGE(name.starts_with(name_of(routed->message)), name);
    BOOST_CHECK_MESSAGE(encode(routed->channel, routed->message) == frame, name);
    kinds.insert(routed->message.index());
  }
  BOOST_CHECK_EQUAL(kinds.size(), std::variant_size_v<NodeMessage>);
  const auto routed = decode(golden_frames()["run_plan"], limits);
  const auto& plan = std::get<RunPlan>(routed->message);
  BOOST_CHECK_EQUAL(plan.ticket, 77U);
  BOOST_REQUIRE_EQUAL(plan.batch.segments.size(), 2U);
  BOOST_CHECK(plan.batch.segments[1].slot == (kernels::SlotRef{4, 8}));
  BOOST_CHECK_EQUAL(plan.batch.segments[1].position, 191U);
  BOOST_CHECK(plan.batch.segments[1].path == kernels::Path::decode);
  BOOST_CHECK_EQUAL(plan.batch.opens[0].sampling.logit_bias[0].second, -100.0F);
  BOOST_CHECK(!plan.batch.sample_now);
  const auto masks = decode(golden_frames()["sample_masks"], limits);
  BOOST_CHECK_EQUAL(std::get<SampleMasks>(masks->message).masks[0].allowed[1], 1ULL << 63U);
}

// Times are of one host: a deadline does not travel, its remaining time does.
BOOST_AUTO_TEST_CASE(a_deadline_stays_at_home) {
  Admit m;
  m.stream[0] = 1;
  m.request.deadline = 5;
  m.remaining = 7;
  const auto routed = decode(encode(1, m), limits);
  BOOST_REQUIRE(routed);
  const auto& admit = std::get<Admit>(routed->message);
  BOOST_CHECK(!admit.request.deadline);
  BOOST_CHECK(admit.remaining == 7U);
}

BOOST_AUTO_TEST_CASE(no_truncation_decodes) {
  for (const auto& [name, frame] : golden_frames()) {
    for (std::size_t size = 0; size < frame.size(); ++size) {
      // A copy of its own, so that a sanitizer sees a read behind the end.
      const std::vector<char> cut(frame.begin(), frame.begin() + static_cast<long>(size));
      const Error error = refusal({cut.data(), cut.size()});
      BOOST_REQUIRE_MESSAGE(error.code == ErrorCode::bad_request, name << ": " << error.message);
    }
    check_message(refusal(frame + '\xc0'), ErrorCode::bad_request, "1 bytes follow the message");
  }
}

// Another message of the same length, or an error: what decodes encodes and decodes again.
BOOST_AUTO_TEST_CASE(every_damaged_byte) {
  std::size_t decoded = 0;
  std::size_t refused = 0;
  for (const auto& [name, frame] : golden_frames()) {
    for (std::size_t at = 0; at < frame.size(); ++at) {
      for (int value = 0; value < 256; ++value) {
        std::string damaged = frame;
        damaged[at] = static_cast<char>(value);
        const auto routed = decode(damaged, limits);
        if (!routed) {
          BOOST_REQUIRE(!routed.error().message.empty());
          ++refused;
          continue;
        }
        ++decoded;
        const std::string again = encode(routed->channel, routed->message);
        const auto second = decode(again, limits);
        BOOST_REQUIRE_MESSAGE(second, name << ": " << second.error().message);
        BOOST_REQUIRE(encode(second->channel, second->message) == again);
      }
    }
  }
  BOOST_CHECK_GT(decoded, 10000U);
  BOOST_CHECK_GT(refused, 10000U);
}

BOOST_AUTO_TEST_CASE(lying_headers_allocate_nothing) {
  using namespace std::string_literals;
  // Where a list, a string or bytes begin, 2^32 - 1 of them are claimed; then a million that are
  // not there, with enough bytes behind them to be believed for a while.
  const std::string heads[] = {
      "\xdd\xff\xff\xff\xff"s, "\xdc\xff\xff"s,
      "\xdb\xff\xff\xff\xff"s, "\xc6\xff\xff\xff\xff"s,
      "\xdf\xff\xff\xff\xff"s, "\xdd\x00\x0f\xff\x00"s + std::string(1 << 20, '\xc1')};
  for (const auto& [name, frame] : golden_frames()) {
    for (std::size_t at = 0; at < frame.size(); ++at) {
      for (const std::string& head : heads) {
        if (head.size() > 100 && at % 7 != 0) continue;
        const auto routed = decode(frame.substr(0, at) + head, limits);
        if (routed) {  // it is the end of an id or a blob
          BOOST_REQUIRE_EQUAL(at + head.size(), frame.size());
          continue;
        }
        BOOST_REQUIRE(routed.error().code == ErrorCode::bad_request ||
                      routed.error().code == ErrorCode::too_large ||
                      routed.error().code == ErrorCode::unsupported);
      }
    }
  }
  const std::string events = "\x93\x01\x09\x91"s;
  check_message(refusal(events + "\xdd\x00\x10\x00\x01"s), ErrorCode::too_large,
                "events.events has 1048577 elements; the limit is 1048576");
  check_message(refusal(events + "\xdd\x00\x10\x00\x00"s), ErrorCode::bad_request,
                "events: byte 9: the frame ends where another element must stand");
}

BOOST_AUTO_TEST_CASE(every_limit_exactly) {
  NodeLimits tight;
  tight.slots_max = 2;
  tight.blocks_max = 3;
  tight.tokens_max = 4;
  tight.mask_words_max = 2;
  tight.stop_tokens_max = 3;
  tight.logit_bias_max = 2;
  tight.logprobs_max = 2;
  tight.stops_max = 2;
  tight.stop_bytes_max = 4;
  tight.constraint_bytes_max = 5;
  tight.choices_max = 2;
  tight.events_max = 2;
  tight.values_max = 2;
  tight.peer_bytes_max = 6;
  tight.name_bytes_max = 8;
  tight.explanation_bytes_max = 10;
  tight.world_max = 2;
  tight.blob_bytes_max = 3;
  using Size = std::size_t;
  struct Case {
    std::string_view field;
    Size most;
    NodeMessage (*of)(Size);
  };
  static constexpr auto plan = [](auto change) -> NodeMessage {
    RunPlan m{1, {}};
    m.batch.opens.resize(1);
    m.batch.grants.resize(1);
    change(m.batch);
    return m;
  };
  static constexpr auto done = [](auto change) -> NodeMessage {
    StepDone m;
    m.result.slots.resize(1);
    change(m.result);
    return m;
  };
  static constexpr auto admit = [](auto change) -> NodeMessage {
    Admit m;
    change(m);
    return m;
  };
  static constexpr auto event = [](auto change) -> NodeMessage {
    StepEvents m;
    m.events.resize(1);
    m.events[0].event.finish = engine::FinishReason::error;
    change(m.events[0]);
    return m;
  };
  static constexpr auto opened = [](auto change) -> NodeMessage {
    ChannelOpened m;
    change(m);
    return m;
  };
  const Case cases[] = {
      {"run_plan.opens", 2, [](Size n) { return plan([=](auto& b) { b.opens.resize(n); }); }},
      {"run_plan.grants", 2, [](Size n) { return plan([=](auto& b) { b.grants.resize(n); }); }},
      {"run_plan.segments", 2, [](Size n) { return plan([=](auto& b) { b.segments.resize(n); }); }},
      {"run_plan.closes", 2, [](Size n) { return plan([=](auto& b) { b.closes.resize(n); }); }},
      {"run_plan.tokens", 4,
       [](Size n) { return plan([=](auto& b) { b.opens[0].tokens.resize(n); }); }},
      {"run_plan.blocks", 3,
       [](Size n) { return plan([=](auto& b) { b.grants[0].blocks.resize(n); }); }},
      {"run_plan.stop_tokens", 3,
       [](Size n) { return plan([=](auto& b) { b.opens[0].sampling.stop_tokens.resize(n); }); }},
      {"run_plan.logit_bias", 2,
       [](Size n) { return plan([=](auto& b) { b.opens[0].sampling.logit_bias.resize(n); }); }},
      {"sample_masks.masks", 2,
       [](Size n) -> NodeMessage {
         return SampleMasks{1, std::vector<kernels::Mask>(n)};
       }},
      {"sample_masks.allowed", 16,  // bytes: two words
       [](Size n) -> NodeMessage {
         return SampleMasks{1, {{{}, std::vector<std::uint64_t>(n == 16 ? 2 : 3)}}};
       }},
      {"step_done.slots", 2, [](Size n) { return done([=](auto& x) { x.slots.resize(n); }); }},
      {"step_done.tokens", 4,
       [](Size n) { return done([=](auto& x) { x.slots[0].tokens.resize(n); }); }},
      {"step_done.logprobs", 4,
       [](Size n) { return done([=](auto& x) { x.slots[0].logprobs.resize(n); }); }},
      {"step_done.logprobs", 2,
       [](Size n) {
         return done(
             [=](auto& x) { x.slots[0].logprobs.resize(1), x.slots[0].logprobs[0].resize(n); });
       }},
      {"step_done.message", 10,
       [](Size n) { return done([=](auto& x) { x.error.message.resize(n, 'x'); }); }},
      {"admit.owner", 6, [](Size n) { return admit([=](auto& m) { m.owner.resize(n); }); }},
      {"admit.choices", 2, [](Size n) { return admit([=](auto& m) { m.choices.resize(n); }); }},
      {"admit.prompt", 4,
       [](Size n) { return admit([=](auto& m) { m.request.prompt.resize(n); }); }},
      {"admit.resumed", 4,
       [](Size n) { return admit([=](auto& m) { m.request.resumed.resize(n); }); }},
      {"admit.stops", 2, [](Size n) { return admit([=](auto& m) { m.request.stops.resize(n); }); }},
      {"admit.stops", 4,
       [](Size n) { return admit([=](auto& m) { m.request.stops = {std::string(n, 'x')}; }); }},
      {"admit.constraint", 5,
       [](Size n) { return admit([=](auto& m) { m.request.constraint.text.resize(n, 'x'); }); }},
      {"admit.tenant", 6,
       [](Size n) { return admit([=](auto& m) { m.request.tenant.resize(n); }); }},
      {"admit.numerics", 8,
       [](Size n) { return admit([=](auto& m) { m.accepted.numerics.resize(n, 'x'); }); }},
      {"events.events", 2,
       [](Size n) -> NodeMessage { return StepEvents{std::vector<StreamEvent>(n)}; }},
      {"events.tokens", 4,
       [](Size n) { return event([=](auto& e) { e.event.tokens.resize(n); }); }},
      {"events.site", 8,
       [](Size n) { return event([=](auto& e) { e.receipt.site.resize(n, 'x'); }); }},
      {"stats_answer.values", 2,
       [](Size n) -> NodeMessage {
         return StatsAnswer{1, std::vector<std::pair<std::string, double>>(n)};
       }},
      {"stats_answer.name", 8,
       [](Size n) -> NodeMessage {
         return StatsAnswer{1, {{std::string(n, 'x'), 1}}};
       }},
      {"open_channel.service", 8,
       [](Size n) -> NodeMessage { return OpenChannel{1, std::string(n, 'x'), "", 0, 1, 1}; }},
      {"channel_opened.engine", 8,
       [](Size n) { return opened([=](auto& m) { m.engine.resize(n, 'x'); }); }},
      {"channel_opened.tokenizer", 8,
       [](Size n) { return opened([=](auto& m) { m.tokenizer.resize(n, 'x'); }); }},
      {"channel_opened.cloud", 8,
       [](Size n) { return opened([=](auto& m) { m.site.cloud.resize(n, 'x'); }); }},
      {"channel_failed.message", 10,
       [](Size n) -> NodeMessage {
         return ChannelFailed{{ErrorCode::io, std::string(n, 'x'), 0}};
       }},
      {"rank_blob.bytes", 3, [](Size n) -> NodeMessage { return RankBlob{std::string(n, 'x')}; }},
      {"rank_blobs.blobs", 2,
       [](Size n) -> NodeMessage { return RankBlobs{std::vector<std::string>(n)}; }},
      {"rank_blobs.blobs", 3,
       [](Size n) -> NodeMessage { return RankBlobs{{std::string(n, 'x')}}; }},
  };
  for (const auto& [field, most, of] : cases) {
    const auto decoded = decode(encode(1, of(most)), tight);
    BOOST_CHECK_MESSAGE(decoded, field << ": " << decoded.error().message);
    check_message(refusal(encode(1, of(most + 1)), tight), ErrorCode::too_large,
                  std::string(field) + " has ");
  }
  const std::string frame = encode(1, decode_plan(2));
  tight.frame_bytes_max = frame.size();
  BOOST_CHECK(decode(frame, tight));
  --tight.frame_bytes_max;
  check_message(refusal(frame, tight), ErrorCode::too_large, "the frame has ");
  Tokenize m;
  m.submit.stream[0] = m.submit.owner[0] = 1;
  m.submit.prompt = "12345678";
  tight = {};
  tight.client.text_bytes_max = 8;
  BOOST_CHECK(decode(encode(1, m), tight));
  tight.client.text_bytes_max = 7;
  check_message(refusal(encode(1, m), tight), ErrorCode::too_large,
                "tokenize: submit: prompt has 8 bytes; the limit is 7");
}

BOOST_AUTO_TEST_CASE(what_is_mistyped_is_named) {
  using namespace std::string_literals;
  const auto bad = [](const std::string& frame, std::string_view text) {
    check_message(refusal(frame), ErrorCode::bad_request, text);
  };
  bad("", "the frame ends where an array must stand");
  bad("\xc0", "the frame: byte 0: an array must stand here");
  bad("\x92\x01\x05", "the frame: byte 0: an array of 3 must stand here, not of 2");
  bad("\x93\xa1x\x05\x91\x01", "the frame: byte 1: an integer of at least 0 must stand here");
  bad("\x93\x01\x05\x90", "stats_ask: byte 3: an array of 1 must stand here, not of 0");
  bad("\x93\x01\x05\x92\x01\x01", "stats_ask: byte 3: an array of 1 must stand here, not of 2");
  bad("\x93\x01\x0f\x91\xcf\x00\x00\x00\x01\x00\x00\x00\x00"s,
      "close_channel: byte 4: the integer 4294967296 must be at most 4294967295");
  bad("\x93\x01\x0f\x91\xff", "close_channel: byte 4: an integer of at least 0 must stand here");
  bad("\x93\x01\x0e\x91\x93\x11\xa0\x00"s,
      "channel_failed: byte 5: the integer 17 must be at most 16");
  bad("\x93\x01\x0e\x91\x93\x00\xa1\xff\x00"s, "message is not valid UTF-8");
  bad("\x93\x01\x04\x92\xc4\x01\x00\x00"s, "cancel_stream: byte 4: 16 bytes must stand here");
  bad("\x93\x01\x01\x92\x01\x91\x92\x92\x01\x01\xc4\x03" + std::string(3, 'x'),
      "allowed must be whole words of 8 bytes");
  bad("\x93\x01\x0b\x92\xc4\x00\xc4\x01\xc0"s, "tokenize: the frame is not a msgpack map");
  check_message(refusal("\x93\x01\x13\x90"), ErrorCode::unsupported, "kind 19");
  // A client's message of another type than submit.
  const std::string health = encode(HealthRequest{});
  bad("\x93\x01\x0b\x92\xc4\x00\xc4"s + static_cast<char>(health.size()) + health, "another type");

  ChannelOpened opened;
  opened.scheduler.block_tokens = 0;
  check_message(refusal(encode(1, opened)), ErrorCode::bad_request,
                "the integer must be at least 1");
  StepEvents events{std::vector<StreamEvent>(1)};
  events.events[0].event.finish = engine::FinishReason::stop;
  events.events[0].receipt.price = std::numeric_limits<double>::quiet_NaN();
  check_message(refusal(encode(1, events)), ErrorCode::bad_request, "must be finite");
}

BOOST_AUTO_TEST_CASE(checksum_of_tokens) {
  engine::StepResult one;
  one.ticket = 4;
  one.slots = {{{1, 2}, {7}, {}, {}}, {{2, 2}, {8}, {}, {}}};
  const auto sum = tokens_checksum(one);
  engine::StepResult other = one;
  other.device_ns = 5;
  other.slots[0].logprobs = {{{7, -1.0F}}};
  BOOST_CHECK_EQUAL(tokens_checksum(other), sum);  // of time and logprobs nothing
  std::set<std::uint64_t> sums{sum};
  const auto differs = [&](auto change) {
    other = one;
    change(other);
    BOOST_CHECK(sums.insert(tokens_checksum(other)).second);
  };
  differs([](auto& x) { x.ticket = 5; });
  differs([](auto& x) { x.failed = true; });
  differs([](auto& x) { x.slots[0].tokens[0] = 6; });
  differs([](auto& x) { x.slots[1].tokens = {}; });
  differs([](auto& x) { x.slots[0].tokens = {7, 8}, x.slots[1].tokens = {}; });
  differs([](auto& x) { std::swap(x.slots[0].tokens, x.slots[1].tokens); });
  differs([](auto& x) { x.slots[0].slot.generation = 3; });
  differs([](auto& x) { x.slots[0].error = Error{}; });
  differs([](auto& x) { x.slots.pop_back(); });
}

BOOST_AUTO_TEST_SUITE_END()
