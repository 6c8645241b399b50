#include "model/jinja.hpp"

#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

namespace sluice::model {

namespace {

void replace_all(std::string& text, std::string_view find, std::string_view with) {
  for (std::size_t at = 0; (at = text.find(find, at)) != std::string::npos; at += with.size()) {
    text.replace(at, find.size(), with);
  }
}

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\v' || c == '\f'; }

/// Cuts Jinja into its tags, each in the one spelling.
class Canonicalizer {
 public:
  explicit Canonicalizer(std::string_view jinja) : in_(jinja) {}

  std::vector<std::string> run() {
    while (at_ < in_.size()) {
      const std::size_t open = next_tag();
      outside(in_.substr(at_, open - at_), open < in_.size() && in_[open + 1] != '{');
      at_ = open;
      if (at_ < in_.size()) tag();
    }
    return std::move(tags_);
  }

 private:
  std::size_t next_tag() const {
    for (std::size_t i = at_; i + 1 < in_.size(); ++i) {
      if (in_[i] == '{' && (in_[i + 1] == '{' || in_[i + 1] == '%' || in_[i + 1] == '#')) return i;
    }
    return in_.size();
  }

  void outside(std::string_view text, bool before_block) {
    bool line_starts = at_ == 0;
    const auto drop_first = [&] {
      line_starts = text.front() == '\n';
      text.remove_prefix(1);
    };
    if (after_block_ && text.starts_with('\n')) drop_first();
    while (after_dash_ && !text.empty() && is_blank(text.front())) drop_first();
    const std::size_t open = at_of(text);
    const bool dash = open + 2 < in_.size() && in_[open + 2] == '-';
    if (dash) {
      while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    } else if (before_block) {
      std::size_t end = text.size();
      while (end > 0 && text[end - 1] != '\n' && is_blank(text[end - 1])) --end;
      if (end == 0 ? line_starts : text[end - 1] == '\n') text = text.substr(0, end);
    }
    if (text.empty()) return;
    out_ = "{{text'";
    literal(text);
    out_ += "'}}";
    tags_.push_back(std::move(out_));
  }
  std::size_t at_of(std::string_view text) const {
    return static_cast<std::size_t>(text.data() - in_.data()) + text.size();
  }

  void literal(std::string_view text) {
    for (const char c : text) {
      if (c == '\n') {
        out_ += "\\n";
      } else if (c == '\'') {
        out_ += "\\'";
      } else {
        out_.push_back(c);
      }
    }
  }

  void tag() {
    const char kind = in_[at_ + 1];
    const std::string_view close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    after_block_ = kind != '{';
    std::size_t i = at_ + 2;
    if (kind == '#') {
      const std::size_t end = in_.find("#}", i);
      after_dash_ = end != std::string_view::npos && in_[end - 1] == '-';
      at_ = end == std::string_view::npos ? in_.size() : end + 2;
      return;
    }
    out_ = in_.substr(at_, 2);
    if (i < in_.size() && in_[i] == '-') ++i;
    while (i < in_.size() && !in_.substr(i).starts_with(close)) {
      if (in_[i] == '\'' || in_[i] == '"') {
        i = string(i);
      } else {
        if (!is_blank(in_[i])) out_.push_back(in_[i]);
        ++i;
      }
    }
    after_dash_ = !out_.empty() && out_.back() == '-';
    if (after_dash_) out_.pop_back();
    out_ += close;
    at_ = std::min(in_.size(), i + 2);
    spell();
    tags_.push_back(std::move(out_));
  }

  /// Ways to write the same within a tag.
  void spell() {
    for (const std::string_view field : {"role", "content"}) {
      for (const std::string_view before : {"message", "]"}) {
        replace_all(out_, std::string(before) + "." + std::string(field),
                    std::string(before) + "['" + std::string(field) + "']");
      }
    }
    replace_all(out_, "'+'", "");
    replace_all(out_, ".strip()", "|trim");
    if (out_.starts_with("{{raise_exception('") && out_.ends_with("')}}")) out_ = "{{raise}}";
  }

  /// A string from its opening quote on; returns where it ends.
  std::size_t string(std::size_t i) {
    const char quote = in_[i++];
    out_.push_back('\'');
    while (i < in_.size() && in_[i] != quote) {
      if (in_[i] == '\\' && i + 1 < in_.size()) {
        if (in_[i + 1] == '"') {
          out_.push_back('"');
        } else {
          out_.append(in_.substr(i, 2));
        }
        i += 2;
      } else {
        literal(in_.substr(i, 1));
        ++i;
      }
    }
    out_.push_back('\'');
    return std::min(in_.size(), i + 1);
  }

