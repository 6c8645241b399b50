// Shows that a folder saved by transformers gives transformers' logits, whatever its weights' type,
// sharding and family, independent of the batch and with the bits that a GGUF file of the same
// weights gives; that its tokenizer, ends and chats are transformers' too; and that a folder which
// lacks something or contradicts itself is refused by name. Fixtures:
// scripts/fixtures/safetensors_checkpoints.py.
#include "model/hf_checkpoint.hpp"

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/chat_template.hpp"
#include "model/inspect.hpp"
#include "model/tokenizer.hpp"
#include "model/weights.hpp"
#include "tests/model/gguf_builder.hpp"
#include "tests/model/logits_check.hpp"
#include "tests/model/safetensors_builder.hpp"
#include "tests/places.hpp"

namespace sluice::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::LoadedModel;
using testing::require;

const std::vector<std::string> names = {"llama", "llama_yarn", "mistral", "qwen2",
                                        "qwen3", "gemma2",     "gemma3",  "with_tokenizer"};

fs::path folder_of(const std::string& name) {
  return fs::path(tests::fixtures_folder()) / "safetensors" / name;
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  BOOST_REQUIRE_MESSAGE(file.good(), "cannot open " << path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A copy of a fixture to be broken.
class Copy {
 public:
  explicit Copy(const std::string& name = "llama_yarn")
      : path_(fs::temp_directory_path() / fmt::format("sluice-hf-{}-{}", ::getpid(), ++made_)) {
    fs::copy(folder_of(name), path_);
    fs::permissions(path_, fs::perms::owner_all, fs::perm_options::add);
  }
  ~Copy() { fs::remove_all(path_); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  std::string path() const { return path_.string(); }
  fs::path file(const std::string& name) const { return path_ / name; }
  void remove(const std::string& name) const { fs::remove(file(name)); }
  void write(const std::string& name, const std::string& text) const {
    fs::remove(file(name));
    std::ofstream(file(name), std::ios::binary) << text;
  }
  void edit(const std::string& name, const std::function<void(json&)>& change) const {
    json whole = fs::exists(file(name)) ? json::parse(text_of(file(name))) : json::object();
    change(whole);
    write(name, whole.dump());
  }
  /// Changes the header of model.safetensors and keeps its data.
  void edit_header(const std::function<void(json&)>& change) const {
    const std::string whole = text_of(file("model.safetensors"));
    std::uint64_t length = 0;
    std::memcpy(&length, whole.data(), sizeof length);
    json header = json::parse(whole.substr(8, length));
    change(header);
    const std::string data = whole.substr(8 + length);
    const auto bytes = testing::safetensors_bytes(header.dump(), std::as_bytes(std::span(data)));
    write("model.safetensors",
          std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  void rename_tensor(const std::string& from, const std::string& to) const {
    edit_header([&](json& header) {
      header[to] = header.at(from);
      header.erase(from);
    });
  }

 private:
  static inline int made_ = 0;
  fs::path path_;
};

void check_error(const Error& error, ErrorCode code, const std::string& part) {
  BOOST_TEST(to_string(error.code) == to_string(code));
  BOOST_TEST(error.message.find(part) != std::string::npos,
             "'" << part << "' is missing in: " << error.message);
}

void refuses_to_open(const std::string& path, ErrorCode code, const std::string& part) {
  const auto opened = open_checkpoint(path);
  BOOST_REQUIRE_MESSAGE(!opened, "opened, where this was due: " << part);
  check_error(opened.error(), code, part);
}

/// Opens, and why the decoder would not load it.
void refuses_to_load(const Copy& copy, ErrorCode code, const std::string& part) {
  const auto checkpoint = require(open_checkpoint(copy.path()));
  const auto config = checkpoint->config();
  if (!config) return check_error(config.error(), code, part);
  const auto tensors = find_tensors(*checkpoint, *config);
  BOOST_REQUIRE_MESSAGE(!tensors, "accepted, where this was due: " << part);
  check_error(tensors.error(), code, part);
}

std::string fingerprint(const std::string& path) {
  return require(weights_fingerprint(*require(open_checkpoint(path))));
}

/// The same weights and settings as a GGUF file, as its converter would write them.
std::vector<std::byte> as_gguf(const Checkpoint& checkpoint, const std::string& architecture) {
  const ModelConfig config = require(checkpoint.config());
  testing::GgufBuilder file;
  file.text("general.architecture", architecture);
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", architecture, name); };
  file.u32(key("block_count"), config.layers);
  file.u32(key("context_length"), config.context_tokens);
  file.u32(key("embedding_length"), config.hidden);
  file.u32(key("feed_forward_length"), config.feed_forward);
  file.u32(key("attention.head_count"), config.heads.heads);
  file.u32(key("attention.head_count_kv"), config.heads.kv_heads);
  file.u32(key("attention.key_length"), config.heads.head_dim);
  file.u32(key("attention.value_length"), config.heads.head_dim);
  file.f32(key("attention.layer_norm_rms_epsilon"), config.norm_epsilon);
  file.f32(key("attention.scale"), config.attention_scale);
  file.f32(key("rope.freq_base"), config.rope.theta);
  file.u32(key("attention.sliding_window"), config.window);
  file.numbers<std::uint8_t>(key("attention.sliding_window_pattern"), testing::type_bool,
                             {config.local.begin(), config.local.end()});
  if (config.attention_soft_cap > 0) {
    file.f32(key("attn_logit_softcapping"), config.attention_soft_cap);
    file.f32(key("final_logit_softcapping"), config.logit_soft_cap);
  }
  for (const Tensor& tensor : checkpoint.tensors()) {
    file.tensor(tensor.name, tensor.shape, info(tensor.format).gguf_id, tensor.data);
  }
  return file.build();
}

std::vector<float> all_logits(const std::string& path, const std::vector<Token>& tokens) {
  LoadedModel model(path);
  std::vector<float> all;
  model.every_row(tokens, 32, [&](std::size_t, auto row) {
    all.insert(all.end(), row.begin(), row.end());
  });
  return all;
}

std::vector<Token> some_tokens() {
  std::vector<Token> tokens;
  for (Token i = 0; i < 50; ++i) tokens.push_back((7 + 31 * i) % 96);
  return tokens;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(hf_checkpoint)

BOOST_AUTO_TEST_CASE(logits_match_transformers) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) {
      testing::check_logits(folder_of(name).string(), (folder_of(name) / "logits.bin").string());
    }
  }
}

BOOST_AUTO_TEST_CASE(logits_do_not_depend_on_the_batch) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) {
      LoadedModel model(folder_of(name).string());
      auto tokens = some_tokens();
      tokens.resize(45);
      testing::check_invariance(model, tokens);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_gguf_file_of_the_same_weights_gives_the_same_bits) {
  for (const std::string name : {"qwen2", "qwen3", "gemma2"}) {
    BOOST_TEST_CONTEXT(name) {
      const Copy scratch(name);
      const auto bytes = as_gguf(*require(open_checkpoint(scratch.path())), name);
      scratch.write("twin.gguf",
                    std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
      const auto twin = all_logits(scratch.file("twin.gguf").string(), some_tokens());
      BOOST_TEST((twin == all_logits(scratch.path(), some_tokens())));
    }
  }
}

BOOST_AUTO_TEST_CASE(every_path_into_a_folder_opens_it) {
  const std::string folder = folder_of("mistral").string();
  const std::string whole = fingerprint(folder);
  for (const std::string path : {"/", "/.", "/model.safetensors.index.json",
                                 "/model-00003-of-00006.safetensors"}) {
    BOOST_TEST_CONTEXT(path) {
      BOOST_TEST(fingerprint(folder + path) == whole);
      BOOST_TEST(require(open_checkpoint(folder + path))->title() == "mistral");
    }
  }
  const std::string one = folder_of("llama").string();
  BOOST_TEST(fingerprint(one + "/model.safetensors") == fingerprint(one));
  BOOST_TEST(require(open_checkpoint(one))->name() == one);
}

BOOST_AUTO_TEST_CASE(vectors_come_as_floats_and_matrices_in_place) {
  const auto gemma = require(open_checkpoint(folder_of("gemma3").string()));
  const Tensor* norm = gemma->find_tensor("blk.0.post_ffw_norm.weight");
  BOOST_REQUIRE(norm != nullptr);
  BOOST_TEST((norm->format == kernels::Format::f32 && norm->data.size() == 4 * 64U));
  float first = 0;
  std::memcpy(&first, norm->data.data(), sizeof first);
  BOOST_TEST((first > 0.2 && first < 1.8));  // stored less 1
  BOOST_TEST((gemma->find_tensor("blk.0.ffn_up.weight")->format == kernels::Format::bf16));
  BOOST_TEST(gemma->spelled("blk.2.ffn_norm.weight") ==
             "model.layers.2.pre_feedforward_layernorm.weight");
  BOOST_TEST((gemma->find_tensor("output.weight") == nullptr));
}

BOOST_AUTO_TEST_CASE(what_the_model_does_not_compute_with_is_left_out) {
  const Copy copy;  // its embeddings are tied
  copy.edit_header([](json& header) {
    const std::uint64_t end = header.at("model.embed_tokens.weight").at("data_offsets").at(1);
    for (const auto& [name, tensor] : header.items()) {
      if (name == "__metadata__") continue;
      json& offsets = tensor.at("data_offsets");
      if (offsets.at(0) < end) continue;
      for (json& offset : offsets) offset = offset.get<std::uint64_t>() + 4;
    }
    header["lm_head.weight"] = {{"dtype", "F16"}, {"shape", {1}}, {"data_offsets", {end, end + 2}}};
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        {"dtype", "F16"}, {"shape", {1}}, {"data_offsets", {end + 2, end + 4}}};
  });
  const std::string whole = text_of(copy.file("model.safetensors"));
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof length);
  const json header = json::parse(whole.substr(8, length));
  const std::uint64_t end = header.at("model.embed_tokens.weight").at("data_offsets").at(1);
  const auto at = static_cast<std::ptrdiff_t>(8 + length + end);
  copy.write("model.safetensors", std::string(whole.begin(), whole.begin() + at) + "more" +
                                      std::string(whole.begin() + at, whole.end()));
  BOOST_TEST(fingerprint(copy.path()) == fingerprint(folder_of("llama_yarn").string()));
}

BOOST_AUTO_TEST_CASE(weights_that_lie_askew_compute_the_same) {
  const Copy copy("qwen3");
  const std::string whole = text_of(copy.file("model.safetensors"));
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof length);
  for (const std::uint64_t pad : {2, 4, 1}) {
    const std::uint64_t longer = length + pad;
    std::string askew = whole.substr(0, 8 + length) + std::string(pad, ' ') +
                        whole.substr(8 + length);
    std::memcpy(askew.data(), &longer, sizeof longer);
    copy.write("model.safetensors", askew);
    BOOST_TEST(fingerprint(copy.path()) == fingerprint(folder_of("qwen3").string()));
  }
  BOOST_TEST((all_logits(copy.path(), some_tokens()) ==
              all_logits(folder_of("qwen3").string(), some_tokens())));
}

