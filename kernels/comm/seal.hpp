#pragma once
// What makes a connection between two ranks theirs alone. In a greeting of three messages each
// proves that it knows both ranks' secrets, with random bytes of both in it, so that nothing said
// before helps anyone; the same bytes give the keys that seal what follows.

#include <sodium.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace sluice::kernels::comm {

using Key = std::array<std::byte, 32>;
using Proof = std::array<std::byte, 32>;

/// What a rank says first on a connection; the caller does before the called.
struct Hello {
  /// Of what is said here and in a step's collectives: other builds' ranks are refused.
  static constexpr std::uint32_t magic_now = 0x34475053;
  static constexpr std::uint32_t wants_sealed = 1;  ///< either's wish is enough
  static constexpr std::uint32_t has_aes = 2;       ///< used if both have it
  std::uint32_t magic = magic_now;
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::uint32_t wishes = 0;
  std::array<std::byte, 32> random{};
};

/// A greeting between the ranks of one pair: the caller's hello with a proof, the called one's
/// hello with a proof, a proof of the caller's. Each covers all that was said before it, so that
/// only the caller's first can be repeated by another, who then has no third.
class Pair {
 public:
  /// Of the ranks' secrets for this start of their group; in the order of the ranks, as both know
  /// it.
  Pair(const Key& lower, const Key& higher);

  Proof caller(const Hello& caller) const;
  Proof called(const Hello& caller, const Hello& called) const;
  Proof met(const Hello& caller, const Hello& called) const;

  struct Keys {
    Key to_called, to_caller;
  };
  Keys keys(const Hello& caller, const Hello& called) const;

 private:
  Key key_;
};

/// Whether two proofs are the same, in a time that tells nothing of where they differ.
bool same(const Proof& a, const Proof& b);

/// One direction of a connection: AES-256-GCM or ChaCha20-Poly1305 over each message, with its
/// number as the nonce. What was altered, repeated, or comes where another was left out does not
/// open. One thread at a time.
class Seal {
 public:
  static constexpr std::size_t tag_bytes = 16;
  /// A key seals so many, then gives way to its hash. Of pieces of 64 KiB these are 2^31 blocks of
  /// AES, too few by far to tell them from chance (an advantage below 2^-64).
  static constexpr std::uint64_t messages_a_key = std::uint64_t{1} << 20;

  /// `aes` needs a processor that `has_aes`.
  Seal(const Key& key, bool aes);

  /// `sealed` gets tag_bytes more than `plain` has; they must not overlap.
  void close(std::span<const std::byte> plain, std::span<std::byte> sealed);

  /// False: not what was closed, or not next. `plain` then holds nothing of use.
  bool open(std::span<const std::byte> sealed, std::span<std::byte> plain);

  static bool has_aes();

 private:
  void take(const Key& key, bool aes);
  std::array<unsigned char, 12> next_nonce();

  Key key_;
  std::unique_ptr<crypto_aead_aes256gcm_state> aes_;  ///< none: ChaCha20-Poly1305
  std::uint64_t number_ = 0;
};

}  // namespace sluice::kernels::comm
