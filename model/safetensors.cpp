#include "model/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "model/json_text.hpp"
#include "model/mapped_file.hpp"

// The format: https://huggingface.co/docs/safetensors. A u64 of the header's length, the header as
// a JSON object, the tensors' bytes.

static_assert(std::endian::native == std::endian::little, "safetensors is read in place");

namespace sluice::model {

struct SafetensorsFile::State {
  std::string name;
  MappedFile file;
  std::span<const std::byte> bytes;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<SafetensorsTensor> tensors;
  std::unordered_map<std::string_view, std::size_t> names;
};

namespace {

using kernels::Format;

constexpr std::uint64_t length_bytes = 8;
constexpr std::uint64_t header_bytes_max = 100'000'000;  // the reference implementation's limit
constexpr std::size_t name_bytes_max = 4096;
constexpr std::size_t dimensions_max = 8;

constexpr std::string_view damaged = "the file is damaged or no safetensors: fetch it again";

constexpr std::array types = std::to_array<SafetensorsType>({
    {"F32", 32, Format::f32},
    {"F16", 16, Format::f16},
    {"BF16", 16, Format::bf16},
    {"F64", 64, std::nullopt},
    {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},
    {"C64", 64, std::nullopt},
    {"I32", 32, std::nullopt},
    {"U32", 32, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"I8", 8, std::nullopt},
    {"U8", 8, std::nullopt},
    {"BOOL", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},
});

/// Takes the header's events and keeps tensors. Whatever stands where the format has no place for
/// it is refused, and so no depth or size beyond the format's own is ever held.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(SafetensorsFile::State& file) : file_(file) {}

  struct Offsets {
    std::uint64_t begin = 0, end = 0;
  };
  /// Per tensor, from the start of the data.
  const std::vector<Offsets>& offsets() const { return offsets_; }
  const std::optional<std::string>& complaint() const { return complaint_; }

