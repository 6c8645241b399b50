// Collectives as operations of a program: what a group of one computes is the reference's, a rank's
// part of an embedding or of a matrix' columns is what it should be, and a collective that fails
// fails its step and those after it, until the backend joins another group. Groups of several
// processes run whole models in tests/model/shards.cpp, and on devices in device_group.cpp.
#include <boost/test/unit_test.hpp>
#include <cstring>

#include "tests/kernels/harness.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

/// A tiny decoder whose residual is added up and whose logits are gathered.
TinyModel with_collectives() {
  TinyModel model = tiny_model({.logit_cap = 3.0F});
  StepProgram& program = model.program;
  const Buffer whole = model.logits;
  program.buffers.push_back(program.buffers[whole.index]);
  const Buffer own{static_cast<std::uint32_t>(program.buffers.size() - 1)};
  const Op sample = program.ops.back();
  program.ops.pop_back();
  for (Op& op : program.ops) {
    if (auto* linear = std::get_if<Linear>(&op); linear && linear->out.index == whole.index) {
      linear->out = own;
    }
    if (auto* cap = std::get_if<SoftCap>(&op)) cap->values = own;
  }
  std::get<Embed>(program.ops.front()).first_token = 0;
  const Buffer residual = std::get<Embed>(program.ops.front()).out;
  program.ops.insert(program.ops.begin() + 1, AllReduce{residual});
  program.ops.push_back(AllGather{own, whole});
  program.ops.push_back(sample);
  return model;
}

Batch prompt_of(std::uint32_t tokens, std::uint32_t generation, bool close = false) {
  Batch batch;
  SlotOpen open{{0, generation}, {}, tokens, {}};
  open.sampling.temperature = 0;
  for (Token t = 0; t < tokens; ++t) open.tokens.push_back(7 * t + 3);
  batch.opens.push_back(open);
  batch.grants.push_back({0, 0, {0, 1}});
  batch.segments.push_back({{0, generation}, 0, tokens, Path::prompt, true});
  if (close) batch.closes.push_back({0, generation});
  return batch;
}

