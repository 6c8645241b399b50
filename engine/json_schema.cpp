#include "engine/json_schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/json_grammar.hpp"
#include "engine/regex_grammar.hpp"

namespace sluice::engine {
namespace {

using Json = nlohmann::ordered_json;
using Expr = GrammarBuilder::Expr;

constexpr std::uint32_t depth_max = 64;
constexpr std::uint32_t schemas_max = 10'000;  // looked at in all: merging may repeat some
constexpr std::uint32_t count_max = 10'000;

const std::set<std::string, std::less<>> refused{
    "not", "if", "then", "else", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "contains",
    "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "unevaluatedProperties",
    "multipleOf", "additionalItems", "$dynamicRef", "$recursiveRef"};

const std::set<std::string, std::less<>> annotations{
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs",
    "definitions", "deprecated", "readOnly", "writeOnly", "$anchor"};

const std::map<std::string, std::string, std::less<>> formats{
    {"date", R"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]))"},
    {"time", R"(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))"},
    {"date-time", R"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]))"
                  R"(T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))"},
    {"uuid", R"([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"},
    {"ipv4", R"(((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))"}};

// What stops a descent; caught where the public function begins.
struct Refusal {
  Error error;
};

[[noreturn]] void refuse(ErrorCode code, std::string message) {
  throw Refusal{{code, std::move(message), 0}};
}

std::string compact(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class Compiler {
 public:
  explicit Compiler(Json root) : root_(std::move(root)), json_(g_) {}

  Result<Grammar> compile() {
    const Expr start = schema(root_, "#", 0);
    return g_.compile(start);
  }

 private:
  Expr schema(const Json& s, const std::string& path, std::uint32_t depth) {
    if (depth > depth_max) {
      refuse(ErrorCode::too_large, fmt::format("{} lies deeper than {} schemas", path, depth_max));
    }
    if (++looked_at_ > schemas_max) {
      refuse(ErrorCode::too_large, fmt::format("the schema unfolds to more than {}", schemas_max));
    }
    if (s.is_boolean()) return s.get<bool>() ? json_.value() : g_.choice({});
    if (!s.is_object()) refuse(ErrorCode::bad_request, fmt::format("{} is no schema", path));
    for (const auto& [key, value] : s.items()) {
      if (refused.contains(key)) {
        refuse(ErrorCode::unsupported, fmt::format("{} has '{}', which is not offered", path, key));
      }
    }
    if (s.contains("$ref")) return reference(s, path, depth);
    if (s.contains("allOf")) return all_of(s, path, depth);
    for (const char* key : {"anyOf", "oneOf"})
      if (s.contains(key)) return any_of(s, key, path, depth);
    if (s.contains("const")) return literals(Json::array({s["const"]}), s, path);
    if (s.contains("enum")) return literals(list(s, "enum", path), s, path);
    std::vector<Expr> ways;
    for (const std::string& type : types(s, path)) ways.push_back(of_type(type, s, path, depth));
    return ways.empty() ? json_.value() : g_.choice(std::move(ways));
  }

  // Types named, or those that the other keywords speak of; none: any value.
  std::vector<std::string> types(const Json& s, const std::string& path) {
    std::vector<std::string> out;
    if (s.contains("type")) {
      const Json& type = s["type"];
      for (const Json& name : type.is_array() ? type : Json::array({type})) {
        if (!name.is_string())
          refuse(ErrorCode::bad_request, fmt::format("{}/type is no name of a type", path));
        out.push_back(name.get<std::string>());
      }
      if (out.empty()) refuse(ErrorCode::bad_request, fmt::format("{}/type is empty", path));
      return out;
    }
    const auto has = [&](std::initializer_list<const char*> keys) {
      return std::ranges::any_of(keys, [&](const char* key) { return s.contains(key); });
    };
    if (has({"properties", "required", "additionalProperties"})) out.push_back("object");
    if (has({"items", "prefixItems", "minItems", "maxItems"})) out.push_back("array");
    if (has({"minLength", "maxLength", "pattern", "format"})) out.push_back("string");
    if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}))
      out.push_back("number");
    return out;
  }