BOOST_AUTO_TEST_CASE(the_fingerprint_covers_settings_and_weights) {
  const std::string plain = fingerprint(folder_of("llama_yarn").string());
  const Copy copy;
  copy.edit("config.json", [](json& config) {
    config["transformers_version"] = "9";
    config["_name_or_path"] = "/somewhere/else";
  });
  BOOST_TEST(fingerprint(copy.path()) == plain);
  copy.edit("config.json", [](json& config) { config["rms_norm_eps"] = 1e-6; });
  BOOST_TEST(fingerprint(copy.path()) != plain);
  const Copy other;
  std::string whole = text_of(other.file("model.safetensors"));
  whole.back() = static_cast<char>(whole.back() ^ 1);
  other.write("model.safetensors", whole);
  BOOST_TEST(fingerprint(other.path()) != plain);
}

BOOST_AUTO_TEST_CASE(refuses_a_folder_that_lacks_a_file) {
  refuses_to_open("/tmp", ErrorCode::io, "/tmp is no folder of a model");
  refuses_to_open("/nowhere/model.safetensors", ErrorCode::io, "/nowhere/config.json");
  const Copy copy;
  copy.remove("model.safetensors");
  refuses_to_open(copy.path(), ErrorCode::io, "neither model.safetensors nor");
  const Copy shards("mistral");
  shards.remove("model-00002-of-00006.safetensors");
  refuses_to_open(shards.path(), ErrorCode::io, "model-00002-of-00006.safetensors: No such file");
  const Copy escapes("mistral");
  escapes.edit("model.safetensors.index.json", [](json& index) {
    index["weight_map"]["model.norm.weight"] = "../model-00006-of-00006.safetensors";
  });
  refuses_to_open(escapes.path(), ErrorCode::bad_file, "no file name beside it");
  const Copy config;
  config.write("config.json", "{\"a\":");
  refuses_to_load(config, ErrorCode::bad_file, "config.json: it is no JSON object");
  config.write("config.json", "");
  refuses_to_open(config.path(), ErrorCode::bad_file, "config.json is empty");
}