std::string refusal(LoadedDevice& device, const StepProgram& program) {
  const auto recorded = device.backend->record(program);
  BOOST_REQUIRE(!recorded);
  BOOST_CHECK(recorded.error().code == ErrorCode::bad_request);
  return recorded.error().message;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(collectives)

BOOST_AUTO_TEST_CASE(a_group_of_one_changes_no_bit) {
  const TinyModel plain = tiny_model({.logit_cap = 3.0F});
  const TinyModel grouped = with_collectives();
  on_every_backend([&](const Tested& tested) {
    std::vector<std::vector<float>> logits;
    for (const TinyModel* model : {&plain, &grouped}) {
      LoadedDevice device(tested.make, *model);
      BOOST_TEST(device.backend->device().collectives == "");
      device.join(make_local_communicator());
      BOOST_TEST(device.backend->device().collectives != "");
      device.record();
      const StepResult result = device.run(prompt_of(20, 1));
      BOOST_TEST(!result.failed, result.error.message);
      logits.emplace_back(model->traits.vocabulary);
      BOOST_REQUIRE(device.backend->read(device.program, model->logits, logits.back()).has_value());
    }
    BOOST_TEST((logits[0] == logits[1]));
  });
}

BOOST_AUTO_TEST_CASE(a_part_of_the_embedding_gives_zeros_for_other_tokens) {
  TinyModel model = tiny_model({.format = Format::f32});
  const auto table = std::get<Embed>(model.program.ops.front()).table;
  // Tokens 50 to 149 of 300.
  Tensor& tensor = model.tensors[table.index];
  const std::size_t row = tensor.bytes.size() / tensor.host.rows;
  tensor.host.rows = 100;
  tensor.host.data = std::span(tensor.bytes).subspan(50 * row, 100 * row);
  model.program.ops.resize(1);
  auto& embed = std::get<Embed>(model.program.ops.front());
  embed.first_token = 50;
  Batch batch = prompt_of(30, 1);  // tokens 3 to 206
  batch.segments.front().sample = false;
  on_every_backend([&](const Tested& tested) {
    LoadedDevice device(tested.make, model);
    device.record();
    BOOST_TEST(!device.run(batch).failed);
    std::vector<float> rows(30 * model.traits.hidden);
    BOOST_REQUIRE(device.backend->read(device.program, embed.out, rows).has_value());
    std::size_t others = 0;
    for (Token r = 0; r < 30; ++r) {
      const Token token = 7 * r + 3;
      for (std::uint32_t i = 0; i < model.traits.hidden; ++i) {
        float due = 0;
        if (token >= 50 && token < 150) {
          std::memcpy(&due, tensor.bytes.data() + token * row + i * sizeof(float), sizeof due);
        } else {
          ++others;
        }
        BOOST_REQUIRE_EQUAL(rows[r * model.traits.hidden + i], due * embed.scale);
      }
    }
    BOOST_TEST(others > 0U);
  });
}

BOOST_AUTO_TEST_CASE(some_columns_of_a_matrix_are_as_a_matrix_of_them) {
  on_every_backend([](const Tested& backend) {
    for (std::size_t f = 0; f < format_count; ++f) {
      const auto format = static_cast<Format>(f);
      BOOST_TEST_CONTEXT(backend.name << ", " << info(format).name) {
        const std::uint32_t block = std::max(32U, info(format).block_elements);
        std::mt19937 random(5);
        const Tensor wide = random_tensor(random, format, 37, 5 * block, 0.1F);
        const std::size_t row = row_bytes(format, 5 * block);
        const std::size_t first = row_bytes(format, 2 * block);
        const std::size_t part = row_bytes(format, 2 * block);
        std::vector<std::byte> packed;
        for (std::size_t r = 0; r < 37; ++r) {
          const auto* from = wide.bytes.data() + r * row + first;
          packed.insert(packed.end(), from, from + part);
        }
        HostTensor strided{format, 37, 2 * block,
                           std::span(wide.bytes).subspan(first, 36 * row + part)};
        strided.row_stride = row;
        const HostTensor whole{format, 37, 2 * block, packed};
        const Tensor table = random_tensor(random, Format::f32, 300, 2 * block, 1.0F);
        std::vector<std::vector<float>> answers;
        for (const HostTensor& weight : {whole, strided}) {
          Results results;
          const auto device = backend.make(results.completion());
          TinyModel sizes;
          BOOST_REQUIRE(device->allocate(sizes.pool()).has_value());
          StepProgram program;
          program.buffers = {{RowSpace::batch, 2 * block}, {RowSpace::batch, 37}};
          program.ops.push_back(Embed{require(device->load(table.host)), Buffer{0}});
          program.ops.push_back(
              Linear{Buffer{0}, require(device->load(weight)), std::nullopt, Buffer{1}});
          const ProgramId id = require(device->record(program));
          Batch batch = prompt_of(9, 1);
          batch.segments.front().sample = false;
          device->submit(id, 1, batch);
          BOOST_TEST(!results.take().failed);
          answers.emplace_back(9 * 37);
          BOOST_REQUIRE(device->read(id, Buffer{1}, answers.back()).has_value());
        }
        BOOST_TEST((answers[0] == answers[1]));
        BOOST_TEST((answers[0] != std::vector<float>(9 * 37)));
        strided.row_stride = part - 1;
        const auto device = backend.make([](StepResult&&) {});
        const auto refused = device->load(strided);
        BOOST_REQUIRE(!refused);
        BOOST_CHECK(refused.error().code == ErrorCode::bad_request);
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(a_failed_collective_fails_its_step_and_those_after_it) {
  const TinyModel model = with_collectives();
  const auto check = [&](const Factory& make) {
    LoadedDevice device(make, model);
    const auto group = make_local_communicator();
    device.join(group);
    device.record();
    const StepResult before = device.run(prompt_of(20, 1));
    BOOST_REQUIRE(!before.failed);
    BOOST_CHECK(!group->failure());
    group->abort("the rank next door is gone");
    BOOST_REQUIRE(group->failure().has_value());
    Batch next;
    next.segments.push_back({{0, 1}, 20, 1, Path::decode, true});
    const StepResult failed = device.run(next);
    BOOST_TEST(failed.failed);
    BOOST_CHECK(failed.error.code == ErrorCode::unavailable);
    BOOST_TEST(failed.error.message.starts_with("rank 0 of 1: "), failed.error.message);
    BOOST_TEST(failed.error.message.ends_with(": aborted: the rank next door is gone"),
               failed.error.message);
    BOOST_TEST(failed.slots.empty());
    // Planned ahead on a token that was never drawn: must not run.
    next.segments.front().position = 21;
    next.sample_now = false;
    const StepResult later = device.run(next);
    BOOST_TEST(later.failed);
    BOOST_TEST(later.error.message == failed.error.message);
    device.backend->sample(device.ticket, {});  // was on its way

    device.join(make_local_communicator());
    const StepResult after = device.run(prompt_of(20, 2));  // the same slot: it is closed
    BOOST_TEST(!after.failed, after.error.message);
    BOOST_TEST(after.slots.at(0).tokens == before.slots.at(0).tokens,
               boost::test_tools::per_element());
  };
  check(on_cpu(1));
  on_every_backend([&](const Tested& tested) { check(tested.make); });
}

BOOST_AUTO_TEST_CASE(steps_that_wait_for_masks_end_with_their_group) {
  const TinyModel model = with_collectives();
  on_every_backend([&](const Tested& tested) {
    LoadedDevice device(tested.make, model);
    device.join(make_local_communicator());
    device.record();
    Batch held = prompt_of(20, 1);
    held.sample_now = false;
    device.backend->submit(device.program, ++device.ticket, std::move(held));
    device.join(make_local_communicator());
    const StepResult ended = device.results.take();
    BOOST_TEST(ended.failed);
    BOOST_CHECK(ended.error.code == ErrorCode::unavailable);
    BOOST_TEST(!device.run(prompt_of(20, 2)).failed);
  });
}

BOOST_AUTO_TEST_CASE(programs_that_do_not_fit_a_group_are_refused) {
  const TinyModel model = with_collectives();
  on_every_backend([&](const Tested& tested) {
    LoadedDevice device(tested.make, model);
    BOOST_TEST(refusal(device, model.program) ==
               "operation 1 (AllReduce): the backend has joined no group");
    device.join(make_local_communicator());
    StepProgram narrow = model.program;
    for (Op& op : narrow.ops) {
      if (auto* gather = std::get_if<AllGather>(&op)) gather->in = Buffer{0};
    }
    BOOST_TEST(refusal(device, narrow)
                   .find("(AllGather): an input of 256, where rank 0 of 1 has 300 "
                         "of the output's 300") != std::string::npos);
    StepProgram beyond = model.program;
    std::get<Embed>(beyond.ops.front()).first_token = 1;
    BOOST_TEST(refusal(device, beyond) ==
               "operation 0 (Embed): 300 tokens from 1 on are not in a vocabulary of 300");
    device.record();
    const auto start = require(prepare_tcp({0, 1}));
    BOOST_TEST(
        device.backend->join(require(start->connect({{start->address()}}, 1000))).has_value());
    BOOST_TEST(!device.run(prompt_of(20, 1)).failed);
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
