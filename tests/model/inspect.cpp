// Shows that a file's description says what the file holds, and why the decoder would refuse it.
#include "model/inspect.hpp"

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

#include "tests/model/tiny_llama.hpp"
#include "tests/places.hpp"

namespace sluice::model {
namespace {

using testing::GgufBuilder;
using testing::TinyLlama;

/// The file, written where `describe_file` can map it.
class Written {
 public:
  explicit Written(const TinyLlama& tiny)
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("sluice-inspect-{}.gguf", ::getpid())) {
    const auto bytes = tiny.bytes();
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  ~Written() { std::filesystem::remove(path_); }

  FileDescription describe() const {
    auto description = describe_file(path_);
    BOOST_REQUIRE_MESSAGE(description, description.error().message);
    return std::move(*description);
  }

 private:
  std::filesystem::path path_;
};

const InspectEntry& entry(const FileDescription& description, std::string_view key) {
  for (const InspectEntry& one : description.metadata) {
    if (one.key == key) return one;
  }
  BOOST_FAIL("no entry " << key);
  return description.metadata.front();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(inspect)

BOOST_AUTO_TEST_CASE(describes_a_model) {
  const std::string path = tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf");
  const auto read = describe_file(path);
  BOOST_REQUIRE_MESSAGE(read, read.error().message << "; run scripts/fetch-model.sh");
  BOOST_TEST(read->path == path);
  BOOST_TEST(read->version == 3U);
  BOOST_TEST(read->file_bytes == 98362432U);
  BOOST_TEST(read->metadata.size() == 33U);
  BOOST_TEST(read->tensors.size() == 272U);
  BOOST_TEST(read->parameters == 134515008U);
  BOOST_TEST(!read->refusal);
  BOOST_REQUIRE(read->config.has_value());
  BOOST_TEST(read->config->layers == 30U);
  BOOST_TEST(read->fingerprint.size() == 64U);
  BOOST_REQUIRE_EQUAL(read->formats.size(), 3U);
  BOOST_TEST(read->formats[0].format == "Q4_1");
  BOOST_TEST(read->formats[0].tensors == 210U);
  BOOST_TEST(read->formats[0].bytes == 66355200U);
  BOOST_TEST(read->formats[1].format == "Q8_0");
  BOOST_TEST(read->formats[2].format == "F32");
  BOOST_TEST(read->tensors[0].name == "token_embd.weight");
  BOOST_TEST(read->tensors[0].format == "Q8_0");
  BOOST_TEST((read->tensors[0].shape == std::vector<std::uint64_t>{576, 49152}));
  BOOST_TEST(read->tensors[0].bytes == 30081024U);
  const InspectEntry& tokens = entry(*read, "tokenizer.ggml.tokens");
  BOOST_TEST((tokens.array && tokens.type == "string" && tokens.count == 49152));
  BOOST_TEST(tokens.values.size() == 8U);
  BOOST_TEST(std::get<std::string>(tokens.values[2]) == "<|im_end|>");
}

BOOST_AUTO_TEST_CASE(shows_values_and_cuts_long_ones) {
  TinyLlama tiny;
  tiny.custom("list", [](GgufBuilder& file) {
    file.numbers<std::int32_t>("list", testing::type_i32, {-1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  });
  tiny.custom("flags", [](GgufBuilder& file) {
    file.numbers<std::uint8_t>("flags", testing::type_bool, {1, 0});
  });
  tiny.text("long", "x" + std::string(1000, 'y'));
  std::string accents = "x";
  for (int i = 0; i < 300; ++i) accents += "\xC3\xA9";
  tiny.text("accents", accents);
  tiny.text("broken", "a\xFF\xE2\x82z\xED\xA0\x80");
  const FileDescription read = Written(tiny).describe();
  const InspectEntry& list = entry(read, "list");
  BOOST_TEST((list.array && list.type == "signed" && list.count == 10));
  BOOST_TEST(list.values.size() == 8U);
  BOOST_TEST(std::get<std::int64_t>(list.values[0]) == -1);
  BOOST_TEST(!std::get<bool>(entry(read, "flags").values[1]));
  BOOST_TEST(entry(read, "flags").type == "bool");
  const InspectEntry& epsilon = entry(read, "llama.attention.layer_norm_rms_epsilon");
  BOOST_TEST((epsilon.type == "float" && !epsilon.array));
  BOOST_TEST(std::get<double>(epsilon.values[0]) == double{1e-5F});
  BOOST_TEST(std::get<std::uint64_t>(entry(read, "llama.block_count").values[0]) == 2U);
  const auto text = [&](std::string_view key) {
    return std::get<std::string>(entry(read, key).values[0]);
  };
  BOOST_TEST(text("general.name") == "tiny");
  BOOST_TEST(text("long") == "x" + std::string(253, 'y') + "…");
  BOOST_TEST(text("accents") == accents.substr(0, 255) + "…");
  const std::string replaced = "\xEF\xBF\xBD";
  BOOST_TEST(text("broken") == "a" + replaced + replaced + replaced + "z" + replaced + replaced +
                                   replaced);
}

BOOST_AUTO_TEST_CASE(says_why_the_decoder_would_refuse) {
  const FileDescription other =
      Written(TinyLlama().text("general.architecture", "mamba")).describe();
  BOOST_TEST(!other.config);
  BOOST_REQUIRE(other.refusal.has_value());
  BOOST_TEST((other.refusal->code == ErrorCode::unsupported));
  const FileDescription gap = Written(TinyLlama().without("blk.1.attn_v.weight")).describe();
  BOOST_TEST(gap.config.has_value());
  BOOST_REQUIRE(gap.refusal.has_value());
  BOOST_TEST((gap.refusal->code == ErrorCode::bad_file));
  BOOST_TEST(gap.refusal->message.find("'blk.1.attn_v.weight'") != std::string::npos);
  BOOST_TEST(gap.tensors.size() == 20U);
  BOOST_TEST(!describe_file("/nonexistent.gguf"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