BOOST_AUTO_TEST_CASE(refuses_tensors_that_do_not_fit) {
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  const Copy missing;
  missing.rename_tensor(up, "model.layers.1.mlp.other.weight");
  refuses_to_load(missing, ErrorCode::bad_file, "tensor '" + up + "' of shape [32, 48] is missing");
  const Copy extra;
  extra.edit("config.json", [](json& config) { config["num_hidden_layers"] = 2; });
  refuses_to_load(extra, ErrorCode::unsupported, "tensor 'model.layers.2.");
  const Copy shape;
  shape.edit_header([&](json& header) { header[up]["shape"] = {32, 48}; });
  refuses_to_load(shape, ErrorCode::bad_file, "tensor '" + up + "' has shape [48, 32], [32, 48]");
  const Copy type;
  type.edit_header([&](json& header) { header[up]["dtype"] = "I16"; });
  refuses_to_load(type, ErrorCode::unsupported, "tensor '" + up + "' is of I16");
  const Copy scalar;
  scalar.edit_header([&](json& header) { header[up]["shape"] = {48, 32, 1, 1, 1}; });
  refuses_to_load(scalar, ErrorCode::bad_file, "of shape [48, 32, 1, 1, 1] is no vector or matrix");
  // A name of this project's own plays no part in such a file.
  const Copy own;
  own.rename_tensor(up, "blk.1.ffn_up.weight");
  refuses_to_load(own, ErrorCode::bad_file, "tensor '" + up + "' of shape");
  own.rename_tensor("blk.1.ffn_up.weight", "hf.x");
  own.rename_tensor("model.norm.weight", "x");
  refuses_to_load(own, ErrorCode::bad_file, "tensor 'model.");
}

