// Which chat format a Jinja template writes. The template is brought into one spelling (white
// space, quotes and ways to name a message's fields do not matter), then looked through for the
// expressions that make each known format. Nothing is guessed: what differs from them is refused.

#include <algorithm>
#include <optional>

#include "model/chat_template.hpp"

namespace sluice::model {

namespace {

using System = ChatLayout::System;

tl::unexpected<Error> refuse(std::string_view what) {
  return fail(
      ErrorCode::unsupported,
      "the model's chat template {}; set chat_format to one of chatml, llama2, llama3, gemma, "
      "mistral-v1, mistral-v3, mistral-tekken, zephyr if it is one of them in effect, or send "
      "plain prompts",
      what);
}

void replace_all(std::string& text, std::string_view find, std::string_view with) {
  for (std::size_t at = 0; (at = text.find(find, at)) != std::string::npos; at += with.size()) {
    text.replace(at, find.size(), with);
  }
}

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

/// Brings Jinja into one spelling: see `canonical`.
class Canonicalizer {
 public:
  explicit Canonicalizer(std::string_view jinja) : in_(jinja) {}

  /// Tags without white space or trimming marks, strings in single quotes with newlines as \n, and
  /// text outside of tags, so far as Jinja would print it, as {{text'...'}}.
  std::string run() {
    while (at_ < in_.size()) {
      const std::size_t open = next_tag();
      outside(in_.substr(at_, open - at_), open < in_.size() && in_[open + 1] != '{');
      at_ = open;
      if (at_ < in_.size()) tag();
    }
    replace_all(out_, "message.role", "message['role']");
    replace_all(out_, "message.content", "message['content']");
    replace_all(out_, "'+'", "");
    return std::move(out_);
  }

 private:
  std::size_t next_tag() const {
    for (std::size_t i = at_; i + 1 < in_.size(); ++i) {
      if (in_[i] == '{' && (in_[i + 1] == '{' || in_[i + 1] == '%' || in_[i + 1] == '#')) return i;
    }
    return in_.size();
  }

  /// Jinja as checkpoints are rendered: trim_blocks and lstrip_blocks are on.
  void outside(std::string_view text, bool before_block) {
    if (after_block_ && text.starts_with('\n')) text.remove_prefix(1);
    if (after_dash_) {
      while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    }
    const std::size_t open = at_of(text);
    const bool dash = open + 2 < in_.size() && in_[open + 2] == '-';
    if (dash) {
      while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    } else if (before_block) {
      std::size_t end = text.size();
      while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '\t')) --end;
      if (end == 0 ? at_ == 0 || after_block_ : text[end - 1] == '\n') text = text.substr(0, end);
    }
    // A template's last newline is dropped.
    if (open == in_.size() && text.ends_with('\n')) text.remove_suffix(1);
    if (text.empty()) return;
    out_ += "{{text'";
    literal(text);
    out_ += "'}}";
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
    out_.append(in_.substr(at_, 2));
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
};

/// A template in its one spelling.
class Canonical {
 public:
  explicit Canonical(std::string_view jinja) : text_(Canonicalizer(jinja).run()) {}

  bool has(std::string_view part) const { return text_.find(part) != std::string::npos; }

  /// Whether text outside of tags would be printed.
  bool prints_outside() const { return has("{{text'"); }

  /// The rest of the string that goes on after `start`, up to `end` within the same string.
  std::optional<std::string> string_between(std::string_view start, std::string_view end) const {
    for (std::size_t at = 0; (at = text_.find(start, at)) != std::string::npos;) {
      at += start.size();
      std::string value;
      for (std::size_t i = at; i < text_.size(); ++i) {
        if (std::string_view(text_).substr(i).starts_with(end)) return value;
        if (text_[i] == '\'') break;
        if (text_[i] == '\\' && i + 1 < text_.size()) {
          ++i;
          value.push_back(text_[i] == 'n' ? '\n' : text_[i] == 't' ? '\t' : text_[i]);
        } else {
          value.push_back(text_[i]);
        }
      }
    }
    return std::nullopt;
  }

