#include "model/hf_checkpoint.hpp"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <unordered_map>
#include <utility>

#include "model/config_json.hpp"
#include "model/contents.hpp"
#include "model/hf_names.hpp"
#include "model/json_text.hpp"
#include "model/mapped_file.hpp"
#include "model/safetensors.hpp"
#include "model/tokenizer.hpp"

namespace sluice::model {
namespace {

namespace fs = std::filesystem;
using kernels::Format;
using Files = std::vector<std::shared_ptr<const SafetensorsFile>>;

// Far above what is found: vocabularies of 262,144 tokens take 33 MB.
constexpr std::size_t config_bytes_max = std::size_t{4} << 20;
constexpr std::size_t tokenizer_bytes_max = std::size_t{512} << 20;

constexpr std::string_view index_ending = ".safetensors.index.json";
constexpr std::size_t dimensions_max = 4;
constexpr std::size_t end_ids_max = 64;

bool is_there(const fs::path& path) {
  std::error_code none;
  return fs::exists(path, none);
}

class HfCheckpoint final : public Checkpoint {
 public:
  HfCheckpoint(std::string name, fs::path folder, MappedFile config, Files files)
      : name_(std::move(name)), folder_(std::move(folder)), config_file_(std::move(config)),
        files_(std::move(files)), config_(read_config_json(config_file_.text(), config_path())) {
    if (config_) config_->config.name = title();
    if (config_) adopt_tensors();
    if (config_) check_biases();
  }

  const std::string& name() const override { return name_; }
  std::string title() const override {
    std::error_code none;
    const fs::path whole = fs::absolute(folder_, none).lexically_normal();
    return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  }
  std::span<const Tensor> tensors() const override { return tensors_; }
  const Tensor* find_tensor(std::string_view name) const override {
    const auto found = places_.find(name);
    return found == places_.end() ? nullptr : &tensors_[found->second];
  }
  std::string spelled(std::string_view name) const override {
    return hf_name_of_part(name, branch_norms());
  }
  Result<ModelConfig> config() const override {
    if (!config_) return tl::unexpected<Error>(config_.error());
    return config_->config;
  }
  Result<std::shared_ptr<const Tokenizer>> tokenizer() const override;
  Result<std::optional<std::string>> chat_template() const override;
  std::string settings() const override;
  FileContents contents() const override;

 private:
  std::string config_path() const { return (folder_ / "config.json").string(); }
  bool branch_norms() const { return config_ && config_->config.branch_norms; }
  /// Whether the model has no use for it.
  bool idle(std::string_view name) const {
    return name.ends_with(".rotary_emb.inv_freq") ||
           (name == "lm_head.weight" && config_->config.tied_embeddings);
  }
  void adopt_tensors();
  Result<Tensor> adopt(const SafetensorsFile& file, const SafetensorsTensor& tensor);
  std::span<std::byte> hold(std::size_t bytes);
  std::span<const std::byte> as_floats(const SafetensorsTensor& tensor, Format format);
  void check_biases();

  /// A file beside the others as JSON; nothing when it is not there.
  Result<std::optional<Json>> optional_json(const char* name, std::size_t bytes_max) const;

