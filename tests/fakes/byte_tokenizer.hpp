#pragma once
// The smallest tokenizer: a byte is a token, 256 ends a text.

#include <array>
#include <string>

#include "model/tokenizer.hpp"

namespace sluice::fakes {

class ByteTokenizer : public model::Tokenizer {
 public:
  static constexpr Token end_token = 256;

  ByteTokenizer() {
    for (std::size_t i = 0; i < 256; ++i) bytes_[i] = static_cast<char>(i);
  }
  std::vector<Token> encode(std::string_view text, bool) const override {
    std::vector<Token> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string_view bytes(Token id) const override {
    return id == end_token ? std::string_view() : std::string_view(&bytes_[id], 1);
  }
  std::string_view spelling(Token id) const override {
    return id == end_token ? std::string_view("<end>") : bytes(id);
  }
  bool is_control(Token id) const override { return id == end_token; }
  std::uint32_t size() const override { return 257; }
  bool drops_leading_space() const override { return false; }
  std::optional<Token> begin_of_text() const override { return std::nullopt; }
  bool adds_begin_of_text() const override { return false; }
  std::span<const Token> end_tokens() const override { return ends_; }
  std::optional<Token> find(std::string_view name) const override {
    if (name == "<end>") return end_token;
    if (name.size() == 1) return static_cast<unsigned char>(name[0]);
    return std::nullopt;
  }
  std::string_view fingerprint() const override { return "bytes"; }

 private:
  std::array<char, 256> bytes_{};
  std::array<Token, 1> ends_{end_token};
};

}  // namespace sluice::fakes