  Expr of_type(const std::string& type, const Json& s, const std::string& path,
               std::uint32_t depth) {
    if (type == "object") return object(s, path, depth);
    if (type == "array") return array(s, path, depth);
    if (type == "string") return string(s, path);
    if (type == "integer") return json_.integer(range(s, path));
    if (type == "number") return json_.number(range(s, path));
    if (type == "boolean") return g_.choice({g_.text("true"), g_.text("false")});
    if (type == "null") return g_.text("null");
    refuse(ErrorCode::bad_request, fmt::format("{}/type is '{}', which JSON has not", path, type));
  }

  const Json& list(const Json& s, const char* key, const std::string& path) {
    const Json& value = s[key];
    if (!value.is_array() || value.empty()) {
      refuse(ErrorCode::bad_request,
             fmt::format("{}/{} must be an array with something in it", path, key));
    }
    return value;
  }

  std::optional<std::uint32_t> count(const Json& s, const char* key, const std::string& path) {
    if (!s.contains(key)) return std::nullopt;
    const Json& value = s[key];
    if (!value.is_number_integer() || value.get<double>() < 0)
      refuse(ErrorCode::bad_request, fmt::format("{}/{} must be 0 or more", path, key));
    if (value.get<double>() > count_max)
      refuse(ErrorCode::too_large, fmt::format("{}/{} is above {}", path, key, count_max));
    return value.get<std::uint32_t>();
  }

  // Values that the types allow, where types are given too.
  Expr literals(const Json& values, const Json& s, const std::string& path) {
    const std::vector<std::string> allowed =
        s.contains("type") ? types(s, path) : std::vector<std::string>{};
    std::vector<std::string> texts;
    for (const Json& value : values) {
      const bool fits = allowed.empty() || std::ranges::any_of(allowed, [&](const auto& type) {
                          return (type == "object" && value.is_object()) ||
                                 (type == "array" && value.is_array()) ||
                                 (type == "string" && value.is_string()) ||
                                 (type == "integer" && value.is_number_integer()) ||
                                 (type == "number" && value.is_number()) ||
                                 (type == "boolean" && value.is_boolean()) ||
                                 (type == "null" && value.is_null());
                        });
      if (fits) texts.push_back(compact(value));
    }
    return texts.empty() ? g_.choice({}) : json_.one_of(std::move(texts));
  }

  Expr string(const Json& s, const std::string& path) {
    const auto min = count(s, "minLength", path), max = count(s, "maxLength", path);
    const bool form = s.contains("format") && s["format"].is_string() &&
                      formats.contains(s["format"].get<std::string>());
    if (!s.contains("pattern") && !form) {
      if (max && min.value_or(0) > *max) return g_.choice({});
      return json_.string(min.value_or(0), max);
    }
    if (min || max || (form && s.contains("pattern"))) {
      refuse(ErrorCode::unsupported,
             fmt::format("{} has a pattern or format beside other bounds of a string: say it all "
                         "in the pattern",
                         path));
    }
    if (!form && !s["pattern"].is_string())
      refuse(ErrorCode::bad_request, fmt::format("{}/pattern is no string", path));
    const std::string pattern = form ? formats.find(s["format"].get<std::string>())->second
                                     : s["pattern"].get<std::string>();
    auto inside = regex_grammar(g_, pattern, form ? RegexMatch::whole : RegexMatch::within,
                                JsonGrammar::spell_char);
    if (!inside) refuse(inside.error().code, fmt::format("{}: {}", path, inside.error().message));
    return g_.sequence({g_.text("\""), *inside, g_.text("\"")});
  }

  std::optional<std::int64_t> bound(const Json& s, const char* key, const std::string& path) {
    if (!s.contains(key)) return std::nullopt;
    const Json& value = s[key];
    if (!value.is_number())
      refuse(ErrorCode::bad_request, fmt::format("{}/{} is no number", path, key));
    const auto number = value.get<double>();
    if (number != std::floor(number) || std::abs(number) > 1e15) {
      refuse(ErrorCode::unsupported,
             fmt::format("{}/{} is {}; offered are whole numbers up to 10^15", path, key, number));
    }
    return static_cast<std::int64_t>(number);
  }

  NumberRange range(const Json& s, const std::string& path) {
    NumberRange out{bound(s, "minimum", path), bound(s, "maximum", path), false, false};
    const auto low = bound(s, "exclusiveMinimum", path), high = bound(s, "exclusiveMaximum", path);
    if (low && (!out.low || *low >= *out.low)) {
      out.low = low;
      out.open_low = true;
    }
    if (high && (!out.high || *high <= *out.high)) {
      out.high = high;
      out.open_high = true;
    }
    return out;
  }