  std::string name_;
  fs::path folder_;
  MappedFile config_file_;
  Files files_;
  Result<JsonConfig> config_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> places_;
  std::vector<std::unique_ptr<std::string>> parts_;     ///< what the tensors' names view
  std::vector<std::unique_ptr<std::byte[]>> converted_;  ///< what is not read in place
};

/// Memory for as long as this lives, aligned for any element.
std::span<std::byte> HfCheckpoint::hold(std::size_t bytes) {
  return {converted_.emplace_back(std::make_unique<std::byte[]>(bytes)).get(), bytes};
}

/// A vector as the decoder wants it.
std::span<const std::byte> HfCheckpoint::as_floats(const SafetensorsTensor& tensor,
                                                   Format format) {
  std::vector<float> values(tensor.data.size() / kernels::row_bytes(format, 1));
  kernels::dequantize(format, tensor.data, values);
  if (config_->gains_less_one && tensor.name.ends_with("norm.weight")) {
    for (float& value : values) value += 1.0F;
  }
  const auto bytes = std::as_bytes(std::span(values));
  const auto held = hold(bytes.size());
  std::copy(bytes.begin(), bytes.end(), held.begin());
  return held;
}

Result<Tensor> HfCheckpoint::adopt(const SafetensorsFile& file,
                                   const SafetensorsTensor& tensor) {
  constexpr std::uint64_t size_max = std::numeric_limits<std::uint32_t>::max();
  if (!tensor.type->format) {
    return fail(ErrorCode::unsupported, "{}: tensor {} is of {}; supported are F32, F16 and BF16: "
                "get the model in one of these", name_, shown(tensor.name), tensor.type->name);
  }
  std::uint64_t rows = 1;
  bool fits = !tensor.shape.empty() && tensor.shape.size() <= dimensions_max &&
              !tensor.data.empty() && tensor.shape.back() <= size_max;
  for (std::size_t d = 0; fits && d + 1 < tensor.shape.size(); ++d) {
    fits = !__builtin_mul_overflow(rows, tensor.shape[d], &rows) && rows <= size_max;
  }
  if (!fits) {
    return fail(ErrorCode::bad_file, "{}: tensor {} of shape [{}] is no vector or matrix of a "
                "model: fetch it again", name_, shown(tensor.name), fmt::join(tensor.shape, ", "));
  }
  Tensor out;
  out.name = *parts_.emplace_back(
      std::make_unique<std::string>(part_of_hf_name(tensor.name, branch_norms())));
  out.format = *tensor.type->format;
  out.shape.assign(tensor.shape.rbegin(), tensor.shape.rend());
  out.data = tensor.data;
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data.data());
  if (out.shape.size() == 1) {
    out.data = as_floats(tensor, out.format);
    out.format = Format::f32;
  } else if (address % kernels::row_bytes(out.format, 1) != 0) {
    const auto held = hold(out.data.size());
    std::copy(out.data.begin(), out.data.end(), held.begin());
    out.data = held;
  }
  if (out.data.data() == tensor.data.data()) out.source = file.source();
  return out;
}

void HfCheckpoint::adopt_tensors() {
  for (const auto& file : files_) {
    for (const SafetensorsTensor& tensor : file->tensors()) {
      if (idle(tensor.name)) continue;
      auto adopted = adopt(*file, tensor);
      if (!adopted) {
        config_ = tl::unexpected<Error>(adopted.error());
        return;
      }
      // Names are unique in and across files, and stay so as parts.
      const bool fresh = places_.emplace(adopted->name, tensors_.size()).second;
      SLUICE_ASSERT(fresh, "two tensors play one part");
      tensors_.push_back(std::move(*adopted));
    }
  }
}

/// The decoder adds what biases there are; they must be those that config.json tells of.
void HfCheckpoint::check_biases() {
  const std::pair<std::string_view, bool> due[] = {
      {"attn_q", config_->qkv_bias},         {"attn_k", config_->qkv_bias},
      {"attn_v", config_->qkv_bias},         {"attn_output", config_->attention_output_bias},
      {"ffn_gate", config_->feed_forward_bias}, {"ffn_up", config_->feed_forward_bias},
      {"ffn_down", config_->feed_forward_bias}};
  for (std::uint32_t layer = 0; layer < config_->config.layers; ++layer) {
    for (const auto& [part, wanted] : due) {
      const std::string weight = fmt::format("blk.{}.{}.weight", layer, part);
      const std::string bias = fmt::format("blk.{}.{}.bias", layer, part);
      if (find_tensor(weight) == nullptr || (find_tensor(bias) != nullptr) == wanted) continue;
      config_ = fail(ErrorCode::bad_file, "{}: tensor '{}' is {}, and by config.json it should {}: "
                     "the files do not belong together, fetch them again", name_, spelled(bias),
                     wanted ? "missing" : "there", wanted ? "be there" : "not");
      return;
    }
  }
}

Result<std::optional<Json>> HfCheckpoint::optional_json(const char* name,
                                                        std::size_t bytes_max) const {
  const std::string path = (folder_ / name).string();
  if (!is_there(path)) return std::nullopt;
  const auto file = MappedFile::open(path, bytes_max);
  if (!file) return tl::unexpected<Error>(file.error());
  auto json = parse_json_object(file->text(), path);
  if (!json) return tl::unexpected<Error>(json.error());
  return std::move(*json);
}

/// A token's spelling: a text, or an object that has it as "content".
std::optional<std::string> token_text(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object()) return std::nullopt;
  const auto content = found->find("content");
  if (content == found->end() || !content->is_string()) return std::nullopt;
  return content->get<std::string>();
}

