#pragma once
// A vocabulary written in the test: ids 0..255 are the bytes, further ids are given strings.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer.hpp"

namespace sluice::engine::test {

class FakeTokenizer final : public model::Tokenizer {
 public:
  explicit FakeTokenizer(std::vector<std::string> extra = {}, bool drops_space = false)
      : drops_space_(drops_space) {
    for (int byte = 0; byte < 256; ++byte) pieces_.emplace_back(1, static_cast<char>(byte));
    for (std::string& piece : extra) pieces_.push_back(std::move(piece));
  }

  std::vector<Token> encode(std::string_view text, bool) const override {
    std::vector<Token> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string_view bytes(Token id) const override { return pieces_.at(id); }
  std::string_view spelling(Token id) const override { return pieces_.at(id); }
  bool is_control(Token) const override { return false; }
  std::uint32_t size() const override { return static_cast<std::uint32_t>(pieces_.size()); }
  bool drops_leading_space() const override { return drops_space_; }
  std::optional<Token> begin_of_text() const override { return {}; }
  bool adds_begin_of_text() const override { return false; }
  std::span<const Token> end_tokens() const override { return {}; }
  std::optional<Token> find(std::string_view) const override { return {}; }
  std::string_view fingerprint() const override { return "fake"; }

 private:
  std::vector<std::string> pieces_;
  bool drops_space_;
};

inline std::shared_ptr<const model::Tokenizer> fake_tokenizer(std::vector<std::string> extra = {},
                                                              bool drops_space = false) {
  return std::make_shared<FakeTokenizer>(std::move(extra), drops_space);
}

}  // namespace sluice::engine::test
