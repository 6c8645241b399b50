#include "transport/http_page.hpp"

#ifdef __SANITIZE_THREAD__
// It knows no fences; the io_context's mutex orders all that they would.
#define BOOST_ASIO_DISABLE_FENCED_BLOCK
#endif

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <thread>
#include <utility>

namespace sluice::transport {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using asio::ip::tcp;

constexpr std::size_t connections_max = 16;
constexpr std::chrono::seconds connection_time{5};
constexpr std::uint32_t header_bytes_max = 8192;

struct Address {
  std::string host;
  std::uint16_t port = 0;
};

Result<Address> parse(const std::string& listen) {
  constexpr std::string_view tcp_scheme = "tcp://";
  const std::size_t colon = listen.rfind(':');
  Address out;
  const char* const end = listen.data() + listen.size();
  if (listen.starts_with(tcp_scheme) && colon > tcp_scheme.size()) {
    out.host = listen.substr(tcp_scheme.size(), colon - tcp_scheme.size());
    if (out.host.starts_with('[') && out.host.ends_with(']'))
      out.host = out.host.substr(1, out.host.size() - 2);
    if (out.host == "localhost") out.host = "127.0.0.1";
    const auto [stopped, error] = std::from_chars(listen.data() + colon + 1, end, out.port);
    if (error == std::errc() && stopped == end) return out;
  }
  return fail(ErrorCode::bad_request,
              "metrics cannot be served at '{}': write tcp://HOST:PORT, e.g. tcp://127.0.0.1:9464",
              listen);
}

}  // namespace

struct HttpPage::State {
  struct Connection;

  std::string path, address;
  Make make;
  bool stopping = false;  // before `io`: connections that end with it look here
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  std::size_t connections = 0;
  bool accepting = false;
  std::thread thread;

  void accept();
  http::response<http::string_body> answer(http::verb method, std::string_view target) const;
};

/// A request, its answer, and the end; kept alive by what it waits for.
struct HttpPage::State::Connection : std::enable_shared_from_this<Connection> {
  Connection(State& owner, tcp::socket socket) : state(owner), stream(std::move(socket)) {
    ++state.connections;
    request.header_limit(header_bytes_max);
    request.body_limit(0);
  }
  ~Connection() {
    --state.connections;
    state.accept();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start() {
    stream.expires_after(connection_time);
    http::async_read(stream, buffer, request,
                     [self = shared_from_this()](error_code error, std::size_t) {
                       if (!error) self->reply();
                     });
  }

  void reply() {
    const auto target = request.get().target();
    response = state.answer(request.get().method(), {target.data(), target.size()});
    http::async_write(stream, response, [self = shared_from_this()](error_code, std::size_t) {
      error_code ignored;  // the peer may be gone
      self->stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
    });
  }

  State& state;
  beast::tcp_stream stream;
  beast::flat_buffer buffer{header_bytes_max};
  http::request_parser<http::string_body> request;
  http::response<http::string_body> response;
};

void HttpPage::State::accept() {
  if (stopping || accepting || connections >= connections_max) return;
  accepting = true;
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    accepting = false;
    if (!error) std::make_shared<Connection>(*this, std::move(socket))->start();
    accept();
  });
}

http::response<http::string_body> HttpPage::State::answer(http::verb method,
                                                          std::string_view target) const {
  http::response<http::string_body> out;
  out.version(11);
  out.keep_alive(false);
  out.set(http::field::content_type, "text/plain; charset=utf-8");
  if (target.substr(0, target.find('?')) != path) {
    out.result(http::status::not_found);
    out.body() = "see " + path + "\n";
  } else if (method != http::verb::get && method != http::verb::head) {
    out.result(http::status::method_not_allowed);
    out.set(http::field::allow, "GET, HEAD");
  } else if (auto page = make()) {
    out.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
    out.body() = std::move(*page);
  } else {
    out.result(http::status::service_unavailable);
    out.body() = page.error().message + "\n";
  }
  out.prepare_payload();
  if (method == http::verb::head) out.body().clear();
  return out;
}

HttpPage::HttpPage(std::unique_ptr<State> state) : state_(std::move(state)) {}

HttpPage::~HttpPage() {
  asio::post(state_->io, [state = state_.get()] {
    state->stopping = true;
    state->io.stop();
  });
  state_->thread.join();
}

Result<std::unique_ptr<HttpPage>> HttpPage::serve(const std::string& listen, std::string path,
                                                  Make make) {
  const auto where = parse(listen);
  if (!where) return tl::unexpected(where.error());
  auto state = std::make_unique<State>();
  state->path = std::move(path);
  state->make = std::move(make);
  error_code error;
  const auto host = asio::ip::make_address(where->host, error);
  if (error)
    return fail(ErrorCode::bad_request,
                "metrics cannot be served at '{}': write the host as an address", listen);
  const tcp::endpoint endpoint(host, where->port);
  auto& acceptor = state->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    return fail(ErrorCode::io, "cannot serve metrics at {}: {}; choose another port, or 0", listen,
                error.message());
  state->address = fmt::format("tcp://{}:{}", host.is_v6() ? "[" + where->host + "]" : where->host,
                               acceptor.local_endpoint().port());
  state->accept();
  state->thread = std::thread([raw = state.get()] { raw->io.run(); });
  return std::unique_ptr<HttpPage>(new HttpPage(std::move(state)));
}

const std::string& HttpPage::address() const { return state_->address; }

}  // namespace sluice::transport
