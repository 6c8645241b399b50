#pragma once
// One page of text over HTTP/1.1, for scrapers. A thread of its own, whatever connects.

#include <functional>
#include <memory>
#include <string>

#include "kernels/core.hpp"

namespace sluice::transport {

class HttpPage {
 public:
  /// Makes the page; called on the server's thread, a request at a time. An error is answered 503.
  using Make = std::function<Result<std::string>()>;

  /// Serves `path` (and nothing else) at tcp://HOST:PORT, port 0: any free one. At most 16
  /// connections at once, each for at most 5 s; others wait in the kernel's queue. `bad_request`
  /// for an address that is none, `io` when it cannot be bound.
  static Result<std::unique_ptr<HttpPage>> serve(const std::string& listen, std::string path,
                                                 Make make);
  ~HttpPage();  ///< stops; connections are closed

  const std::string& address() const;  ///< as bound

 private:
  struct State;
  explicit HttpPage(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
