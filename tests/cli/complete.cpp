// Shows that one completion comes out right, whole and as it is made: embedded, over a node, from
// an option, a file or a pipe, as text and as JSON. Runs the binary on SmolLM2, whose greedy answer
// to this prompt names Paris.

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "tests/cli/process.hpp"

using namespace sluice::test;

namespace {

const std::string prompt = "The capital of France is";

std::vector<std::string> greedy(std::vector<std::string> more) {
  more.insert(more.begin(), {"complete", "--max-tokens", "8", "--temperature", "0"});
  return more;
}

nlohmann::json json_of(const Exit& exit) {
  BOOST_REQUIRE_MESSAGE(exit.code == 0, exit.err);
  return nlohmann::json::parse(exit.out);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(complete)

BOOST_AUTO_TEST_CASE(json_names_paris_and_has_every_key) {
  const auto out = json_of(run(greedy({"--model", model, "--prompt", prompt, "--json"})));
  BOOST_TEST(contains(out.at("text"), "Paris"), out.dump());
  BOOST_TEST(out.at("tokens").size() == 8U);
  BOOST_TEST(out.at("finish_reason") == "length");
  BOOST_TEST(out.at("usage").at("prompt_tokens") == 5);
  BOOST_TEST(out.at("usage").at("completion_tokens") == 8);
  BOOST_TEST(out.at("usage").contains("cached_tokens"));
  for (const char* const key : {"queue_ms", "ttft_ms", "tpot_ms", "e2el_ms"}) {
    BOOST_TEST(out.at("timing").at(key).get<double>() >= 0.0, key);
  }
  const auto& timing = out.at("timing");
  BOOST_TEST(timing.at("ttft_ms").get<double>() <= timing.at("e2el_ms").get<double>());
  BOOST_TEST(out.at("stream").get<std::string>().size() == 32U);
  BOOST_TEST(out.at("chain").get<std::string>().size() == 32U);
  BOOST_TEST(out.at("chain").get<std::string>() != std::string(32, '0'));
  BOOST_TEST(out.at("seed").is_number_unsigned());
  BOOST_TEST(out.at("backend") == "cpu");
  BOOST_TEST(out.at("site") == "local");
}

BOOST_AUTO_TEST_CASE(kept_weights_give_the_same_tokens) {
  const ScratchFolder folder;
  const auto tokens = [&](const std::string& cache) {
    return json_of(run(greedy({"--model", model, "--prompt", prompt, "--json", "--seed", "1",
                               "--weight-cache", cache})))
        .at("tokens");
  };
  const auto expected = tokens("");
  for (int i = 0; i < 2; ++i) BOOST_TEST(tokens(folder.file("cache")) == expected);
}

BOOST_AUTO_TEST_CASE(a_folder_of_transformers_gives_its_tokens) {
  const std::string folder = SLUICE_FIXTURES "/safetensors/with_tokenizer";
  std::ifstream file(folder + "/texts.json");
  const auto due = nlohmann::json::parse(file).at("greedy");
  const std::string start = due.at("prompt");
  const auto of = [&](const std::string& path) {
    return json_of(run(greedy({"--model", path, "--prompt", start, "--seed", "5", "--json"})));
  };
  const auto out = of(folder);
  BOOST_TEST(out.at("tokens") == due.at("ids"));
  BOOST_TEST(out.at("usage").at("prompt_tokens") == due.at("prompt_ids").size());
  BOOST_TEST(out.at("model") == "with_tokenizer");
  BOOST_TEST(of(folder + "/model.safetensors").at("chain") == out.at("chain"));

  const Exit shown = run({"inspect", folder});
  BOOST_TEST(shown.code == 0, shown.err);
  BOOST_TEST(contains(shown.out, ": safetensors, "), shown.out);
  BOOST_TEST(contains(shown.out, "can be run"), shown.out);
  const auto described = json_of(run({"inspect", "--json", folder}));
  BOOST_TEST(described.at("config").at("architecture") == "LlamaForCausalLM");
  BOOST_TEST(described.at("version").is_null());
}

BOOST_AUTO_TEST_CASE(a_node_gives_the_same_tokens_as_an_embedded_one) {
  NodeProcess node;
  const std::vector<std::string> sampled = {"complete", "--max-tokens", "12",     "--seed", "41",
                                            "--prompt", prompt,         "--json", "--top-p", "0.9"};
  auto embedded = sampled, connected = sampled;
  embedded.insert(embedded.end(), {"--model", model});
  connected.insert(connected.end(), {"--connect", node.endpoint()});
  const auto one = json_of(run(embedded));
  const auto other = json_of(run(connected));
  BOOST_TEST(one.at("tokens") == other.at("tokens"));
  BOOST_TEST(one.at("chain") == other.at("chain"));
  BOOST_TEST(one.at("seed") == 41);

  auto reseeded = connected;
  reseeded[4] = "42";
  const auto next = json_of(run(reseeded));
  BOOST_TEST(next.at("tokens") != one.at("tokens"));

  auto both = connected;
  both.insert(both.end(), {"--n", "2"});
  const auto two = json_of(run(both));
  BOOST_TEST(two.at("choices").at(0).at("tokens") == one.at("tokens"));
  BOOST_TEST(two.at("choices").at(1).at("tokens") == next.at("tokens"));
  BOOST_TEST(two.at("usage").at("completion_tokens") ==
             one.at("tokens").size() + next.at("tokens").size());
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(a_schema_shapes_the_answer) {
  const ScratchFolder folder;
  const std::string path = folder.file("person.json");
  std::ofstream(path) << R"({"type": "object", "properties": {"name": {"type": "string",
      "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "likes":
      {"type": "array", "items": {"enum": ["tea", "cake"]}, "minItems": 1, "maxItems": 3}},
      "required": ["name", "age", "likes"]})";
  const auto out = json_of(run({"complete", "--model", model, "--prompt", "A person as JSON: ",
                                "--max-tokens", "100", "--seed", "5", "--json", "--json-schema",
                                "@" + path}));
  BOOST_TEST(out.at("finish_reason") == "stop");
  const auto person = nlohmann::json::parse(out.at("text").get<std::string>());
  BOOST_TEST(person.at("name").is_string());
  BOOST_TEST(person.at("age").get<int>() <= 130);
  BOOST_TEST(person.at("likes").size() >= 1U);

