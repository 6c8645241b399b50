#pragma once
// A tokenizer put together from its parts: what the loaders build.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/normalizer.hpp"
#include "model/pretokenizer.hpp"
#include "model/segmenter.hpp"
#include "model/tokenizer.hpp"
#include "model/vocabulary.hpp"

namespace sluice::model {

/// A token that is found in the text before anything else is done to it.
struct AddedToken {
  Token id = 0;
  bool special = false;      ///< recognised only where the text is trusted
  bool normalized = false;   ///< looked for after normalization instead
  bool single_word = false;  ///< not within a word
  bool strip_left = false;   ///< takes the white space before it along
  bool strip_right = false;
};

struct PipelineParts {
  std::shared_ptr<Vocabulary> vocabulary;
  std::vector<AddedToken> added;
  Normalizer normalizer;
  Pretokenizer pretokenizer;
  std::unique_ptr<Segmenter> segmenter;
  bool repairs_utf8 = true;  ///< each byte that is no UTF-8 becomes U+FFFD before normalization
  bool drops_leading_space = false;
  std::optional<Token> begin_of_text;
  bool adds_begin_of_text = false;
  std::vector<Token> end_tokens;
  std::string fingerprint;
};

std::shared_ptr<const Tokenizer> make_pipeline(PipelineParts parts);

/// Appends the tokens that end a generation by their well-known spellings, as llama.cpp finds them,
/// if they are control or user-defined tokens.
void add_known_end_tokens(const Vocabulary& vocabulary, std::vector<Token>& end_tokens);

}  // namespace sluice::model
