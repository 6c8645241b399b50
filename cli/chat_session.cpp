#include "cli/chat_session.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace sluice::cli {

namespace {

using Outcome = Result<CommandOutcome>;

struct ChatCommand {
  std::string_view name;
  std::string_view takes;
  std::string_view does;
  Outcome (*run)(ChatSession&, const std::string& argument);
};

Outcome say(std::string text) { return CommandOutcome{std::move(text) + "\n", false}; }

/// Sets a number from a command's argument, or shows it when there is none.
template <class T>
Outcome number(T& target, const std::string& argument, std::string_view what) {
  if (!argument.empty()) {
    T value{};
    const char* const end = argument.data() + argument.size();
    const auto [stopped, error] = std::from_chars(argument.data(), end, value);
    if (error != std::errc{} || stopped != end) {
      return fail(ErrorCode::bad_request, "'{}' is no value for {}", argument, what);
    }
    target = value;
  }
  return say(fmt::format("{} is {}", what, target));
}

template <auto Member>
Outcome set_sampling(ChatSession& session, const std::string& argument, std::string_view what) {
  return number(session.generation.submit.sampling.*Member, argument, what);
}

Outcome set_system(ChatSession& session, const std::string& argument) {
  session.system = argument;
  return say(argument.empty() ? "the system message is the model's own" : "system message set");
}

Outcome clear(ChatSession& session, const std::string&) {
  session.messages.clear();
  return say("the conversation starts anew");
}

Outcome set_stats(ChatSession& session, const std::string& argument) {
  if (argument != "on" && argument != "off" && !argument.empty()) {
    return fail(ErrorCode::bad_request, "/stats takes on or off, not '{}'", argument);
  }
  session.show_stats = argument.empty() ? !session.show_stats : argument == "on";
  return say(session.show_stats ? "times are shown" : "times are not shown");
}

Outcome set_seed(ChatSession& session, const std::string& argument) {
  if (argument == "random") {
    session.generation.seed.reset();
    return say("each answer draws its own seed");
  }
  if (argument.empty() && !session.generation.seed) return say("each answer draws its own seed");
  std::uint64_t seed = session.generation.seed.value_or(0);
  auto done = number(seed, argument, "seed");
  if (done) session.generation.seed = seed;
  return done;
}

Outcome show_history(ChatSession& session, const std::string&) {
  std::string text;
  for (const auto& message : session.prompt()) {
    text += fmt::format("{}: {}\n", message.role, message.content);
  }
  return CommandOutcome{std::move(text), false};
}

Outcome show_stream(ChatSession& session, const std::string&) {
  if (!session.last_stream) return say("there is no answer yet");
  return say("stream " + transport::to_hex(*session.last_stream));
}

Outcome save(ChatSession& session, const std::string& path) {
  if (path.empty()) return fail(ErrorCode::bad_request, "/save takes a file name");
  nlohmann::ordered_json out;
  out["system"] = session.system;
  out["messages"] = nlohmann::ordered_json::array();
  for (const auto& message : session.messages) {
    out["messages"].push_back({{"role", message.role}, {"content", message.content}});
  }
  std::ofstream file(path, std::ios::binary);
  file << out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  file.close();
  if (!file) return fail(ErrorCode::io, "cannot write {}: {}", path, std::strerror(errno));
  return say(fmt::format("saved {} messages to {}", session.messages.size(), path));
}

Outcome load(ChatSession& session, const std::string& path) {
  if (path.empty()) return fail(ErrorCode::bad_request, "/load takes a file name");
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(ErrorCode::io, "cannot open {}: {}", path, std::strerror(errno));
  std::vector<transport::ChatMessage> messages;
  std::string system;
  try {
    const auto saved = nlohmann::json::parse(file);
    system = saved.value("system", "");
    for (const auto& message : saved.at("messages")) {
      messages.push_back({message.at("role"), message.at("content")});
    }
  } catch (const nlohmann::json::exception& error) {
    return fail(ErrorCode::bad_file, "{} is no saved conversation: {}", path, error.what());
  }
  session.system = std::move(system);
  session.messages = std::move(messages);
  return say(fmt::format("loaded {} messages from {}", session.messages.size(), path));
}

Outcome quit(ChatSession&, const std::string&) { return CommandOutcome{"", true}; }

Outcome help(ChatSession&, const std::string&);

using Sampling = engine::SamplingParams;

constexpr ChatCommand chat_commands[] = {
    {"help", "", "this list", help},
    {"system", "TEXT", "what the model is told first; empty: the model's own", set_system},
    {"clear", "", "forget the conversation", clear},
    {"history", "", "show the conversation", show_history},
    {"stream", "", "the last answer's stream, for sluice subscribe", show_stream},
    {"save", "FILE", "write the conversation to a file", save},
    {"load", "FILE", "go on with a saved conversation", load},
    {"stats", "on|off", "the line with times after each answer", set_stats},
    {"seed", "N|random", "same seed and words, same answer", set_seed},
    {"temperature", "T", "0: always the likeliest token",
     [](ChatSession& s, const std::string& a) {
       return set_sampling<&Sampling::temperature>(s, a, "temperature");
     }},
    {"top-k", "K", "draw from the K likeliest; 0: off",
     [](ChatSession& s, const std::string& a) {
       return set_sampling<&Sampling::top_k>(s, a, "top-k");
     }},
    {"top-p", "P", "draw from the likeliest that make up P",
     [](ChatSession& s, const std::string& a) {
       return set_sampling<&Sampling::top_p>(s, a, "top-p");
     }},
    {"min-p", "P", "draw from those at least P as likely as the likeliest",
     [](ChatSession& s, const std::string& a) {
       return set_sampling<&Sampling::min_p>(s, a, "min-p");
     }},
    {"repetition-penalty", "X", "over prompt and output; 1: off",
     [](ChatSession& s, const std::string& a) {
       return set_sampling<&Sampling::repetition_penalty>(s, a, "repetition-penalty");
     }},
    {"max-tokens", "N", "longest answer; 0: to the context's end",
     [](ChatSession& s, const std::string& a) {
       return number(s.generation.submit.max_tokens, a, "max-tokens");
     }},
    {"quit", "", "leave; Ctrl-D does too", quit},
};

Outcome help(ChatSession&, const std::string&) {
  std::string text;
  for (const ChatCommand& command : chat_commands) {
    text += fmt::format("  {:<28} {}\n", fmt::format("/{} {}", command.name, command.takes),
                        command.does);
  }
  text += "  A line that ends in \\ goes on in the next. Ctrl-C stops an answer.\n";
  return CommandOutcome{std::move(text), false};
}

}  // namespace

std::vector<transport::ChatMessage> ChatSession::prompt() const {
  std::vector<transport::ChatMessage> all;
  if (!system.empty()) all.push_back({"system", system});
  all.insert(all.end(), messages.begin(), messages.end());
  return all;
}

Result<CommandOutcome> run_chat_command(ChatSession& session, std::string_view line) {
  line.remove_prefix(1);
  const std::size_t space = std::min(line.find(' '), line.size());
  const std::string_view name = line.substr(0, space);
  std::string argument(line.substr(std::min(space + 1, line.size())));
  argument.erase(argument.find_last_not_of(' ') + 1);
  for (const ChatCommand& command : chat_commands) {
    if (command.name == name) return command.run(session, argument);
  }
  return fail(ErrorCode::bad_request, "there is no /{}; /help lists what there is", name);
}

}  // namespace sluice::cli
