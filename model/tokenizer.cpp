// A tokenizer from GGUF metadata.

#include "model/tokenizer.hpp"

#include <algorithm>
#include <cmath>
#include <future>

#include "model/digest.hpp"
#include "model/gguf.hpp"
#include "model/pipeline.hpp"

namespace sluice::model {

namespace {

constexpr std::string_view kMark = "\u2581";  // SentencePiece's visible space
constexpr std::size_t kTokenBytesMax = 64 * 1024;

tl::unexpected<Error> wrong_type(std::string_view key, std::string_view wanted) {
  return fail(ErrorCode::bad_file,
              "the metadata key {} is not {}; the file is damaged or was converted wrongly: get it "
              "again",
              key, wanted);
}

/// An array of one of two element types, as `Out`; absent gives nothing.
template <class A, class B, class Out>
Result<std::optional<std::vector<Out>>> read_array(const GgufFile& file, std::string_view key,
                                                   std::string_view wanted) {
  const GgufValue* value = file.find(key);
  if (!value) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(value);
  if (!array) return wrong_type(key, wanted);
  std::optional<std::vector<Out>> out;
  if (const auto* a = std::get_if<std::vector<A>>(array)) {
    out.emplace(a->begin(), a->end());
  } else if (const auto* b = std::get_if<std::vector<B>>(array)) {
    out.emplace(b->begin(), b->end());
  } else if (!std::visit([](const auto& any) { return any.empty(); }, *array)) {
    return wrong_type(key, wanted);
  } else {
    out.emplace();
  }
  return out;
}

Result<std::optional<bool>> read_bool(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find(key);
  if (!value) return std::nullopt;
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return wrong_type(key, "true or false");
}

Result<std::optional<Token>> read_token(const GgufFile& file, std::string_view key,
                                        std::uint32_t size) {
  const GgufValue* value = file.find(key);
  if (!value) return std::nullopt;
  std::optional<std::uint64_t> id;
  if (const auto* natural = std::get_if<std::uint64_t>(value)) {
    id = *natural;
  } else if (const auto* integer = std::get_if<std::int64_t>(value)) {
    if (*integer == -1) return std::nullopt;  // Converters write -1 for "none".
    id = static_cast<std::uint64_t>(*integer);
  }
  if (!id) return wrong_type(key, "a token id");
  if (*id >= size) {
    return fail(ErrorCode::bad_file,
                "{} is {}, but the vocabulary has {} tokens; get the file again", key, *id, size);
  }
  return static_cast<Token>(*id);
}

enum class Family : std::uint8_t { bpe, spm, unigram };

/// What the metadata says, checked for itself but not yet put together.
struct Metadata {
  Family family = Family::bpe;
  std::string pre;
  std::vector<std::string_view> tokens;
  std::vector<std::int64_t> types;  ///< empty: all normal
  std::vector<float> scores;        ///< empty, or one a token
  std::vector<std::string_view> merges;
  std::optional<Token> begin, end, end_of_turn, end_of_message, unknown;
  bool add_begin = false;
  bool add_space_prefix = true;
  bool remove_extra_spaces = false;
  std::string character_map;
};

Result<Family> read_family(const GgufFile& file) {
  auto model = file.string_value("tokenizer.ggml.model");
  if (!model) return tl::unexpected(model.error());
  if (*model == "gpt2") return Family::bpe;
  if (*model == "llama") return Family::spm;
  if (*model == "t5") return Family::unigram;
  return fail(ErrorCode::unsupported,
              "{}: the tokenizer kind \"{}\" (tokenizer.ggml.model) is not supported; use a model "
              "with one of: gpt2, llama, t5",
              file.name(), *model);
}

Result<void> read_vocabulary(const GgufFile& file, Metadata& into) {
  auto tokens = read_array<std::string_view, std::string_view, std::string_view>(
      file, "tokenizer.ggml.tokens", "an array of strings");
  if (!tokens) return tl::unexpected(tokens.error());
  if (!*tokens || (*tokens)->empty()) {
    return fail(ErrorCode::bad_file,
                "{} has no vocabulary (tokenizer.ggml.tokens); get a file that includes one",
                file.name());
  }
  into.tokens = std::move(**tokens);
  auto types = read_array<std::int64_t, std::uint64_t, std::int64_t>(
      file, "tokenizer.ggml.token_type", "an array of integers");
  if (!types) return tl::unexpected(types.error());
  if (*types) into.types = std::move(**types);
  auto scores =
      read_array<double, double, float>(file, "tokenizer.ggml.scores", "an array of numbers");
  if (!scores) return tl::unexpected(scores.error());
  if (*scores) into.scores = std::move(**scores);
  auto merges = read_array<std::string_view, std::string_view, std::string_view>(
      file, "tokenizer.ggml.merges", "an array of strings");
  if (!merges) return tl::unexpected(merges.error());
  if (*merges) into.merges = std::move(**merges);

  const auto mismatch = [&](std::string_view key, std::size_t count) {
    return fail(ErrorCode::bad_file, "{}: {} has {} entries for {} tokens; get the file again",
                file.name(), key, count, into.tokens.size());
  };
  if (!into.types.empty() && into.types.size() != into.tokens.size()) {
    return mismatch("tokenizer.ggml.token_type", into.types.size());
  }
  const bool needs_scores = into.family != Family::bpe;
  if ((needs_scores || !into.scores.empty()) && into.scores.size() != into.tokens.size()) {
    return mismatch("tokenizer.ggml.scores", into.scores.size());
  }
  for (const float score : into.scores) {
    if (std::isnan(score)) {
      return fail(ErrorCode::bad_file, "{}: a token's score is not a number; get the file again",
                  file.name());
    }
  }
  return {};
}

Result<void> read_special(const GgufFile& file, Metadata& into) {
  const auto size = static_cast<std::uint32_t>(into.tokens.size());
  const std::pair<std::string_view, std::optional<Token>*> wanted[] = {
      {"tokenizer.ggml.bos_token_id", &into.begin},
      {"tokenizer.ggml.eos_token_id", &into.end},
      {"tokenizer.ggml.eot_token_id", &into.end_of_turn},
      {"tokenizer.ggml.eom_token_id", &into.end_of_message},
      {"tokenizer.ggml.unknown_token_id", &into.unknown},
  };
  for (const auto& [key, place] : wanted) {
    auto id = read_token(file, key, size);
    if (!id) return tl::unexpected(id.error());
    *place = *id;
  }
  return {};
}

Result<void> read_flags(const GgufFile& file, Metadata& into) {
  into.add_begin = into.family == Family::spm || adds_begin_by_default(into.pre);
  const std::pair<std::string_view, bool*> wanted[] = {
      {"tokenizer.ggml.add_bos_token", &into.add_begin},
      {"tokenizer.ggml.add_space_prefix", &into.add_space_prefix},
      {"tokenizer.ggml.remove_extra_whitespaces", &into.remove_extra_spaces},
  };
  for (const auto& [key, place] : wanted) {
    auto flag = read_bool(file, key);
    if (!flag) return tl::unexpected(flag.error());
    if (*flag) *place = **flag;
  }
  auto suffix = read_bool(file, "tokenizer.ggml.treat_whitespace_as_suffix");
  if (!suffix) return tl::unexpected(suffix.error());
  if (suffix->value_or(false)) {
    return fail(ErrorCode::unsupported,
                "{}: tokenizer.ggml.treat_whitespace_as_suffix is not supported; use another model",
                file.name());
  }
  auto map = read_array<std::uint64_t, std::int64_t, char>(
      file, "tokenizer.ggml.precompiled_charsmap", "an array of bytes");
  if (!map) return tl::unexpected(map.error());
  if (*map) into.character_map.assign((*map)->begin(), (*map)->end());
  return {};
}

Result<Metadata> read_metadata(const GgufFile& file) {
  Metadata read;
  auto family = read_family(file);
  if (!family) return tl::unexpected(family.error());
  read.family = *family;
  if (read.family == Family::bpe) {
    // llama.cpp too takes "default" where a file names none.
    read.pre = "default";
    if (file.find("tokenizer.ggml.pre")) {
      auto pre = file.string_value("tokenizer.ggml.pre");
      if (!pre) return tl::unexpected(pre.error());
      read.pre = *pre;
    }
  }
  if (auto done = read_vocabulary(file, read); !done) return tl::unexpected(done.error());
  if (auto done = read_special(file, read); !done) return tl::unexpected(done.error());
  if (auto done = read_flags(file, read); !done) return tl::unexpected(done.error());
  return read;
}

std::string spaces_of_marks(std::string_view spelling) {
  std::string out;
  for (std::size_t at = 0; at < spelling.size();) {
    if (spelling.substr(at).starts_with(kMark)) {
      out.push_back(' ');
      at += kMark.size();
    } else {
      out.push_back(spelling[at++]);
    }
  }
  return out;
}

/// What a token adds to a text.
std::string text_of(Family family, std::string_view spelling, TokenKind kind) {
  if (kind == TokenKind::byte) return std::string(1, byte_of_hex_spelling(spelling).value_or(0));
  if (kind == TokenKind::normal || kind == TokenKind::unused) {
    if (family != Family::bpe) return spaces_of_marks(spelling);
    if (auto bytes = bytes_of_byte_level(spelling)) return *bytes;
  }
  return std::string(spelling);
}

Result<std::shared_ptr<Vocabulary>> build_vocabulary(const GgufFile& file, const Metadata& read) {
  auto vocabulary = std::make_shared<Vocabulary>();
  vocabulary->reserve(read.tokens.size());
  constexpr std::size_t ahead = 16;
  for (std::size_t id = 0; id < read.tokens.size(); ++id) {
    if (id + ahead < read.tokens.size()) vocabulary->prefetch(read.tokens[id + ahead]);
    const std::string_view spelling = read.tokens[id];
    const std::int64_t type = read.types.empty() ? 1 : read.types[id];
    if (type < 0 || type > 6) {
      return fail(ErrorCode::bad_file, "{}: token {} has the unknown type {}; get the file again",
                  file.name(), id, type);
    }
    const auto kind = type == 0 ? TokenKind::normal : static_cast<TokenKind>(type);
    if (spelling.size() > kTokenBytesMax ||
        (kind == TokenKind::byte && !byte_of_hex_spelling(spelling))) {
      return fail(ErrorCode::bad_file,
                  "{}: token {} of {} bytes is no token of its type; get the file again",
                  file.name(), id, spelling.size());
    }
    if (!vocabulary->add(spelling, text_of(read.family, spelling, kind), kind)) {
      return fail(ErrorCode::bad_file,
                  "{}: the tokens {} and {} are both spelled \"{}\"; get the file again",
                  file.name(), *vocabulary->find(spelling), id, spelling);
    }
  }
  return vocabulary;
}

Result<std::unique_ptr<Segmenter>> build_bpe(const GgufFile& file, const Metadata& read,
                                             std::shared_ptr<const Vocabulary> vocabulary) {
  std::vector<Merge> merges;
  merges.reserve(read.merges.size());
  for (const std::string_view merge : read.merges) {
    // The left part may itself be a space in files of old converters, never an empty string.
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return fail(ErrorCode::bad_file, "{}: the merge \"{}\" is not two parts; get the file again",
                  file.name(), merge);
    }
    merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  BpeOptions options;
  options.byte_level = true;
  options.ignore_merges = ignores_merges(read.pre);
  options.unknown_separates = true;
  return make_bpe(std::move(vocabulary), merges, options);
}

Result<void> build_normalizer(const Metadata& read, Normalizer& into) {
  if (read.family == Family::bpe) return {};
  if (read.family == Family::unigram) {
    auto map = CharacterMap::parse(read.character_map);
    if (!map) return tl::unexpected(map.error());
    into.add(std::move(*map));
    if (read.remove_extra_spaces) into.add(CollapseSpacesStep{});
  }
  if (read.add_space_prefix) into.add(PrependStep{" "});
  into.add(ReplaceStep{" ", std::string(kMark)});
  return {};
}

void build_special(const Metadata& read, PipelineParts& parts) {
  Vocabulary& vocabulary = *parts.vocabulary;
  for (const auto& end : {read.end, read.end_of_turn, read.end_of_message}) {
    if (!end || std::count(parts.end_tokens.begin(), parts.end_tokens.end(), *end) > 0) continue;
    parts.end_tokens.push_back(*end);
    // Some converters mark them as text; shown to a user they never are.
    vocabulary.set_kind(*end, TokenKind::control);
  }
  add_known_end_tokens(vocabulary, parts.end_tokens);
  parts.begin_of_text = read.begin;
  if (!read.begin && read.family == Family::spm) parts.begin_of_text = vocabulary.find("<s>");
  parts.adds_begin_of_text = read.add_begin && parts.begin_of_text.has_value();
  for (Token id = 0; id < vocabulary.size(); ++id) {
    const TokenKind kind = vocabulary.kind(id);
    const bool special = kind == TokenKind::control || kind == TokenKind::unknown;
    if (special || kind == TokenKind::user_defined) {
      AddedToken token;
      token.id = id;
      token.special = special;
      parts.added.push_back(token);
    }
  }
}

std::string fingerprint(const Metadata& read, const Vocabulary& vocabulary,
                        std::optional<Token> begin, bool adds_begin,
                        std::span<const Token> ends) {
  std::string flags =
      fmt::format("{} {} {} {} {} {} {}", static_cast<int>(read.family), read.pre,
                  read.add_space_prefix, read.remove_extra_spaces, read.unknown.value_or(kNoToken),
                  begin.value_or(kNoToken), adds_begin);
  for (const Token end : ends) flags += fmt::format(" {}", end);
  flags += '\n';
  for (Token id = 0; id < vocabulary.size(); ++id) {
    flags.push_back(static_cast<char>('0' + static_cast<int>(vocabulary.kind(id))));
  }
  Digest digest;
  digest.add(std::string_view(flags));
  digest.add(std::string_view(read.character_map));
  digest.add(read.scores.size());
  digest.add(std::as_bytes(std::span(read.scores)));
  digest.add(read.tokens.size());
  for (const std::string_view token : read.tokens) digest.add(token);
  for (const std::string_view merge : read.merges) digest.add(merge);
  return digest.hexadecimal();
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const GgufFile& file) {
  auto read = read_metadata(file);
  if (!read) return tl::unexpected(read.error());
  auto vocabulary = build_vocabulary(file, *read);
  if (!vocabulary) return tl::unexpected(vocabulary.error());

  PipelineParts parts;
  parts.vocabulary = std::move(*vocabulary);
  build_special(*read, parts);
  if (auto done = build_normalizer(*read, parts.normalizer); !done) {
    return tl::unexpected(done.error());
  }
  // Beside what follows, which changes nothing of this: a fifth of the whole.
  auto digest = std::async([&read = *read, &vocabulary = *parts.vocabulary,
                            begin = parts.begin_of_text, adds_begin = parts.adds_begin_of_text,
                            ends = parts.end_tokens] {
    return fingerprint(read, vocabulary, begin, adds_begin, ends);
  });
  switch (read->family) {
    case Family::bpe: {
      auto pretokenizer = named_pretokenizer(read->pre);
      if (!pretokenizer) return tl::unexpected(pretokenizer.error());
      parts.pretokenizer = std::move(*pretokenizer);
      auto bpe = build_bpe(file, *read, parts.vocabulary);
      if (!bpe) return tl::unexpected(bpe.error());
      parts.segmenter = std::move(*bpe);
      break;
    }
    case Family::spm:
      // SPM cuts by lead bytes alone and spells what is left over as bytes: nothing to repair.
      parts.repairs_utf8 = false;
      parts.segmenter = make_spm(parts.vocabulary, read->scores, read->unknown);
      break;
    case Family::unigram:
      parts.segmenter = make_unigram(parts.vocabulary, {read->scores.begin(), read->scores.end()},
                                     read->unknown, false);
      break;
  }
  parts.drops_leading_space = read->family != Family::bpe && read->add_space_prefix;
  parts.fingerprint = digest.get();
  return make_pipeline(std::move(parts));
}

}  // namespace sluice::model
