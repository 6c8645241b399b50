#pragma once
// CURVE key pairs and the files that hold them: certificates in the text form (ZPL) that CZMQ and
// pyzmq's zmq.auth write and read. NAME.key has the public key, NAME.key_secret both.

#include <string>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::transport {

/// A Curve25519 key as Z85 text: 40 characters.
using CurveKey = std::string;

struct CurveKeyPair {
  CurveKey public_key;
  CurveKey secret_key;
};

/// How a client proves who it is, and knows that the node is the right one. Empty: plain.
struct CurveClient {
  CurveKey server_key;  ///< the node's public key
  CurveKeyPair keys;    ///< the client's own
};

/// 40 characters of Z85's alphabet.
bool is_curve_key(std::string_view text);

CurveKeyPair generate_curve_keys();

struct CurveFiles {
  std::string public_file;
  std::string secret_file;
};

/// Writes NAME.key (mode 0644) and NAME.key_secret (0600). `io` when either is there already or
/// cannot be written; nothing is left behind then.
Result<CurveFiles> write_curve_keys(const CurveKeyPair& keys, const std::string& name);

/// Both keys of a secret file. `io` when it cannot be read, `unauthorized` when others than its
/// owner can read or write it, `bad_file` when it holds no pair that belongs together.
Result<CurveKeyPair> read_secret_key(const std::string& path);

/// The public key of either file, or `text` itself when it is one. `io`, `bad_file`.
Result<CurveKey> read_public_key(const std::string& text);

}  // namespace sluice::transport
