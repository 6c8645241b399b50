// sluice completion: what a shell offers after <Tab>, written from the tree of commands itself.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.hpp"

namespace sluice::cli {

namespace {

std::string escaped(const std::string& text, std::string_view special) {
  std::string out;
  for (const char c : text) {
    if (special.find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

/// fish and zsh put descriptions between single quotes.
std::string quoted(std::string text) {
  for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 4) {
    text.replace(at, 1, "'\\''");
  }
  return "'" + text + "'";
}

bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

bool takes_file(const CLI::Option& option) { return option.get_type_name() == "FILE"; }

/// The options of a command and of its subcommands by their long names, each name once; positional
/// ones have none.
std::vector<const CLI::Option*> options_of(const CLI::App& app) {
  std::vector<const CLI::Option*> named;
  const auto add = [&](const CLI::Option* option) {
    if (option->get_lnames().empty()) return;
    const auto same = [&](const CLI::Option* other) {
      return other->get_lnames()[0] == option->get_lnames()[0];
    };
    if (std::none_of(named.begin(), named.end(), same)) named.push_back(option);
  };
  for (const CLI::Option* option : app.get_options()) add(option);
  for (const CLI::App* sub : app.get_subcommands({}))
    for (const CLI::Option* option : options_of(*sub)) add(option);
  return named;
}

std::string long_names(const CLI::App& app) {
  std::string names;
  for (const CLI::Option* option : options_of(app)) names += "--" + option->get_lnames()[0] + " ";
  return names;
}

std::string bash(const CLI::App& root) {
  std::string commands, cases;
  for (const CLI::App* app : root.get_subcommands({})) {
    commands += app->get_name() + " ";
    std::string files, values;
    for (const CLI::Option* option : options_of(*app)) {
      if (!takes_value(*option)) continue;
      std::string& list = takes_file(*option) ? files : values;
      list += (list.empty() ? "--" : "|--") + option->get_lnames()[0];
    }
    std::string words = long_names(*app);
    for (const CLI::App* sub : app->get_subcommands({})) words += sub->get_name() + " ";
    cases += fmt::format("    {})\n      case $before in\n", app->get_name());
    if (!files.empty()) {
      cases += "        " + files + ") COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n";
    }
    if (!values.empty()) cases += fmt::format("        {}) return ;;\n", values);
    cases += fmt::format("      esac\n      words='{}' ;;\n", words);
  }
  return fmt::format(
      "_sluice() {{\n"
      "  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=\n"
      "  case ${{COMP_WORDS[1]}} in\n{}  esac\n"
      "  ((COMP_CWORD == 1)) && words='{}{}'\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
      "}}\n"
      "complete -o filenames -F _sluice sluice\n",
      cases, commands, long_names(root));
}

std::string zsh(const CLI::App& root) {
  std::string commands, cases;
  for (const CLI::App* app : root.get_subcommands({})) {
    commands += "    " + quoted(app->get_name() + ":" + app->get_description()) + "\n";
    cases += fmt::format("    {}) _arguments", app->get_name());
    for (const CLI::Option* option : options_of(*app)) {
      std::string spec = "--" + option->get_lnames()[0];
      spec += "[" + escaped(option->get_description(), "[]:\\") + "]";
      if (takes_value(*option)) {
        spec += ":" + option->get_type_name() + ":" + (takes_file(*option) ? "_files" : "");
      }
      cases += " \\\n      " + quoted(spec);
    }
    std::string subs;
    for (const CLI::App* sub : app->get_subcommands({}))
      subs += (subs.empty() ? "" : " ") + sub->get_name();
    if (!subs.empty())
      cases += " \\\n      " + quoted("1:" + app->get_name() + ":(" + subs + ")");
    cases += " ;;\n";
  }
  return fmt::format(
      "#compdef sluice\n"
      "_sluice() {{\n"
      "  local -a commands=(\n{}  )\n"
      "  if ((CURRENT == 2)); then\n    _describe command commands\n    return\n  fi\n"
      "  local command=$words[2]\n"
      "  shift words\n"
      "  ((CURRENT--))\n"
      "  case $command in\n{}  esac\n"
      "}}\n"
      "compdef _sluice sluice\n",
      commands, cases);
}

std::string fish(const CLI::App& root) {
  std::string out = "complete -c sluice -f\n";
  for (const CLI::App* app : root.get_subcommands({})) {
    out += fmt::format("complete -c sluice -n __fish_use_subcommand -a {} -d {}\n", app->get_name(),
                       quoted(app->get_description()));
    const std::string when =
        fmt::format("complete -c sluice -n '__fish_seen_subcommand_from {}'", app->get_name());
    for (const CLI::App* sub : app->get_subcommands({})) {
      out += fmt::format("{} -a {} -d {}\n", when, sub->get_name(), quoted(sub->get_description()));
    }
    for (const CLI::Option* option : options_of(*app)) {
      out += fmt::format("{} -l {}{} -d {}\n", when, option->get_lnames()[0],
                         takes_file(*option)    ? " -r -F"
                         : takes_value(*option) ? " -x"
                                                : "",
                         quoted(option->get_description()));
    }
  }
  return out;
}

}  // namespace

Command completion_command(CLI::App& root) {
  CLI::App* app = add_command(
      root, "completion", "Print what a shell needs to complete this command",
      "  source <(sluice completion bash)\n"
      "  sluice completion zsh > ~/.zfunc/_sluice\n"
      "  sluice completion fish > ~/.config/fish/completions/sluice.fish");
  auto shell = std::make_shared<std::string>();
  app->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->type_name("SHELL")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  return {app, [shell, &root]() -> Result<void> {
            const auto write = *shell == "bash" ? bash : *shell == "zsh" ? zsh : fish;
            fmt::print("{}", write(root));
            return {};
          }};
}

}  // namespace sluice::cli
