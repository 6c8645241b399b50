#include "model/gguf.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "model/mapped_file.hpp"

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

namespace sluice::model {

struct GgufFile::State {
  std::string name;
  MappedFile file;
  std::span<const std::byte> bytes;
  std::uint32_t version = 0;
  std::vector<Entry> metadata;
  std::vector<Tensor> tensors;
  std::unordered_map<std::string_view, std::size_t> keys;
  std::unordered_map<std::string_view, std::size_t> tensor_names;
};

namespace {

// The GGUF specification's limits on names; a longer one is damage, not a name.
constexpr std::uint64_t key_bytes_max = 65535;
constexpr std::uint64_t tensor_name_bytes_max = 255;
constexpr std::uint32_t dimensions_max = 4;
constexpr std::uint64_t default_alignment = 32;
// The least bytes a record can take: what a count is held against before anything is reserved.
constexpr std::uint64_t entry_bytes_min = 8 + 1 + 4 + 1;
constexpr std::uint64_t tensor_bytes_min = 8 + 1 + 4 + 8 + 4 + 8;

constexpr std::string_view damaged = "the file is damaged or not GGUF: fetch it again";

enum class ValueType : std::uint32_t {
  u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64,
};

constexpr std::uint32_t value_type_count = 13;

/// Bytes of an element in the file, a string's least; 0 for an array.
constexpr std::array<std::uint64_t, value_type_count> value_bytes = {1, 1, 2, 2, 4, 4, 4,
                                                                     1, 8, 0, 8, 8, 8};

/// Names of ggml types that are not in the format table, so that a refusal can name them.
struct TypeName {
  std::uint32_t id;
  std::string_view name;
};
constexpr std::array other_types = std::to_array<TypeName>({
    {9, "Q8_1"},     {10, "Q2_K"},    {11, "Q3_K"},    {15, "Q8_K"},   {16, "IQ2_XXS"},
    {17, "IQ2_XS"},  {18, "IQ3_XXS"}, {19, "IQ1_S"},   {20, "IQ4_NL"}, {21, "IQ3_S"},
    {22, "IQ2_S"},   {23, "IQ4_XS"},  {24, "I8"},      {25, "I16"},    {26, "I32"},
    {27, "I64"},     {28, "F64"},     {29, "IQ1_M"},   {34, "TQ1_0"},  {35, "TQ2_0"},
    {39, "MXFP4"},
});

std::string supported_formats() {
  std::string names;
  for (std::size_t i = 0; i < kernels::format_count; ++i) {
    names += fmt::format("{}{}", i == 0 ? "" : ", ", info(static_cast<kernels::Format>(i)).name);
  }
  return names;
}

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

/// Reads a header front to back. The first error stays; everything read after it is zero, so the
/// code below needs to look only where it loops or allocates.
class Parser {
 public:
  explicit Parser(GgufFile::State& file) : file_(file) {}

  /// Fills the file's state from its bytes.
  Result<void> run();

 private:
  bool failed() const { return error_.has_value(); }
  std::uint64_t left() const { return file_.bytes.size() - at_; }

  template <class... Args>
  void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (failed()) return;
    const std::string why = fmt::format(text, std::forward<Args>(args)...);
    error_ = Error{code, fmt::format("{}: {}: {}", file_.name, what_, why), 0};
  }

