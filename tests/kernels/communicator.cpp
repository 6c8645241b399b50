// Communicators: real processes, with data of which the exact answer is known. A sum in any order
// but the ranks' differs from it, a gather or broadcast of other bytes too. Then what goes wrong:
// ranks that die, stand still, abort, never come or are strangers. No rank ever waits for ever, and
// each names the rank and the operation.

#include <sys/socket.h>

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <thread>

#include "tests/kernels/rank_data.hpp"
#include "tests/kernels/ranks.hpp"
#include "tests/kernels/relay.hpp"

using namespace sluice;
using namespace sluice::kernels;
using namespace sluice::kernels::test;

namespace {

/// Around where messages are cut, and where the way of adding changes.
const std::vector<std::size_t> counts = {
    0, 1, 3, 64, 576, 8191, 8192, 8193, 16384, 16385, 24577, 49155, 65536, 100003, 300000, 1000003};

std::byte byte_of(std::uint32_t rank, std::size_t i) {
  return static_cast<std::byte>((rank * 131 + i * 7 + i / 251) & 255);
}

std::vector<std::byte> bytes_of(std::uint32_t rank, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = byte_of(rank, i);
  return bytes;
}

/// Reports what the collectives of a group yielded that differs from the exact answer.
std::string check_collectives(Communicator& group) {
  const Shard shard = group.shard();
  for (const std::size_t count : counts) {
    std::vector<float> values = values_of(shard.rank, count);
    if (const auto done = group.all_reduce(values); !done) return said(done);
    if (!same_bits(values, sum_in(ranks_in_order(shard.size), count))) {
      return fmt::format("the sum of {} floats differs", count);
    }
    std::vector<std::byte> all(shard.size * count);
    const std::vector<std::byte> own = bytes_of(shard.rank, count);
    if (const auto done = group.all_gather(own, all); !done) return said(done);
    for (std::uint32_t r = 0; r < shard.size; ++r) {
      const auto part = std::span(all).subspan(r * count, count);
      const auto due = bytes_of(r, count);
      if (!std::equal(part.begin(), part.end(), due.begin())) {
        return fmt::format("rank {}'s part of {} bytes differs", r, count);
      }
    }
    const auto root = static_cast<std::uint32_t>(count % shard.size);
    std::vector<std::byte> told = bytes_of(shard.rank, count);
    if (const auto done = group.broadcast(told, root); !done) return said(done);
    if (told != bytes_of(root, count)) return fmt::format("a broadcast of {} differs", count);
  }
  return "ok";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(communicator)

BOOST_AUTO_TEST_CASE(parts_lie_side_by_side) {
  for (const std::uint32_t count : {0U, 1U, 3U, 4U, 40U, 49152U, 4000000000U}) {
    for (std::uint32_t size = 1; size <= 5; ++size) {
      std::uint64_t at = 0;
      for (std::uint32_t r = 0; r < size; ++r) {
        BOOST_TEST(shard_begin(count, r, size) == at);
        const std::uint32_t part = shard_count(count, {r, size});
        BOOST_TEST(part >= count / size);
        BOOST_TEST(part <= count / size + 1);
        at += part;
      }
      BOOST_TEST(at == count);
    }
  }
}

BOOST_AUTO_TEST_CASE(the_data_tell_orders_apart) {
  // Else a sum in another order would pass.
  const auto right = sum_in({0, 1, 2}, 576);
  BOOST_TEST(!same_bits(right, sum_in({0, 2, 1}, 576)));
  BOOST_TEST(!same_bits(right, sum_in({1, 2, 0}, 576)));
  BOOST_TEST(!same_bits(right, sum_in({2, 1, 0}, 576)));
}

BOOST_AUTO_TEST_CASE(one_rank_has_everything_already) {
  const auto group = make_local_communicator();
  BOOST_TEST(check_collectives(*group) == "ok");
  group->abort("the test says so");
  std::vector<float> values(1);
  BOOST_TEST(said(group->all_reduce(values)) ==
             "unavailable: rank 0 of 1: all_reduce: aborted: the test says so");
}

BOOST_AUTO_TEST_CASE(every_size_gives_the_exact_answer) {
  CommunicatorOptions options = patient;
  for (const bool sealed : {false, true}) {
    options.seal_loopback = sealed;
    for (std::uint32_t size = 1; size <= 4; ++size) {
      BOOST_TEST_CONTEXT(size << " ranks, " << (sealed ? "sealed" : "plain")) {
        check_ok(run_ranks(size, [](const auto& group) { return check_collectives(*group); },
                           options));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_killed_rank_is_named) {
  const auto ends = run_ranks(3, [](const auto& group) -> std::string {
    std::vector<float> values(576, 1.0F);
    for (int i = 0; i < 3; ++i) {
      if (const auto done = group->all_reduce(values); !done) return "early: " + said(done);
    }
    if (group->shard().rank == 1) ::raise(SIGKILL);
    const auto failed = group->all_reduce(values);
    const auto again = group->broadcast(std::as_writable_bytes(std::span(values)), 0);
    return said(failed) + (said(again) == said(failed) ? "" : " then " + said(again));
  });
  BOOST_TEST(ends[1].signal == SIGKILL);
  for (const std::uint32_t rank : {0U, 2U}) {
    const std::string& report = ends[rank].report;
    BOOST_TEST(
        report.starts_with(fmt::format("unavailable: rank {} of 3: all_reduce: rank ", rank)),
        report);
    BOOST_TEST(report.find("is gone") != std::string::npos, report);
    BOOST_TEST(report.find(" then ") == std::string::npos, report);  // the error stays
  }
  // One of them saw it at first hand, and hung up on the other.
  BOOST_TEST((ends[0].report + ends[2].report).find("rank 1 is gone") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_silent_rank_is_late) {
  CommunicatorOptions options;
  options.deadline_ms = 200;
  const auto ends = run_ranks(
      2,
      [](const auto& group) -> std::string {
        std::vector<float> values(64, 1.0F);
        if (group->shard().rank == 1) {
          // Waits for rank 0, which waits for it: up to its deadline, or until rank 0 hangs up.
          std::vector<std::byte> nothing(1);
          return group->broadcast(nothing, 0) ? "heard something" : "gave up";
        }
        const auto late = group->broadcast(std::as_writable_bytes(std::span(values)), 1);
        return said(late);
      },
      options);
  const std::string late =
      "deadline: rank 0 of 2: broadcast: rank 1 did not take part within 200 ms: its process or "
      "its host stands still or cannot be reached; start the group again";
  // Rank 1's deadline may be over first: then it has hung up.
  const bool hung_up = ends[0].report.find("broadcast: rank 1 is gone") != std::string::npos;
  BOOST_TEST((ends[0].report == late || hung_up), ends[0].report);
  BOOST_TEST(ends[1].report == "gave up");
}

BOOST_AUTO_TEST_CASE(different_steps_are_noticed) {
  const auto ends = run_ranks(2, [](const auto& group) -> std::string {
    std::vector<float> values(group->shard().rank == 0 ? 64 : 65, 1.0F);
    return said(group->all_reduce(values));
  });
  const std::string both = ends[0].report + ends[1].report;
  BOOST_TEST(both.find("do not run the same steps") != std::string::npos, both);
  for (const RankEnd& end : ends) BOOST_TEST(end.report != "ok");
}

BOOST_AUTO_TEST_CASE(abort_wakes_who_waits) {
  const auto ends = run_ranks(3, [](const auto& group) -> std::string {
    std::vector<float> values(64, 1.0F);
    if (group->shard().rank != 0) {  // these only ever wait
      std::vector<std::byte> nothing(1);
      return said(group->broadcast(nothing, 0));
    }
    // Rank 0 waits for a rank that waits for it; another thread ends that. Whether it comes before
    // or while the rank waits makes no difference to what must happen.
    std::thread other([&] { group->abort("the supervisor gave up"); });
    std::vector<std::byte> nothing(1);
    const auto ended = group->broadcast(nothing, 1);
    other.join();
    return said(ended);
  });
  BOOST_TEST(ends[0].report ==
             "unavailable: rank 0 of 3: broadcast: aborted: the supervisor gave up");
  for (const std::uint32_t rank : {1U, 2U}) {
    BOOST_TEST(ends[rank].report.find("rank 0 is gone") != std::string::npos, ends[rank].report);
  }
}

BOOST_AUTO_TEST_CASE(a_rank_that_never_comes_is_named) {
  const auto ends = run_starts(3, [](GroupStart& start, const Addresses& addresses) {
    if (start.shard().rank == 2) return std::string("never comes");
    const auto group = start.connect(addresses, 500);
    return group ? std::string("connected") : said(tl::unexpected(group.error()));
  });
  for (const std::uint32_t rank : {0U, 1U}) {
    BOOST_TEST(ends[rank].report.find(fmt::format("deadline: starting rank {} of 3: no word from "
                                                  "rank 2 within 500 ms",
                                                  rank)) == 0,
               ends[rank].report);
  }
}

BOOST_AUTO_TEST_CASE(a_rank_that_listens_and_never_speaks_is_named) {
  const auto silent = prepare_tcp({0, 2}).value();
  const auto start = prepare_tcp({1, 2}).value();
  const Addresses addresses = {silent->address(), start->address()};
  const auto group = start->connect(addresses, 100);
  BOOST_REQUIRE(!group);
  BOOST_TEST(to_string(group.error().code) == "deadline");
  BOOST_TEST(group.error().message.find("no word from rank 0") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_rank_that_is_dead_is_named) {
  const auto ends = run_starts(2, [](GroupStart& start, const Addresses& addresses) {
    if (start.shard().rank == 0) ::raise(SIGKILL);
    const auto group = start.connect(addresses, 20'000);
    return group ? std::string("connected") : said(tl::unexpected(group.error()));
  });
  BOOST_TEST(ends[0].signal == SIGKILL);
  BOOST_TEST(
      ends[1].report.find("unavailable: starting rank 1 of 2: rank 0 cannot be reached") == 0,
      ends[1].report);
}

BOOST_AUTO_TEST_CASE(a_start_can_be_cancelled) {
  const auto ends = run_starts(2, [](GroupStart& start, const Addresses& addresses) {
    if (start.shard().rank == 1) return std::string("never comes");
    std::thread other([&] { start.cancel(); });
    const auto group = start.connect(addresses, 60'000);
    other.join();
    return group ? std::string("connected") : said(tl::unexpected(group.error()));
  });
  BOOST_TEST(ends[0].report == "unavailable: starting rank 0 of 2: cancelled");
}

BOOST_AUTO_TEST_CASE(strangers_change_nothing) {
  // Rank 1 first calls rank 0 as a stranger would: with nothing, with noise, and with a hello that
  // has all but its proof. Then the group starts as ever.
  const auto ends = run_starts(2, [](GroupStart& start, const Addresses& addresses) -> std::string {
    std::vector<int> sockets;
    const std::string noise = "GET / HTTP/1.1\r\nHost: a.b.c.d\r\nAccept: */*\r\n\r\n";
    if (start.shard().rank == 1) {
      const sockaddr_in to = socket_of(addresses[0]);
      std::vector<char> hello(greeting::hello_bytes);
      std::memcpy(hello.data(), addresses[0].data(), 16);
      const std::uint32_t rank = 1;
      std::memcpy(hello.data() + 4, &rank, sizeof rank);
      const std::uint32_t zero = 0;
      std::memcpy(hello.data() + 12, &zero, sizeof zero);
      for (int i = 0; i < 200; ++i) {
        const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
        if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return "no port";
        if (i % 3 == 1) (void)!::write(fd, noise.data(), noise.size());
        if (i % 3 == 2) (void)!::write(fd, hello.data(), hello.size());
        sockets.push_back(fd);
      }
    }
    const auto group = start.connect(addresses, 60'000);
    if (!group) return said(tl::unexpected(group.error()));
    const std::string report = check_collectives(**group);
    for (const int fd : sockets) ::close(fd);
    return report;
  });
  check_ok(ends);
}

BOOST_AUTO_TEST_CASE(wrong_addresses_are_refused) {
  CommunicatorOptions options;
  const auto reported = [](const auto& result) { return result ? "ok" : result.error().message; };
  BOOST_TEST(reported(prepare_tcp({2, 2}, options)) ==
             "rank 2 of 2: a group has 1 to 64 ranks, from 0 on");
  options.host = "0.0.0.0";
  BOOST_TEST(reported(prepare_tcp({0, 2}, options)) ==
             "'0.0.0.0' is every address of this host: name one that the other ranks reach");
  options.host = "192.0.2.77";  // reserved for documents: nobody's
  BOOST_TEST(reported(prepare_tcp({0, 2}, options)) ==
             "'192.0.2.77' is none of this host's addresses: name one that the other ranks reach");
  // A name server is not waited for where a group starts.
  options.host = "localhost";
  BOOST_TEST(reported(prepare_tcp({0, 2}, options)).starts_with(
      "'localhost' is no address for a rank to listen on: "));
  options.host = resolve_host("localhost").value();
  BOOST_TEST((options.host == "127.0.0.1" || options.host == "::1"));
  BOOST_TEST(prepare_tcp({0, 2}, options).has_value());
  BOOST_TEST(resolve_host("fe80::1%lo").value_or("fe80::1%lo") == "fe80::1%lo");
  BOOST_TEST(resolve_host("no.such.host.invalid").error().message.starts_with(
      "'no.such.host.invalid' is no address for a rank to listen on: "));
  options = {};
  options.deadline_ms = 0;
  BOOST_TEST(reported(prepare_tcp({0, 2}, options)) == "a deadline of 0 ms: from 1 to 1000000");

  const auto start = prepare_tcp({0, 2}).value();
  const auto other = prepare_tcp({1, 3}).value();
  const Addresses addresses = {start->address(), other->address()};
  const auto refused = start->connect(addresses, 1000);
  BOOST_REQUIRE(!refused);
  BOOST_TEST(to_string(refused.error().code) == "bad_request");
  BOOST_TEST(refused.error().message.find("address 1 is not rank 1's of a group of 2") !=
             std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
