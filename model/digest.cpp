#include "model/digest.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "kernels/core.hpp"

namespace sluice::model {

Digest::Digest() {
  SLUICE_ASSERT(::sodium_init() >= 0, "libsodium can be used");  // chooses among its functions
  crypto_generichash_init(&state_, nullptr, 0, crypto_generichash_BYTES);
}

void Digest::add(std::span<const std::byte> bytes) {
  if (bytes.size() > gathered_.size() - size_) flush();
  if (bytes.size() > gathered_.size()) {
    crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(bytes.data()),
                              bytes.size());
    return;
  }
  std::copy(bytes.begin(), bytes.end(), gathered_.begin() + size_);
  size_ += bytes.size();
}

void Digest::flush() {
  crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(gathered_.data()),
                            size_);
  size_ = 0;
}

void Digest::add(std::uint64_t number) { add(std::as_bytes(std::span(&number, 1))); }

void Digest::add(std::string_view text) {
  add(std::uint64_t{text.size()});
  add(std::as_bytes(std::span(text)));
}

std::string Digest::hexadecimal() {
  flush();
  std::array<unsigned char, crypto_generichash_BYTES> bytes{};
  crypto_generichash_final(&state_, bytes.data(), bytes.size());
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

}  // namespace sluice::model
