// Shows that loading refuses missing, misshaped and left-over tensors by name, gives the backend
// each tensor once with progress, and records the layers in order; that the fingerprint changes
// with weights, names, shapes and settings, and with nothing else. The backend is a stub that keeps
// what it was given; what the program computes, `golden` and `checkpoints` show.
#include "model/decoder.hpp"

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/model/tiny_llama.hpp"

namespace sluice::model {
namespace {

using kernels::Format;
using testing::ParsedTiny;
using testing::TinyLlama;

class StubBackend : public kernels::Backend {
 public:
  std::vector<kernels::HostTensor> loaded;
  std::vector<kernels::StepProgram> recorded;
  std::size_t room = 1000;

  const kernels::DeviceInfo& device() const override { return info_; }
  Result<kernels::Weight> load(const kernels::HostTensor& tensor) override {
    if (loaded.size() == room) return fail(ErrorCode::out_of_memory, "no room left");
    loaded.push_back(tensor);
    return kernels::Weight{static_cast<std::uint32_t>(loaded.size() - 1)};
  }
  Result<void> allocate(const kernels::PoolShape&) override { return {}; }
  Result<double> read_bandwidth(std::size_t) override { return 0.0; }
  Result<kernels::ProgramId> record(const kernels::StepProgram& program) override {
    recorded.push_back(program);
    return kernels::ProgramId{7};
  }
  void submit(kernels::ProgramId, kernels::Ticket, kernels::Batch) override {}
  void sample(kernels::Ticket, std::vector<kernels::Mask>) override {}
  Result<void> read(kernels::ProgramId, kernels::Buffer, std::span<float>) override { return {}; }

