#include "tests/actors/world.hpp"

#include <boost/test/unit_test.hpp>
#include <stdexcept>

namespace sluice::fakes {

World::World(WorldOptions options, std::shared_ptr<RecordingOutbox> recording)
    : NodeActors({recording,
                  [this](kernels::Completion completion) { return load(std::move(completion)); },
                  options.stream,
                  {}}),
      outbox(std::move(recording)),
      options_(options) {
  run();
}

Result<actors::LoadedEngine> World::load(kernels::Completion completion) {
  ++loads;
  const bool fails = loads == 1 ? options_.fail_first_load : loads <= 1 + options_.fail_loads;
  if (loads == 1 && options_.throw_first_load) throw std::runtime_error("loading threw on purpose");
  if (fails) return fail(ErrorCode::bad_file, "the model cannot be loaded on purpose");
  actors::LoadedEngine loaded;
  auto made = std::make_unique<bench::InstantBackend>(std::move(completion), options_.hold);
  backend = made.get();
  if (loads <= options_.deadly_loads) backend->die_next();
  loaded.backend = std::move(made);
  auto facts = std::make_shared<actors::EngineFacts>();
  facts->name = "bytes";
  facts->numerics = "00112233445566778899aabbccddeeff";
  if (loads > 1 && options_.other_numerics) facts->numerics[0] = 'f';
  facts->backend = "instant";
  facts->tokenizer = std::make_shared<ByteTokenizer>();
  facts->chat_refusal = {ErrorCode::unsupported, "bytes have no chat template", 0};
  facts->scheduler = {.slots = options_.slots,
                      .blocks = options_.blocks,
                      .block_tokens = 16,
                      .context_tokens = options_.context_tokens,
                      .rows_max = 64,
                      .queue_max = options_.queue_max};
  facts->scheduler.paths_equal = true;
  if (loads > 1 && options_.other_blocks != 0) facts->scheduler.blocks = options_.other_blocks;
  if (options_.cache) facts->scheduler.prefix_root = engine::BlockHash{};
  loaded.facts = std::move(facts);
  return loaded;
}

bool World::step() {
  const bool released = backend != nullptr && backend->release();
  run();
  return released;
}

void World::say(const std::string& peer, transport::Message message) {
  caf::anon_send(session, actors::inbound_atom::value, actors::Inbound{peer, std::move(message)});
  run();
}

transport::Submit World::submit(std::uint8_t name, const std::string& prompt,
                                std::uint32_t max_tokens) {
  transport::Submit submit;
  submit.stream.fill(name);
  submit.owner.fill(static_cast<std::uint8_t>(~name));
  submit.epoch = 1;
  submit.prompt = prompt;
  submit.sampling.seed = name;
  submit.max_tokens = max_tokens;
  submit.ignore_eos = true;
  return submit;
}

std::string World::expected(const std::string& prompt, std::uint64_t seed, std::uint32_t tokens) {
  std::vector<Token> ids = ByteTokenizer().encode(prompt, false);
  std::string text;
  for (std::uint32_t i = 0; i < tokens; ++i) {
    ids.push_back(bench::next_token(ids, seed));
    text += static_cast<char>(ids.back());
  }
  return text;
}

double World::stat(const std::string& name) {
  say("stats", transport::StatsRequest{});
  BOOST_REQUIRE(!heard("stats").empty());
  const auto message = heard("stats").back();
  for (const auto& [key, value] : std::get<transport::Stats>(message).values)
    if (key == name) return value;
  BOOST_FAIL("no such stat: " + name);
  return 0;
}

}  // namespace sluice::fakes