/// Ids under `key`: one, or a list.
Result<void> add_token_ids(const Json& object, const char* key, std::string_view file,
                           std::vector<std::uint64_t>& into) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  const Json one = Json::array({*found});
  const Json& all = found->is_array() ? *found : one;
  for (const Json& id : all) {
    if (!id.is_number_unsigned() || all.size() > end_ids_max) {
      return fail(ErrorCode::bad_file, "{}: \"{}\" is no token id, nor a list of at most {}: get "
                  "the file again", file, key, end_ids_max);
    }
    into.push_back(id.get<std::uint64_t>());
  }
  return {};
}

Result<std::shared_ptr<const Tokenizer>> HfCheckpoint::tokenizer() const {
  if (!config_) return tl::unexpected<Error>(config_.error());
  const std::string path = (folder_ / "tokenizer.json").string();
  if (!is_there(path)) {
    return fail(ErrorCode::unsupported, "{}: it has no tokenizer.json, the only kind of tokenizer "
                "file that is read: save it again with transformers' AutoTokenizer", name_);
  }
  const auto file = MappedFile::open(path, tokenizer_bytes_max);
  if (!file) return tl::unexpected<Error>(file.error());
  JsonTokenizerHints hints;
  // No more than there are rows, whatever config.json claims.
  const Tensor* embedding = find_tensor("token_embd.weight");
  const std::uint32_t rows = embedding == nullptr ? 0 : embedding->matrix().rows;
  hints.size_min = std::min(config_->config.vocabulary, rows);
  const auto about = optional_json("tokenizer_config.json", tokenizer_bytes_max);
  if (!about) return tl::unexpected<Error>(about.error());
  if (*about) {
    hints.begin = token_text(**about, "bos_token");
    hints.end = token_text(**about, "eos_token");
  }
  // Where generation has ends of its own, they are the ones; config.json has the training's.
  for (const char* name : {"generation_config.json", "config.json"}) {
    const auto json = optional_json(name, config_bytes_max);
    if (!json) return tl::unexpected<Error>(json.error());
    if (!*json) continue;
    if (auto added = add_token_ids(**json, "eos_token_id", name, hints.end_ids); !added) {
      added.error().message = fmt::format("{}: {}", name_, added.error().message);
      return tl::unexpected<Error>(added.error());
    }
  }
  auto tokenizer = load_tokenizer_json(file->text(), hints);
  if (!tokenizer) {
    tokenizer.error().message = fmt::format("{}: {}", name_, tokenizer.error().message);
  }
  return tokenizer;
}