 private:
  kernels::DeviceInfo info_;
};

Result<Decoder> load(const ParsedTiny& tiny, StubBackend& backend, const Progress& progress = {},
                     const Shard& shard = {}) {
  auto config = read_config(*tiny.file);
  BOOST_REQUIRE_MESSAGE(config, config.error().message);
  return load_decoder(*tiny.file, *config, backend, progress, shard);
}

void refused(const TinyLlama& tiny, ErrorCode code, const std::string& part) {
  const ParsedTiny parsed(tiny);
  StubBackend backend;
  const auto decoder = load(parsed, backend);
  BOOST_REQUIRE_MESSAGE(!decoder, "accepted, where '" << part << "' was due");
  BOOST_TEST(to_string(decoder.error().code) == to_string(code));
  BOOST_TEST(decoder.error().message.find(part) != std::string::npos,
             "'" << part << "' is missing in: " << decoder.error().message);
  BOOST_TEST(backend.recorded.empty());
}

/// A letter an operation, in the order of Op's alternatives; sums over ranks are +, gathers |.
std::string kinds_of(const std::vector<kernels::Op>& ops) {
  std::string kinds;
  for (const kernels::Op& op : ops) kinds += "ENLRAGC+|Ss"[op.index()];
  return kinds;
}

std::string fingerprint(const TinyLlama& tiny) {
  return weights_fingerprint(*ParsedTiny(tiny).file).value();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(decoder)

BOOST_AUTO_TEST_CASE(loads_each_tensor_once_with_progress) {
  const ParsedTiny tiny{TinyLlama()};
  StubBackend backend;
  std::vector<std::size_t> done;
  std::size_t total = 0;
  const auto decoder = load(tiny, backend, [&](std::size_t bytes, std::size_t all) {
    done.push_back(bytes);
    total = all;
  });
  BOOST_REQUIRE_MESSAGE(decoder, decoder.error().message);
  BOOST_TEST(backend.loaded.size() == tiny.file->tensors().size() + 1);  // and the frequencies
  std::size_t bytes = 0;
  for (const Tensor& tensor : tiny.file->tensors()) bytes += tensor.data.size();
  BOOST_TEST(total == bytes);
  BOOST_TEST(done.size() == tiny.file->tensors().size());
  BOOST_TEST(std::is_sorted(done.begin(), done.end()));
  BOOST_TEST(done.back() == total);
  BOOST_TEST(decoder->weight_bytes == bytes - 39 * 32 * 4);  // one row of the embedding's 40
  BOOST_TEST(decoder->program.index == 7U);
  const auto& frequencies = backend.loaded.front();
  BOOST_TEST(frequencies.cols == 4U);
  BOOST_TEST(static_cast<const void*>(frequencies.data.data()) ==
             static_cast<const void*>(decoder->inverse_frequencies->data()));
}

BOOST_AUTO_TEST_CASE(records_the_layers_in_order) {
  TinyLlama with_bias;
  with_bias.tensor("blk.1.attn_k.bias", {{16}});
  const ParsedTiny tiny(with_bias);
  StubBackend backend;
  const auto decoder = load(tiny, backend);
  BOOST_REQUIRE_MESSAGE(decoder, decoder.error().message);
  const auto& ops = backend.recorded.at(0).ops;
  const std::string kinds = kinds_of(ops);
  BOOST_TEST(kinds == "ENLLLRALNLLGLNLLLRASSLNLLGLNLs");
  const auto& selected = std::get<kernels::Select>(ops[kinds.find('S')]);
  BOOST_TEST(selected.in.index == std::get<kernels::Attention>(ops[6 + 12]).out.index);
  for (std::size_t at = kinds.rfind('S') + 1; at < ops.size(); ++at) {
    std::visit(
        [&](const auto& op) {
          const auto& buffers = backend.recorded.at(0).buffers;
          if constexpr (requires { op.in; }) {
            BOOST_TEST((buffers[op.in.index].rows == kernels::RowSpace::sampled), "op " << at);
          }
        },
        ops[at]);
  }
  const auto& linear = [&](std::size_t at) { return std::get<kernels::Linear>(ops[at]); };
  BOOST_TEST(linear(2).out_column == 0U);
  BOOST_TEST(linear(3).out_column == 32U);
  BOOST_TEST(linear(4).out_column == 48U);
  BOOST_TEST(!linear(3).bias.has_value());
  BOOST_TEST(linear(3 + 12).bias.has_value());
  BOOST_TEST(backend.loaded[linear(3 + 12).bias->index].cols == 16U);
  BOOST_TEST(std::get<kernels::RopeStore>(ops[5 + 12]).layer == 1U);
  BOOST_TEST(std::get<kernels::Attention>(ops[6 + 12]).layer == 1U);
  BOOST_TEST((linear(7).accumulate && linear(12).accumulate && !linear(2).accumulate));
  BOOST_TEST(std::get<kernels::Sample>(ops.back()).logits.index == decoder->logits.index);
}

BOOST_AUTO_TEST_CASE(records_a_ranks_part) {
  TinyLlama with_biases;
  with_biases.tensor("blk.0.attn_k.bias", {{16}}).tensor("blk.0.ffn_down.bias", {{32}});
  const ParsedTiny tiny(with_biases);
  std::size_t weight_bytes = 0;
  for (const std::uint32_t rank : {0U, 1U}) {
    StubBackend backend;
    std::size_t done = 0, total = 0;
    const auto decoder = load(tiny, backend, [&](std::size_t bytes, std::size_t all) {
      done = bytes;
      total = all;
    }, {rank, 2});
    BOOST_REQUIRE_MESSAGE(decoder, decoder.error().message);
    BOOST_TEST(done == total);
    weight_bytes += decoder->weight_bytes;
    const auto& ops = backend.recorded.at(0).ops;
    BOOST_TEST(kinds_of(ops) == "E+NLLLRAL+NLLGL+NLLLRASSL+NLLGL+NL|s");
    const auto linear = [&](std::size_t at) { return std::get<kernels::Linear>(ops[at]); };
    const auto weight = [&](std::size_t at) { return backend.loaded[linear(at).weight.index]; };
    BOOST_TEST(*std::get<kernels::Embed>(ops[0]).first_token == 20 * rank);
    BOOST_TEST(weight(3).rows == 16U);   // two heads of eight
    BOOST_TEST(weight(4).rows == 8U);    // and their key head
    BOOST_TEST(weight(8).cols == 16U);   // whose columns the next product reads
    BOOST_TEST(weight(8).row_stride == 32 * sizeof(float));
    BOOST_TEST(weight(11).rows == 32U);  // half of the feed-forward
    BOOST_TEST(weight(14).cols == 32U);
    BOOST_TEST(weight(ops.size() - 3).rows == 20U);
    // One rank brings the residual, and the bias of what all add up.
    BOOST_TEST(linear(8).accumulate == (rank == 0));
    BOOST_TEST(linear(14).accumulate == (rank == 0));
    BOOST_TEST(linear(14).bias.has_value() == (rank == 0));
    BOOST_TEST(backend.loaded[linear(4).bias->index].cols == 8U);
    BOOST_TEST(std::get<kernels::RopeStore>(ops[6]).shape.heads == 2U);
    BOOST_TEST(std::get<kernels::RopeStore>(ops[6]).shape.kv_heads == 1U);
  }
  // Together what one rank reads, but for what both have whole: norms, and a row of the embedding.
  StubBackend alone;
  const std::size_t whole = 5 * 32 * sizeof(float) + 32 * sizeof(float);
  BOOST_TEST(weight_bytes == load(tiny, alone)->weight_bytes + whole);
}

/// gemma3's own tensors in each layer.
TinyLlama gemma3() {
  TinyLlama tiny = testing::of_family("gemma3");
  tiny.u32("gemma3.attention.sliding_window", 12).f32("gemma3.rope.freq_base", 1e6F);
  for (int layer = 0; layer < 7; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    tiny.tensor(prefix + "attn_q_norm.weight", {{8}}).tensor(prefix + "attn_k_norm.weight", {{8}});
    tiny.tensor(prefix + "post_attention_norm.weight", {{32}});
    tiny.tensor(prefix + "post_ffw_norm.weight", {{32}});
  }
  return tiny;
}

BOOST_AUTO_TEST_CASE(records_what_sets_a_family_apart) {
  TinyLlama capped = gemma3();
  capped.f32("gemma3.final_logit_softcapping", 30).f32("gemma3.attn_logit_softcapping", 50);
  const ParsedTiny tiny(capped);
  StubBackend backend;
  const auto decoder = load(tiny, backend);
  BOOST_REQUIRE_MESSAGE(decoder, decoder.error().message);
  BOOST_TEST(backend.loaded.size() == tiny.file->tensors().size() + 2);  // and both frequencies
  const auto& ops = backend.recorded.at(0).ops;
  const std::string kinds = kinds_of(ops);
  std::string due = "E";
  for (int layer = 0; layer < 6; ++layer) due += "NLLLRALNNLLGLN";
  BOOST_TEST(kinds == due + "NLLLRASSLNNLLGLN" + "NLCs");
  BOOST_TEST(std::get<kernels::Embed>(ops[0]).scale == std::sqrt(32.0F));
  for (std::size_t layer = 0; layer < 7; ++layer) {
    const auto rope = std::get<kernels::RopeStore>(ops[1 + 14 * layer + 4]);
    const auto attention = std::get<kernels::Attention>(ops[1 + 14 * layer + 5]);
    const std::size_t selections = layer == 6 ? 2 : 0;
    const auto branch = std::get<kernels::Norm>(ops[1 + 14 * layer + selections + 7]);
    const auto last = std::get<kernels::Norm>(ops[1 + 14 * layer + selections + 13]);
    BOOST_TEST(attention.window == (layer == 5 ? 0U : 12U));
    BOOST_TEST(attention.soft_cap == 50.0F);
    BOOST_TEST(rope.inverse_frequencies.index == (layer == 5 ? 0U : 1U));
    BOOST_REQUIRE(rope.norms.has_value());
    BOOST_TEST(rope.norms->epsilon == 1e-6F);
    const auto bytes_of = [&](kernels::Weight weight) {
      return static_cast<const void*>(backend.loaded[weight.index].data.data());
    };
    const auto tensor = [&](const std::string& name) {
      const std::string full = "blk." + std::to_string(layer) + "." + name + ".weight";
      return static_cast<const void*>(tiny.file->find_tensor(full)->data.data());
    };
    BOOST_TEST(bytes_of(rope.norms->q) == tensor("attn_q_norm"));
    BOOST_TEST(bytes_of(rope.norms->k) == tensor("attn_k_norm"));
    BOOST_TEST(bytes_of(branch.gain) == tensor("post_attention_norm"));
    BOOST_TEST(bytes_of(last.gain) == tensor("post_ffw_norm"));
    BOOST_TEST((branch.accumulate && last.accumulate));
  }
  BOOST_TEST(std::get<kernels::SoftCap>(ops[ops.size() - 2]).cap == 30.0F);
}

BOOST_AUTO_TEST_CASE(shares_tied_embeddings) {
  const ParsedTiny tiny(TinyLlama().without("output.weight"));
  StubBackend backend;
  const auto decoder = load(tiny, backend);
  BOOST_REQUIRE_MESSAGE(decoder, decoder.error().message);
  const auto& ops = backend.recorded.at(0).ops;
  const auto& output = std::get<kernels::Linear>(ops[ops.size() - 2]);
  BOOST_TEST(std::get<kernels::Embed>(ops.front()).table.index == output.weight.index);
  std::size_t bytes = 0;
  for (const Tensor& tensor : tiny.file->tensors()) bytes += tensor.data.size();
  BOOST_TEST(decoder->weight_bytes == bytes + 32 * 4);
}

BOOST_AUTO_TEST_CASE(refuses_tensors_that_do_not_fit) {
  for (const std::string name : {"output_norm.weight", "blk.1.attn_v.weight",
                                 "blk.0.ffn_norm.weight", "blk.1.ffn_down.weight"}) {
    refused(TinyLlama().without(name), ErrorCode::bad_file, "tensor '" + name + "' of shape [");
  }
  refused(TinyLlama().tensor("blk.0.attn_k.weight", {{32, 32}}), ErrorCode::bad_file,
          "tensor 'blk.0.attn_k.weight' has shape [32, 32], [32, 16] belongs there");
  refused(TinyLlama().tensor("token_embd.weight", {{64, 40}}), ErrorCode::bad_file, "[32, 40]");
  refused(TinyLlama().tensor("output.weight", {{32, 41}}), ErrorCode::bad_file, "[32, 40]");
  refused(TinyLlama().tensor("blk.0.attn_norm.weight", {{32}, Format::f16}),
          ErrorCode::unsupported, "'blk.0.attn_norm.weight' is F16");
  refused(TinyLlama().tensor("blk.0.attn_q_norm.weight", {{8}}), ErrorCode::unsupported,
          "'blk.0.attn_q_norm.weight' has no part");
  refused(gemma3().without("blk.3.post_ffw_norm.weight"), ErrorCode::bad_file,
          "'blk.3.post_ffw_norm.weight'");
  refused(gemma3().without("blk.3.attn_k_norm.weight"), ErrorCode::bad_file,
          "'blk.3.attn_k_norm.weight'");
  refused(gemma3().tensor("blk.3.attn_k_norm.weight", {{16}}), ErrorCode::bad_file, "[8] belongs");
  refused(TinyLlama().u32("llama.block_count", 1), ErrorCode::unsupported, "'blk.1.");
  refused(TinyLlama().u32("llama.block_count", 3), ErrorCode::bad_file, "'blk.2.attn_norm.weight'");
}

BOOST_AUTO_TEST_CASE(names_the_tensor_that_the_backend_refuses) {
  const ParsedTiny tiny{TinyLlama()};
  StubBackend backend;
  backend.room = 4;
  const auto decoder = load(tiny, backend);
  BOOST_REQUIRE(!decoder);
  BOOST_TEST((decoder.error().code == ErrorCode::out_of_memory));
  BOOST_TEST(decoder.error().message == "tiny.gguf: tensor 'blk.0.attn_k.weight': no room left");
}

BOOST_AUTO_TEST_CASE(fingerprint_covers_weights_and_settings) {
  const std::string plain = fingerprint(TinyLlama());
  BOOST_TEST(plain.size() == 64U);
  BOOST_TEST(plain == fingerprint(TinyLlama()));
  BOOST_TEST(plain == fingerprint(TinyLlama().text("general.name", "other")));
  BOOST_TEST(plain == fingerprint(TinyLlama().text("tokenizer.chat_template", "other")));
  BOOST_TEST(plain != fingerprint(TinyLlama().f32("llama.rope.freq_base", 5e5F)));
  BOOST_TEST(plain != fingerprint(TinyLlama().without("output.weight")));
  BOOST_TEST(plain != fingerprint(TinyLlama().tensor("extra", {{1}})));
  const auto with = [](TinyLlama::Tensor tensor) {
    return fingerprint(TinyLlama().tensor("output_norm.weight", std::move(tensor)));
  };
  BOOST_TEST(plain != with({{32}, Format::f32, std::byte{1}}));
  BOOST_TEST(plain != with({{8, 4}}));
  BOOST_TEST(plain != with({{64}, Format::f16}));
}

BOOST_AUTO_TEST_CASE(fingerprint_samples_large_tensors) {
  TinyLlama large;
  large.tensor("token_embd.weight", {{1024, 1024}});
  ParsedTiny tiny(large);
  const std::string plain = weights_fingerprint(*tiny.file).value();
  const Tensor* tensor = tiny.file->find_tensor("token_embd.weight");
  auto* data = tiny.bytes.data() + (tensor->data.data() - tiny.bytes.data());
  for (const std::size_t seen : {std::size_t{0}, tensor->data.size() - 1}) {
    data[seen] = std::byte{1};
    BOOST_TEST(weights_fingerprint(*tiny.file).value() != plain);
    data[seen] = std::byte{0};
  }
  data[(std::size_t{64} << 10) + 1] = std::byte{1};  // between the first two stretches
  BOOST_TEST(weights_fingerprint(*tiny.file).value() == plain);
}

BOOST_AUTO_TEST_CASE(fingerprint_of_a_file_is_that_of_its_bytes) {
  const ParsedTiny tiny(TinyLlama().tensor("token_embd.weight", {{1024, 1024}}));
  const auto path = std::filesystem::temp_directory_path() /
                    fmt::format("sluice-fingerprint-{}.gguf", ::getpid());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(tiny.bytes.data()),
             static_cast<std::streamsize>(tiny.bytes.size()));
  const auto opened = open_checkpoint(path).value();
  BOOST_TEST(weights_fingerprint(*opened).value() == weights_fingerprint(*tiny.file).value());
  std::filesystem::resize_file(path, tiny.bytes.size() / 2);
  const auto cut = weights_fingerprint(*opened);
  std::filesystem::remove(path);
  BOOST_REQUIRE(!cut);
  BOOST_TEST((cut.error().code == ErrorCode::io));
  BOOST_TEST(cut.error().message.starts_with(path.string()), cut.error().message);
  BOOST_TEST(cut.error().message.find("it was cut short") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
