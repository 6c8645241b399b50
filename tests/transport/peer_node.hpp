#pragma once
// A node's I/O thread that keeps what it hears, for tests to wait for.

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "transport/peer_endpoint.hpp"

namespace sluice::fakes {

using namespace transport;

/// A node that keeps what it hears.
class PeerNode {
 public:
  /// With keys: whose public key belongs to which name, and this node's own pair.
  PeerNode(const std::string& name, std::uint64_t incarnation, PeerConfig config,
           std::map<CurveKey, std::string> names = {}, std::optional<CurveKeyPair> keys = {})
      : guard_(keys ? guard(context_, std::move(names)) : nullptr),
        endpoint_(
            context_, secured(std::move(config), keys), {name, incarnation},
            {.up = [this](const LinkUp& up) { note([&] { ups_.push_back(up); }); },
             .down = [this](const LinkDown& down) { note([&] { downs_.push_back(down); }); },
             .failed =
                 [this](const LinkFailed& failed) { note([&] { failures_.push_back(failed); }); },
             .message = [this](LinkId link, std::string_view text) -> Result<void> {
               if (text == "bad") return fail(ErrorCode::bad_request, "it is bad");
               note([&] { heard_[link].emplace_back(text); });
               return {};
             }}) {
    BOOST_REQUIRE(endpoint_.start().has_value());
  }

  LinkUp up(std::size_t number) {
    const auto lock = wait([&] { return ups_.size() > number; });
    return ups_[number];
  }
  LinkDown down(std::size_t number) {
    const auto lock = wait([&] { return downs_.size() > number; });
    return downs_[number];
  }
  LinkFailed failure(std::size_t number) {
    const auto lock = wait([&] { return failures_.size() > number; });
    return failures_[number];
  }
  std::vector<std::string> heard(LinkId link, std::size_t count) {
    const auto lock = wait([&] { return heard_[link].size() >= count; });
    return heard_[link];
  }
  PeerEndpoint& endpoint() { return endpoint_; }
  Guard& guard() { return *guard_; }
  std::string address() const { return endpoint_.listen_address(); }

  /// What SIGHUP does.
  void allow(std::map<CurveKey, std::string> names) {
    guard_->allow(domain, std::move(names));
    endpoint_.cut_removed();
  }

 private:
  template <class Change>
  void note(const Change& change) {
    const std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }
  /// Holds the lock as long as what is returned.
  template <class Condition>
  std::unique_lock<std::mutex> wait(const Condition& condition) {
    std::unique_lock lock(mutex_);
    BOOST_REQUIRE(changed_.wait_for(lock, std::chrono::seconds(30), condition));
    return lock;
  }

  static std::shared_ptr<Guard> guard(zmq::context_t& context,
                                      std::map<CurveKey, std::string> names) {
    auto started = Guard::start(context, [](const std::string&) {});
    BOOST_REQUIRE(started);
    (*started)->allow(domain, std::move(names));
    return *started;
  }
  PeerConfig secured(PeerConfig config, const std::optional<CurveKeyPair>& keys) const {
    if (keys) config.curve = CurveServer{*keys, domain, guard_};
    return config;
  }

  static constexpr const char* domain = "nodes";
  zmq::context_t context_;
  std::shared_ptr<Guard> guard_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<LinkUp> ups_;
  std::vector<LinkDown> downs_;
  std::vector<LinkFailed> failures_;
  std::map<LinkId, std::vector<std::string>> heard_;
  PeerEndpoint endpoint_;
};

/// An ipc address of this test's own; what lies there goes with it.
struct SocketPath {
  explicit SocketPath(const std::string& name)
      : file(std::filesystem::temp_directory_path() /
             ("sluice-" + name + "-" + std::to_string(getpid()))),
        address("ipc://" + file.string()) {}
  ~SocketPath() { std::filesystem::remove(file); }
  std::filesystem::path file;
  std::string address;
};

inline PeerConfig listening(const std::string& at) {
  PeerConfig config;
  config.listen = at;
  return config;
}

inline PeerConfig joining(const std::string& at) {
  PeerConfig config;
  config.join = {at};
  return config;
}

}  // namespace sluice::fakes
