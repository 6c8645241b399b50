#include "cli/config.hpp"

#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <variant>
#include <vector>

#include "cli/config_keys.hpp"
#include "cli/user_folders.hpp"
#include "transport/curve_keys.hpp"

namespace sluice::cli {

namespace {

/// Edits (insert, delete, replace) between two words.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string_view nearest(std::string_view name, const std::vector<std::string_view>& known) {
  const auto closer = [&](auto a, auto b) { return distance(name, a) < distance(name, b); };
  return *std::min_element(known.begin(), known.end(), closer);
}

/// "a|b" as {"a", "b"}; nothing as nothing.
std::vector<std::string_view> split_words(std::string_view words) {
  std::vector<std::string_view> list;
  while (!words.empty()) {
    const std::size_t end = std::min(words.find('|'), words.size());
    list.push_back(words.substr(0, end));
    words.remove_prefix(std::min(end + 1, words.size()));
  }
  return list;
}

auto line_of(const toml::node& node) { return node.source().begin.line; }

std::string in_words(toml::node_type type) {
  std::ostringstream text;
  text << type;
  return text.str();
}

/// A value's place in the file, for messages.
struct Place {
  std::string source_line;  ///< "node.toml:12"
  std::string key;          ///< "endpoint.listen"

  tl::unexpected<Error> refuse(const std::string& why) const {
    return fail(ErrorCode::bad_request, "{}: {} {}", source_line, key, why);
  }
};

template <class Owner>
Result<void> set_number(const Key<Owner>& key, Field field, double value, const Place& place) {
  if (!(value >= key.min && value <= key.max)) {
    return place.refuse(fmt::format("is {}; it must be from {} to {}", value, key.min, key.max));
  }
  std::visit(
      [&](auto* target) {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, double>) {
          *target = value;
        } else if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
          *target = static_cast<T>(static_cast<std::uint64_t>(value) * key.scale);
        }
      },
      field);
  return {};
}

template <class Owner>
Result<void> check_word(const Key<Owner>& key, const std::string& value, const Place& place) {
  const auto words = split_words(key.words);
  if (words.empty() || std::find(words.begin(), words.end(), value) != words.end()) return {};
  return place.refuse(
      fmt::format("is \"{}\"; it must be one of \"{}\"", value, fmt::join(words, "\", \"")));
}

template <class Owner>
Result<void> set(const Key<Owner>& key, Owner& owner, const toml::node& node, const Place& place) {
  const Field field = key.field(owner);
  const auto wrong_type = [&](std::string_view wanted) {
    return place.refuse(fmt::format("is a {}; it must be a {}", in_words(node.type()), wanted));
  };
  if (auto* const* text = std::get_if<std::string*>(&field)) {
    const auto value = node.value_exact<std::string>();
    if (!value) return wrong_type("string");
    if (auto allowed = check_word(key, *value, place); !allowed) return allowed;
    **text = *value;
    return {};
  }
  if (auto* const* list = std::get_if<std::vector<std::string>*>(&field)) {
    const toml::array* values = node.as_array();
    if (values == nullptr) return wrong_type("list of strings");
    (*list)->clear();
    for (const toml::node& each : *values) {
      const auto value = each.value_exact<std::string>();
      if (!value) return wrong_type("list of strings");
      if (auto allowed = check_word(key, *value, place); !allowed) return allowed;
      (*list)->push_back(*value);
    }
    return {};
  }
  if (auto* const* flag = std::get_if<bool*>(&field)) {
    const auto value = node.value_exact<bool>();
    if (!value) return wrong_type("boolean");
    **flag = *value;
    return {};
  }
  if (const auto whole = node.value_exact<std::int64_t>()) {
    return set_number(key, field, static_cast<double>(*whole), place);
  }
  if (!std::holds_alternative<double*>(field)) return wrong_type("whole number");
  const auto value = node.value_exact<double>();
  if (!value) return wrong_type("number");
  return set_number(key, field, *value, place);
}

/// Reads the keys of one table into their owner.
template <class Owner>
Result<void> read_section(const std::vector<Key<Owner>>& keys, std::string_view section,
                          const toml::table& table, Owner& owner, const std::string& source) {
  for (auto&& [name, node] : table) {
    const std::string_view word = name.str();
    const auto known = std::find_if(keys.begin(), keys.end(), [&](const auto& key) {
      return key.section == section && key.name == word;
    });
    if (known == keys.end()) {
      std::vector<std::string_view> names;
      for (const auto& key : keys) {
        if (key.section == section) names.push_back(key.name);
      }
      return fail(ErrorCode::bad_request,
                  "{}:{}: unknown key '{}' in [{}]; the nearest known is '{}'", source,
                  line_of(node), word, section, nearest(word, names));
    }
    const Place place{fmt::format("{}:{}", source, line_of(node)),
                      fmt::format("{}.{}", section, word)};
    if (auto done = set(*known, owner, node, place); !done) return done;
  }
  return {};
}