  template <class T>
  T number() {
    T value{};
    if (failed()) return value;
    if (left() < sizeof value) {
      refuse(ErrorCode::bad_file, "the file ends at byte {}, {} more are needed; {}",
             file_.bytes.size(), sizeof value - left(), damaged);
      return value;
    }
    std::memcpy(&value, file_.bytes.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string_view string(std::uint64_t bytes_max);
  bool boolean();
  std::uint64_t count(std::uint64_t record_bytes_min);
  GgufValue value();
  GgufValue scalar(ValueType type);
  GgufArray array();

  template <class To, class From>
  GgufArray numbers(std::uint64_t count) {
    std::vector<To> values;
    values.reserve(count);
    for (std::uint64_t i = 0; i < count && !failed(); ++i) {
      values.push_back(static_cast<To>(number<From>()));
    }
    return values;
  }

  void preamble();
  void entry();
  void tensor();
  void alignment();
  void place();
  void check_overlap();

  GgufFile::State& file_;
  std::uint64_t at_ = 0;
  std::string what_ = "header";
  std::optional<Error> error_;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t entry_count_ = 0;
  std::uint64_t alignment_ = default_alignment;
  std::vector<std::uint64_t> offsets_;  ///< per tensor, from the start of the data
};

Result<void> Parser::run() {
  preamble();
  file_.metadata.reserve(failed() ? 0 : entry_count_);
  for (std::uint64_t i = 0; i < entry_count_ && !failed(); ++i) {
    what_ = fmt::format("metadata entry {} of {}", i + 1, entry_count_);
    entry();
  }
  alignment();
  file_.tensors.reserve(failed() ? 0 : tensor_count_);
  for (std::uint64_t i = 0; i < tensor_count_ && !failed(); ++i) {
    what_ = fmt::format("tensor {} of {}", i + 1, tensor_count_);
    tensor();
  }
  place();
  check_overlap();
  if (failed()) return tl::unexpected<Error>(*error_);
  return {};
}

std::string_view Parser::string(std::uint64_t bytes_max) {
  const auto length = number<std::uint64_t>();
  if (failed()) return {};
  if (length > left()) {
    refuse(ErrorCode::bad_file, "a string of {} bytes, where the file has {} left; {}", length,
           left(), damaged);
    return {};
  }
  if (length > bytes_max) {
    refuse(ErrorCode::bad_file, "a name of {} bytes, at most {} are allowed; {}", length,
           bytes_max, damaged);
    return {};
  }
  const auto* text = reinterpret_cast<const char*>(file_.bytes.data() + at_);
  at_ += length;
  return {text, length};
}

bool Parser::boolean() {
  const auto byte = number<std::uint8_t>();
  if (byte > 1) refuse(ErrorCode::bad_file, "a boolean of value {}; {}", byte, damaged);
  return byte == 1;
}

/// A count of records that the rest of the file could hold.
std::uint64_t Parser::count(std::uint64_t record_bytes_min) {
  const auto records = number<std::uint64_t>();
  if (failed()) return 0;
  if (records > left() / record_bytes_min) {
    refuse(ErrorCode::bad_file,
           "a count of {}, where the {} bytes left of the file hold at most {}; {}", records,
           left(), left() / record_bytes_min, damaged);
    return 0;
  }
  return records;
}

void Parser::preamble() {
  if (left() < 4 || std::memcmp(file_.bytes.data(), "GGUF", 4) != 0) {
    refuse(ErrorCode::bad_file, "it does not start with 'GGUF': not a GGUF file");
    return;
  }
  at_ = 4;
  file_.version = number<std::uint32_t>();
  if (failed()) return;
  if (file_.version != 0 && (file_.version & 0xFFFFU) == 0) {
    refuse(ErrorCode::unsupported,
           "the file is big endian; convert it to little endian (gguf-convert-endian)");
  } else if (file_.version < 2 || file_.version > 3) {
    refuse(ErrorCode::unsupported,
           "GGUF version {}, only 2 and 3 are supported; convert the model again", file_.version);
  }
  what_ = "header, number of tensors";
  tensor_count_ = count(tensor_bytes_min);
  what_ = "header, number of metadata entries";
  entry_count_ = count(entry_bytes_min);
}

void Parser::entry() {
  const std::string_view key = string(key_bytes_max);
  if (!failed() && key.empty()) refuse(ErrorCode::bad_file, "its key is empty; {}", damaged);
  if (failed()) return;
  what_ = fmt::format("metadata key {}", shown(key));
  if (!file_.keys.emplace(key, file_.metadata.size()).second) {
    refuse(ErrorCode::bad_file, "it appears twice; {}", damaged);
  }
  GgufValue read = value();
  if (!failed()) file_.metadata.push_back({key, std::move(read)});
}

GgufValue Parser::value() {
  const auto type = number<std::uint32_t>();
  if (type >= value_type_count) {
    refuse(ErrorCode::bad_file, "value type {} does not exist; {}", type, damaged);
  }
  if (failed()) return {};
  if (static_cast<ValueType>(type) == ValueType::array) return array();
  return scalar(static_cast<ValueType>(type));
}

GgufValue Parser::scalar(ValueType type) {
  switch (type) {
    case ValueType::u8: return std::uint64_t{number<std::uint8_t>()};
    case ValueType::u16: return std::uint64_t{number<std::uint16_t>()};
    case ValueType::u32: return std::uint64_t{number<std::uint32_t>()};
    case ValueType::u64: return number<std::uint64_t>();
    case ValueType::i8: return std::int64_t{number<std::int8_t>()};
    case ValueType::i16: return std::int64_t{number<std::int16_t>()};
    case ValueType::i32: return std::int64_t{number<std::int32_t>()};
    case ValueType::i64: return number<std::int64_t>();
    case ValueType::f32: return double{number<float>()};
    case ValueType::f64: return number<double>();
    case ValueType::boolean: return boolean();
    case ValueType::string: return string(std::numeric_limits<std::uint64_t>::max());
    case ValueType::array: break;
  }
  return {};
}

GgufArray Parser::array() {
  const auto type = number<std::uint32_t>();
  if (type >= value_type_count) {
    refuse(ErrorCode::bad_file, "an array of value type {}, which does not exist; {}", type,
           damaged);
  } else if (static_cast<ValueType>(type) == ValueType::array) {
    refuse(ErrorCode::unsupported, "an array of arrays; remove the key from the file");
  }
  if (failed()) return {};
  const std::uint64_t n = count(value_bytes[type]);
  switch (static_cast<ValueType>(type)) {
    case ValueType::u8: return numbers<std::uint64_t, std::uint8_t>(n);
    case ValueType::u16: return numbers<std::uint64_t, std::uint16_t>(n);
    case ValueType::u32: return numbers<std::uint64_t, std::uint32_t>(n);
    case ValueType::u64: return numbers<std::uint64_t, std::uint64_t>(n);
    case ValueType::i8: return numbers<std::int64_t, std::int8_t>(n);
    case ValueType::i16: return numbers<std::int64_t, std::int16_t>(n);
    case ValueType::i32: return numbers<std::int64_t, std::int32_t>(n);
    case ValueType::i64: return numbers<std::int64_t, std::int64_t>(n);
    case ValueType::f32: return numbers<double, float>(n);
    case ValueType::f64: return numbers<double, double>(n);
    case ValueType::boolean: {
      std::vector<bool> values;
      for (std::uint64_t i = 0; i < n && !failed(); ++i) values.push_back(boolean());
      return values;
    }
    case ValueType::string: {
      std::vector<std::string_view> values;
      values.reserve(n);
      for (std::uint64_t i = 0; i < n && !failed(); ++i) {
        values.push_back(string(std::numeric_limits<std::uint64_t>::max()));
      }
      return values;
    }
    case ValueType::array: break;
  }
  return {};
}

void Parser::alignment() {
  if (failed()) return;
  const auto found = file_.keys.find("general.alignment");
  if (found == file_.keys.end()) return;
  what_ = "metadata key 'general.alignment'";
  const auto* given = std::get_if<std::uint64_t>(&file_.metadata[found->second].value);
  // The specification asks for a multiple of 8, which is also what float32 loads need.
  if (given == nullptr || *given < 8 || !std::has_single_bit(*given) ||
      *given > std::numeric_limits<std::uint32_t>::max()) {
    refuse(ErrorCode::bad_file, "it must be a power of two from 8 on; {}", damaged);
    return;
  }
  alignment_ = *given;
}

void Parser::tensor() {
  Tensor tensor;
  tensor.name = string(tensor_name_bytes_max);
  if (!failed() && tensor.name.empty()) {
    refuse(ErrorCode::bad_file, "its name is empty; {}", damaged);
  }
  if (failed()) return;
  what_ = fmt::format("tensor {}", shown(tensor.name));
  if (!file_.tensor_names.emplace(tensor.name, file_.tensors.size()).second) {
    refuse(ErrorCode::bad_file, "it appears twice; {}", damaged);
  }
  const auto dimensions = number<std::uint32_t>();
  if (!failed() && (dimensions == 0 || dimensions > dimensions_max)) {
    refuse(ErrorCode::bad_file, "{} dimensions, 1 to {} are allowed; {}", dimensions,
           dimensions_max, damaged);
  }
  for (std::uint32_t i = 0; i < dimensions && !failed(); ++i) {
    tensor.shape.push_back(number<std::uint64_t>());
    if (!failed() && tensor.shape.back() == 0) {
      refuse(ErrorCode::bad_file, "dimension {} is zero; {}", i, damaged);
    }
  }
  const auto type = number<std::uint32_t>();
  const auto offset = number<std::uint64_t>();
  if (failed()) return;
  const kernels::FormatInfo* format = kernels::find_format(type);
  if (format == nullptr) {
    const auto* named = std::find_if(other_types.begin(), other_types.end(),
                                     [type](const TypeName& other) { return other.id == type; });
    refuse(ErrorCode::unsupported, "its format is {} (ggml type {}); supported are {}: get the "
           "model in one of these", named == other_types.end() ? "unknown" : named->name, type,
           supported_formats());
    return;
  }
  tensor.format = format->format;
  file_.tensors.push_back(std::move(tensor));
  offsets_.push_back(offset);
}

/// Gives every tensor its bytes, once the end of the header says where the data starts.
void Parser::place() {
  if (failed()) return;
  const std::uint64_t start = align_up(at_, alignment_);
  const std::uint64_t size = file_.bytes.size() > start ? file_.bytes.size() - start : 0;
  for (std::size_t i = 0; i < file_.tensors.size() && !failed(); ++i) {
    Tensor& tensor = file_.tensors[i];
    what_ = fmt::format("tensor {}", shown(tensor.name));
    const kernels::FormatInfo& format = info(tensor.format);
    const std::uint64_t columns = tensor.shape.front();
    if (columns % format.block_elements != 0) {
      refuse(ErrorCode::bad_file, "its rows of {} are no multiple of {}'s block of {}; {}", columns,
             format.name, format.block_elements, damaged);
    }
    std::uint64_t rows = 1;
    std::uint64_t bytes = 0;
    bool overflow = columns > std::numeric_limits<std::uint32_t>::max();
    for (std::size_t d = 1; d < tensor.shape.size(); ++d) {
      overflow |= __builtin_mul_overflow(rows, tensor.shape[d], &rows);
    }
    overflow |= rows > std::numeric_limits<std::uint32_t>::max();
    overflow |= __builtin_mul_overflow(columns / format.block_elements * format.block_bytes, rows,
                                       &bytes);
    if (overflow) {
      refuse(ErrorCode::bad_file, "its shape [{}] is too large; {}", fmt::join(tensor.shape, ", "),
             damaged);
    }
    if (offsets_[i] % alignment_ != 0) {
      refuse(ErrorCode::bad_file, "its offset {} is no multiple of the alignment {}; {}",
             offsets_[i], alignment_, damaged);
    }
    if (offsets_[i] > size || bytes > size - offsets_[i]) {
      refuse(ErrorCode::bad_file,
             "its {} bytes at offset {} reach beyond the file's {} bytes of data: it is truncated "
             "or lies; fetch it again", bytes, offsets_[i], size);
    }
    if (!failed()) tensor.data = file_.bytes.subspan(start + offsets_[i], bytes);
  }
}

void Parser::check_overlap() {
  if (failed()) return;
  std::vector<const Tensor*> ordered;
  ordered.reserve(file_.tensors.size());
  for (const Tensor& tensor : file_.tensors) ordered.push_back(&tensor);
  std::sort(ordered.begin(), ordered.end(), [](const Tensor* a, const Tensor* b) {
    return a->data.data() < b->data.data();
  });
  for (std::size_t i = 1; i < ordered.size() && !failed(); ++i) {
    const Tensor& before = *ordered[i - 1];
    if (before.data.data() + before.data.size() > ordered[i]->data.data()) {
      what_ = fmt::format("tensor {}", shown(ordered[i]->name));
      refuse(ErrorCode::bad_file, "it overlaps tensor {}; {}", shown(before.name), damaged);
    }
  }
}

std::string_view type_name(const GgufValue& value) {
  constexpr std::array<std::string_view, 6> names = {
      "an unsigned integer", "a signed integer", "a float", "a boolean", "a string", "an array"};
  return names[value.index()];
}

}  // namespace

GgufFile::GgufFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
GgufFile::~GgufFile() = default;

Result<std::shared_ptr<const GgufFile>> GgufFile::parse(std::unique_ptr<State> state) {
  if (auto parsed = Parser(*state).run(); !parsed) return tl::unexpected<Error>(parsed.error());
  for (Tensor& tensor : state->tensors) tensor.source = state->file.source();
  return std::shared_ptr<const GgufFile>(new GgufFile(std::move(state)));
}

Result<std::shared_ptr<const GgufFile>> GgufFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return tl::unexpected<Error>(file.error());
  auto state = std::make_unique<State>();
  state->name = path;
  state->file = std::move(*file);
  state->bytes = state->file.bytes();
  return parse(std::move(state));
}

Result<std::shared_ptr<const GgufFile>> GgufFile::parse(std::span<const std::byte> bytes,
                                                        std::string name) {
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->bytes = bytes;
  return parse(std::move(state));
}

const std::string& GgufFile::name() const { return state_->name; }
std::uint32_t GgufFile::version() const { return state_->version; }
std::size_t GgufFile::file_bytes() const { return state_->bytes.size(); }
std::span<const GgufFile::Entry> GgufFile::metadata() const { return state_->metadata; }
std::span<const Tensor> GgufFile::tensors() const { return state_->tensors; }

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = state_->keys.find(key);
  return found == state_->keys.end() ? nullptr : &state_->metadata[found->second].value;
}

const Tensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = state_->tensor_names.find(name);
  return found == state_->tensor_names.end() ? nullptr : &state_->tensors[found->second];
}

Result<const GgufValue*> GgufFile::need(std::string_view key, std::string_view expected) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return fail(ErrorCode::bad_file, "{}: metadata key '{}' ({}) is missing: the file is "
                "incomplete, convert the model again", name(), key, expected);
  }
  return value;
}

tl::unexpected<Error> GgufFile::wrong_type(std::string_view key, const GgufValue& value,
                                           std::string_view expected) const {
  return fail(ErrorCode::bad_file, "{}: metadata key '{}' is {} where {} belongs: convert the "
              "model again", name(), key, type_name(value), expected);
}

Result<std::uint64_t> GgufFile::unsigned_value(std::string_view key) const {
  constexpr std::string_view expected = "an unsigned integer";
  const auto value = need(key, expected);
  if (!value) return tl::unexpected<Error>(value.error());
  if (const auto* number = std::get_if<std::uint64_t>(*value)) return *number;
  // Some writers store every integer signed.
  if (const auto* number = std::get_if<std::int64_t>(*value); number != nullptr && *number >= 0) {
    return static_cast<std::uint64_t>(*number);
  }
  return wrong_type(key, **value, expected);
}

Result<double> GgufFile::float_value(std::string_view key) const {
  const auto value = need(key, "a float");
  if (!value) return tl::unexpected<Error>(value.error());
  if (const auto* number = std::get_if<double>(*value)) return *number;
  return wrong_type(key, **value, "a float");
}

Result<std::string_view> GgufFile::string_value(std::string_view key) const {
  const auto value = need(key, "a string");
  if (!value) return tl::unexpected<Error>(value.error());
  if (const auto* text = std::get_if<std::string_view>(*value)) return *text;
  return wrong_type(key, **value, "a string");
}

}  // namespace sluice::model
