// What passes between ranks is theirs alone: a relay that hears all of it learns no value and no
// secret, and whatever it alters, repeats, leaves out, swaps or turns back is noticed by the rank
// that receives it, which names the one that it came from. Who lacks the secret, or has heard a
// greeting before, is not let in.

#include <arpa/inet.h>
#include <ifaddrs.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <memory>
#include <string>

#include "kernels/comm/seal.hpp"
#include "tests/kernels/ranks.hpp"
#include "tests/kernels/relay.hpp"

using namespace sluice;
using namespace sluice::kernels;
using namespace sluice::kernels::test;

namespace {

constexpr std::size_t floats = 64;
constexpr std::size_t wire_bytes = sealed_bytes(floats * sizeof(float));
constexpr std::uint32_t wants_sealed_at = 12;  ///< of a hello: its fourth word

CommunicatorOptions sealing(std::uint32_t deadline_ms = 60'000) {
  return {"127.0.0.1", deadline_ms, true};
}

std::string said(const Result<void>& result) {
  return result ? "ok" : fmt::format("{}: {}", to_string(result.error().code),
                                     result.error().message);
}

/// What rank 1 has and rank 0 has not.
std::vector<float> values_of(std::uint32_t rank, int round = 0) {
  std::vector<float> values(floats);
  for (std::size_t i = 0; i < floats; ++i) {
    values[i] = 1234.5F + static_cast<float>(i) + 1000.0F * static_cast<float>(rank) +
                100.0F * static_cast<float>(round);
  }
  return values;
}

/// Rank 1 has its values handed to rank 0, in so many broadcasts; each says how it went for it.
std::string broadcasts(Communicator& group, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    auto values = values_of(group.shard().rank, round);
    const auto done = group.broadcast(std::as_writable_bytes(std::span(values)), 1);
    if (!done) return said(done);
    if (values != values_of(1, round)) return "other values than rank 1 has";
  }
  return "ok";
}

/// Two ranks and somebody between them.
std::vector<RankEnd> with_relay(const Relay::Script& script,
                                const std::function<std::string(Communicator&)>& body,
                                const CommunicatorOptions& options = sealing(),
                                std::uint32_t start_ms = 60'000) {
  return run_starts(2, [&](GroupStart& start, Addresses addresses) -> std::string {
    std::unique_ptr<Relay> relay;
    if (start.shard().rank == 1) relay = std::make_unique<Relay>(addresses[0], script);
    const auto group = start.connect(addresses, start_ms);
    if (!group) return said(tl::unexpected(group.error()));
    const std::string report = body(**group);
    // Whichever ends first takes its connection along, and the relay's waiting with it.
    (*group)->abort("the test is over");
    return report;
  }, options);
}

/// As `with_relay`, for what happens to rank 1's two messages to rank 0.
std::string two_broadcasts(
    const std::function<void(End& called, Bytes first, Bytes second)>& pass) {
  const auto ends = with_relay(
      [&](End& caller, End& called) {
        pass_greeting(caller, called);
        Bytes first = caller.take(wire_bytes);
        Bytes second = caller.take(wire_bytes);
        pass(called, std::move(first), std::move(second));
        called.take(1);  // until rank 0 has judged
      },
      [](Communicator& group) { return broadcasts(group, 2); });
  BOOST_TEST(ends[1].report == "ok");  // nothing comes back to the one that only sends
  return ends[0].report;
}

/// Hands on one message, unless it is as short as a plain one: then it ends both connections.
void pass_if_sealed(End& caller, End& called) {
  pass_greeting(caller, called);
  const Bytes message = caller.take(wire_bytes);
  if (message.size() == wire_bytes) {
    called.give(message);
    called.take(1);
  }
}

bool holds(const Bytes& heard, std::span<const std::byte> what) {
  return std::search(heard.begin(), heard.end(), what.begin(), what.end()) != heard.end();
}

/// Whether it is message `number` of a key, by libsodium alone.
bool opens(const Bytes& wire, const comm::Key& key, std::uint64_t number, bool aes) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(wire.data());
  const auto* secret = reinterpret_cast<const unsigned char*>(key.data());
  std::array<unsigned char, 12> nonce{};
  std::memcpy(nonce.data() + 4, &number, sizeof number);
  std::array<unsigned char, 64> plain{};
  const auto decrypt =
      aes ? crypto_aead_aes256gcm_decrypt : crypto_aead_chacha20poly1305_ietf_decrypt;
  return decrypt(plain.data(), nullptr, nullptr, bytes, wire.size(), nullptr, 0, nonce.data(),
                 secret) == 0;
}

