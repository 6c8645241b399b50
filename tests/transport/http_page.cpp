// Shows that the page is served to whoever asks rightly, that other requests get an HTTP error, and
// that clients who say nothing keep nobody out for good. Real sockets on loopback.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>

#include "transport/http_page.hpp"

using namespace sluice;
using transport::HttpPage;

namespace {

class Connection {
 public:
  explicit Connection(const std::string& address) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port =
        htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    BOOST_REQUIRE(connect(socket_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
  }
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void say(const std::string& text) const {
    (void)!send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
  }
  std::string hear() const {
    std::string all;
    char buffer[4096];
    for (ssize_t n; (n = recv(socket_, buffer, sizeof buffer, 0)) > 0;)
      all.append(buffer, static_cast<std::size_t>(n));
    return all;
  }

 private:
  int socket_ = -1;
};

std::string ask(const HttpPage& page, const std::string& request) {
  const Connection connection(page.address());
  connection.say(request);
  return connection.hear();
}

std::string get(const std::string& path) { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"; }

std::unique_ptr<HttpPage> serve(HttpPage::Make make) {
  return HttpPage::serve("tcp://127.0.0.1:0", "/metrics", std::move(make)).value();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(http_page)

BOOST_AUTO_TEST_CASE(the_page_and_nothing_else) {
  std::atomic<int> made = 0;
  const auto page = serve([&]() -> Result<std::string> { return fmt::format("n {}\n", ++made); });
  const std::string first = ask(*page, get("/metrics"));
  BOOST_TEST(first.starts_with("HTTP/1.1 200 OK\r\n"), first);
  BOOST_TEST(first.find("Content-Type: text/plain; version=0.0.4") != std::string::npos);
  BOOST_TEST(first.ends_with("\r\n\r\nn 1\n"), first);
  BOOST_TEST(ask(*page, get("/metrics?x=1")).ends_with("n 2\n"));
  BOOST_TEST(ask(*page, get("/")).starts_with("HTTP/1.1 404"));
  BOOST_TEST(ask(*page, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405"));
  const std::string head = ask(*page, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  BOOST_TEST(head.ends_with("\r\n\r\n"), head);
  BOOST_TEST(made == 3);
}

BOOST_AUTO_TEST_CASE(nonsense_ends_its_own_connection_only) {
  const auto page = serve([]() -> Result<std::string> { return "ok\n"; });
  BOOST_TEST(ask(*page, "nonsense\r\n\r\n") == "");
  BOOST_TEST(ask(*page, "GET / HTTP/1.1\r\nX: " + std::string(100'000, 'x')) == "");
  BOOST_TEST(ask(*page, get("/metrics")).ends_with("ok\n"));
}

BOOST_AUTO_TEST_CASE(a_failure_is_said) {
  const auto page =
      serve([]() -> Result<std::string> { return fail(ErrorCode::unavailable, "not now"); });
  const std::string said = ask(*page, get("/metrics"));
  BOOST_TEST(said.starts_with("HTTP/1.1 503"), said);
  BOOST_TEST(said.ends_with("not now\n"), said);
}

BOOST_AUTO_TEST_CASE(silent_clients_keep_nobody_out_for_good) {
  const auto page = serve([]() -> Result<std::string> { return "ok\n"; });
  std::vector<std::unique_ptr<Connection>> silent;
  for (int i = 0; i < 40; ++i) silent.push_back(std::make_unique<Connection>(page->address()));
  silent.erase(silent.begin(), silent.begin() + 39);
  BOOST_TEST(ask(*page, get("/metrics")).ends_with("ok\n"));
}

BOOST_AUTO_TEST_CASE(its_end_ends_connections) {
  auto page = serve([]() -> Result<std::string> { return "ok\n"; });
  const Connection half(page->address()), idle(page->address());
  half.say("GET /metrics HTTP/1.1\r\n");
  BOOST_TEST(ask(*page, get("/metrics")).ends_with("ok\n"));  // so both were accepted
  page.reset();
  BOOST_TEST(half.hear() == "");
  BOOST_TEST(idle.hear() == "");
}

BOOST_AUTO_TEST_CASE(addresses_that_cannot_be) {
  const auto make = []() -> Result<std::string> { return "ok\n"; };
  for (const std::string bad : {"", "127.0.0.1:9", "tcp://127.0.0.1", "tcp://127.0.0.1:x",
                                "tcp://127.0.0.1:70000", "tcp://no.such:1", "ipc:///tmp/x"}) {
    const auto page = HttpPage::serve(bad, "/metrics", make);
    BOOST_REQUIRE_MESSAGE(!page, bad);
    BOOST_TEST((page.error().code == ErrorCode::bad_request), bad);
  }
  const auto first = serve(make);
  const auto second = HttpPage::serve(first->address(), "/metrics", make);
  BOOST_REQUIRE(!second);
  BOOST_TEST((second.error().code == ErrorCode::io));
  BOOST_TEST(second.error().message.find(first->address()) != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
