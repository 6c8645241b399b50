// Shows that the safetensors reader returns exactly what a file holds, and that a lying file or
// index is refused with a typed error that names the lie: each kind once by hand, then thousands of
// seeded random changes, where what is accepted must still keep every promise of the reader.
#include "model/safetensors.hpp"

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/model/safetensors_builder.hpp"

namespace sluice::model {
namespace {

using testing::safetensors_bytes;
using testing::SafetensorsBuilder;
using Bytes = std::vector<std::byte>;

template <class Read>
void check_refused(const Read& read, ErrorCode code, const std::vector<std::string>& parts) {
  BOOST_REQUIRE_MESSAGE(!read, "accepted, where this was due: " << parts.front());
  BOOST_TEST(to_string(read.error().code) == to_string(code));
  for (const std::string& part : parts) {
    BOOST_TEST(read.error().message.find(part) != std::string::npos,
               "'" << part << "' is missing in: " << read.error().message);
  }
}

/// A header over 8 bytes of data.
void refused(std::string_view header, const std::vector<std::string>& parts) {
  BOOST_TEST_CONTEXT(header) {
    const auto bytes = safetensors_bytes(header, Bytes(8));
    const auto file = SafetensorsFile::parse(bytes, "made.safetensors");
    check_refused(file, ErrorCode::bad_file, parts);
    BOOST_TEST(file.error().message.starts_with("made.safetensors: "));
  }
}

SafetensorsBuilder sample_file() {
  SafetensorsBuilder file;
  file.header["__metadata__"] = {{"format", "pt"}};
  file.tensor("a.weight", "F32", {2, 3}, Bytes(24, std::byte{1}));
  file.tensor("b", "BF16", {3}, Bytes(6, std::byte{2}));
  file.tensor("scalar", "I16", {}, Bytes(2, std::byte{3}));
  file.tensor("none", "F64", {0, 4}, {});
  file.tensor("four", "F4", {2, 2}, Bytes(2, std::byte{4}));
  return file;
}

/// What the reader promises of any file that it accepts.
std::size_t touch(const SafetensorsFile& file, std::size_t file_bytes) {
  std::size_t sum = 0;
  std::size_t data = 0;
  for (const SafetensorsTensor& tensor : file.tensors()) {
    BOOST_REQUIRE(file.find(tensor.name) == &tensor);
    std::uint64_t bits = tensor.type->bits;
    for (const std::uint64_t size : tensor.shape) bits *= size;
    BOOST_REQUIRE(bits == tensor.data.size() * 8);
    for (const std::byte byte : tensor.data) sum += static_cast<std::size_t>(byte);
    data += tensor.data.size();
  }
  BOOST_REQUIRE(data < file_bytes);
  return sum;
}

class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() /
                   fmt::format("sluice-safetensors-{}", ::getpid())) {
    std::filesystem::create_directory(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string path(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const Bytes& bytes) const {
    std::ofstream(path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
  }

 private:
  std::filesystem::path path_;
};

Bytes one_tensor(const std::string& name) {
  return SafetensorsBuilder().tensor(name, "F32", {2}, Bytes(8)).build();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(safetensors)

BOOST_AUTO_TEST_CASE(reads_every_kind_of_tensor) {
  const Bytes bytes = sample_file().build();
  const auto file = SafetensorsFile::parse(bytes, "made");
  BOOST_REQUIRE_MESSAGE(file, file.error().message);
  const SafetensorsFile& it = **file;
  BOOST_TEST(it.file_bytes() == bytes.size());
  BOOST_REQUIRE_EQUAL(it.metadata().size(), 1U);
  BOOST_TEST((it.metadata()[0].first == "format" && it.metadata()[0].second == "pt"));
  BOOST_TEST(it.tensors().size() == 5U);
  const SafetensorsTensor* matrix = it.find("a.weight");
  BOOST_REQUIRE(matrix != nullptr);
  BOOST_TEST((matrix->shape == std::vector<std::uint64_t>{2, 3}));
  BOOST_TEST((matrix->type->name == "F32" && matrix->type->format == kernels::Format::f32));
  BOOST_TEST((matrix->data.size() == 24U && matrix->data[23] == std::byte{1}));
  BOOST_TEST((it.find("b")->type->format == kernels::Format::bf16));
  BOOST_TEST((it.find("b")->data[0] == std::byte{2}));
  BOOST_TEST((it.find("scalar")->shape.empty() && it.find("scalar")->data.size() == 2U));
  BOOST_TEST((!it.find("scalar")->type->format && it.find("none")->data.empty()));
  BOOST_TEST(it.find("four")->data.size() == 2U);
  BOOST_TEST((it.find("c") == nullptr));
  const Bytes nothing = safetensors_bytes("{}", {});
  const auto empty = SafetensorsFile::parse(nothing, "empty");
  BOOST_TEST((empty && (*empty)->tensors().empty()));
}

BOOST_AUTO_TEST_CASE(refuses_a_truncated_file) {
  const Bytes whole = sample_file().build();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    const auto file = SafetensorsFile::parse(part, "cut");
    BOOST_REQUIRE_MESSAGE(!file, "accepted " << size << " bytes");
    BOOST_TEST((file.error().code == ErrorCode::bad_file));
  }
  const Bytes part(whole.begin(), whole.end() - 1);
  check_refused(SafetensorsFile::parse(part, "cut"), ErrorCode::bad_file,
                {"cut: ", "tensor 'four'", "reach beyond the file's 33 bytes of data"});
}

BOOST_AUTO_TEST_CASE(refuses_a_lying_header_length) {
  Bytes bytes = sample_file().build();
  for (const std::uint64_t length :
       {std::uint64_t{bytes.size()}, std::uint64_t{100'000'001}, ~std::uint64_t{0},
        std::uint64_t{0}, std::uint64_t{7}}) {
    std::memcpy(bytes.data(), &length, sizeof length);
    const auto file = SafetensorsFile::parse(bytes, "lying");
    BOOST_REQUIRE_MESSAGE(!file, "accepted a header of " << length);
    BOOST_TEST((file.error().code == ErrorCode::bad_file));
  }
  refused("", {"does not start with '{'"});
  refused(" {}", {"does not start with '{'"});
}

BOOST_AUTO_TEST_CASE(refuses_a_malformed_header) {
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  refused("{", {"no JSON"});
  refused("{\"a\xFF\":1}", {"no JSON"});
  refused(R"({"a":{)" + good + "}}{}", {"no JSON from byte"});
  refused(R"({"a":1})", {"tensor 'a': a number where its description belongs"});
  refused(R"({"a":[1]})", {"tensor 'a': an array where"});
  refused(R"({"a":{}})", {"tensor 'a': it has no dtype"});
  refused(R"({"a":{"dtype":"F32","shape":[2]}})", {"tensor 'a': it has no data_offsets"});
  refused(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", {"tensor 'a': it has no shape"});
  refused(R"({"a":{)" + good + R"(,"extra":1}})", {"unknown key 'extra'"});
  refused(R"({"a":{)" + good + R"(,"shape":[2]}})", {"its shape appears twice"});
  refused(R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})",
          {"tensor 'a': its dtype 'F99' does not exist"});
  refused(R"({"a":{"dtype":1}})", {"its dtype is a number"});
  refused(R"({"a":{"shape":["x"]}})", {"its shape has a text"});
  refused(R"({"a":{"shape":[[1]]}})", {"its shape has an array"});
  refused(R"({"a":{"shape":[-1]}})", {"its shape has a negative number"});
  refused(R"({"a":{"shape":[1.5]}})", {"its shape has a number that is no natural one"});
  refused(R"({"a":{"shape":[99999999999999999999]}})", {"no natural one of 64 bits"});
  refused(R"({"a":{"shape":[1,1,1,1,1,1,1,1,1]}})", {"more than 8 dimensions"});
  refused(R"({"a":{"data_offsets":[0]}})", {"its data_offsets are 1 numbers, not 2"});
  refused(R"({"a":{"data_offsets":{"b":[]}}})", {"its data_offsets have an object"});
  refused(R"({"":{)" + good + "}}", {"a tensor without a name"});
  refused(R"({")" + std::string(5000, 'x') + R"(":{)" + good + "}}", {"a name of 5000 bytes"});
  refused(R"({"__metadata__":{"x":1}})", {"its __metadata__ has a number where texts belong"});
  refused(R"({"__metadata__":[]})", {"its __metadata__ has an array"});
  refused(R"({"__metadata__":{},"__metadata__":{}})", {"its __metadata__ appears twice"});
  refused(R"({"__metadata__":{"x":)" + std::string(100'000, '['), {"has an array where texts"});
}

BOOST_AUTO_TEST_CASE(refuses_bytes_that_are_not_each_one_tensors) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + first +
           R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}";
  };
  const Bytes bytes = safetensors_bytes(two("[4,8]", "[0,4]"), Bytes(8));
  const auto fine = SafetensorsFile::parse(bytes, "fine");
  BOOST_REQUIRE_MESSAGE(fine, fine.error().message);
  BOOST_TEST((*fine)->tensors()[0].name == "b");
  refused(two("[0,4]", "[2,6]"), {"tensor 'b': it overlaps tensor 'a'"});
  refused(two("[0,4]", "[0,4]"), {"it overlaps tensor"});
  refused(two("[0,4]", "[5,9]"), {"tensor 'b'", "reach beyond the file's 8 bytes"});
  refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          {"tensor 'a': 4 bytes before it belong to no tensor"});
  refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          {"the last 4 bytes belong to no tensor"});
  refused(two("[0,4]", "[8,4]"), {"its bytes end at 4, before 8"});
  refused(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})",
          {"tensor 'a': its data_offsets hold 8 bytes", "[3] of F32"});
  refused(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", {"[3] of F4"});
  refused(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
          {"[4294967296, 4294967296] of F32"});
  refused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
          R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          {"tensor 'a' appears twice"});
}