/// Reads a list of tables, written as [[section]]; `take` gets each entry and its line.
template <class Owner, class Take>
Result<void> read_list(const std::vector<Key<Owner>>& keys, std::string_view section,
                       const toml::node& node, const std::string& source, const Take& take) {
  const toml::array* list = node.as_array();
  if (list == nullptr || !list->is_homogeneous(toml::node_type::table)) {
    return fail(ErrorCode::bad_request, "{}:{}: {}s are written as [[{}]], one each", source,
                line_of(node), section, section);
  }
  for (const toml::node& entry : *list) {
    Owner owner;
    auto done = read_section(keys, section, *entry.as_table(), owner, source);
    if (!done) return done;
    done = take(std::move(owner), line_of(entry));
    if (!done) return done;
  }
  return {};
}

Result<void> read_engines(const toml::node& node, Config& config, const std::string& source) {
  return read_list(engine_keys(), "engine", node, source,
                   [&](actors::EngineConfig&& engine, auto) -> Result<void> {
                     config.node.engines.push_back(std::move(engine));
                     return {};
                   });
}

Result<std::string> read_text(const std::string& path, std::string_view what) {
  std::ifstream in(path, std::ios::binary);
  std::string text;
  if (in) text.assign(std::istreambuf_iterator<char>(in), {});
  if (!in || in.bad()) {
    return fail(ErrorCode::io, "cannot read the {} {}: {}", what, path, std::strerror(errno));
  }
  return text;
}

/// An allow list: a file of [[section]] entries and nothing else.
template <class Owner, class Take>
Result<void> read_allow_list(const std::string& path, const std::vector<Key<Owner>>& keys,
                             std::string_view section, const Take& take) {
  const auto text = read_text(path, "allow list");
  if (!text) return tl::unexpected(text.error());
  try {
    const toml::table root = toml::parse(*text, path);
    for (auto&& [name, node] : root) {
      if (name.str() != section) {
        return fail(ErrorCode::bad_request, "{}:{}: '{}' is not [[{}]], and that is all there is",
                    path, line_of(node), name.str(), section);
      }
      auto done = read_list(keys, section, node, path, take);
      if (!done) return done;
    }
  } catch (const toml::parse_error& error) {
    return fail(ErrorCode::bad_request, "{}:{}: {}", path, error.source().begin.line,
                error.description());
  }
  return {};
}

Result<void> check_entry(const std::string& path, std::uint32_t line, const std::string& name,
                         const std::string& key) {
  if (name.empty()) return fail(ErrorCode::bad_request, "{}:{}: the entry has no name", path, line);
  if (!transport::is_curve_key(key))
    return fail(ErrorCode::bad_request,
                "{}:{}: the public_key of {} is not one of 40 characters, as `sluice keygen` "
                "prints them",
                path, line, name);
  return {};
}

tl::unexpected<Error> twice(const std::string& path, std::uint32_t line, const std::string& name) {
  return fail(ErrorCode::bad_request, "{}:{}: {} has the key of another entry", path, line, name);
}

Result<Config> from_table(const toml::table& root, const std::string& source) {
  Config config;
  std::vector<std::string_view> sections = {"engine"};
  for (const NodeKey& key : node_keys()) {
    if (sections.back() != key.section) sections.push_back(key.section);
  }
  for (auto&& [name, node] : root) {
    const std::string_view word = name.str();
    Result<void> done;
    if (std::find(sections.begin(), sections.end(), word) == sections.end()) {
      done = fail(ErrorCode::bad_request, "{}:{}: unknown section '{}'; the nearest known is '{}'",
                  source, line_of(node), word, nearest(word, sections));
    } else if (word == "engine") {
      done = read_engines(node, config, source);
    } else if (!node.is_table()) {
      done = fail(ErrorCode::bad_request, "{}:{}: '{}' is a section: write [{}] above its keys",
                  source, line_of(node), word, word);
    } else {
      done = read_section(node_keys(), word, *node.as_table(), config, source);
    }
    if (!done) return tl::unexpected(done.error());
  }
  return config;
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (code < 0x20 || code == 0x7F) {
      out += fmt::format("\\u{:04X}", code);
    } else {
      out += c;
    }
  }
  return out + '"';
}