  struct Property {
    Expr member;
    bool required = false;
  };

  // Properties in order, each optional one there or not, then further ones; commas between.
  Expr object(const Json& s, const std::string& path, std::uint32_t depth) {
    static const Json none = Json::object();
    const Json& named = s.contains("properties") ? s["properties"] : none;
    if (!named.is_object())
      refuse(ErrorCode::bad_request, fmt::format("{}/properties is no object", path));
    std::set<std::string> required;
    if (s.contains("required")) {
      if (!s["required"].is_array())
        refuse(ErrorCode::bad_request, fmt::format("{}/required is no array", path));
      for (const Json& name : s["required"]) {
        if (!name.is_string())
          refuse(ErrorCode::bad_request, fmt::format("{}/required has what is no name", path));
        required.insert(name.get<std::string>());
      }
    }
    const bool open = !s.contains("properties") && !s.contains("additionalProperties");
    if (open && required.empty()) return json_.object();

    const auto outside = std::exchange(open_references_, {});  // behind a '{'
    std::vector<Property> members;
    std::vector<std::string> names;
    const auto member = [&](const std::string& name, const Json& value) {
      const Expr key = g_.sequence({g_.text(compact(Json(name)) + ":"), json_.space()});
      members.push_back({g_.sequence({key, schema(value, path + "/properties/" + name, depth + 1)}),
                         required.contains(name)});
      names.push_back(name);
    };
    for (const auto& [name, value] : named.items()) member(name, value);
    const Json further =
        s.contains("additionalProperties") ? s["additionalProperties"] : Json(open);
    for (const std::string& name : required)
      if (!named.contains(name)) member(name, further.is_boolean() ? Json(true) : further);
    std::optional<Expr> more;
    if (further != Json(false)) {
      more = g_.sequence({json_.string_but(names), g_.text(":"), json_.space(),
                          schema(further, path + "/additionalProperties", depth + 1)});
    }
    open_references_ = outside;
    return json_.listed('{', members_from(members, more), '}');
  }

  // One rule for what follows each property when one came before: the texts share their ends.
  Expr members_from(const std::vector<Property>& members, const std::optional<Expr>& more) {
    Expr tail = g_.empty();  // behind a first member
    Expr head = g_.empty();  // nothing before
    if (more) {
      tail = g_.repeat(g_.sequence({json_.comma(), *more}), 0, std::nullopt);
      head = g_.optional(g_.sequence({*more, tail}));
    }
    for (std::size_t i = members.size(); i > 0; --i) {
      const Property& p = members[i - 1];
      const Expr here = named(p.member), rest = named(tail);
      std::vector<Expr> tails{g_.sequence({json_.comma(), here, rest})};
      std::vector<Expr> heads{g_.sequence({here, rest})};
      if (!p.required) {
        tails.push_back(rest);
        heads.push_back(head);
      }
      tail = g_.choice(std::move(tails));
      head = named(g_.choice(std::move(heads)));
    }
    return head;
  }

  Expr named(Expr body) {
    const GrammarBuilder::Rule rule = g_.declare();
    g_.define(rule, body);
    return g_.use(rule);
  }

