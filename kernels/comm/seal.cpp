#include "kernels/comm/seal.hpp"

#include <cstring>
#include <initializer_list>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::kernels::comm {
namespace {

const unsigned char* bytes(const void* data) { return static_cast<const unsigned char*>(data); }
unsigned char* bytes(void* data) { return static_cast<unsigned char*>(data); }

/// BLAKE2b of `parts` under `key`, for one purpose.
template <std::size_t N>
std::array<std::byte, N> derive(const Key& key, std::string_view purpose,
                                std::initializer_list<const Hello*> parts) {
  static_assert(sizeof(Hello) == 48, "all of a hello is its members");
  crypto_generichash_state state;
  std::array<std::byte, N> out;
  crypto_generichash_init(&state, bytes(key.data()), key.size(), N);
  crypto_generichash_update(&state, bytes(purpose.data()), purpose.size());
  for (const Hello* part : parts) crypto_generichash_update(&state, bytes(part), sizeof *part);
  crypto_generichash_final(&state, bytes(out.data()), N);
  return out;
}

}  // namespace

Pair::Pair(const Key& lower, const Key& higher) {
  crypto_generichash_state state;
  constexpr std::string_view purpose = "sluice ranks: pair";
  crypto_generichash_init(&state, nullptr, 0, key_.size());
  crypto_generichash_update(&state, bytes(purpose.data()), purpose.size());
  crypto_generichash_update(&state, bytes(lower.data()), lower.size());
  crypto_generichash_update(&state, bytes(higher.data()), higher.size());
  crypto_generichash_final(&state, bytes(key_.data()), key_.size());
}

Proof Pair::caller(const Hello& caller) const {
  return derive<sizeof(Proof)>(key_, "sluice ranks: caller", {&caller});
}

Proof Pair::called(const Hello& caller, const Hello& called) const {
  return derive<sizeof(Proof)>(key_, "sluice ranks: called", {&caller, &called});
}

Proof Pair::met(const Hello& caller, const Hello& called) const {
  return derive<sizeof(Proof)>(key_, "sluice ranks: met", {&caller, &called});
}

Pair::Keys Pair::keys(const Hello& caller, const Hello& called) const {
  return {derive<sizeof(Key)>(key_, "sluice ranks: to called", {&caller, &called}),
          derive<sizeof(Key)>(key_, "sluice ranks: to caller", {&caller, &called})};
}

bool same(const Proof& a, const Proof& b) {
  return sodium_memcmp(a.data(), b.data(), a.size()) == 0;
}

Seal::Seal(const Key& key, bool aes) { take(key, aes); }

void Seal::take(const Key& key, bool aes) {
  key_ = key;
  number_ = 0;
  if (!aes) return;
  if (!aes_) aes_ = std::make_unique<crypto_aead_aes256gcm_state>();
  crypto_aead_aes256gcm_beforenm(aes_.get(), bytes(key_.data()));
}

void Seal::close(std::span<const std::byte> plain, std::span<std::byte> sealed) {
  SLUICE_ASSERT(sealed.size() == plain.size() + tag_bytes, "a sealed message has its tag");
  const auto nonce = next_nonce();
  if (aes_) {
    crypto_aead_aes256gcm_encrypt_afternm(bytes(sealed.data()), nullptr, bytes(plain.data()),
                                          plain.size(), nullptr, 0, nullptr, nonce.data(),
                                          aes_.get());
  } else {
    crypto_aead_chacha20poly1305_ietf_encrypt(bytes(sealed.data()), nullptr, bytes(plain.data()),
                                              plain.size(), nullptr, 0, nullptr, nonce.data(),
                                              bytes(key_.data()));
  }
}

bool Seal::open(std::span<const std::byte> sealed, std::span<std::byte> plain) {
  SLUICE_ASSERT(sealed.size() == plain.size() + tag_bytes, "a sealed message has its tag");
  const auto nonce = next_nonce();
  const int opened =
      aes_ ? crypto_aead_aes256gcm_decrypt_afternm(bytes(plain.data()), nullptr, nullptr,
                                                   bytes(sealed.data()), sealed.size(), nullptr, 0,
                                                   nonce.data(), aes_.get())
           : crypto_aead_chacha20poly1305_ietf_decrypt(bytes(plain.data()), nullptr, nullptr,
                                                       bytes(sealed.data()), sealed.size(),
                                                       nullptr, 0, nonce.data(),
                                                       bytes(key_.data()));
  return opened == 0;
}

bool Seal::has_aes() { return crypto_aead_aes256gcm_is_available() == 1; }

/// A key seals each number once: it is of one connection and one direction.
std::array<unsigned char, 12> Seal::next_nonce() {
  if (number_ == messages_a_key) {
    take(derive<sizeof(Key)>(key_, "sluice ranks: next", {}), aes_ != nullptr);
  }
  std::array<unsigned char, 12> nonce{};
  std::memcpy(nonce.data() + 4, &number_, sizeof number_);
  ++number_;
  return nonce;
}

}  // namespace sluice::kernels::comm
