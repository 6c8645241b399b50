// A tokenizer from Hugging Face's tokenizer.json.

#include <algorithm>
#include <cmath>

#include "model/digest.hpp"
#include "model/json_parts.hpp"
#include "model/mapped_file.hpp"
#include "model/pipeline.hpp"
#include "model/tokenizer.hpp"

namespace sluice::model {

namespace {

/// How often a text may grow from a file's replacements: real ones stay below 40 in all.
constexpr double kGrowthMax = 10'000.0;

tl::unexpected<Error> bad(std::string_view what) {
  return fail(ErrorCode::bad_file, "tokenizer.json: {}; get the file again", what);
}

tl::unexpected<Error> not_offered(std::string_view what) {
  return fail(ErrorCode::unsupported,
              "tokenizer.json: {} is not supported; use the model's GGUF file, or another model",
              what);
}

const Json& member_or_null(const Json& object, const char* key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

enum class Kind : std::uint8_t { bpe, unigram };

struct JsonToken {
  std::string_view spelling;
  AddedToken added;
  bool is_added = false;
  bool known = false;
};

/// The ids as the file gives them; strings live in the parsed file.
struct JsonVocabulary {
  std::vector<JsonToken> tokens;
  std::vector<double> scores;  ///< of a Unigram model, by id
};

Result<Kind> read_kind(const Json& model) {
  auto type = json_member<std::string>(model, "type");
  if (!type) return tl::unexpected(type.error());
  // Files of before 2020 name no type.
  const bool merges = model.contains("merges");
  const std::string name = type->value_or(merges ? "BPE" : "without type");
  if (name == "BPE") return Kind::bpe;
  if (name == "Unigram") return Kind::unigram;
  return not_offered(fmt::format("the model \"{}\"", name));
}

/// Puts a token at its id, so long as ids stay about as dense as tokens.
Result<JsonToken*> place(JsonVocabulary& into, std::uint64_t id, std::size_t limit) {
  if (id >= limit) return bad(fmt::format("token id {} in a vocabulary of {}", id, limit));
  if (id >= into.tokens.size()) into.tokens.resize(static_cast<std::size_t>(id) + 1);
  return &into.tokens[static_cast<std::size_t>(id)];
}

Result<void> read_bpe_vocabulary(const Json& model, std::size_t limit, JsonVocabulary& into) {
  const Json& vocab = member_or_null(model, "vocab");
  if (!vocab.is_object()) return bad("model.vocab is no object");
  into.tokens.resize(vocab.size());
  for (const auto& [spelling, id] : vocab.items()) {
    if (!id.is_number_unsigned()) return bad(fmt::format("the id of \"{}\" is no id", spelling));
    auto token = place(into, id.get<std::uint64_t>(), limit);
    if (!token) return tl::unexpected(token.error());
    if ((*token)->known)
      return bad(fmt::format("two tokens have the id {}", id.get<std::uint64_t>()));
    (*token)->known = true;
    (*token)->spelling = spelling;
  }
  return {};
}

Result<void> read_unigram_vocabulary(const Json& model, JsonVocabulary& into) {
  const Json& vocab = member_or_null(model, "vocab");
  if (!vocab.is_array()) return bad("model.vocab is no array");
  for (const Json& entry : vocab) {
    const bool fits =
        entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number();
    if (!fits)
      return bad(fmt::format("the vocabulary's entry {} is malformed", into.tokens.size()));
    JsonToken token;
    token.spelling = entry[0].get_ref<const std::string&>();
    token.known = true;
    into.tokens.push_back(token);
    into.scores.push_back(entry[1].get<double>());
    if (!std::isfinite(into.scores.back())) return bad("a token's score is not a number");
  }
  return {};
}

Result<void> read_added_flags(const Json& entry, AddedToken& into) {
  const std::pair<const char*, bool*> flags[] = {{"special", &into.special},
                                                 {"normalized", &into.normalized},
                                                 {"single_word", &into.single_word},
                                                 {"lstrip", &into.strip_left},
                                                 {"rstrip", &into.strip_right}};
  for (const auto& [key, place_of] : flags) {
    auto flag = json_member_or<bool>(entry, key, false);
    if (!flag) return tl::unexpected(flag.error());
    *place_of = *flag;
  }
  return {};
}

Result<void> read_added(const Json& list, std::size_t limit, JsonVocabulary& into) {
  if (list.is_null()) return {};
  if (!list.is_array()) return bad("added_tokens is no array");
  for (const Json& entry : list) {
    auto id = json_member<std::uint64_t>(entry, "id");
    if (!id) return tl::unexpected(id.error());
    if (!*id || !entry.contains("content") || !entry["content"].is_string()) {
      return bad("an added token lacks its id or content");
    }
    auto token = place(into, **id, limit);
    if (!token) return tl::unexpected(token.error());
    const std::string_view spelling = entry["content"].get_ref<const std::string&>();
    if ((*token)->is_added || ((*token)->known && (*token)->spelling != spelling)) {
      return bad(fmt::format("the added token \"{}\" has the id {} of another", spelling, **id));
    }
    (*token)->spelling = spelling;
    (*token)->known = (*token)->is_added = true;
    if (auto done = read_added_flags(entry, (*token)->added); !done) return done;
    (*token)->added.id = static_cast<Token>(**id);
  }
  return {};
}

Result<JsonVocabulary> read_vocabulary(const Json& root, const Json& model, Kind kind) {
  JsonVocabulary read;
  const Json& added = member_or_null(root, "added_tokens");
  // Ids that no token has occur in real files, a few of them.
  const std::size_t limit = 2 * (member_or_null(model, "vocab").size() + added.size()) + 1024;
  auto done = kind == Kind::bpe ? read_bpe_vocabulary(model, limit, read)
                                : read_unigram_vocabulary(model, read);
  if (!done) return tl::unexpected(done.error());
  if (done = read_added(added, limit, read); !done) return tl::unexpected(done.error());
  if (read.tokens.empty()) return bad("the vocabulary is empty");
  if (kind == Kind::unigram) read.scores.resize(read.tokens.size(), 0.0);
  return read;
}

/// Some files name their end-of-text token as the unknown one too: that stays what ends a text.
bool names_unknown(std::string_view spelling) {
  return spelling.find("unk") != std::string_view::npos ||
         spelling.find("UNK") != std::string_view::npos;
}

Result<std::shared_ptr<Vocabulary>> build_vocabulary(const JsonVocabulary& read,
                                                     const JsonDecoder& decoder, bool byte_fallback,
                                                     std::optional<std::string_view> unknown) {
  auto vocabulary = std::make_shared<Vocabulary>();
  vocabulary->reserve(read.tokens.size());
  for (std::size_t id = 0; id < read.tokens.size(); ++id) {
    const JsonToken& token = read.tokens[id];
    if (!token.known) {
      if (!vocabulary->add(fmt::format("<unused id {}>", id), "", TokenKind::unused)) {
        return bad("two tokens are spelled alike");
      }
      continue;
    }
    const bool is_unknown = unknown && token.spelling == *unknown;
    TokenKind kind = TokenKind::normal;
    if (is_unknown && (!token.is_added || names_unknown(token.spelling))) {
      kind = TokenKind::unknown;
    } else if (token.is_added) {
      kind = token.added.special ? TokenKind::control : TokenKind::user_defined;
    } else if (byte_fallback && byte_of_hex_spelling(token.spelling)) {
      kind = TokenKind::byte;
    }
    const bool verbatim = token.is_added && decoder.byte_level;
    const std::string bytes =
        verbatim ? std::string(token.spelling) : decoder.bytes_of(token.spelling);
    if (!vocabulary->add(token.spelling, bytes, kind)) {
      return bad(fmt::format("two tokens are spelled \"{}\"", token.spelling));
    }
  }
  return vocabulary;
}

/// Each merge is "left right" or, in newer files, ["left", "right"].
Result<std::vector<Merge>> read_merges(const Json& model) {
  const Json& list = member_or_null(model, "merges");
  if (!list.is_array()) return bad("model.merges is no array");
  std::vector<Merge> merges;
  merges.reserve(list.size());
  for (const Json& entry : list) {
    if (entry.is_string()) {
      const std::string_view text = entry.get_ref<const std::string&>();
      const std::size_t space = text.find(' ');
      if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
        merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      merges.emplace_back(entry[0].get_ref<const std::string&>(),
                          entry[1].get_ref<const std::string&>());
      continue;
    }
    return bad(fmt::format("merge {} is not two parts", merges.size()));
  }
  return merges;
}

Result<BpeOptions> read_bpe_options(const Json& model) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    auto text = json_member_or<std::string>(model, key, "");
    if (!text) return tl::unexpected(text.error());
    if (!text->empty()) return not_offered(fmt::format("BPE with a {}", key));
  }
  const Json& dropout = member_or_null(model, "dropout");
  if (dropout.is_number() && dropout.get<double>() > 0.0) return not_offered("BPE with dropout");
  BpeOptions options;
  const std::pair<const char*, bool*> flags[] = {{"ignore_merges", &options.ignore_merges},
                                                 {"byte_fallback", &options.byte_fallback},
                                                 {"fuse_unk", &options.fuse_unknown}};
  for (const auto& [key, place_of] : flags) {
    auto flag = json_member_or<bool>(model, key, false);
    if (!flag) return tl::unexpected(flag.error());
    *place_of = *flag;
  }
  return options;
}

/// The spelling of the unknown token: BPE names it, Unigram gives its id.
Result<std::optional<std::string>> read_unknown(const Json& model, Kind kind,
                                                const JsonVocabulary& read) {
  if (kind == Kind::bpe) return json_member<std::string>(model, "unk_token");
  auto id = json_member<std::uint64_t>(model, "unk_id");
  if (!id) return tl::unexpected(id.error());
  if (!*id) return std::nullopt;
  if (**id >= read.tokens.size()) return bad("unk_id is outside the vocabulary");
  return std::string(read.tokens[static_cast<std::size_t>(**id)].spelling);
}

Result<std::unique_ptr<Segmenter>> build_segmenter(const Json& model, Kind kind,
                                                   const JsonVocabulary& read, bool byte_level,
                                                   std::optional<std::string_view> unknown,
                                                   std::shared_ptr<const Vocabulary> vocabulary) {
  std::optional<Token> unknown_id;
  if (unknown) unknown_id = vocabulary->find(*unknown);
  if (unknown && !unknown_id) return bad("unk_token is not in the vocabulary");
  // No text may turn into a token that steers the model: what is unknown is left out then.
  if (unknown_id && vocabulary->kind(*unknown_id) == TokenKind::control) unknown_id.reset();
  if (kind == Kind::unigram) {
    auto fallback = json_member_or<bool>(model, "byte_fallback", false);
    if (!fallback) return tl::unexpected(fallback.error());
    return make_unigram(std::move(vocabulary), read.scores, unknown_id, *fallback);
  }
  auto options = read_bpe_options(model);
  if (!options) return tl::unexpected(options.error());
  options->byte_level = byte_level;
  options->unknown = unknown_id;
  auto merges = read_merges(model);
  if (!merges) return tl::unexpected(merges.error());
  return make_bpe(std::move(vocabulary), *merges, *options);
}

/// Ends a text for certain: shown to a user it never is, and text never spells it.
void add_end(Token id, PipelineParts& parts) {
  if (std::count(parts.end_tokens.begin(), parts.end_tokens.end(), id) > 0) return;
  parts.end_tokens.push_back(id);
  parts.vocabulary->set_kind(id, TokenKind::control);
  auto added = std::find_if(parts.added.begin(), parts.added.end(),
                            [id](const AddedToken& one) { return one.id == id; });
  if (added == parts.added.end()) added = parts.added.insert(added, AddedToken{.id = id});
  added->special = true;
}

Result<void> add_named_ends(const JsonTokenizerHints& hints, PipelineParts& parts) {
  if (hints.end) {
    const auto id = parts.vocabulary->find(*hints.end);
    if (!id) return bad(fmt::format("eos_token {} is not in the vocabulary", shown(*hints.end)));
    add_end(*id, parts);
  }
  for (const std::uint64_t id : hints.end_ids) {
    if (id >= parts.vocabulary->size()) {
      return bad(fmt::format("eos_token_id {} in a vocabulary of {}", id,
                             parts.vocabulary->size()));
    }
    add_end(static_cast<Token>(id), parts);
  }
  return {};
}

/// Neither tokenizer.json nor its model says what ends a text: files beside it do, or spellings
/// have to.
Result<void> build_special(const Json& root, const JsonVocabulary& read,
                           const JsonTokenizerHints& hints, PipelineParts& parts) {
  for (const JsonToken& token : read.tokens) {
    if (token.is_added) parts.added.push_back(token.added);
  }
  auto first = read_first_token(member_or_null(root, "post_processor"));
  if (!first) return tl::unexpected(first.error());
  if (*first) {
    parts.begin_of_text = parts.vocabulary->find(**first);
    if (!parts.begin_of_text)
      return bad("the post-processor's first token is not in the vocabulary");
    parts.adds_begin_of_text = true;
  }
  const auto control = [&](std::string_view spelling) {
    const auto id = parts.vocabulary->find(spelling);
    return id && parts.vocabulary->kind(*id) == TokenKind::control ? id : std::nullopt;
  };
  if (!parts.begin_of_text && hints.begin) {
    parts.begin_of_text = parts.vocabulary->find(*hints.begin);
  }
  for (const std::string_view spelling :
       {"<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"}) {
    if (!parts.begin_of_text) parts.begin_of_text = control(spelling);
  }
  if (auto done = add_named_ends(hints, parts); !done) return done;
  const bool named = !parts.end_tokens.empty();
  for (const std::string_view spelling : {"</s>", "<eos>"}) {
    if (named) break;
    if (const auto id = control(spelling)) parts.end_tokens.push_back(*id);
  }
  add_known_end_tokens(*parts.vocabulary, parts.end_tokens);
  return {};
}

std::string fingerprint(std::string_view text, const PipelineParts& parts) {
  std::string rest = fmt::format("{} {}", parts.vocabulary->size(),
                                 parts.begin_of_text.value_or(kNoToken));
  for (const Token end : parts.end_tokens) rest += fmt::format(" {}", end);
  Digest digest;
  for (const std::string_view part : {std::string_view("tokenizer.json"), text,
                                      std::string_view(rest)}) {
    digest.add(part);
  }
  return digest.hexadecimal();
}

Result<std::shared_ptr<const Tokenizer>> build(const Json& root, std::string_view text,
                                               const JsonTokenizerHints& hints) {
  const Json& model = member_or_null(root, "model");
  if (!model.is_object()) return bad("it has no model");
  auto kind = read_kind(model);
  if (!kind) return tl::unexpected(kind.error());
  auto pretokenizer = read_pretokenizer(member_or_null(root, "pre_tokenizer"));
  if (!pretokenizer) return tl::unexpected(pretokenizer.error());
  auto decoder = read_decoder(member_or_null(root, "decoder"));
  if (!decoder) return tl::unexpected(decoder.error());
  if (pretokenizer->byte_level != decoder->byte_level ||
      (pretokenizer->byte_level && *kind != Kind::bpe)) {
    return not_offered("ByteLevel in one of model, pre_tokenizer and decoder alone");
  }
  auto read = read_vocabulary(root, model, *kind);
  if (!read) return tl::unexpected(read.error());
  if (read->tokens.size() < hints.size_min) {
    read->tokens.resize(hints.size_min);
    if (*kind == Kind::unigram) read->scores.resize(hints.size_min, 0.0);
  }
  auto unknown = read_unknown(model, *kind, *read);
  if (!unknown) return tl::unexpected(unknown.error());
  auto fallback = json_member_or<bool>(model, "byte_fallback", false);
  if (!fallback) return tl::unexpected(fallback.error());

  PipelineParts parts;
  if (auto done = read_normalizer(member_or_null(root, "normalizer"), parts.normalizer); !done) {
    return tl::unexpected(done.error());
  }
  if (parts.normalizer.growth() > kGrowthMax || decoder->growth() > kGrowthMax) {
    return bad("its replacements make texts grow without measure");
  }
  auto vocabulary = build_vocabulary(*read, *decoder, *fallback, *unknown);
  if (!vocabulary) return tl::unexpected(vocabulary.error());
  parts.vocabulary = std::move(*vocabulary);
  if (auto done = build_special(root, *read, hints, parts); !done) {
    return tl::unexpected(done.error());
  }
  auto segmenter =
      build_segmenter(model, *kind, *read, pretokenizer->byte_level, *unknown, parts.vocabulary);
  if (!segmenter) return tl::unexpected(segmenter.error());
  parts.segmenter = std::move(*segmenter);
  parts.pretokenizer = std::move(pretokenizer->steps);
  parts.drops_leading_space = decoder->drops_leading_space;
  parts.fingerprint = fingerprint(text, parts);
  return make_pipeline(std::move(parts));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tokenizer_json(std::string_view json,
                                                             const JsonTokenizerHints& hints) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) return bad("it is no JSON object, or cut short");
  return build(root, json, hints);
}

}  // namespace sluice::model