BOOST_AUTO_TEST_CASE(refuses_biases_that_the_configuration_does_not_tell_of) {
  const Copy untold("llama");
  untold.edit("config.json", [](json& config) { config["mlp_bias"] = false; });
  refuses_to_load(untold, ErrorCode::bad_file,
                  "tensor 'model.layers.0.mlp.gate_proj.bias' is there");
  const Copy missing;
  missing.edit("config.json", [](json& config) { config["attention_bias"] = true; });
  refuses_to_load(missing, ErrorCode::bad_file,
                  "tensor 'model.layers.0.self_attn.q_proj.bias' is missing");
}

BOOST_AUTO_TEST_CASE(ids_texts_and_chats_are_those_of_transformers) {
  const auto checkpoint = require(open_checkpoint(folder_of("with_tokenizer").string()));
  const auto tokenizer = require(checkpoint->tokenizer());
  const json fixture = json::parse(text_of(folder_of("with_tokenizer") / "texts.json"));
  BOOST_TEST(fixture.at("vocabulary") == 341);
  BOOST_TEST(tokenizer->size() == 360U);  // the weights' rows
  BOOST_TEST(tokenizer->bytes(359).empty());
  const auto ends = tokenizer->end_tokens();
  BOOST_REQUIRE_GE(ends.size(), 3U);
  BOOST_TEST(tokenizer->spelling(ends[0]) == "<|im_end|>");  // tokenizer_config.json
  BOOST_TEST(tokenizer->spelling(ends[1]) == "<end>");       // generation_config.json
  BOOST_TEST(tokenizer->spelling(ends[2]) == "</s>");        // config.json
  BOOST_TEST((tokenizer->is_control(ends[1]) && tokenizer->bytes(ends[1]).empty()));
  BOOST_TEST((tokenizer->adds_begin_of_text() && tokenizer->begin_of_text() == Token{0}));
  for (const json& one : fixture.at("texts")) {
    const std::string text = one.at("text");
    BOOST_TEST_CONTEXT(text) {
      BOOST_TEST((tokenizer->encode(text, false) == one.at("plain").get<std::vector<Token>>()));
      BOOST_TEST((tokenizer->encode(text, true) == one.at("special").get<std::vector<Token>>()));
    }
  }
  const auto jinja = require(checkpoint->chat_template());
  BOOST_REQUIRE(jinja.has_value());
  const auto chat = require(recognise_chat_template(*jinja));
  for (const json& one : fixture.at("chats")) {
    std::vector<ChatMessage> messages;
    for (const json& message : one.at("messages")) {
      messages.push_back({message.at("role"), message.at("content")});
    }
    auto due = one.at("ids").get<std::vector<Token>>();
    due.insert(due.begin(), 0);  // this tokenizer starts every text so; transformers' chats do not
    BOOST_TEST((require(encode_chat(chat, *tokenizer, messages)) == due));
  }
}

