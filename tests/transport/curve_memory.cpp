// Shows that libzmq's handshakes take their memory from the program, again and again the same, and
// that it is then as guarded as libsodium's own: wiped between two users, and followed by a page
// that faults.

#include "transport/curve_memory.hpp"

#include <signal.h>
#include <sodium.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <vector>
#include <zmq.hpp>

#include "transport/curve.hpp"

using namespace sluice::transport;

BOOST_AUTO_TEST_SUITE(curve_memory)

BOOST_AUTO_TEST_CASE(handshakes_use_what_others_have_used) {
  const CurveKeyPair server = generate_curve_keys(), client = generate_curve_keys();
  zmq::context_t context;
  zmq::socket_t router(context, zmq::socket_type::router);
  router.set(zmq::sockopt::linger, 0);
  router.set(zmq::sockopt::rcvtimeo, 30'000);
  router.set(zmq::sockopt::curve_server, true);
  router.set(zmq::sockopt::curve_secretkey, server.secret_key);
  router.bind("tcp://127.0.0.1:0");
  const auto connect = [&] {
    zmq::socket_t dealer(context, zmq::socket_type::dealer);
    dealer.set(zmq::sockopt::linger, 0);
    secure_client(dealer, {server.public_key, client});
    dealer.connect(router.get(zmq::sockopt::last_endpoint));
    dealer.send(zmq::str_buffer("hello"), zmq::send_flags::none);
    zmq::message_t part;
    for (int i = 0; i < 2; ++i) BOOST_REQUIRE(router.recv(part));
    BOOST_TEST(part.to_string() == "hello");
  };
  connect();
  const std::uint64_t before = handshake_memory_reused();
  connect();
  // Of the hello, the welcome, the initiate with its vouch, the ready, on both sides.
  BOOST_TEST(handshake_memory_reused() >= before + 4);
}

BOOST_AUTO_TEST_CASE(memory_is_wiped_and_handed_out_for_its_size_alone) {
  BOOST_REQUIRE_GE(::sodium_init(), 0);
  auto* const first = static_cast<unsigned char*>(::sodium_allocarray(3, 111));
  BOOST_REQUIRE(first != nullptr);
  std::memset(first, 7, 333);
  auto* const beside = static_cast<unsigned char*>(::sodium_allocarray(333, 1));
  BOOST_TEST(beside != first);  // in use
  ::sodium_free(first);
  auto* const other = static_cast<unsigned char*>(::sodium_allocarray(332, 1));
  BOOST_TEST(other != first);
  auto* const again = static_cast<unsigned char*>(::sodium_allocarray(333, 1));
  BOOST_TEST(again == first);
  BOOST_TEST(std::all_of(again, again + 333, [](unsigned char byte) { return byte == 0; }));
  // A byte too many ends a process, of a kept block as of a new one.
  for (unsigned char* const block : {again, other}) {
    const std::size_t bytes = block == again ? 333 : 332;
    const pid_t process = ::fork();
    if (process == 0) {
      ::signal(SIGSEGV, SIG_DFL);  // not the test's own
      static_cast<volatile unsigned char*>(block)[bytes] = 1;
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(process, &status, 0);
    BOOST_TEST(WIFSIGNALED(status));
  }
  for (void* block : {beside, other, again}) ::sodium_free(block);
  BOOST_TEST(::sodium_allocarray(SIZE_MAX, 2) == nullptr);
}

BOOST_AUTO_TEST_CASE(odd_sizes_do_not_crowd_out_the_usual_ones) {
  std::vector<void*> odd;
  for (std::size_t bytes = 1000; bytes < 1200; ++bytes) {
    void* const block = ::sodium_allocarray(bytes, 1);
    BOOST_REQUIRE(block != nullptr);
    odd.push_back(block);
  }
  for (void* block : odd) ::sodium_free(block);
  ::sodium_free(::sodium_allocarray(48, 1));
  const std::uint64_t before = handshake_memory_reused();
  ::sodium_free(::sodium_allocarray(48, 1));
  BOOST_TEST(handshake_memory_reused() == before + 1);
}

BOOST_AUTO_TEST_SUITE_END()