  bool null() override { return misplaced("null"); }
  bool boolean(bool) override { return misplaced("a boolean"); }
  bool number_integer(number_integer_t) override { return misplaced("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return misplaced("a number that is no natural one of 64 bits");
  }
  bool binary(binary_t&) override { return misplaced("binary data"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& text) override;
  bool key(string_t& name) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return refuse("its header is no JSON from byte {} on", position + length_bytes);
  }

 private:
  /// What the value at hand is.
  enum class Field { nothing, type, shape, offsets, metadata };

  template <class... Args>
  bool refuse(fmt::format_string<Args...> text, Args&&... args) {
    if (!complaint_) complaint_ = fmt::format(text, std::forward<Args>(args)...);
    return false;
  }
  template <class... Args>
  bool refuse_tensor(fmt::format_string<Args...> text, Args&&... args) {
    return refuse("tensor {}: {}", shown(tensor_.name),
                  fmt::format(text, std::forward<Args>(args)...));
  }
  bool misplaced(std::string_view what);
  bool tensor_key(std::string_view name);
  bool finish_tensor();

  SafetensorsFile::State& file_;
  std::vector<Offsets> offsets_;
  int depth_ = 0;  ///< 1: the header, 2: a tensor or the metadata, 3: a shape or offsets
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  Field field_ = Field::nothing;
  SafetensorsTensor tensor_;
  std::vector<std::uint64_t> numbers_;  ///< of the array at hand
  bool has_shape_ = false;
  std::optional<Offsets> placed_;
  std::optional<std::string> complaint_;
};

bool HeaderReader::misplaced(std::string_view what) {
  if (depth_ == 0) return refuse("its header is {} where an object belongs", what);
  if (in_metadata_) return refuse("its __metadata__ has {} where texts belong", what);
  switch (field_) {
    case Field::type: return refuse_tensor("its dtype is {}", what);
    case Field::shape: return refuse_tensor("its shape has {}", what);
    case Field::offsets: return refuse_tensor("its data_offsets have {}", what);
    case Field::nothing:
    case Field::metadata: break;
  }
  return refuse_tensor("{} where its description belongs", what);
}

bool HeaderReader::start_object(std::size_t) {
  if (depth_ == 2 || depth_ == 3) return misplaced("an object");
  ++depth_;
  return true;
}

bool HeaderReader::end_object() {
  --depth_;
  if (depth_ != 1) return true;
  const bool tensor = !in_metadata_;
  in_metadata_ = false;
  return !tensor || finish_tensor();
}

bool HeaderReader::start_array(std::size_t) {
  if (depth_ != 2 || (field_ != Field::shape && field_ != Field::offsets)) {
    return misplaced("an array");
  }
  ++depth_;
  numbers_.clear();
  return true;
}

bool HeaderReader::end_array() {
  --depth_;
  if (field_ == Field::shape) {
    has_shape_ = true;
    tensor_.shape = numbers_;
    return true;
  }
  if (numbers_.size() != 2) {
    return refuse_tensor("its data_offsets are {} numbers, not 2", numbers_.size());
  }
  placed_ = Offsets{numbers_[0], numbers_[1]};
  return true;
}

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (depth_ != 3) return misplaced("a number");
  if (numbers_.size() == dimensions_max) {
    return refuse_tensor("more than {} dimensions", dimensions_max);
  }
  numbers_.push_back(value);
  return true;
}

bool HeaderReader::string(string_t& text) {
  if (depth_ == 2 && field_ == Field::metadata) {
    file_.metadata.back().second = std::move(text);
    return true;
  }
  if (depth_ != 2 || field_ != Field::type) return misplaced("a text");
  const auto* type = std::find_if(types.begin(), types.end(),
                                  [&](const SafetensorsType& one) { return one.name == text; });
  if (type == types.end()) return refuse_tensor("its dtype {} does not exist", shown(text));
  tensor_.type = type;
  return true;
}

bool HeaderReader::key(string_t& name) {
  if (name.size() > name_bytes_max) {
    return refuse("a name of {} bytes, at most {} are allowed", name.size(), name_bytes_max);
  }
  if (depth_ == 1) {
    tensor_ = {};
    field_ = Field::nothing;
    has_shape_ = false;
    placed_.reset();
    in_metadata_ = name == "__metadata__";
    if (in_metadata_ && std::exchange(metadata_seen_, true)) {
      return refuse("its __metadata__ appears twice");
    }
    if (name.empty()) return refuse("a tensor without a name");
    tensor_.name = std::move(name);
    return true;
  }
  if (!in_metadata_) return tensor_key(name);
  field_ = Field::metadata;
  file_.metadata.emplace_back(std::move(name), "");
  return true;
}

bool HeaderReader::tensor_key(std::string_view name) {
  const bool again = name == "dtype"          ? tensor_.type != nullptr
                     : name == "shape"        ? has_shape_
                     : name == "data_offsets" ? placed_.has_value()
                                              : false;
  if (again) return refuse_tensor("its {} appears twice", name);
  if (name == "dtype") {
    field_ = Field::type;
  } else if (name == "shape") {
    field_ = Field::shape;
  } else if (name == "data_offsets") {
    field_ = Field::offsets;
  } else {
    return refuse_tensor("its description has the unknown key {}", shown(name));
  }
  return true;
}

bool HeaderReader::finish_tensor() {
  if (tensor_.type == nullptr) return refuse_tensor("it has no dtype");
  if (!has_shape_) return refuse_tensor("it has no shape");
  if (!placed_) return refuse_tensor("it has no data_offsets");
  file_.tensors.push_back(std::move(tensor_));
  offsets_.push_back(*placed_);
  return true;
}

/// The bytes that a shape takes; nothing when they are no whole number or beyond 64 bits.
std::optional<std::uint64_t> bytes_of(const SafetensorsTensor& tensor) {
  std::uint64_t bits = tensor.type->bits;
  for (const std::uint64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

/// Gives every tensor its bytes and puts them in that order.
Result<void> place(SafetensorsFile::State& file, const std::vector<HeaderReader::Offsets>& offsets,
                   std::span<const std::byte> data) {
  const auto refuse = [&file](std::size_t tensor, std::string_view why) {
    return fail(ErrorCode::bad_file, "{}: tensor {}: {}; {}", file.name,
                shown(file.tensors[tensor].name), why, damaged);
  };
  std::vector<std::size_t> order(offsets.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(offsets[a].begin, offsets[a].end) <
           std::pair(offsets[b].begin, offsets[b].end);
  });
  std::uint64_t filled = 0;
  std::vector<SafetensorsTensor> placed;
  placed.reserve(order.size());
  for (const std::size_t i : order) {
    const auto [begin, end] = offsets[i];
    if (end < begin) return refuse(i, fmt::format("its bytes end at {}, before {}", end, begin));
    const auto bytes = bytes_of(file.tensors[i]);
    if (!bytes || *bytes != end - begin) {
      return refuse(i, fmt::format("its data_offsets hold {} bytes, which is not what the shape "
                                   "[{}] of {} takes", end - begin,
                                   fmt::join(file.tensors[i].shape, ", "),
                                   file.tensors[i].type->name));
    }
    if (end > data.size()) {
      return refuse(i, fmt::format("its bytes {} to {} reach beyond the file's {} bytes of data: "
                                   "it is truncated or lies", begin, end, data.size()));
    }
    if (begin < filled) {
      return refuse(i, fmt::format("it overlaps tensor {}", shown(placed.back().name)));
    }
    if (begin > filled) {
      return refuse(i, fmt::format("{} bytes before it belong to no tensor", begin - filled));
    }
    file.tensors[i].data = data.subspan(begin, end - begin);
    filled = end;
    placed.push_back(file.tensors[i]);
  }
  if (filled != data.size()) {
    return fail(ErrorCode::bad_file, "{}: the last {} bytes belong to no tensor; {}", file.name,
                data.size() - filled, damaged);
  }
  file.tensors = std::move(placed);
  return {};
}

Result<void> read(SafetensorsFile::State& file) {
  const auto refuse = [&file](std::string_view why) {
    return fail(ErrorCode::bad_file, "{}: {}; {}", file.name, why, damaged);
  };
  if (file.bytes.size() < length_bytes) {
    return refuse(fmt::format("it ends at byte {}, within its header", file.bytes.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.bytes.data(), sizeof length);
  if (length > header_bytes_max || length > file.bytes.size() - length_bytes) {
    return refuse(fmt::format("a header of {} bytes, where the file has {} left and {} are allowed",
                              length, file.bytes.size() - length_bytes, header_bytes_max));
  }
  const std::string_view header(
      reinterpret_cast<const char*>(file.bytes.data()) + length_bytes, length);
  if (!header.starts_with('{')) return refuse("its header does not start with '{'");
  HeaderReader reader(file);
  if (!Json::sax_parse(header, &reader)) return refuse(reader.complaint().value_or("no header"));
  if (auto placed = place(file, reader.offsets(), file.bytes.subspan(length_bytes + length));
      !placed) {
    return placed;
  }
  for (std::size_t i = 0; i < file.tensors.size(); ++i) {
    if (!file.names.emplace(file.tensors[i].name, i).second) {
      return refuse(fmt::format("tensor {} appears twice", shown(file.tensors[i].name)));
    }
  }
  return {};
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsFile::~SafetensorsFile() = default;

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::parse(
    std::unique_ptr<State> state) {
  if (auto done = read(*state); !done) return tl::unexpected<Error>(done.error());
  return std::shared_ptr<const SafetensorsFile>(new SafetensorsFile(std::move(state)));
}

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return tl::unexpected<Error>(file.error());
  auto state = std::make_unique<State>();
  state->name = path;
  state->file = std::move(*file);
  state->bytes = state->file.bytes();
  return parse(std::move(state));
}

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::parse(
    std::span<const std::byte> bytes, std::string name) {
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->bytes = bytes;
  return parse(std::move(state));
}

const std::string& SafetensorsFile::name() const { return state_->name; }
std::size_t SafetensorsFile::file_bytes() const { return state_->bytes.size(); }
kernels::FileSource SafetensorsFile::source() const { return state_->file.source(); }
std::span<const SafetensorsTensor> SafetensorsFile::tensors() const { return state_->tensors; }
std::span<const std::pair<std::string, std::string>> SafetensorsFile::metadata() const {
  return state_->metadata;
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = state_->names.find(name);
  return found == state_->names.end() ? nullptr : &state_->tensors[found->second];
}

}  // namespace sluice::model
