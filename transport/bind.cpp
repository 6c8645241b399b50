#include "transport/bind.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <zmq.hpp>

namespace sluice::transport {
namespace {

tl::unexpected<Error> bind_failure(const std::string& address, int code) {
  const bool bad = code == EINVAL || code == EPROTONOSUPPORT || code == ENOCOMPATPROTO;
  const char* const remedy =
      bad                               ? "write tcp://HOST:PORT, ipc://PATH or inproc://NAME"
      : code == EADDRINUSE              ? "choose another, or stop what uses it"
      : code == EACCES || code == EPERM ? "choose one that this user may bind"
      : code == ENODEV || code == EADDRNOTAVAIL ? "the host must be an address of this machine"
                                                : "choose another";
  return fail(bad ? ErrorCode::bad_request : ErrorCode::io, "cannot listen on {}: {}; {}", address,
              bad ? "no such kind of endpoint" : zmq_strerror(code), remedy);
}

/// libzmq unlinks whatever lies at an ipc path before it binds, be it a file or another node's
/// socket: look first.
int ipc_obstacle(const std::string& path) {
  if (path.empty() || path[0] == '@' || path[0] == '*') return 0;
  struct stat found {};
  if (lstat(path.c_str(), &found) != 0) return 0;
  if (!S_ISSOCK(found.st_mode)) return EEXIST;
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path) return ENAMETOOLONG;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return errno;
  const int rc = connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  close(probe);
  return rc == 0 ? EADDRINUSE : 0;  // refused: left behind by a node that died
}

}  // namespace

Result<std::string> bind_to(zmq::socket_t& socket, const std::string& address) {
  constexpr std::string_view ipc = "ipc://";
  const bool known =
      address.starts_with("tcp://") || address.starts_with(ipc) || address.starts_with("inproc://");
  if (!known) return bind_failure(address, EPROTONOSUPPORT);
  if (address.starts_with(ipc))
    if (const int obstacle = ipc_obstacle(address.substr(ipc.size())); obstacle != 0)
      return bind_failure(address, obstacle);
  try {
    socket.set(zmq::sockopt::ipv6, address.find('[') != std::string::npos ? 1 : 0);
    socket.bind(address);
    return socket.get(zmq::sockopt::last_endpoint);
  } catch (const zmq::error_t& error) {
    return bind_failure(address, error.num());
  }
}

}  // namespace sluice::transport
