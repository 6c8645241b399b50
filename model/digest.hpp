#pragma once
// What two files have in common, as a short text.

#include <sodium.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sluice::model {

/// BLAKE2b with 256 bits, 1.6 times as fast as libsodium's SHA-256. What is short is gathered.
class Digest {
 public:
  Digest();

  void add(std::span<const std::byte> bytes);
  void add(std::uint64_t number);
  /// Its size and its bytes.
  void add(std::string_view text);

  /// 64 digits, lower case. Called once, at the end.
  std::string hexadecimal();

 private:
  void flush();

  crypto_generichash_state state_;
  std::array<std::byte, 4096> gathered_;
  std::size_t size_ = 0;
};

}  // namespace sluice::model
