// Shows that what is malformed, out of range or above a limit gets the right typed error, naming
// the key and before memory is spent on it: each limit at its border, frames cut at every byte,
// headers that claim more than there is, UTF-8 at every code point.

#include <boost/test/unit_test.hpp>
#include <limits>

#include "tests/transport/messages.hpp"
#include "transport/protocol.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;

namespace {

void check_refused(const Submit& m, ErrorCode code, std::string_view names) {
  const Error error = refusal(encode(m));
  BOOST_CHECK_MESSAGE(error.code == code, error.message);
  BOOST_CHECK_MESSAGE(error.message.find(names) != std::string::npos, error.message);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(protocol_limits)

BOOST_AUTO_TEST_CASE(ranges_of_a_submit) {
  const auto changed = [](auto change) {
    Submit m = full_submit();
    change(m);
    return m;
  };
  const auto bad = [&](std::string_view names, auto change) {
    check_refused(changed(change), ErrorCode::bad_request, names);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {-0.001F, nan, infinity, -infinity})
    bad("sampling.temperature", [&](Submit& m) { m.sampling.temperature = x; });
  for (const float x : {0.0F, -0.1F, 1.001F, nan})
    bad("sampling.top_p", [&](Submit& m) { m.sampling.top_p = x; });
  for (const float x : {-0.1F, 1.001F, nan})
    bad("sampling.min_p", [&](Submit& m) { m.sampling.min_p = x; });
  for (const float x : {0.0F, -1.0F, 101.0F, nan})
    bad("sampling.repetition_penalty", [&](Submit& m) { m.sampling.repetition_penalty = x; });
  for (const float x : {-2.1F, 2.1F, nan}) {
    bad("sampling.presence_penalty", [&](Submit& m) { m.sampling.presence_penalty = x; });
    bad("sampling.frequency_penalty", [&](Submit& m) { m.sampling.frequency_penalty = x; });
  }
  for (const float x : {-100.5F, 101.0F, nan})
    bad("sampling.logit_bias", [&](Submit& m) { m.sampling.logit_bias = {{1, x}}; });
  bad("logit_bias names a token twice", [](Submit& m) {
    m.sampling.logit_bias = {{9, 1.0F}, {4, 2.0F}, {9, 3.0F}};
  });
  bad("sampling.logprobs", [](Submit& m) { m.sampling.logprobs = 21; });
  bad("sampling.min_tokens", [](Submit& m) { m.sampling.min_tokens = m.max_tokens + 1; });
  bad("n must be from 1 to 16", [](Submit& m) { m.n = 0; });
  bad("n must be from 1 to 16", [](Submit& m) { m.n = 17; });
  bad("stops must not hold an empty string", [](Submit& m) { m.stops = {"a", ""}; });
  bad("resume_tokens",
      [](Submit& m) { m.resume_tokens.pop_back(), m.resume_text_bytes.pop_back(); });
  bad("resume_text_bytes", [](Submit& m) { m.resume_text_bytes.pop_back(); });
  bad("stream must not be all zero", [](Submit& m) { m.stream = {}; });
  bad("owner must not be all zero", [](Submit& m) { m.owner = {}; });
  bad("prompt is empty", [](Submit& m) { m.prompt = std::vector<Token>{}; });
  for (const char* text : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "ok \xe2\x82"}) {
    bad("prompt is not valid UTF-8", [&](Submit& m) { m.prompt = text; });
    bad("prompt.content is not valid UTF-8", [&](Submit& m) {
      m.prompt = std::vector<ChatMessage>{{"user", text}};
    });
    bad("stops is not valid UTF-8", [&](Submit& m) { m.stops = {text}; });
  }
}

BOOST_AUTO_TEST_CASE(every_limit_exactly) {
  Limits tight;
  tight.tokens_max = 5;
  tight.text_bytes_max = 8;
  tight.chat_messages_max = 2;
  tight.stops_max = 2;
  tight.stop_bytes_max = 4;
  tight.constraint_bytes_max = 4;
  tight.stop_tokens_max = 3;
  tight.logit_bias_max = 2;
  tight.choices_max = 2;
  tight.jurisdictions_max = 2;
  tight.name_bytes_max = 8;
  Submit base;
  base.stream = counting(1);
  base.owner = counting(2);
  base.prompt = "x";
  using Chat = std::vector<ChatMessage>;
  struct Case {
    std::string_view key;
    void (*fits)(Submit&);
    void (*exceeds)(Submit&);
  };
  const Case cases[] = {
      {"json_schema",
       [](Submit& m) { m.constraint = {engine::Constraint::Kind::json_schema, "1234"}; },
       [](Submit& m) { m.constraint = {engine::Constraint::Kind::json_schema, "12345"}; }},
      {"prompt", [](Submit& m) { m.prompt = "12345678"; },
       [](Submit& m) { m.prompt = "123456789"; }},
      {"prompt", [](Submit& m) { m.prompt = std::vector<Token>(5); },
       [](Submit& m) { m.prompt = std::vector<Token>(6); }},
      {"prompt",
       [](Submit& m) {
         m.prompt = Chat{{"a", "1234"}, {"b", "5678"}};
       },
       [](Submit& m) {
         m.prompt = Chat{{"a", "1234"}, {"b", "56789"}};
       }},
      {"prompt", [](Submit& m) { m.prompt = Chat(2); }, [](Submit& m) { m.prompt = Chat(3); }},
      {"prompt.role",
       [](Submit& m) {
         m.prompt = Chat{{"12345678", ""}};
       },
       [](Submit& m) {
         m.prompt = Chat{{"123456789", ""}};
       }},
      {"model", [](Submit& m) { m.model = "12345678"; }, [](Submit& m) { m.model = "123456789"; }},
      {"stops",
       [](Submit& m) {
         m.stops = {"a", "b"};
       },
       [](Submit& m) {
         m.stops = {"a", "b", "c"};
       }},
      {"stops", [](Submit& m) { m.stops = {"1234"}; }, [](Submit& m) { m.stops = {"12345"}; }},
      {"sampling.stop_tokens",
       [](Submit& m) {
         m.sampling.stop_tokens = {1, 2, 3};
       },
       [](Submit& m) {
         m.sampling.stop_tokens = {1, 2, 3, 4};
       }},
      {"sampling.logit_bias",
       [](Submit& m) {
         m.sampling.logit_bias = {{1, 1}, {2, 1}};
       },
       [](Submit& m) {
         m.sampling.logit_bias = {{1, 1}, {2, 1}, {3, 1}};
       }},
      {"jurisdictions",
       [](Submit& m) {
         m.jurisdictions = {"a", "b"};
       },
       [](Submit& m) {
         m.jurisdictions = {"a", "b", "c"};
       }},
      {"resume_tokens",
       [](Submit& m) {
         m.n = 2, m.resume_tokens = {{1, 2}, {3, 4, 5}}, m.resume_text_bytes = {0, 0};
       },
       [](Submit& m) {
         m.n = 2, m.resume_tokens = {{1, 2, 3}, {4, 5, 6}};
       }},
  };
  for (const auto& [key, fits, exceeds] : cases) {
    Submit m = base;
    fits(m);
    const auto decoded = decode(encode(m), tight);
    BOOST_CHECK_MESSAGE(decoded, key << ": " << decoded.error().message);
    m = base;
    exceeds(m);
    const Error error = refusal(encode(m), tight);
    BOOST_CHECK_MESSAGE(error.code == ErrorCode::too_large, error.message);
    BOOST_CHECK_MESSAGE(error.message.find("submit: " + std::string(key) + " has ") == 0,
                        error.message);
  }
}

BOOST_AUTO_TEST_CASE(limits_of_a_frame) {
  const std::string frame = encode(full_submit());
  Limits tight;
  tight.frame_bytes_max = frame.size();
  BOOST_CHECK(decode(frame, tight));
  tight.frame_bytes_max = frame.size() - 1;
  BOOST_CHECK(refusal(frame, tight).code == ErrorCode::too_large);
  BOOST_CHECK(!subject_of(frame, tight).stream);

  // {"type": "get_health", "x": [[...[]...]]}, `arrays` deep below the map.
  const auto nested = [](std::size_t arrays) {
    return "\x82\xa4type\xaaget_health\xa1x" + std::string(arrays - 1, '\x91') + '\x90';
  };
  BOOST_CHECK(decode(nested(limits.depth_max - 1), limits));
  const Error deep = refusal(nested(limits.depth_max), limits);
  BOOST_CHECK(deep.code == ErrorCode::too_large);
  BOOST_CHECK(deep.message.find("deeper") != std::string::npos);
  BOOST_CHECK(refusal(nested(1 << 20), limits).code == ErrorCode::too_large);

  const auto keys = [](char count) {
    std::string out = "\xde";
    out += std::string{'\0', count} + "\xa4type\xaaget_health";
    for (char i = 1; i < count; ++i) out += std::string("\xa1") + i + '\x01';
    return out;
  };
  BOOST_CHECK(decode(keys(64), limits));
  BOOST_CHECK(refusal(keys(65), limits).code == ErrorCode::too_large);
}

BOOST_AUTO_TEST_CASE(lying_headers_allocate_nothing) {
  // Arrays and maps that claim 2^32 - 1 elements, nested; each would be gigabytes if believed.
  const std::string liars[] = {std::string("\xdd\xff\xff\xff\xff"),
                               std::string("\xdf\xff\xff\xff\xff"), std::string("\xdc\xff\xff"),
                               std::string("\xdb\xff\xff\xff\xff"),
                               std::string("\xc6\xff\xff\xff\xff")};
  for (const std::string& liar : liars) {
    for (const std::string& frame :
         {liar, "\x82\xa4type\xa6submit\xa6prompt" + liar, liar + liar + liar + liar}) {
      const auto decoded = decode(frame, limits);
      BOOST_REQUIRE(!decoded);
      BOOST_CHECK(decoded.error().code == ErrorCode::bad_request ||
                  decoded.error().code == ErrorCode::too_large);
    }
  }
  // Eight levels that each claim as many elements as the frame has bytes.
  std::string frame(std::size_t{1} << 20, '\xc0');
  for (std::size_t i = 0; i < 7; ++i)
    frame.replace(i * 5, 5, std::string("\xdd\x00\x0f\xff\x00", 5));
  BOOST_CHECK(refusal(frame).code == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(broken_frames) {
  for (const auto& [name, message] : golden_messages()) {
    const std::string golden = golden_bytes(name);
    for (std::size_t size = 0; size < golden.size(); ++size)
      BOOST_REQUIRE(refusal(golden.substr(0, size)).code == ErrorCode::bad_request);
    const Error trailing = refusal(golden + "\xc0");
    BOOST_CHECK(trailing.code == ErrorCode::bad_request);
    BOOST_CHECK(trailing.message.find("1 bytes after") != std::string::npos);
  }
  for (const char* frame :
       {"\xc0", "\x93\x01\x02\x03", "\xa5hello", "\xc1", "\x80", "\x81\x01\x02"})
    BOOST_CHECK(refusal(frame).code == ErrorCode::bad_request);
  BOOST_CHECK(refusal("").code == ErrorCode::bad_request);
  BOOST_CHECK(refusal("\x81\xa4type\xa5reset").code == ErrorCode::unsupported);
  const Error twice = refusal("\x83\xa4type\xa6health\xa5ready\xc3\xa5ready\xc2");
  BOOST_CHECK(twice.code == ErrorCode::bad_request);
  BOOST_CHECK(twice.message.find("ready stands twice") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(subject_of_a_broken_frame) {
  Submit m = full_submit();
  m.sampling.temperature = -1;
  const std::string frame = encode(m);
  const Subject subject = subject_of(frame, limits);
  BOOST_REQUIRE(subject.stream);
  BOOST_CHECK(*subject.stream == m.stream);
  BOOST_CHECK_EQUAL(subject.epoch, 3U);
  // Told from the beginning of a truncated frame too, and not from an inner map.
  BOOST_CHECK(subject_of(frame.substr(0, 60), limits).stream == m.stream);
  BOOST_CHECK(!subject_of(frame.substr(0, 20), limits).stream);
  const std::string inner = "\x81\xa1x\x81\xa6stream\xc4\x10" + std::string(16, 'a');
  BOOST_CHECK(!subject_of(inner, limits).stream);
  BOOST_CHECK(!subject_of("\xc1", limits).stream);
}

BOOST_AUTO_TEST_CASE(hex) {
  const StreamId id = counting(0xa7);
  BOOST_CHECK_EQUAL(to_hex(id), "a7a8a9aaabacadaeafb0b1b2b3b4b5b6");
  BOOST_CHECK(stream_from_hex(to_hex(id)) == id);
  BOOST_CHECK(stream_from_hex("A7A8A9AAABACADAEAFB0B1B2B3B4B5B6") == id);
  for (const char* bad :
       {"", "a7", "g7a8a9aaabacadaeafb0b1b2b3b4b5b6", "a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7"})
    BOOST_CHECK(!stream_from_hex(bad));
}

BOOST_AUTO_TEST_SUITE_END()