BOOST_AUTO_TEST_CASE(a_tokenizer_is_told_by_the_files_beside_it) {
  const auto load = [](const Copy& copy) {
    return require(open_checkpoint(copy.path()))->tokenizer();
  };
  const Copy copy("with_tokenizer");
  const std::string whole(require(load(copy))->fingerprint());
  copy.edit("tokenizer_config.json", [](json& about) {
    about["eos_token"] = {{"content", "</s>"}, {"special", true}};
  });
  copy.remove("generation_config.json");
  const auto other = require(load(copy));
  BOOST_TEST(other->spelling(other->end_tokens()[0]) == "</s>");
  BOOST_TEST(!other->is_control(other->find("<end>").value()));
  BOOST_TEST(other->fingerprint() != whole);
  copy.edit("config.json", [](json& config) { config["eos_token_id"] = 999; });
  check_error(load(copy).error(), ErrorCode::bad_file, "eos_token_id 999 in a vocabulary of 360");
  copy.edit("config.json", [](json& config) { config["eos_token_id"] = "x"; });
  check_error(load(copy).error(), ErrorCode::bad_file, "\"eos_token_id\" is no token id");
  copy.edit("config.json", [](json& config) { config["eos_token_id"] = std::vector<int>(65, 1); });
  check_error(load(copy).error(), ErrorCode::bad_file, "nor a list of at most 64");
  copy.edit("tokenizer_config.json", [](json& about) { about["eos_token"] = "<gone>"; });
  copy.edit("config.json", [](json& config) { config["eos_token_id"] = nullptr; });
  check_error(load(copy).error(), ErrorCode::bad_file, "eos_token '<gone>' is not in the");
  copy.remove("tokenizer_config.json");
  BOOST_TEST(load(copy).has_value());
  copy.edit("config.json", [](json& config) { config["vocab_size"] = 1 << 24; });
  BOOST_TEST(require(load(copy))->size() == 360U);  // no more than there are weights
  copy.remove("tokenizer.json");
  check_error(load(copy).error(), ErrorCode::unsupported, "it has no tokenizer.json");
}

BOOST_AUTO_TEST_CASE(a_chat_template_is_found_where_it_may_be) {
  const auto chat = [](const Copy& copy) {
    return require(require(open_checkpoint(copy.path()))->chat_template());
  };
  const Copy copy("with_tokenizer");
  BOOST_TEST(chat(copy).value().starts_with("{% for message"));
  copy.edit("tokenizer_config.json", [](json& about) { about["chat_template"] = "other"; });
  BOOST_TEST(chat(copy).value().starts_with("{% for message"));  // the file of its own wins
  copy.remove("chat_template.jinja");
  BOOST_TEST(chat(copy).value() == "other");
  copy.edit("tokenizer_config.json", [](json& about) {
    about["chat_template"] = json::parse(
        R"([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])");
  });
  BOOST_TEST(chat(copy).value() == "d");
  copy.remove("tokenizer_config.json");
  BOOST_TEST(!chat(copy).has_value());
}

BOOST_AUTO_TEST_CASE(a_description_shows_files_as_they_are) {
  const auto description = require(describe_file(folder_of("mistral").string()));
  BOOST_TEST(description.format == "safetensors");
  BOOST_TEST(!description.refusal);
  BOOST_TEST(description.fingerprint.size() == 64U);
  BOOST_TEST(description.config.value().architecture == "MistralForCausalLM");
  BOOST_REQUIRE_EQUAL(description.formats.size(), 1U);
  BOOST_TEST(description.formats[0].format == "BF16");
  BOOST_TEST(description.tensor_bytes == 2 * description.parameters);
  const auto has = [&](const std::string& key) {
    return std::any_of(description.metadata.begin(), description.metadata.end(),
                       [&](const InspectEntry& one) { return one.key == key; });
  };
  BOOST_TEST((has("hidden_size") && has("rope_parameters.factor") && has("architectures")));
  const Copy copy;
  copy.edit("config.json", [](json& config) { config["architectures"] = {"MambaForCausalLM"}; });
  const auto refused = require(describe_file(copy.path()));
  BOOST_TEST(refused.tensors.size() == 29U);
  BOOST_REQUIRE(refused.refusal.has_value());
  check_error(*refused.refusal, ErrorCode::unsupported, "'MambaForCausalLM' is not supported");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