template <class Owner>
void print_key(std::string& out, const Key<Owner>& key, Owner& owner) {
  const std::string value = std::visit(
      [&](auto* field) -> std::string {
        using T = std::remove_pointer_t<decltype(field)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return quoted(*field);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          std::vector<std::string> all;
          for (const std::string& each : *field) all.push_back(quoted(each));
          return fmt::format("[{}]", fmt::join(all, ", "));
        } else if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, double>) {
          return fmt::format("{}", *field);
        } else {
          return fmt::format("{}", *field / key.scale);
        }
      },
      key.field(owner));
  out += fmt::format("# {}", key.doc);
  if (!key.words.empty()) {
    out += fmt::format(": \"{}\"", fmt::join(split_words(key.words), "\", \""));
  }
  out += fmt::format("\n{} = {}\n", key.name, value);
}

}  // namespace

Config::Config() { node.weight_cache = cache_folder(); }

Result<Config> read_config(const std::string& path) {
  const auto text = read_text(path, "configuration");
  if (!text) return tl::unexpected(text.error());
  return parse_config(*text, path);
}

Result<Config> parse_config(std::string_view text, const std::string& source) {
  try {
    return from_table(toml::parse(text, source), source);
  } catch (const toml::parse_error& error) {
    return fail(ErrorCode::bad_request, "{}:{}: {}", source, error.source().begin.line,
                error.description());
  }
}

Result<void> load_allow_lists(const SecurityFiles& files, actors::SecurityConfig& into) {
  into.clients.clear();
  into.nodes.clear();
  Result<void> done;
  if (!files.clients.empty())
    done = read_allow_list(
        files.clients, client_keys(), "client",
        [&](ClientEntry&& entry, std::uint32_t line) -> Result<void> {
          auto& grant = entry.grant;
          if (auto good = check_entry(files.clients, line, grant.name, entry.public_key); !good)
            return good;
          if (grant.tenant.empty()) grant.tenant = grant.name;
          const std::string name = grant.name;
          if (!into.clients.emplace(std::move(entry.public_key), std::move(grant)).second)
            return twice(files.clients, line, name);
          return {};
        });
  if (!done || files.nodes.empty()) return done;
  return read_allow_list(
      files.nodes, peer_keys(), "node", [&](NodeEntry&& entry, std::uint32_t line) -> Result<void> {
        if (auto good = check_entry(files.nodes, line, entry.name, entry.public_key); !good)
          return good;
        for (const auto& [key, name] : into.nodes)
          if (name == entry.name)
            return fail(
                ErrorCode::bad_request,
                "{}:{}: {} has a key already: a node is dialed with the one key of its name",
                files.nodes, line, name);
        if (!into.nodes.emplace(std::move(entry.public_key), entry.name).second)
          return twice(files.nodes, line, entry.name);
        return {};
      });
}

Result<void> load_security(Config& config) {
  const SecurityFiles& files = config.security;
  const bool towards_nodes = !files.node_keys.empty() || !files.nodes.empty();
  if (files.keys.empty() && files.clients.empty() && !towards_nodes) return {};
  // A node that no client speaks to needs neither of their two files.
  if (files.keys.empty() && (!files.clients.empty() || files.node_keys.empty()))
    return fail(ErrorCode::bad_request,
                "security.keys is missing: without it the node speaks in plain text and asks "
                "nobody for a key; `sluice keygen` makes a pair");
  if (files.clients.empty() && !files.keys.empty() && actors::plays(config.node, "front"))
    return fail(ErrorCode::bad_request,
                "security.clients is missing: with security.keys alone nobody could connect");
  if (files.nodes.empty() && !files.node_keys.empty())
    return fail(ErrorCode::bad_request,
                "security.nodes is missing: with security.node_keys alone no node could connect");
  auto& security = config.node.security;
  if (!files.keys.empty()) {
    auto keys = transport::read_secret_key(files.keys);
    if (!keys) return tl::unexpected(keys.error());
    security.keys = security.node_keys = *keys;
  }
  if (!files.node_keys.empty()) {
    auto node_keys = transport::read_secret_key(files.node_keys);
    if (!node_keys) return tl::unexpected(node_keys.error());
    security.node_keys = *node_keys;
  }
  return load_allow_lists(files, security);
}

std::string print_config(const Config& config) {
  Config values = config;
  std::string out;
  std::string_view section;
  for (const NodeKey& key : node_keys()) {
    if (key.section != section) {
      section = key.section;
      out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", section);
    }
    print_key(out, key, values);
  }
  for (actors::EngineConfig& engine : values.node.engines) {
    out += "\n[[engine]]\n";
    for (const EngineKey& key : engine_keys()) print_key(out, key, engine);
  }
  return out;
}

}  // namespace sluice::cli
