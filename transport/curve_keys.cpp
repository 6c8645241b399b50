#include "transport/curve_keys.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

namespace sluice::transport {
namespace {

constexpr std::size_t key_characters = 40;
constexpr std::size_t key_bytes = 32;

/// No certificate is longer; what is longer is something else.
constexpr std::size_t file_bytes_max = 64 * 1024;

struct File {
  int fd = -1;
  explicit File(int opened) : fd(opened) {}
  ~File() {
    if (fd >= 0) close(fd);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
};

Result<void> write_new(const std::string& path, mode_t mode, const std::string& text) {
  const File file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (file.fd < 0 && errno == EEXIST)
    return fail(ErrorCode::io, "{} is there already: choose another --out, or move it away", path);
  if (file.fd < 0) return fail(ErrorCode::io, "cannot write {}: {}", path, std::strerror(errno));
  // The umask may have taken bits away that the public file is to have.
  const bool written = fchmod(file.fd, mode) == 0 &&
                       write(file.fd, text.data(), text.size()) == std::ssize(text) &&
                       fsync(file.fd) == 0;
  if (written) return {};
  const int why = errno;
  unlink(path.c_str());
  return fail(ErrorCode::io, "cannot write {}: {}", path, std::strerror(why));
}

Result<std::string> read_file(const std::string& path, bool secret) {
  const File file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat facts {};
  if (file.fd < 0 || fstat(file.fd, &facts) != 0)
    return fail(ErrorCode::io, "cannot read the key file {}: {}", path, std::strerror(errno));
  if (!S_ISREG(facts.st_mode)) return fail(ErrorCode::bad_file, "{} is no file of keys", path);
  if (secret && (facts.st_mode & 077) != 0)
    return fail(ErrorCode::unauthorized,
                "the secret key file {} is open to others (mode {:04o}): chmod 600 {}, and if they "
                "may have read it, make new keys with `sluice keygen`",
                path, facts.st_mode & 07777, path);
  std::string text(file_bytes_max, '\0');
  const ssize_t bytes = read(file.fd, text.data(), text.size());
  if (bytes < 0)
    return fail(ErrorCode::io, "cannot read the key file {}: {}", path, std::strerror(errno));
  text.resize(static_cast<std::size_t>(bytes));
  return text;
}

/// What stands in quotes after `name =` on a line of its own.
std::optional<std::string> value_of(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto skip_blanks = [&line] {
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    };
    skip_blanks();
    if (!line.starts_with(name)) continue;
    line.remove_prefix(name.size());
    skip_blanks();
    if (!line.starts_with('=')) continue;
    line.remove_prefix(1);
    skip_blanks();
    if (line.empty() || (line[0] != '"' && line[0] != '\'')) continue;
    const std::size_t close = line.find(line[0], 1);
    if (close != std::string_view::npos) return std::string(line.substr(1, close - 1));
  }
  return std::nullopt;
}

std::string certificate(std::string_view what, const CurveKey& public_key,
                        const CurveKey& secret_key) {
  std::string text = fmt::format("# CURVE {}, made by sluice keygen\n\nmetadata\ncurve\n", what);
  text += fmt::format("    public-key = \"{}\"\n", public_key);
  if (!secret_key.empty()) text += fmt::format("    secret-key = \"{}\"\n", secret_key);
  return text;
}

}  // namespace

bool is_curve_key(std::string_view text) {
  if (text.size() != key_characters) return false;
  std::array<std::uint8_t, key_bytes> key;
  return zmq_z85_decode(key.data(), std::string(text).c_str()) != nullptr;
}

CurveKeyPair generate_curve_keys() {
  std::array<char, key_characters + 1> public_key{}, secret_key{};
  const int rc = zmq_curve_keypair(public_key.data(), secret_key.data());
  SLUICE_ASSERT(rc == 0, "libzmq is built with CURVE");
  return {public_key.data(), secret_key.data()};
}

Result<CurveFiles> write_curve_keys(const CurveKeyPair& keys, const std::string& name) {
  CurveFiles files{name + ".key", name + ".key_secret"};
  auto written = write_new(
      files.secret_file, 0600,
      certificate("secret key: keep it to yourself, mode 0600", keys.public_key, keys.secret_key));
  if (!written) return tl::unexpected(written.error());
  written = write_new(files.public_file, 0644,
                      certificate("public key: give it to the other side", keys.public_key, ""));
  if (!written) {
    unlink(files.secret_file.c_str());
    return tl::unexpected(written.error());
  }
  return files;
}

Result<CurveKeyPair> read_secret_key(const std::string& path) {
  const auto text = read_file(path, true);
  if (!text) return tl::unexpected(text.error());
  const auto secret = value_of(*text, "secret-key");
  if (!secret || !is_curve_key(*secret))
    return fail(ErrorCode::bad_file,
                "{} has no line secret-key = \"...\" with 40 characters of Z85: give the "
                ".key_secret file that `sluice keygen` made",
                path);
  std::array<char, key_characters + 1> derived{};
  const int rc = zmq_curve_public(derived.data(), secret->c_str());
  SLUICE_ASSERT(rc == 0, "a key that was checked");
  const auto said = value_of(*text, "public-key");
  if (said && *said != derived.data())
    return fail(ErrorCode::bad_file, "the two keys in {} do not belong together", path);
  return CurveKeyPair{derived.data(), *secret};
}

Result<CurveKey> read_public_key(const std::string& text) {
  // A path may look like a key; a key that is a file's name as well is not to be expected.
  struct stat facts {};
  if (stat(text.c_str(), &facts) != 0 && is_curve_key(text)) return text;
  const auto content = read_file(text, false);
  if (!content)
    return fail(content.error().code, "{}; give a file, or a public key of 40 characters",
                content.error().message);
  const auto key = value_of(*content, "public-key");
  if (!key || !is_curve_key(*key))
    return fail(ErrorCode::bad_file,
                "{} has no line public-key = \"...\" with 40 characters of Z85: give the .key file "
                "that `sluice keygen` made",
                text);
  return *key;
}

}  // namespace sluice::transport