  Expr array(const Json& s, const std::string& path, std::uint32_t depth) {
    const std::uint32_t min = count(s, "minItems", path).value_or(0);
    const auto max = count(s, "maxItems", path);
    const auto outside = std::exchange(open_references_, {});
    std::vector<Expr> first;
    if (s.contains("prefixItems")) {
      const Json& items = list(s, "prefixItems", path);
      for (std::size_t i = 0; i < items.size(); ++i) {
        const std::string here = fmt::format("{}/prefixItems/{}", path, i);
        first.push_back(named(schema(items[i], here, depth + 1)));
      }
    }
    // With prefixItems and nothing said of the rest, none follow unless they must.
    const bool closed = (s.contains("items") && s["items"] == Json(false)) ||
                        (!s.contains("items") && !first.empty() && min <= first.size());
    const Expr rest = closed ? g_.choice({})
                      : s.contains("items")
                          ? named(schema(s["items"], path + "/items", depth + 1))
                          : json_.value();
    open_references_ = outside;
    // From the end: what may follow n items.
    const std::uint32_t fixed = std::max(min, static_cast<std::uint32_t>(first.size()));
    const auto item = [&](std::uint32_t i) { return i < first.size() ? first[i] : rest; };
    const auto with_comma = [&](std::uint32_t i) {
      return i == 0 ? item(i) : g_.sequence({json_.comma(), item(i)});
    };
    if (max && *max < min) return g_.choice({});
    Expr tail = g_.empty();
    std::uint32_t from = std::max(fixed, 1U);  // items behind this one are alike
    if (max) from = std::min(from, *max);
    if (!closed && (!max || *max > from)) {
      tail = g_.repeat(with_comma(from), 0,
                       max ? std::optional(*max - from) : std::nullopt);
    }
    for (std::uint32_t i = from; i > 0; --i) {
      if (closed && i > first.size()) {
        if (i <= min) return g_.choice({});
        continue;
      }
      const Expr here = g_.sequence({with_comma(i - 1), tail});
      tail = i <= min ? here : g_.optional(here);
    }
    return json_.listed('[', tail, ']');
  }

  const Json& resolve(const Json& s, const std::string& path) {
    if (!s["$ref"].is_string())
      refuse(ErrorCode::bad_request, fmt::format("{}/$ref is no string", path));
    const auto ref = s["$ref"].get<std::string>();
    if (!ref.starts_with('#'))
      refuse(ErrorCode::unsupported,
             fmt::format("{}/$ref is '{}', outside the document: copy what it names", path, ref));
    try {
      return root_.at(Json::json_pointer(ref.substr(1)));
    } catch (const Json::exception&) {
      refuse(ErrorCode::bad_request,
             fmt::format("{}/$ref is '{}', which the document has not", path, ref));
    }
  }

  // A schema that is named is a rule, so that it may have itself in it.
  Expr reference(const Json& s, const std::string& path, std::uint32_t depth) {
    const Json& target = resolve(s, path);
    const bool alone = std::ranges::all_of(s.items(), [](const auto& item) {
      return item.key() == "$ref" || annotations.contains(item.key());
    });
    if (!alone) return schema(merge(without(s, "$ref"), target, path), path, depth + 1);
    const auto name = s["$ref"].get<std::string>();
    if (open_references_.contains(name)) {
      refuse(ErrorCode::bad_request,
             fmt::format("{}/$ref leads to itself with no value between", path));
    }
    const auto [found, is_new] = rules_.try_emplace(name);
    if (is_new) {
      const GrammarBuilder::Rule rule = g_.declare();
      found->second = rule;
      open_references_.insert(name);
      const Expr body = schema(target, name, depth + 1);
      open_references_.erase(name);
      g_.define(rule, body);
      return g_.use(rule);
    }
    return g_.use(found->second);
  }

  Expr all_of(const Json& s, const std::string& path, std::uint32_t depth) {
    Json whole = without(s, "allOf");
    for (const Json& part : list(s, "allOf", path)) {
      whole = merge(std::move(whole), part.is_object() && part.contains("$ref") &&
                                              part.size() == 1
                                          ? resolve(part, path)
                                          : part,
                    path);
    }
    return schema(whole, path, depth + 1);
  }

  Expr any_of(const Json& s, const char* key, const std::string& path, std::uint32_t depth) {
    const Json& branches = list(s, key, path);
    const Json rest = without(s, key);
    const bool bare = std::ranges::all_of(
        rest.items(), [](const auto& item) { return annotations.contains(item.key()); });
    if (std::string_view(key) == "oneOf") check_apart(branches, path);
    std::vector<Expr> ways;
    for (std::size_t i = 0; i < branches.size(); ++i) {
      const std::string here = fmt::format("{}/{}/{}", path, key, i);
      ways.push_back(schema(bare ? branches[i] : merge(rest, branches[i], here), here, depth + 1));
    }
    return g_.choice(std::move(ways));
  }

  static Json without(Json s, const char* key) {
    s.erase(key);
    return s;
  }