Result<std::optional<std::string>> HfCheckpoint::chat_template() const {
  const std::string path = (folder_ / "chat_template.jinja").string();
  if (is_there(path)) {
    const auto file = MappedFile::open(path, config_bytes_max);
    if (!file) return tl::unexpected<Error>(file.error());
    return std::string(file->text());
  }
  const auto about = optional_json("tokenizer_config.json", tokenizer_bytes_max);
  if (!about) return tl::unexpected<Error>(about.error());
  if (!*about) return std::nullopt;
  const auto found = (*about)->find("chat_template");
  if (found == (*about)->end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return std::nullopt;
  for (const Json& one : *found) {  // several by name
    if (!one.is_object() || one.value("name", Json()) != "default") continue;
    const auto text = one.find("template");
    if (text != one.end() && text->is_string()) return text->get<std::string>();
  }
  return std::nullopt;
}

/// All of config.json but for what it says of its own making.
std::string HfCheckpoint::settings() const {
  auto json = parse_json_object(config_file_.text(), name_);
  if (!json) return {};
  for (const char* key : {"_name_or_path", "transformers_version"}) json->erase(key);
  return "config.json\n" + json->dump();
}

/// A scalar of a file; nothing for null.
std::optional<std::pair<std::string, InspectValue>> plain(const Json& value) {
  switch (value.type()) {
    case Json::value_t::boolean: return std::pair{"bool", InspectValue(value.get<bool>())};
    case Json::value_t::number_unsigned:
      return std::pair{"unsigned", InspectValue(value.get<std::uint64_t>())};
    case Json::value_t::number_integer:
      return std::pair{"signed", InspectValue(value.get<std::int64_t>())};
    case Json::value_t::number_float: return std::pair{"float", InspectValue(value.get<double>())};
    case Json::value_t::string:
      return std::pair{"string", InspectValue(cleaned(value.get_ref<const std::string&>()))};
    default: return std::nullopt;
  }
}

void describe(const std::string& key, const Json& value, std::vector<InspectEntry>& into) {
  if (value.is_object()) {
    for (const auto& [name, inner] : value.items()) describe(key + "." + name, inner, into);
    return;
  }
  InspectEntry entry;
  entry.key = cleaned(key);
  if (const auto scalar = plain(value)) {
    entry.type = scalar->first;
    entry.values.push_back(scalar->second);
  } else if (value.is_array()) {
    entry.array = true;
    entry.count = value.size();
    for (const Json& one : value) {
      if (entry.values.size() == inspect_elements_max) break;
      const auto shown_one = plain(one);
      entry.type = shown_one ? shown_one->first : "json";
      entry.values.push_back(shown_one ? shown_one->second : InspectValue(cleaned(one.dump())));
    }
  } else {
    return;  // null
  }
  into.push_back(std::move(entry));
}

FileContents HfCheckpoint::contents() const {
  FileContents out;
  out.format = "safetensors";
  for (const auto& file : files_) {
    out.file_bytes += file->file_bytes();
    for (const SafetensorsTensor& tensor : file->tensors()) {
      out.tensors.push_back({cleaned(tensor.name), std::string(tensor.type->name),
                             {tensor.shape.rbegin(), tensor.shape.rend()}, tensor.data.size()});
    }
  }
  if (const auto json = parse_json_object(config_file_.text(), name_)) {
    for (const auto& [key, value] : json->items()) describe(key, value, out.metadata);
  }
  return out;
}

/// The index of which `file` is one part, if it is.
std::optional<fs::path> index_over(const fs::path& file) {
  const fs::path index = file.parent_path() / "model.safetensors.index.json";
  const auto text = MappedFile::open(index.string(), tokenizer_bytes_max);
  if (!text) return std::nullopt;
  const auto parsed = parse_safetensors_index(text->text(), index.string());
  if (!parsed) return std::nullopt;
  const auto& files = parsed->files;
  return std::binary_search(files.begin(), files.end(), file.filename().string())
             ? std::optional(index)
             : std::nullopt;
}

/// The file of weights, or the index over several.
Result<fs::path> find_weights(const fs::path& path, bool is_folder) {
  if (!is_folder) {
    const bool is_index = path.string().ends_with(index_ending);
    return is_index ? path : index_over(path).value_or(path);
  }
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (is_there(path / name)) return path / name;
  }
  return fail(ErrorCode::io, "{}: it has neither model.safetensors nor "
              "model.safetensors.index.json: give the folder of a model that is saved so",
              path.string());
}

Result<Files> open_weights(const fs::path& path) {
  if (path.string().ends_with(index_ending)) return open_safetensors_index(path.string());
  auto file = SafetensorsFile::open(path.string());
  if (!file) return tl::unexpected<Error>(file.error());
  return Files{std::move(*file)};
}

}  // namespace

Result<std::shared_ptr<const Checkpoint>> open_hf_checkpoint(const std::string& path) {
  std::error_code none;
  const bool is_folder = fs::is_directory(path, none);
  fs::path folder = is_folder ? fs::path(path) : fs::path(path).parent_path();
  if (folder.empty()) folder = ".";
  auto config = MappedFile::open((folder / "config.json").string(), config_bytes_max);
  if (!config) {
    Error error = config.error();
    if (is_folder && error.code == ErrorCode::io) {
      error.message += fmt::format("; {} is no folder of a model: give one, or a GGUF file", path);
    }
    return tl::unexpected<Error>(std::move(error));
  }
  const auto weights = find_weights(path, is_folder);
  if (!weights) return tl::unexpected<Error>(weights.error());
  auto files = open_weights(*weights);
  if (!files) return tl::unexpected<Error>(files.error());
  return std::make_shared<const HfCheckpoint>(path, folder, std::move(*config),
                                              std::move(*files));
}

}  // namespace sluice::model