BOOST_AUTO_TEST_CASE(random_changes_are_refused_or_harmless) {
  const Bytes whole = sample_file().build();
  std::mt19937 random(20240613);
  std::size_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    Bytes bytes = whole;
    for (std::uint32_t change = 0; change <= random() % 3; ++change) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 8));
    const auto exact = std::make_unique<std::byte[]>(bytes.size());
    std::copy(bytes.begin(), bytes.end(), exact.get());
    const auto file = SafetensorsFile::parse({exact.get(), bytes.size()}, "mutated");
    if (file) {
      ++accepted;
      touch(**file, bytes.size());
    } else {
      BOOST_REQUIRE(file.error().code == ErrorCode::bad_file);
      BOOST_REQUIRE(file.error().message.starts_with("mutated: "));
    }
  }
  BOOST_TEST(accepted > 500U);  // changes of data and names alone
}

BOOST_AUTO_TEST_CASE(an_index_finds_every_tensor_in_its_file) {
  const Folder folder;
  folder.write("one.safetensors", one_tensor("a"));
  folder.write("two.safetensors", one_tensor("b"));
  const std::string path = folder.path("model.safetensors.index.json");
  const auto with = [&](const std::string& map) {
    folder.write("model.safetensors.index.json", R"({"weight_map":)" + map + "}");
    return open_safetensors_index(path);
  };
  const auto good = with(R"({"b":"two.safetensors","a":"one.safetensors"})");
  BOOST_REQUIRE_MESSAGE(good, good.error().message);
  BOOST_REQUIRE_EQUAL(good->size(), 2U);
  BOOST_TEST((*good)[1]->find("b")->data.size() == 8U);
  check_refused(with(R"({"a":"one.safetensors","b":"three.safetensors"})"), ErrorCode::io,
                {"three.safetensors: No such file"});
  check_refused(with(R"({"a":"two.safetensors","b":"one.safetensors"})"), ErrorCode::bad_file,
                {path, "tensor 'a' is not in two.safetensors"});
  check_refused(with(R"({"a":"one.safetensors","c":"one.safetensors"})"), ErrorCode::bad_file,
                {"tensor 'c' is not in one.safetensors"});
  const Bytes one(1);
  folder.write("two.safetensors",
               SafetensorsBuilder().tensor("b", "U8", {1}, one).tensor("a", "U8", {1}, one)
                   .build());
  check_refused(with(R"({"a":"one.safetensors","b":"two.safetensors"})"), ErrorCode::bad_file,
                {"its files hold 3 tensors, it names 2"});
}