  // One schema that asks for what both ask.
  Json merge(Json a, const Json& b, const std::string& path) {
    if (b.is_boolean()) return b.get<bool>() ? a : b;
    if (a.is_boolean()) return a.get<bool>() ? b : a;
    if (!b.is_object())
      refuse(ErrorCode::bad_request, fmt::format("{} has what is no schema", path));
    const auto both = [&](const char* key) { return a.contains(key) && b.contains(key); };
    const bool both_closed = both("properties") && (a.contains("additionalProperties") ||
                                                    b.contains("additionalProperties"));
    for (const auto& [key, value] : b.items()) {
      if (!a.contains(key)) {
        a[key] = value;
      } else if (key == "properties" && value.is_object() && a[key].is_object() && !both_closed) {
        for (const auto& [name, property] : value.items()) {
          Json& mine = a[key][name];
          mine = mine.is_null() ? property : Json{{"allOf", Json::array({mine, property})}};
        }
      } else if (key == "required" && value.is_array() && a[key].is_array()) {
        a[key].insert(a[key].end(), value.begin(), value.end());
      } else if (!annotations.contains(key) && a[key] != value) {
        refuse(ErrorCode::unsupported,
               fmt::format("{} joins schemas that both have '{}': say it in one", path, key));
      }
    }
    return a;
  }

  // oneOf is anyOf when no document fits two: their types differ, or the values of one property
  // that both require.
  void check_apart(const Json& branches, const std::string& path) {
    for (std::size_t i = 0; i < branches.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (!apart(branches[j], branches[i], path))
          refuse(ErrorCode::unsupported,
                 fmt::format("{}/oneOf: branches {} and {} might both fit; use anyOf", path, j, i));
  }

  bool apart(const Json& first, const Json& second, const std::string& path) {
    const auto target = [&](const Json& s) -> const Json& {
      return s.is_object() && s.contains("$ref") ? resolve(s, path) : s;
    };
    const Json &a = target(first), &b = target(second);
    if (!a.is_object() || !b.is_object()) return false;
    const auto values = [](const Json& s) {
      return s.contains("const") ? Json::array({s["const"]})
             : s.contains("enum") && s["enum"].is_array() ? s["enum"]
                                                          : Json();
    };
    const auto differ = [&](const Json& left, const Json& right) {
      if (!left.is_object() || !right.is_object()) return false;
      const Json x = values(left), y = values(right);
      return x.is_array() && y.is_array() && std::ranges::none_of(x, [&](const Json& value) {
        return std::ranges::find(y, value) != y.end();
      });
    };
    if (differ(a, b)) return true;
    const auto kinds = [&](const Json& s) {
      std::vector<std::string> out = types(s, path);
      if (out.empty())
        for (const Json& value : values(s)) out.push_back(value.type_name());
      for (std::string& name : out)
        if (name == "integer") name = "number";
      return out;
    };
    const auto x = kinds(a), y = kinds(b);
    if (!x.empty() && !y.empty() && std::ranges::none_of(x, [&](const std::string& type) {
          return std::ranges::find(y, type) != y.end();
        }))
      return true;
    const auto has = [](const Json& s, const std::string& name) {
      return s.contains("required") && s["required"].is_array() &&
             std::ranges::find(s["required"], Json(name)) != s["required"].end();
    };
    if (x != std::vector<std::string>{"object"} || y != x || !a.contains("properties") ||
        !b.contains("properties") || !a["properties"].is_object() || !b["properties"].is_object())
      return false;
    return std::ranges::any_of(a["properties"].items(), [&](const auto& item) {
      return b["properties"].contains(item.key()) && has(a, item.key()) && has(b, item.key()) &&
             differ(item.value(), b["properties"][item.key()]);
    });
  }

  Json root_;
  GrammarBuilder g_;
  JsonGrammar json_;
  std::map<std::string, GrammarBuilder::Rule> rules_;  // by reference
  std::set<std::string> open_references_;  // followed since the last '{' or '['
  std::uint32_t looked_at_ = 0;
};

}  // namespace

Result<Grammar> json_schema_grammar(std::string_view schema) {
  Json root = Json::parse(schema, nullptr, false);
  if (root.is_discarded()) return fail(ErrorCode::bad_request, "the JSON schema is no valid JSON");
  try {
    return Compiler(std::move(root)).compile();
  } catch (const Refusal& refusal) {
    return tl::unexpected(Error{refusal.error.code, "JSON schema: " + refusal.error.message, 0});
  }
}

}  // namespace sluice::engine