const std::string altered =
    "unavailable: rank 0 of 2: broadcast: what came from rank 1 is not what it sealed: somebody on "
    "the network between altered, repeated or withheld it; start the group again";

}  // namespace

BOOST_AUTO_TEST_SUITE(sealed)

BOOST_AUTO_TEST_CASE(who_listens_in_reads_nothing) {
  for (const bool seal : {true, false}) {
    BOOST_TEST_CONTEXT((seal ? "sealed" : "plain")) {
      CommunicatorOptions options = sealing();
      options.seal_loopback = seal;
      const auto ends = run_starts(2, [&](GroupStart& start, Addresses addresses) -> std::string {
        Bytes heard;
        const std::size_t piece = floats * sizeof(float);
        const std::size_t message = seal ? sealed_bytes(piece) : 16 + piece;
        const auto pass = [&](End& from, End& to, std::size_t count) {
          const Bytes bytes = from.take(count);
          heard.insert(heard.end(), bytes.begin(), bytes.end());
          to.give(bytes);
        };
        std::unique_ptr<Relay> relay;
        const Addresses true_addresses = addresses;
        if (start.shard().rank == 1) {
          relay = std::make_unique<Relay>(addresses[0], [&](End& caller, End& called) {
            pass(caller, called, greeting::hello_bytes);
            pass(called, caller, greeting::hello_bytes);
            pass(caller, called, greeting::proof_bytes);
            pass(caller, called, message);
            pass(called, caller, message);
            called.take(1);
          });
        }
        const auto group = start.connect(addresses, 60'000);
        if (!group) return said(tl::unexpected(group.error()));
        auto values = values_of(start.shard().rank);
        if (const auto done = (*group)->all_reduce(values); !done) return said(done);
        (*group)->abort("the test is over");
        relay.reset();
        for (std::size_t i = 0; i < floats; ++i) {
          if (values[i] != values_of(0)[i] + values_of(1)[i]) return "a wrong sum";
        }
        if (start.shard().rank == 0) return "ok";
        if (heard.size() != 2 * greeting::hello_bytes + greeting::proof_bytes + 2 * message) {
          return fmt::format("{} bytes heard", heard.size());
        }
        std::string read;
        for (const std::uint32_t rank : {0U, 1U}) {
          const auto own = values_of(rank);
          // Neighbours' eight bytes: four come up by chance now and then.
          for (std::size_t i = 0; i + 1 < floats; ++i) {
            if (holds(heard, std::as_bytes(std::span(own).subspan(i, 2)))) read = "values ";
          }
        }
        for (const Bytes& address : true_addresses) {
          const auto secret = std::span(address).subspan(secret_at, secret_bytes);
          if (holds(heard, secret.first(8)) || holds(heard, secret.last(8))) read += "secret ";
        }
        return read.empty() ? "ok" : "read: " + read;
      }, options);
      BOOST_TEST(ends[0].report == "ok");
      // Within a host it is plain; else the sealed half of this test would say nothing.
      BOOST_TEST(ends[1].report == (seal ? "ok" : "read: values "));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_flipped_bit_is_noticed) {
  // In the header, its tag, the piece, its tag; of the first message or a later one.
  for (const std::size_t at : {0UL, 8UL, 31UL, 32UL, 100UL, wire_bytes - 1}) {
    for (const bool later : {false, true}) {
      BOOST_TEST_CONTEXT("byte " << at << (later ? " of the second" : " of the first")) {
        BOOST_TEST(two_broadcasts([&](End& called, Bytes first, Bytes second) {
                     (later ? second : first)[at] ^= std::byte{4};
                     called.give(first);
                     called.give(second);
                   }) == altered);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(messages_come_once_and_in_their_order) {
  const auto pass = [](End& called, const Bytes& first, const Bytes& second) {
    called.give(first);
    called.give(second);
  };
  BOOST_TEST(two_broadcasts(pass) == "ok");  // the relay itself harms nothing
  BOOST_TEST(two_broadcasts([&](End& called, const Bytes& first, const Bytes&) {
               pass(called, first, first);
             }) == altered);
  BOOST_TEST(two_broadcasts([&](End& called, const Bytes& first, const Bytes& second) {
               pass(called, second, first);
             }) == altered);
  BOOST_TEST(two_broadcasts([&](End& called, const Bytes& first, const Bytes& second) {
               Bytes mixed = first;  // the second's piece under the first's header
               std::copy(second.begin() + 32, second.end(), mixed.begin() + 32);
               pass(called, mixed, second);
             }) == altered);
}

BOOST_AUTO_TEST_CASE(a_message_cut_short_is_a_lost_rank) {
  const auto ends = with_relay(
      [](End& caller, End& called) {
        pass_greeting(caller, called);
        Bytes message = caller.take(wire_bytes);
        message.pop_back();
        called.give(message);
      },
      [](Communicator& group) { return broadcasts(group, 1); });
  BOOST_TEST(ends[0].report.starts_with("unavailable: rank 0 of 2: broadcast: rank 1 is gone"),
             ends[0].report);
}

BOOST_AUTO_TEST_CASE(a_message_withheld_is_a_late_rank) {
  const auto ends = with_relay(
      [](End& caller, End& called) {
        pass_greeting(caller, called);
        caller.take(wire_bytes);
        called.take(1);
      },
      [](Communicator& group) { return broadcasts(group, 1); }, sealing(200));
  BOOST_TEST(ends[0].report.starts_with(
                 "deadline: rank 0 of 2: broadcast: rank 1 did not take part within 200 ms"),
             ends[0].report);
}

BOOST_AUTO_TEST_CASE(a_message_turned_back_is_not_its_sender_s_peer_s) {
  // Both ranks send the same sizes in the same round: only the keys tell the directions apart.
  const auto ends = with_relay(
      [](End& caller, End& called) {
        pass_greeting(caller, called);
        caller.give(caller.take(wire_bytes));
        called.give(called.take(wire_bytes));
        called.take(1);
      },
      [](Communicator& group) {
        auto values = values_of(group.shard().rank);
        return said(group.all_reduce(values));
      });
  // Who notices first hangs up on the other.
  for (const RankEnd& end : ends) BOOST_TEST(end.report.starts_with("unavailable: "), end.report);
  BOOST_TEST((ends[0].report + ends[1].report).find("is not what it sealed") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(who_lacks_a_secret_is_not_let_in) {
  for (const std::uint32_t of : {0U, 1U}) {
    const auto ends = run_starts(2, [&](GroupStart& start, Addresses addresses) -> std::string {
      // Rank 1's view of rank 0's secret, or rank 0's of rank 1's.
      if (start.shard().rank != of) addresses[of][secret_at] ^= std::byte{1};
      const auto group = start.connect(addresses, start.shard().rank == 0 ? 500 : 60'000);
      return group ? "connected" : said(tl::unexpected(group.error()));
    }, sealing());
    BOOST_TEST(ends[0].report.starts_with(
                   "deadline: starting rank 0 of 2: no word from rank 1 within 500 ms"),
               ends[0].report);
    BOOST_TEST(ends[1].report.starts_with("unavailable: starting rank 1 of 2: rank 0 cannot be "
                                          "reached (it closed the connection)"),
               ends[1].report);
  }
}

BOOST_AUTO_TEST_CASE(who_answers_without_a_secret_is_refused) {
  // Something else is at rank 0's address by now: it sends a rank's own hello back, or noise.
  for (const bool noise : {false, true}) {
    const auto ends = with_relay(
        [&](End& caller, End&) {
          Bytes hello = caller.take(greeting::hello_bytes);
          if (noise) hello.assign(greeting::hello_bytes, std::byte{7});
          const std::uint32_t rank = 0;
          if (!noise) std::memcpy(hello.data() + 4, &rank, sizeof rank);
          caller.give(hello);
        },
        [](Communicator&) { return std::string("connected"); }, sealing(), 500);
    BOOST_TEST(ends[1].report.starts_with("unavailable: starting rank 1 of 2: rank 0 cannot be "
                                          "reached (what answers there does not know this group)"),
               ends[1].report);
  }
}

BOOST_AUTO_TEST_CASE(nobody_talks_a_rank_out_of_sealing) {
  for (const bool of_caller : {true, false}) {
    const auto ends = with_relay(
        [&](End& caller, End& called) {
          Bytes hello = caller.take(greeting::hello_bytes);
          if (of_caller) hello[wants_sealed_at] &= ~std::byte{1};
          called.give(hello);
          Bytes answer = called.take(greeting::hello_bytes);
          if (!of_caller) answer[wants_sealed_at] &= ~std::byte{1};
          caller.give(answer);
          // Not reached: the called rank has hung up.
          if (of_caller && !answer.empty()) called.give(caller.take(greeting::proof_bytes));
        },
        [](Communicator&) { return std::string("connected"); }, sealing(), 500);
    BOOST_TEST(ends[0].report.starts_with("deadline: "), ends[0].report);
    BOOST_TEST(ends[1].report.starts_with("unavailable: "), ends[1].report);
  }
}

BOOST_AUTO_TEST_CASE(one_rank_s_wish_is_enough) {
  for (const std::uint32_t wishes : {0U, 1U}) {
    std::vector<std::unique_ptr<GroupStart>> starts;
    for (const std::uint32_t rank : {0U, 1U}) {
      starts.push_back(prepare_tcp({rank, 2}, rank == wishes ? sealing() : patient).value());
    }
    Addresses addresses = {starts[0]->address(), starts[1]->address()};
    std::array<std::string, 2> reports;
    const auto live = [&](std::uint32_t rank, const Addresses& all) {
      const auto group = starts[rank]->connect(all, 60'000);
      reports[rank] = group ? broadcasts(**group, 1) : said(tl::unexpected(group.error()));
    };
    std::thread called([&, all = addresses] { live(0, all); });
    {
      const Relay relay(addresses[0], pass_if_sealed);
      live(1, addresses);
      called.join();
      starts.clear();
    }
    for (const std::string& report : reports) BOOST_TEST(report == "ok");
  }
}

BOOST_AUTO_TEST_CASE(a_greeting_said_again_opens_nothing) {
  // Beside the true connection the relay makes one of its own, says the same on it, and the proof
  // that the rank gave for the other.
  const auto ends = run_starts(2, [](GroupStart& start, Addresses addresses) -> std::string {
    std::string heard = "nothing";
    std::unique_ptr<Relay> relay;
    if (start.shard().rank == 1) {
      const sockaddr_in called_at = socket_of(addresses[0]);
      relay = std::make_unique<Relay>(addresses[0], [&heard, called_at](End& caller, End& called) {
        const Bytes hello = caller.take(greeting::hello_bytes);
        End again = End::to(called_at);
        again.give(hello);
        const Bytes answered = again.take(greeting::hello_bytes);
        called.give(hello);
        const Bytes answer = called.take(greeting::hello_bytes);
        caller.give(answer);
        const Bytes proof = caller.take(greeting::proof_bytes);
        again.give(proof);
        const bool ended = again.take(1).empty();
        heard = fmt::format("{} and {} bytes, {}, {}", answered.size(), answer.size(),
                            answered == answer ? "the same" : "others",
                            ended ? "then the end" : "then more");
        called.give(proof);
        called.give(caller.take(wire_bytes));
        called.take(1);
      });
    }
    const auto group = start.connect(addresses, 60'000);
    if (!group) return said(tl::unexpected(group.error()));
    const std::string report = broadcasts(**group, 1);
    (*group)->abort("the test is over");
    relay.reset();
    return report + "; " + heard;
  }, sealing());
  BOOST_TEST(ends[0].report == "ok; nothing");
  BOOST_TEST(ends[1].report == "ok; 80 and 80 bytes, others, then the end");
}

BOOST_AUTO_TEST_CASE(beyond_loopback_it_is_always_sealed) {
  ifaddrs* found = nullptr;
  BOOST_REQUIRE_EQUAL(::getifaddrs(&found), 0);
  std::string host;
  for (const ifaddrs* at = found; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
    const auto& address = reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr;
    if ((ntohl(address.s_addr) >> 24) == 127) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    host = ::inet_ntop(AF_INET, &address, text.data(), text.size());
  }
  ::freeifaddrs(found);
  if (host.empty()) {
    BOOST_TEST_MESSAGE("skipped: this host has no address but loopback");
    return;
  }
  const auto ends = with_relay(
      pass_if_sealed, [](Communicator& group) { return broadcasts(group, 1); }, {host, 60'000});
  BOOST_TEST(ends[0].report == "ok");
  BOOST_TEST(ends[1].report == "ok");
}

BOOST_AUTO_TEST_CASE(a_key_gives_way_to_the_next) {
  using comm::Seal;
  BOOST_REQUIRE_GE(::sodium_init(), 0);
  comm::Key key{};
  for (const bool aes : {false, true}) {
    if (aes && !Seal::has_aes()) {
      BOOST_TEST_MESSAGE("skipped: this processor has no AES for libsodium");
      continue;
    }
    Seal out(key, aes), in(key, aes);
    const Bytes plain(8, std::byte{1});
    Bytes opened(8), wire(8 + Seal::tag_bytes);
    bool all = true;
    for (std::uint64_t i = 0; i < Seal::messages_a_key; ++i) {
      out.close(plain, wire);
      all = all && in.open(wire, opened);
    }
    BOOST_TEST(all);
    BOOST_TEST(opens(wire, key, Seal::messages_a_key - 1, aes));
    out.close(plain, wire);
    for (const std::uint64_t number : {std::uint64_t{0}, Seal::messages_a_key}) {
      BOOST_TEST(!opens(wire, key, number, aes));
    }
    opened.assign(8, std::byte{0});
    BOOST_TEST(in.open(wire, opened));
    BOOST_TEST((opened == plain));
  }
}

BOOST_AUTO_TEST_SUITE_END()