BOOST_AUTO_TEST_CASE(an_index_names_only_files_beside_it) {
  const auto parse = [](const std::string& json) {
    return parse_safetensors_index(json, "index.json");
  };
  for (const std::string file :
       {"../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors",
        "..\\\\one.safetensors", ".one.safetensors", "..", "", "one.bin",
        "one\\u0000.safetensors"}) {
    check_refused(parse(R"({"weight_map":{"a":")" + file + R"("}})"), ErrorCode::bad_file,
                  {"index.json: tensor 'a' is said to lie in '"});
  }
  check_refused(parse(R"({"weight_map":{"a":")" + std::string(250, 'x') + R"(.safetensors"}})"),
                ErrorCode::bad_file, {"no file name beside it"});
  check_refused(parse(R"({"weight_map":{"a":1}})"), ErrorCode::bad_file, {"'number'"});
  check_refused(parse(R"({"weight_map":{}})"), ErrorCode::bad_file, {"no weight_map"});
  check_refused(parse(R"({"weight_map":[]})"), ErrorCode::bad_file, {"no weight_map"});
  check_refused(parse(R"({"weight_map")"), ErrorCode::bad_file, {"no JSON object"});
  check_refused(parse("[]"), ErrorCode::bad_file, {"no JSON object"});
  check_refused(parse(R"({"a":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}"),
                ErrorCode::bad_file, {"nests 100001 deep"});
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
