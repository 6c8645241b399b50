// Shows that the GGUF reader returns exactly what a file holds, and that a lying file is refused
// with a typed error that names the lie: each kind once by hand, then thousands of seeded random
// changes of a small file and of a real one's header, where what is accepted must still keep every
// promise of the reader (run under AddressSanitizer, nothing may be read outside the bytes).
#include "model/gguf.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/model/gguf_builder.hpp"
#include "tests/places.hpp"

namespace sluice::model {
namespace {

using testing::GgufBuilder;
using Bytes = std::vector<std::byte>;

constexpr std::uint32_t ggml_f32 = 0;
constexpr std::uint32_t ggml_q4_1 = 3;

/// Parses and expects a refusal with this code whose message holds every one of `parts`.
void refused(const Bytes& bytes, ErrorCode code, const std::vector<std::string>& parts) {
  const auto file = GgufFile::parse(bytes, "made.gguf");
  BOOST_REQUIRE_MESSAGE(!file, "accepted, where this was due: " << parts.front());
  BOOST_TEST(to_string(file.error().code) == to_string(code));
  BOOST_TEST(file.error().message.starts_with("made.gguf: "));
  for (const std::string& part : parts) {
    BOOST_TEST(file.error().message.find(part) != std::string::npos,
               "'" << part << "' is missing in: " << file.error().message);
  }
}

/// A small file with every type of value and two tensors.
GgufBuilder sample_file() {
  GgufBuilder file;
  file.text("general.architecture", "llama");
  file.value("a.u8", testing::type_u8, std::uint8_t{200});
  file.value("a.i8", testing::type_i8, std::int8_t{-100});
  file.value("a.u16", testing::type_u16, std::uint16_t{65535});
  file.value("a.i16", testing::type_i16, std::int16_t{-300});
  file.u32("a.u32", 4'000'000'000);
  file.value("a.i32", testing::type_i32, std::int32_t{-70000});
  file.f32("a.f32", 0.5F);
  file.value("a.u64", testing::type_u64, std::uint64_t{1} << 40);
  file.value("a.i64", testing::type_i64, std::int64_t{7});
  file.value("a.f64", testing::type_f64, 0.1);
  file.boolean("a.yes", true);
  file.boolean("a.no", false);
  file.texts("a.texts", {"one", "", "three"});
  file.numbers<std::int32_t>("a.ids", testing::type_i32, {1, -2, 3});
  file.numbers<float>("a.scores", testing::type_f32, {0.25F, -1.0F});
  file.numbers<std::uint16_t>("a.shorts", testing::type_u16, {9, 8});
  file.numbers<std::uint8_t>("a.flags", testing::type_bool, {1, 0, 1});
  const Bytes vector(12, std::byte{1});
  const Bytes matrix(2 * 2 * 20, std::byte{2});
  file.tensor("v.weight", {3}, ggml_f32, vector);
  file.tensor("m.weight", {64, 2}, ggml_q4_1, matrix);
  return file;
}

/// What the reader promises of any file that it accepts; reads every byte it hands out.
std::size_t touch(const GgufFile& file, bool all_data) {
  std::size_t sum = 0;
  const auto read = [&sum](std::string_view text) {
    for (const char c : text) sum += static_cast<unsigned char>(c);
  };
  for (const auto& entry : file.metadata()) {
    BOOST_REQUIRE(!entry.key.empty());
    BOOST_REQUIRE(file.find(entry.key) == &entry.value);
    read(entry.key);
    if (const auto* text = std::get_if<std::string_view>(&entry.value)) read(*text);
    if (const auto* array = std::get_if<GgufArray>(&entry.value)) {
      if (const auto* texts = std::get_if<std::vector<std::string_view>>(array)) {
        for (const auto one : *texts) read(one);
      }
    }
  }
  for (const Tensor& tensor : file.tensors()) {
    read(tensor.name);
    BOOST_REQUIRE(file.find_tensor(tensor.name) == &tensor);
    const auto matrix = tensor.matrix();
    BOOST_REQUIRE(matrix.rows > 0 && matrix.cols > 0);
    BOOST_REQUIRE(matrix.data.size() ==
                  matrix.rows * kernels::row_bytes(tensor.format, matrix.cols));
    if (all_data) {
      for (const std::byte byte : matrix.data) sum += static_cast<std::size_t>(byte);
    }
  }
  return sum;
}

bool is_refusal(const Error& error) {
  return (error.code == ErrorCode::bad_file || error.code == ErrorCode::unsupported) &&
         error.message.starts_with("mutated: ");
}

}  // namespace

BOOST_AUTO_TEST_SUITE(gguf)

BOOST_AUTO_TEST_CASE(reads_every_kind_of_value_and_tensor) {
  const Bytes bytes = sample_file().build();
  const auto file = GgufFile::parse(bytes, "made.gguf");
  BOOST_REQUIRE_MESSAGE(file, file.error().message);
  const GgufFile& it = **file;
  BOOST_TEST(it.version() == 3U);
  BOOST_TEST(it.file_bytes() == bytes.size());
  BOOST_TEST(it.metadata().size() == 18U);
  BOOST_TEST(it.string_value("general.architecture").value() == "llama");
  BOOST_TEST(it.unsigned_value("a.u8").value() == 200U);
  BOOST_TEST(it.unsigned_value("a.u16").value() == 65535U);
  BOOST_TEST(it.unsigned_value("a.u32").value() == 4'000'000'000U);
  BOOST_TEST(it.unsigned_value("a.u64").value() == std::uint64_t{1} << 40);
  BOOST_TEST(it.unsigned_value("a.i64").value() == 7U);
  BOOST_TEST(std::get<std::int64_t>(*it.find("a.i8")) == -100);
  BOOST_TEST(std::get<std::int64_t>(*it.find("a.i16")) == -300);
  BOOST_TEST(std::get<std::int64_t>(*it.find("a.i32")) == -70000);
  BOOST_TEST(it.float_value("a.f32").value() == 0.5);
  BOOST_TEST(it.float_value("a.f64").value() == 0.1);
  BOOST_TEST(std::get<bool>(*it.find("a.yes")));
  BOOST_TEST(!std::get<bool>(*it.find("a.no")));
  const auto array = [&it](std::string_view key) { return std::get<GgufArray>(*it.find(key)); };
  BOOST_TEST((array("a.texts") == GgufArray(std::vector<std::string_view>{"one", "", "three"})));
  BOOST_TEST((array("a.ids") == GgufArray(std::vector<std::int64_t>{1, -2, 3})));
  BOOST_TEST((array("a.scores") == GgufArray(std::vector<double>{0.25, -1.0})));
  BOOST_TEST((array("a.shorts") == GgufArray(std::vector<std::uint64_t>{9, 8})));
  BOOST_TEST((array("a.flags") == GgufArray(std::vector<bool>{true, false, true})));
  const Tensor* tensor = it.find_tensor("m.weight");
  BOOST_REQUIRE(tensor != nullptr);
  BOOST_TEST((tensor->format == kernels::Format::q4_1));
  BOOST_TEST((tensor->shape == std::vector<std::uint64_t>{64, 2}));
  BOOST_TEST(tensor->matrix().rows == 2U);
  BOOST_TEST(tensor->matrix().cols == 64U);
  BOOST_TEST(tensor->data.size() == 80U);
  BOOST_TEST((tensor->data.front() == std::byte{2} && tensor->data.back() == std::byte{2}));
  BOOST_TEST((it.find_tensor("v.weight")->data.front() == std::byte{1}));
  BOOST_TEST(it.find_tensor("none") == nullptr);
  BOOST_TEST(it.find("none") == nullptr);
}

BOOST_AUTO_TEST_CASE(reads_version_two_alignment_and_no_tensors) {
  GgufBuilder file = sample_file();
  file.version = 2;
  BOOST_TEST(GgufFile::parse(file.build(), "v2").value()->version() == 2U);

  GgufBuilder wide;
  wide.alignment = 256;
  wide.u32("general.alignment", 256);
  const Bytes data(4, std::byte{9});
  wide.tensor("a", {1}, ggml_f32, data).tensor("b", {1}, ggml_f32, data);
  const Bytes bytes = wide.build();
  const auto read = GgufFile::parse(bytes, "wide");
  BOOST_REQUIRE_MESSAGE(read, read.error().message);
  const auto tensors = (*read)->tensors();
  BOOST_TEST(tensors[0].data.data() - bytes.data() == 256);
  BOOST_TEST(tensors[1].data.data() - bytes.data() == 512);
  BOOST_TEST((tensors[1].data.front() == std::byte{9}));

  const Bytes empty = GgufBuilder().build();
  BOOST_TEST(GgufFile::parse(empty, "empty").value()->tensors().empty());
}

BOOST_AUTO_TEST_CASE(typed_look_ups_name_the_key) {
  const Bytes bytes = sample_file().build();
  const auto file = GgufFile::parse(bytes, "made.gguf").value();
  const auto missing = file->unsigned_value("llama.block_count");
  BOOST_REQUIRE(!missing);
  BOOST_TEST((missing.error().code == ErrorCode::bad_file));
  BOOST_TEST(missing.error().message.find("'llama.block_count'") != std::string::npos);
  BOOST_TEST(file->unsigned_value("a.i8").error().message.find("signed") != std::string::npos);
  BOOST_TEST(file->float_value("a.u8").error().message.find("'a.u8'") != std::string::npos);
  BOOST_TEST(!file->string_value("a.texts"));
}

BOOST_AUTO_TEST_CASE(refuses_a_lying_header) {
  GgufBuilder file;
  file.magic = "GGML";
  refused(file.build(), ErrorCode::bad_file, {"header", "'GGUF'"});
  refused({}, ErrorCode::bad_file, {"'GGUF'"});
  for (const std::uint32_t version : {0U, 1U, 4U}) {
    file = GgufBuilder();
    file.version = version;
    refused(file.build(), ErrorCode::unsupported, {"version " + std::to_string(version)});
  }
  file = GgufBuilder();
  file.version = 0x03000000;
  refused(file.build(), ErrorCode::unsupported, {"big endian"});
  for (const std::int64_t extra : {std::int64_t{1}, std::int64_t{1} << 62, std::int64_t{-3}}) {
    file = sample_file();
    file.extra_tensors = extra;
    refused(file.build(), ErrorCode::bad_file, {"tensor"});
    // Records read as the wrong kind: whatever they look like, something in them is off.
    file = sample_file();
    file.extra_entries = extra;
    refused(file.build(), ErrorCode::bad_file, {"damaged"});
  }
}

BOOST_AUTO_TEST_CASE(refuses_lying_metadata) {
  GgufBuilder file;
  file.entry("long", testing::type_string).put(std::uint64_t{1} << 63);
  refused(file.build(64), ErrorCode::bad_file, {"'long'", "9223372036854775808 bytes"});
  file = GgufBuilder();
  file.u32("", 1);
  refused(file.build(64), ErrorCode::bad_file, {"metadata entry 1 of 1", "empty"});
  file = GgufBuilder();
  file.u32(std::string(70000, 'k'), 1);
  refused(file.build(64), ErrorCode::bad_file, {"70000"});
  file = GgufBuilder();
  file.u32("twice", 1).u32("twice", 1);
  refused(file.build(64), ErrorCode::bad_file, {"'twice'", "appears twice"});
  file = GgufBuilder();
  file.u32("esc\x1b[2J\xff", 1).u32("esc\x1b[2J\xff", 1);
  refused(file.build(64), ErrorCode::bad_file, {"'esc\\x1b[2J\\xff'"});
  file = GgufBuilder();
  file.value("odd", 13, std::uint32_t{0});
  refused(file.build(64), ErrorCode::bad_file, {"'odd'", "type 13"});
  file = GgufBuilder();
  file.value("maybe", testing::type_bool, std::uint8_t{2});
  refused(file.build(64), ErrorCode::bad_file, {"'maybe'", "boolean"});
}

BOOST_AUTO_TEST_CASE(refuses_lying_arrays) {
  GgufBuilder file;
  file.numbers<std::uint32_t>("nested", testing::type_array, {testing::type_u8});
  refused(file.build(64), ErrorCode::unsupported, {"'nested'", "array of arrays"});
  file = GgufBuilder();
  file.numbers<std::uint32_t>("odd", 99, {1});
  refused(file.build(64), ErrorCode::bad_file, {"'odd'", "type 99"});
  file = GgufBuilder();
  file.numbers<std::uint8_t>("flags", testing::type_bool, {1, 3});
  refused(file.build(64), ErrorCode::bad_file, {"'flags'", "boolean"});
  for (const std::uint32_t type : {testing::type_u8, testing::type_f64, testing::type_string}) {
    file = GgufBuilder();
    file.entry("many", testing::type_array).put(type).put(std::uint64_t{1} << 61);
    refused(file.build(64), ErrorCode::bad_file, {"'many'", "a count of 2305843009213693952"});
  }
  file = GgufBuilder();
  auto& out = file.entry("texts", testing::type_array).put(std::uint32_t{testing::type_string});
  out.put(std::uint64_t{2}).string("fine").put(std::uint64_t{1000});
  refused(file.build(64), ErrorCode::bad_file, {"'texts'", "1000 bytes"});
}

BOOST_AUTO_TEST_CASE(refuses_a_lying_alignment) {
  for (const std::uint32_t alignment : {0U, 1U, 4U, 24U, 33U}) {
    GgufBuilder file;
    file.u32("general.alignment", alignment);
    refused(file.build(64), ErrorCode::bad_file, {"general.alignment", "power of two"});
  }
  GgufBuilder file;
  file.text("general.alignment", "32");
  refused(file.build(64), ErrorCode::bad_file, {"general.alignment"});
}

BOOST_AUTO_TEST_CASE(refuses_lying_tensor_records) {
  struct Case {
    std::vector<std::uint64_t> shape;
    std::uint32_t type;
    std::uint64_t offset;
    ErrorCode code;
    std::string part;
  };
  const std::uint64_t huge = std::uint64_t{1} << 33;
  const std::vector<Case> cases = {
      {{}, ggml_f32, 0, ErrorCode::bad_file, "0 dimensions"},
      {{1, 1, 1, 1, 1}, ggml_f32, 0, ErrorCode::bad_file, "5 dimensions"},
      {{4, 0}, ggml_f32, 0, ErrorCode::bad_file, "dimension 1 is zero"},
      {{33}, ggml_q4_1, 0, ErrorCode::bad_file, "block of 32"},
      {{4}, 10, 0, ErrorCode::unsupported, "Q2_K"},
      {{4}, 999, 0, ErrorCode::unsupported, "unknown"},
      {{huge}, ggml_f32, 0, ErrorCode::bad_file, "too large"},
      {{1, huge}, ggml_f32, 0, ErrorCode::bad_file, "too large"},
      {{1, huge, huge}, ggml_f32, 0, ErrorCode::bad_file, "too large"},
      {{huge / 4, huge / 8}, ggml_f32, 0, ErrorCode::bad_file, "beyond the file's"},
      {{std::uint64_t{1} << 31, 4294967295U}, ggml_f32, 0, ErrorCode::bad_file, "too large"},
      {{4}, ggml_f32, 8, ErrorCode::bad_file, "no multiple of the alignment 32"},
      {{4}, ggml_f32, 128, ErrorCode::bad_file, "beyond the file's 128 bytes"},
      {{4}, ggml_f32, ~std::uint64_t{31}, ErrorCode::bad_file, "beyond"},
      {{33}, ggml_f32, 0, ErrorCode::bad_file, "beyond the file's 128 bytes"},
  };
  for (const Case& one : cases) {
    GgufBuilder file;
    file.tensor("t.weight", one.shape, one.type, one.offset);
    refused(file.build(128), one.code, {"tensor 't.weight'", one.part});
  }
  GgufBuilder file;
  file.tensor("", {1}, ggml_f32, std::uint64_t{0});
  refused(file.build(128), ErrorCode::bad_file, {"tensor 1 of 1", "empty"});
  file = GgufBuilder();
  file.tensor(std::string(256, 'n'), {1}, ggml_f32, std::uint64_t{0});
  refused(file.build(128), ErrorCode::bad_file, {"256 bytes"});
}

BOOST_AUTO_TEST_CASE(refuses_tensors_that_overlap_or_share_a_name) {
  GgufBuilder file;
  file.tensor("b", {8}, ggml_f32, std::uint64_t{32}).tensor("a", {9}, ggml_f32, std::uint64_t{0});
  refused(file.build(128), ErrorCode::bad_file, {"tensor 'b'", "overlaps tensor 'a'"});
  file = GgufBuilder();
  file.tensor("a", {1}, ggml_f32, std::uint64_t{0}).tensor("a", {1}, ggml_f32, std::uint64_t{32});
  refused(file.build(128), ErrorCode::bad_file, {"tensor 'a'", "twice"});
  file = GgufBuilder();
  file.tensor("b", {8}, ggml_f32, std::uint64_t{32}).tensor("a", {8}, ggml_f32, std::uint64_t{0});
  const Bytes bytes = file.build(128);
  BOOST_TEST(GgufFile::parse(bytes, "fine").has_value());
}

BOOST_AUTO_TEST_CASE(refuses_every_truncation) {
  const Bytes whole = sample_file().build();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    const auto file = GgufFile::parse(part, "mutated");
    BOOST_REQUIRE_MESSAGE(!file, "accepted at " << size << " bytes");
    BOOST_REQUIRE(is_refusal(file.error()));
  }
}

BOOST_AUTO_TEST_CASE(survives_random_changes_of_a_small_file) {
  const Bytes whole = sample_file().build();
  std::mt19937 random(20240611);
  std::size_t refusals = 0;
  constexpr std::size_t rounds = 20000;
  for (std::size_t round = 0; round < rounds; ++round) {
    Bytes bytes = whole;
    for (std::size_t change = 0; change <= round % 3; ++change) {
      std::byte& at = bytes[random() % bytes.size()];
      at = random() % 2 == 0 ? at ^ std::byte(1U << random() % 8) : std::byte(random() % 256);
    }
    if (round % 5 == 0) bytes.resize(random() % bytes.size());
    const Bytes exact(bytes);  // a block of exactly this size: the sanitizer sees its end
    const auto file = GgufFile::parse(exact, "mutated");
    if (file) {
      touch(**file, true);
    } else {
      BOOST_REQUIRE_MESSAGE(is_refusal(file.error()), file.error().message);
      ++refusals;
    }
  }
  // Both happen often: changes of values pass, changes of structure do not.
  BOOST_TEST(refusals > rounds / 4);
  BOOST_TEST(refusals < rounds);
}

BOOST_AUTO_TEST_CASE(survives_random_changes_of_a_real_header) {
  const std::string path = tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf");
  const auto real = GgufFile::open(path);
  BOOST_REQUIRE_MESSAGE(real, real.error().message << "; run scripts/fetch-model.sh");
  const Tensor& first = *std::min_element(
      (*real)->tensors().begin(), (*real)->tensors().end(),
      [](const auto& a, const auto& b) { return a.data.data() < b.data.data(); });
  const auto* begin = reinterpret_cast<const std::byte*>((*real)->metadata()[0].key.data()) - 32;
  const auto header = static_cast<std::size_t>(first.data.data() - begin);

  // The header alone, changed; the tensors' bytes are never read, so only their room must be there:
  // anonymous pages of zeros.
  const std::size_t size = (*real)->file_bytes();
  void* room = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  BOOST_REQUIRE(room != MAP_FAILED);
  auto* bytes = static_cast<std::byte*>(room);
  std::copy(begin, begin + header, bytes);
  BOOST_TEST(GgufFile::parse({bytes, size}, "mutated").has_value());

  std::mt19937 random(7);
  std::size_t refusals = 0;
  constexpr std::size_t rounds = 1500;
  for (std::size_t round = 0; round < rounds; ++round) {
    // Mostly in the keys before the vocabulary and the tensor records after it; the rest is long.
    const std::size_t spot = round % 4 == 0   ? random() % header
                             : round % 4 == 1 ? random() % 1200
                                              : header - 1 - random() % 17000;
    const std::byte before = bytes[spot];
    bytes[spot] ^= std::byte(1U << random() % 8);
    const auto file = GgufFile::parse({bytes, size}, "mutated");
    if (file) {
      touch(**file, false);
    } else {
      BOOST_REQUIRE_MESSAGE(is_refusal(file.error()), file.error().message);
      ++refusals;
    }
    bytes[spot] = before;
  }
  ::munmap(room, size);
  BOOST_TEST(refusals > rounds / 4);
  BOOST_TEST(refusals < rounds);
}

BOOST_AUTO_TEST_CASE(opens_a_real_file) {
  const auto file = GgufFile::open(tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf"));
  BOOST_REQUIRE_MESSAGE(file, file.error().message << "; run scripts/fetch-model.sh");
  BOOST_TEST((*file)->metadata().size() == 33U);
  BOOST_TEST((*file)->tensors().size() == 272U);
  BOOST_TEST((*file)->file_bytes() == 98362432U);
  BOOST_TEST((*file)->string_value("general.architecture").value() == "llama");
  BOOST_TEST((*file)->unsigned_value("llama.block_count").value() == 30U);
  const auto* tokens = (*file)->find("tokenizer.ggml.tokens");
  BOOST_REQUIRE(tokens != nullptr);
  const auto& ids = std::get<std::vector<std::string_view>>(std::get<GgufArray>(*tokens));
  BOOST_TEST(ids.size() == 49152U);
  BOOST_TEST(ids[2] == "<|im_end|>");
  const Tensor* down = (*file)->find_tensor("blk.29.ffn_down.weight");
  BOOST_REQUIRE(down != nullptr);
  BOOST_TEST(down->matrix().rows == 576U);
  BOOST_TEST(down->matrix().cols == 1536U);
  BOOST_TEST((down->format == kernels::Format::q4_1));
}

BOOST_AUTO_TEST_CASE(says_why_a_path_cannot_be_opened) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("sluice-gguf-" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const auto missing = GgufFile::open(folder / "none.gguf");
  BOOST_REQUIRE(!missing);
  BOOST_TEST((missing.error().code == ErrorCode::io));
  BOOST_TEST(missing.error().message.find("none.gguf: No such file") != std::string::npos);
  const auto directory = GgufFile::open(folder);
  BOOST_REQUIRE(!directory);
  BOOST_TEST((directory.error().code == ErrorCode::io));
  BOOST_TEST(directory.error().message.find("is not a file") != std::string::npos);
  std::ofstream(folder / "empty.gguf").close();
  const auto empty = GgufFile::open(folder / "empty.gguf");
  BOOST_REQUIRE(!empty);
  BOOST_TEST((empty.error().code == ErrorCode::bad_file));
  std::ofstream(folder / "text.gguf") << "no model at all";
  const auto text = GgufFile::open(folder / "text.gguf");
  BOOST_REQUIRE(!text);
  BOOST_TEST((text.error().code == ErrorCode::bad_file));
  std::filesystem::remove_all(folder);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
