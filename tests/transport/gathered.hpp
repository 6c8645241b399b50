#pragma once
// Streams of the node without a model (server.hpp) as a client has them, to the end.

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/transport/server.hpp"
#include "transport/client.hpp"

namespace sluice::transport::testing {

inline std::unique_ptr<Client> client_of(Server& server, zmq::context_t& context) {
  auto client = Client::connect(
      {server.endpoint().listen_address(), "test", std::chrono::milliseconds(30'000)}, &context);
  BOOST_REQUIRE_MESSAGE(client, client.error().message);
  return std::move(*client);
}

inline Submit request(std::uint64_t seed, std::uint32_t tokens) {
  Submit submit;
  submit.prompt = "say something";
  submit.sampling.seed = seed;
  submit.max_tokens = tokens;
  return submit;
}

/// What a client gathered of one stream.
struct Gathered {
  int accepted = 0;
  std::vector<Token> tokens;
  std::string text;
  std::optional<Done> done;
  std::optional<Failed> failed;

  bool ended() const { return done || failed; }
  void take(const ClientEvent& event) {
    BOOST_REQUIRE(!ended());
    accepted += event.accepted.has_value();
    tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
    text += event.text;
    done = event.done;
    failed = event.failed;
  }
};

/// Takes events until as many streams ended.
inline std::map<StreamId, Gathered> gather(Client& client, std::size_t streams) {
  std::map<StreamId, Gathered> all;
  for (std::size_t over = 0; over < streams;) {
    const auto event = client.next(std::chrono::milliseconds(30'000));
    BOOST_REQUIRE_MESSAGE(event, "nothing came");
    Gathered& one = all[event->stream];
    one.take(event->event);
    over += one.ended();
  }
  return all;
}

inline void check_whole(const Gathered& got, std::uint64_t seed, std::uint32_t tokens,
                        std::uint32_t from = 0) {
  BOOST_REQUIRE_MESSAGE(got.done, (got.failed ? got.failed->error.message : "no terminal"));
  BOOST_REQUIRE_EQUAL(got.tokens.size(), tokens - from);
  std::string text;
  for (std::uint32_t i = from; i < tokens; ++i) {
    BOOST_REQUIRE_EQUAL(got.tokens[i - from], token_at(seed, i));
    text += text_of(token_at(seed, i));
  }
  BOOST_CHECK_EQUAL(got.text, text);
}

}  // namespace sluice::transport::testing
