#pragma once
// What the protocol's tests share: the messages of scripts/fixtures/protocol.py as structs, their
// bytes, and how a refusal is looked at.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <map>

#include "transport/protocol.hpp"

namespace sluice::transport::testing {

inline const Limits limits;

inline StreamId counting(std::uint8_t first) {
  StreamId id;
  for (std::size_t i = 0; i < 16; ++i) id[i] = static_cast<std::uint8_t>(first + i);
  return id;
}

inline Submit full_submit() {
  Submit m;
  m.stream = counting(1);
  m.owner = counting(0xf0);
  m.epoch = 3;
  m.model = "tiny";
  m.prompt = std::vector<ChatMessage>{{"system", "Be brief."}, {"user", "Grüße 👋"}};
  m.sampling = {0.5F,
                40,
                0.875F,
                0.25F,
                1.5F,
                -0.5F,
                0.75F,
                {{7, -100.0F}, {9, 2.5F}},
                ~std::uint64_t{0},
                2,
                {2, 70000},
                5};
  m.n = 2;
  m.max_tokens = 300;
  m.stops = {"\n\n", "END"};
  m.tenant = "team a";
  m.constraint = {engine::Constraint::Kind::regex, "[a-z]+"};
  m.ignore_eos = true;
  m.priority = -3;
  m.deadline_ms = 60000;
  m.jurisdictions = {"EU", "CH"};
  m.resume_tokens = {{1, 2}, {}};
  m.resume_text_bytes = {5, 0};
  m.resume_numerics = "0a0b";
  m.allow_inexact = true;
  return m;
}

/// The messages of scripts/fixtures/protocol.py.
inline std::map<std::string, Message> golden_messages() {
  using enum engine::FinishReason;
  const StreamId id = counting(1);
  const OwnerSecret owner = counting(0xf0);
  const engine::ChainHash chain = counting(0x20);
  Submit text;
  text.stream = id;
  text.owner = owner;
  text.prompt = "The capital of France is";
  text.sampling.temperature = 0;
  text.max_tokens = 8;
  Submit tokens;
  tokens.stream = id;
  tokens.owner = owner;
  tokens.prompt = std::vector<Token>{0, 127, 128, 65535, 65536, 0xffffffff};
  Chunk chunk{id, 3, 1, {130, {1, 200, 70000}, 400, " über", {}, chain}};
  chunk.part.logprobs = {{{1, -0.5F}, {3, -1.5F}}, {{200, -0.25F}}, {}};
  const Receipt receipt{"tiny", "0a0b", "cpu", "local", "EU", 0.1, 12.25,
                        1234.5, 1.2,    3e-05, 31,      16,   317};
  return {{"hello", Hello{1, 2, "fixture/1"}},
          {"welcome", Welcome{1,
                              "sluice 0.1.0",
                              "local",
                              "tcp://127.0.0.1:5556",
                              {{"tiny", "0a0b", "cpu", "chatml", 2048, 49152}},
                              8388608,
                              1024}},
          {"submit_text", text},
          {"submit_full", full_submit()},
          {"submit_tokens", tokens},
          {"accepted", Accepted{id, 3, "0a0b", 31, chain}},
          {"chunk", chunk},
          {"done", Done{id, 3, {stop, length}, {17, 300}, receipt, {60, std::uint64_t{1} << 33U}}},
          {"error", Failed{id, 3, {ErrorCode::overloaded, "the queue is full; try again", 250}}},
          {"error_without_stream",
           Failed{{}, 0, {ErrorCode::bad_request, "the frame is not a msgpack map", 0}}},
          {"cancel", Cancel{id, owner, 3}},
          {"attach", Attach{id, owner, 1, 12, false}},
          {"ack", Ack{id, owner, 1, 12, true}},
          {"get_stats", StatsRequest{}},
          {"stats", Stats{{{"engine.tokens", 317.0}, {"front.streams", 1.0}}}},
          {"get_health", HealthRequest{}},
          {"health", Health{false, "loading"}}};
}

inline std::string golden_bytes(const std::string& name) {
  std::ifstream file(std::string(SLUICE_FIXTURES "/protocol/") + name + ".msgpack",
                     std::ios::binary);
  BOOST_REQUIRE_MESSAGE(file, name);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline Error refusal(std::string_view frame, const Limits& bounds = limits) {
  const auto result = decode(frame, bounds);
  BOOST_REQUIRE_MESSAGE(
      !result,
      "decoded: " + to_hex({reinterpret_cast<const std::uint8_t*>(frame.data()), frame.size()}));
  return result.error();
}

}  // namespace sluice::transport::testing
