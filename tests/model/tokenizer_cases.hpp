#pragma once
// Reading the tokenizer fixtures: texts and the ids that a reference gave them.

#include <sodium.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tokenizer.hpp"
#include "tests/places.hpp"

namespace sluice::model {

inline std::string read_fixture(const std::string& name) {
  const std::string path = tests::fixtures_folder() + "/tokenizer/" + name;
  std::ifstream file(path, std::ios::binary);
  BOOST_REQUIRE_MESSAGE(file, "cannot open " << path);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string from_base64(const std::string& text) {
  std::string out(text.size(), '\0');
  std::size_t bytes = 0;
  BOOST_REQUIRE(sodium_base642bin(reinterpret_cast<unsigned char*>(out.data()), out.size(),
                                  text.data(), text.size(), nullptr, &bytes, nullptr,
                                  sodium_base64_VARIANT_ORIGINAL) == 0);
  out.resize(bytes);
  return out;
}

struct TokenizerCase {
  std::string text;
  std::vector<Token> plain, special;  ///< without and with special tokens recognised
};

inline std::vector<TokenizerCase> read_cases(const nlohmann::json& fixture) {
  std::vector<TokenizerCase> cases;
  for (const auto& entry : fixture.at("cases")) {
    TokenizerCase one{from_base64(entry[0]), entry[1].get<std::vector<Token>>(), {}};
    one.special = entry[2].is_null() ? one.plain : entry[2].get<std::vector<Token>>();
    cases.push_back(std::move(one));
  }
  return cases;
}

inline std::string join(const std::vector<Token>& ids) {
  std::string out;
  for (const Token id : ids) out += fmt::format("{} ", id);
  return out;
}

/// Every case, both ways.
inline void check_cases(const Tokenizer& tokenizer, const std::vector<TokenizerCase>& cases) {
  for (const TokenizerCase& one : cases) {
    for (const bool special : {false, true}) {
      const auto got = tokenizer.encode(one.text, special);
      const auto& wanted = special ? one.special : one.plain;
      BOOST_CHECK_MESSAGE(got == wanted, "\"" << one.text << "\" special=" << special << "\n got "
                                              << join(got) << "\nwant " << join(wanted));
    }
  }
}

inline std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& ids) {
  std::string out;
  for (const Token id : ids) out += tokenizer.bytes(id);
  if (tokenizer.drops_leading_space() && out.starts_with(" ")) return out.substr(1);
  return out;
}

}  // namespace sluice::model