 private:
  std::string text_;
};

/// The content of a message, as templates write it.
constexpr std::string_view kContent = "message['content']";

/// Which of `content` and `content|trim` stands between two expressions; nothing if neither does.
std::optional<bool> trims_between(const Canonical& jinja, std::string_view before,
                                  std::string_view after) {
  if (jinja.has(fmt::format("{}{}{}", before, kContent, after))) return false;
  if (jinja.has(fmt::format("{}{}|trim{}", before, kContent, after))) return true;
  return std::nullopt;
}

ChatLayout chatml_layout() {
  ChatLayout layout;
  layout.system_open = "<|im_start|>system\n";
  layout.user_open = "<|im_start|>user\n";
  layout.assistant_open = layout.generation = "<|im_start|>assistant\n";
  layout.system_close = layout.user_close = layout.assistant_close = "<|im_end|>\n";
  return layout;
}

Result<ChatTemplate> recognise_chatml(const Canonical& jinja) {
  for (const std::string_view extra : {"think", "reasoning", "strftime"}) {
    if (jinja.has(extra))
      return refuse(fmt::format("is ChatML with its own rules for \"{}\"", extra));
  }
  const auto trims =
      trims_between(jinja, "'<|im_start|>'+message['role']+'\\n'+", "+'<|im_end|>\\n'");
  if (!trims || !jinja.has("'<|im_start|>assistant\\n'")) {
    return refuse("is a variant of ChatML whose turns are written otherwise");
  }
  ChatTemplate chat{ChatFormat::chatml, {}, chatml_layout()};
  chat.layout.trims_system = chat.layout.trims_user = chat.layout.trims_assistant = *trims;
  if (jinja.has("bos_token")) {
    if (!jinja.has("{{bos_token}}"))
      return refuse("is ChatML with begin-of-text in an unknown place");
    chat.layout.begin = "\x01";
  }
  const auto system = jinja.string_between("<|im_start|>system\\n", "<|im_end|>");
  if (!system && (jinja.has("default_system") || jinja.has("system_message='"))) {
    return refuse("is ChatML with its default system message set apart");
  }
  chat.default_system = system.value_or("");
  return chat;
}

ChatLayout llama3_layout() {
  ChatLayout layout;
  layout.begin = "\x01";
  layout.system_open = "<|start_header_id|>system<|end_header_id|>\n\n";
  layout.user_open = "<|start_header_id|>user<|end_header_id|>\n\n";
  layout.assistant_open = "<|start_header_id|>assistant<|end_header_id|>\n\n";
  layout.generation = layout.assistant_open;
  layout.system_close = layout.user_close = layout.assistant_close = "<|eot_id|>";
  layout.trims_system = layout.trims_user = layout.trims_assistant = true;
  return layout;
}

Result<ChatTemplate> recognise_llama3(const Canonical& jinja) {
  const auto trims = trims_between(
      jinja, "'<|start_header_id|>'+message['role']+'<|end_header_id|>\\n\\n'+", "+'<|eot_id|>'");
  if (!trims || !jinja.has("'<|start_header_id|>assistant<|end_header_id|>\\n\\n'")) {
    return refuse("is a variant of Llama 3's whose turns are written otherwise");
  }
  ChatTemplate chat{ChatFormat::llama3, {}, llama3_layout()};
  chat.layout.trims_system = chat.layout.trims_user = chat.layout.trims_assistant = *trims;
  if (!jinja.has("bos_token")) chat.layout.begin.clear();
  const auto cutoff = jinja.string_between("'Cutting Knowledge Date: ", "\\n");
  if (!cutoff) return chat;
  // Where the template asks the clock, its own date for want of one keeps the prompt a function of
  // the request alone.
  const auto date = jinja.string_between("date_string='", "'");
  if (!date || !jinja.has("'Today Date: '+date_string+'\\n\\n'")) {
    return refuse("is a variant of Llama 3's whose date is written otherwise");
  }
  chat.layout.preamble =
      fmt::format("Cutting Knowledge Date: {}\nToday Date: {}\n\n", *cutoff, *date);
  return chat;
}

ChatLayout llama2_layout() {
  ChatLayout layout;
  layout.user_open = "\x01[INST] ";
  layout.user_close = " [/INST]";
  layout.assistant_open = " ";
  layout.assistant_close = " \x02";
  layout.system_open = "<<SYS>>\n";
  layout.system_close = "\n<</SYS>>\n\n";
  layout.system = System::first_user;
  layout.trims_user = layout.trims_assistant = layout.trims_with_system = true;
  layout.alternates = true;
  return layout;
}

Result<ChatTemplate> recognise_llama2(const Canonical& jinja) {
  const bool known =
      jinja.has("'<<SYS>>\\n'+system_message+'\\n<</SYS>>\\n\\n'+message['content']") &&
      jinja.has("{{bos_token+'[INST] '+content.strip()+' [/INST]'}}") &&
      jinja.has("{{' '+content.strip()+' '+eos_token}}");
  if (!known) return refuse("is a variant of Llama 2's whose turns are written otherwise");
  if (jinja.has("You are a helpful, respectful and honest assistant")) {
    return refuse("is Llama 2's with its default system message set apart");
  }
  return ChatTemplate{ChatFormat::llama2, {}, llama2_layout()};
}

ChatLayout gemma_layout() {
  ChatLayout layout;
  layout.begin = "\x01";
  layout.user_open = "<start_of_turn>user\n";
  layout.assistant_open = layout.generation = "<start_of_turn>model\n";
  layout.user_close = layout.assistant_close = "<end_of_turn>\n";
  layout.system = System::refused;
  layout.trims_user = layout.trims_assistant = true;
  layout.alternates = true;
  return layout;
}

Result<ChatTemplate> recognise_gemma(const Canonical& jinja) {
  ChatTemplate chat{ChatFormat::gemma, {}, gemma_layout()};
  const bool ends = jinja.has("{{bos_token}}") && jinja.has("{{'<start_of_turn>model\\n'}}") &&
                    jinja.has("roles must alternate");
  const bool first =
      jinja.has("{{'<start_of_turn>'+role+'\\n'+message['content']|trim+'<end_of_turn>\\n'}}") &&
      jinja.has("System role not supported");
  const bool third =
      jinja.has("{{'<start_of_turn>'+role+'\\n'+(first_user_prefixifloop.firstelse'')}}") &&
      jinja.has("{{message['content']|trim}}") && jinja.has("{{'<end_of_turn>\\n'}}") &&
      jinja.has("first_user_prefix=messages[0]['content']+'\\n\\n'");
  if (!ends || first == third) {
    return refuse("is a variant of Gemma's whose turns are written otherwise");
  }
  if (third) {
    chat.layout.system = System::first_user;
    chat.layout.system_close = "\n\n";
  }
  return chat;
}

ChatLayout mistral_layout(std::string_view open, std::string_view close) {
  ChatLayout layout;
  layout.begin = "\x01";
  layout.user_open = open;
  layout.user_close = close;
  layout.assistant_close = "\x02";
  layout.system = System::refused;
  layout.system_close = "\n\n";
  layout.alternates = true;
  return layout;
}

/// How an assistant's turn is written: what comes before and after, and whether it is trimmed.
bool read_mistral_assistant(const Canonical& jinja, ChatLayout& layout) {
  for (const std::string_view before : {"", " "}) {
    for (const std::string_view after : {"", " "}) {
      const auto trims = trims_between(jinja, before.empty() ? "{{" : "{{' '+",
                                       after.empty() ? "+eos_token}}" : "+eos_token+' '}}");
      if (!trims) continue;
      layout.assistant_open = before;
      layout.assistant_close = fmt::format("\x02{}", after);
      layout.trims_assistant = *trims;
      return true;
    }
  }
  return false;
}

Result<ChatTemplate> recognise_mistral(const Canonical& jinja) {
  if (jinja.has("[SYSTEM_PROMPT]")) return refuse("is Mistral's version 7 ([SYSTEM_PROMPT])");
  for (const std::string_view open : {"[INST] ", " [INST] ", "[INST]"}) {
    for (const std::string_view close : {" [/INST]", "[/INST]"}) {
      const std::string user = fmt::format("{{{{'{}'+{}+'{}'}}}}", open, kContent, close);
      if (!jinja.has(user)) continue;
      ChatTemplate chat{ChatFormat::mistral, {}, mistral_layout(open, close)};
      if (!jinja.has("{{bos_token}}") || !jinja.has("must alternate") ||
          !read_mistral_assistant(jinja, chat.layout)) {
        return refuse("is a variant of Mistral's whose turns are written otherwise");
      }
      if (!jinja.has("system_message")) return chat;
      const std::string system =
          fmt::format("{{{{'{}'+system_message+'\\n\\n'+{}+'{}'}}}}", open, kContent, close);
      const bool first = jinja.has("loop.firstandsystem_messageisdefined");
      const bool last = jinja.has("loop.lastandsystem_messageisdefined");
      if (!jinja.has(system) || first == last) {
        return refuse("is a variant of Mistral's whose system message is written otherwise");
      }
      chat.layout.system = first ? System::first_user : System::last_user;
      return chat;
    }
  }
  return refuse("is a variant of Mistral's whose turns are written otherwise");
}

ChatLayout zephyr_layout() {
  ChatLayout layout;
  layout.system_open = "<|system|>\n";
  layout.user_open = "<|user|>\n";
  layout.assistant_open = layout.generation = "<|assistant|>\n";
  layout.system_close = layout.user_close = layout.assistant_close = "\x02\n";
  return layout;
}

Result<ChatTemplate> recognise_zephyr(const Canonical& jinja) {
  for (const std::string_view role : {"system", "user", "assistant"}) {
    if (!jinja.has(
            fmt::format("{{{{'<|{}|>\\n'+{}+eos_token}}}}{{{{text'\\n'}}}}", role, kContent))) {
      return refuse("is a variant of Zephyr's whose turns are written otherwise");
    }
  }
  if (!jinja.has("{{'<|assistant|>'}}{{text'\\n'}}")) {
    return refuse("is a variant of Zephyr's that opens the answer otherwise");
  }
  return ChatTemplate{ChatFormat::zephyr, {}, zephyr_layout()};
}

}  // namespace