  std::string_view in_;
  std::size_t at_ = 0;
  bool after_block_ = false, after_dash_ = false;
  std::string out_;
  std::vector<std::string> tags_;
};

/// Conditions that every plain conversation decides alike, as published templates write them.
constexpr std::string_view kNever[] = {
    "tools",
    "toolsisnotnone",
    "toolsisnotnoneandnottools_in_user_message",
    "toolsisnotnoneand(message==user_messages[-1])",
    "tools_in_user_messageandnottoolsisnone",
    "nottoolsisdefined",
    "custom_toolsisdefined",
    "builtin_toolsisdefined",
    "builtin_toolsisdefinedortoolsisnotnone",
    "notadd_generation_promptisdefined",
    "'tool_calls'inmessage",
    "message.tool_callsisdefinedandmessage.tool_callsisnotnone",
    "(message.tool_callsisdefinedandmessage.tool_callsisnotnone)",
    "message['role']=='tool_calls'ormessage.tool_callsisdefined",
    "message['role']=='tool'",
    "message['role']=='tool'ormessage['role']=='ipython'",
    "message['role']=='tool_results'ormessage['role']=='tool'",
};
constexpr std::string_view kAlways[] = {
    "nottools_in_user_messageisdefined",
    "message['content']isstring",
    "messages[0]['content']isstring",
    "not(message['role']=='ipython'ormessage['role']=='tool'or'tool_calls'inmessage)",
    "not(message['role']=='tool'ormessage['role']=='tool_results'or"
    "(message.tool_callsisdefinedandmessage.tool_callsisnotnone))",
};
/// Qwen's condition for turns of text, after which no assistant's turn is left over.
constexpr std::string_view kEveryAnswer =
    "(message['role']=='user')or(message['role']=='system'andnotloop.first)or"
    "(message['role']=='assistant'andnotmessage.tool_calls)";
/// Statements that only branches for tools make use of.
constexpr std::string_view kIdle[] = {
    "{%settools_in_user_message=true%}",
    "{%setuser_messages=loop_messages|selectattr('role','equalto','user')|list%}",
};

template <std::size_t kCount>
bool is_one_of(const std::string_view (&list)[kCount], std::string_view one) {
  return std::find(std::begin(list), std::end(list), one) != std::end(list);
}

/// Takes out the branches that no plain conversation reaches.
class Pruner {
 public:
  std::string run(const std::vector<std::string>& tags) {
    for (const std::string& tag : tags) {
      const bool in_if = !open_.empty() && !open_.back().loop;
      if (const auto condition = inside(tag, "{%if")) {
        open_.push_back({.outer = reached()});
        branch(*condition);
      } else if (const auto other = inside(tag, "{%elif"); other && in_if) {
        branch(*other);
      } else if (tag == "{%else%}" && in_if) {
        otherwise();
      } else if (tag == "{%endif%}" && in_if) {
        if (open_.back().outer && open_.back().written) out_ += tag;
        open_.pop_back();
      } else {
        if (reached() && !is_one_of(kIdle, tag)) out_ += tag;
        if (tag.starts_with("{%for")) {
          open_.push_back({.outer = reached(), .reached = true, .loop = true});
        } else if (tag == "{%endfor%}" && !open_.empty() && open_.back().loop) {
          open_.pop_back();
        }
      }
    }
    return std::move(out_);
  }

 private:
  /// An `if`, or a `for`, that is open.
  struct Block {
    bool outer = true;     ///< the block itself is reached
    bool reached = false;  ///< the branch at hand is, if the block is
    bool loop = false;
    bool written = false;  ///< one of the conditions was
    bool decided = false;  ///< a branch was met that is always taken
    bool answers = false;  ///< every assistant's turn went into a branch before
  };

  static std::optional<std::string_view> inside(std::string_view tag, std::string_view open) {
    if (!tag.starts_with(open) || !tag.ends_with("%}")) return std::nullopt;
    return tag.substr(open.size(), tag.size() - open.size() - 2);
  }

  bool reached() const { return open_.empty() || (open_.back().outer && open_.back().reached); }

  void branch(std::string_view condition) {
    Block& at = open_.back();
    const bool never =
        is_one_of(kNever, condition) || (at.answers && condition == "message['role']=='assistant'");
    at.reached = !at.decided && !never;
    if (!at.outer || !at.reached) return;
    if (is_one_of(kAlways, condition)) return otherwise();
    out_ += at.written ? "{%elif" : "{%if";
    out_ += condition;
    out_ += "%}";
    at.written = true;
    at.answers = at.answers || condition == kEveryAnswer;
  }

  void otherwise() {
    Block& at = open_.back();
    at.reached = !at.decided;
    if (at.outer && at.reached && at.written) out_ += "{%else%}";
    at.decided = true;
  }

  std::vector<Block> open_;
  std::string out_;
};

}  // namespace

std::string canonical_jinja(std::string_view jinja) {
  std::string text(jinja);
  replace_all(text, "\r\n", "\n");
  std::replace(text.begin(), text.end(), '\r', '\n');
  if (text.ends_with('\n')) text.pop_back();  // as Jinja does
  return Pruner().run(Canonicalizer(text).run());
}

}  // namespace sluice::model