  const auto date = json_of(run(greedy({"--model", model, "--prompt", "The war ended on", "--json",
                                        "--regex", " [0-9]{4}-[01][0-9]"})));
  BOOST_TEST(date.at("text").get<std::string>().size() == 8U, date.dump());

  const Exit refused = run(greedy({"--model", model, "--prompt", "x", "--json-schema", "{"}));
  BOOST_TEST(refused.code == 1);
  BOOST_TEST(contains(refused.err, "no valid JSON"), refused.err);
}

BOOST_AUTO_TEST_CASE(a_stream_survives_the_death_of_its_node) {
  const ScratchFolder folder;
  const std::string endpoint = "ipc://" + folder.file("node");
  const std::vector<std::string> story = {"complete", "--max-tokens", "200",    "--seed", "41",
                                          "--prompt", prompt};
  auto embedded = story, connected = story;
  embedded.insert(embedded.end(), {"--model", model});
  connected.insert(connected.end(), {"--connect", endpoint});
  const Exit whole = run(embedded);
  check_clean(whole);

  auto node = std::make_unique<NodeProcess>(std::vector<std::string>{"--listen", endpoint});
  Process client(connected);
  client.read_until(whole.out.substr(0, 20));
  node->process().send_signal(SIGKILL);
  node.reset();
  NodeProcess another({"--listen", endpoint});
  const Exit survived = client.finish();
  check_clean(survived);
  BOOST_TEST(survived.out == whole.out);
  const Exit stopped = another.stop();
  check_clean(stopped);
  BOOST_TEST(contains(stopped.err, "\"completion_tokens\":200"), stopped.err);
}

BOOST_AUTO_TEST_CASE(the_prompt_comes_from_an_option_a_file_or_a_pipe) {
  NodeProcess node;
  const ScratchFolder folder;
  const std::string path = folder.file("prompt.txt");
  std::ofstream(path) << prompt;
  const std::string& connect = node.endpoint();
  const Exit option = run(greedy({"--connect", connect, "--prompt", prompt}));
  BOOST_TEST(option.code == 0, option.err);
  BOOST_TEST(contains(option.out, "Paris"), option.out);
  BOOST_TEST(option.out.back() == '\n');
  BOOST_TEST(option.err == "");
  BOOST_TEST(run(greedy({"--connect", connect, "--file", path})).out == option.out);
  BOOST_TEST(run(greedy({"--connect", connect}), prompt).out == option.out);
}

BOOST_AUTO_TEST_CASE(text_is_written_as_it_is_made) {
  // The reader sees a piece of a long answer and interrupts; the rest is never made.
  NodeProcess node;
  Process process({"complete", "--connect", node.endpoint(), "--prompt", "Once upon a time",
                   "--max-tokens", "4000", "--ignore-eos", "--temperature", "0"});
  const std::string piece = process.read_until(" ");
  BOOST_TEST(contains(piece, " "));
  process.send_signal(SIGINT);
  const Exit exit = process.finish();
  BOOST_TEST(exit.code == 1);
  BOOST_TEST(contains(exit.err, "sluice: cancelled: "), exit.err);
  check_clean(node.stop());
}

BOOST_AUTO_TEST_CASE(logprobs_and_a_stop) {
  const auto out = json_of(run({"complete", "--model", model, "--prompt", prompt, "--max-tokens",
                                "6", "--seed", "3", "--logprobs", "2", "--json"}));
  BOOST_REQUIRE(out.at("logprobs").size() == out.at("tokens").size());
  BOOST_TEST(out.at("logprobs")[0].size() == 3U);
  BOOST_TEST(out.at("logprobs")[0][0].at("token") == out.at("tokens")[0]);

  const auto stopped = json_of(
      run(greedy({"--model", model, "--prompt", prompt, "--stop", "Paris", "--json"})));
  BOOST_TEST(stopped.at("finish_reason") == "stop");
  BOOST_TEST(!contains(stopped.at("text"), "Paris"), stopped.dump());
}

BOOST_AUTO_TEST_CASE(the_receipt_goes_to_stderr) {
  const Exit exit = run(greedy({"--model", model, "--prompt", prompt, "--receipt"}));
  BOOST_TEST(exit.code == 0);
  BOOST_TEST(contains(exit.err, "receipt  5 + 8 tokens"), exit.err);
  BOOST_TEST(!contains(exit.out, "receipt"));
}

BOOST_AUTO_TEST_SUITE_END()