Result<ChatTemplate> recognise_chat_template(std::string_view jinja) {
  const Canonical text(jinja);
  if (jinja.empty()) return refuse("is missing");
  const bool zephyr = text.has("<|user|>") && text.has("eos_token") && !text.has("<|end|>");
  if (zephyr) return recognise_zephyr(text);
  using Recogniser = Result<ChatTemplate> (*)(const Canonical&);
  const std::pair<std::string_view, Recogniser> families[] = {
      {"<|im_start|>", recognise_chatml},   {"<|start_header_id|>", recognise_llama3},
      {"<start_of_turn>", recognise_gemma}, {"<<SYS>>", recognise_llama2},
      {"[INST]", recognise_mistral},
  };
  for (const auto& [marker, recognise] : families) {
    if (!text.has(marker)) continue;
    if (text.prints_outside()) return refuse("prints text outside of its tags");
    return recognise(text);
  }
  // Its first marker says best which family it is.
  const std::size_t marker = std::min(jinja.find('<'), jinja.size());
  return refuse(fmt::format("is of an unknown format (\"{}\")",
                            jinja.substr(marker == jinja.size() ? 0 : marker, 40)));
}

Result<ChatTemplate> named_chat_template(std::string_view name) {
  if (name == "chatml") return ChatTemplate{ChatFormat::chatml, {}, chatml_layout()};
  if (name == "llama2") return ChatTemplate{ChatFormat::llama2, {}, llama2_layout()};
  if (name == "llama3") return ChatTemplate{ChatFormat::llama3, {}, llama3_layout()};
  if (name == "gemma") return ChatTemplate{ChatFormat::gemma, {}, gemma_layout()};
  if (name == "zephyr") return ChatTemplate{ChatFormat::zephyr, {}, zephyr_layout()};
  ChatTemplate chat{ChatFormat::mistral, {}, {}};
  if (name == "mistral-v1") {
    chat.layout = mistral_layout(" [INST] ", " [/INST]");
    chat.layout.assistant_open = " ";
    chat.layout.system = System::first_user;
  } else if (name == "mistral-v3") {
    chat.layout = mistral_layout("[INST] ", "[/INST]");
    chat.layout.assistant_open = " ";
    chat.layout.trims_assistant = true;
    chat.layout.system = System::last_user;
  } else if (name == "mistral-tekken") {
    chat.layout = mistral_layout("[INST]", "[/INST]");
    chat.layout.system = System::last_user;
  } else {
    return fail(ErrorCode::bad_request,
                "unknown chat format \"{}\"; use one of chatml, llama2, llama3, gemma, mistral-v1, "
                "mistral-v3, mistral-tekken, zephyr",
                name);
  }
  return chat;
}

}  // namespace sluice::model
