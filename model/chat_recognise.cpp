// Which chat format a Jinja template writes. The template is brought into one spelling without its
// branches for tools (model/jinja.hpp) and then read from its start to its end, as one of the texts
// that published checkpoints ship. Nothing is guessed: what goes on otherwise is refused.

#include <algorithm>
#include <optional>
#include <span>

#include "model/chat_template.hpp"
#include "model/jinja.hpp"
#include "model/unicode.hpp"

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

/// The start of `text` on one line, whole characters of it, for a message.
std::string excerpt(std::string_view text) {
  constexpr std::size_t kBytes = 60;
  std::size_t end = 0;
  for (Utf8Char next = decode_utf8(text, 0); next.bytes > 0 && end + next.bytes <= kBytes;
       next = decode_utf8(text, end)) {
    end += next.bytes;
  }
  std::string line = repair_utf8(text.substr(0, end));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c >= 0 && c < ' '; }, ' ');
  return line;
}

/// Reads a template in its one spelling.
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  /// Steps over `piece` if that comes next.
  bool take(std::string_view piece) {
    if (!rest_.starts_with(piece)) return false;
    rest_.remove_prefix(piece.size());
    return true;
  }

  /// Steps over the one that comes next of `pieces`, the index of it.
  std::optional<std::size_t> take_one(std::span<const std::string> pieces) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (take(pieces[i])) return i;
    }
    return std::nullopt;
  }

  /// Steps over `open`, the rest of the string that goes on after it, and `close`; what lies
  /// between them.
  std::optional<std::string> take_string(std::string_view open, std::string_view close) {
    if (!rest_.starts_with(open)) return std::nullopt;
    std::string value;
    for (std::size_t i = open.size(); i < rest_.size(); ++i) {
      if (rest_.substr(i).starts_with(close)) {
        rest_.remove_prefix(i + close.size());
        return value;
      }
      if (rest_[i] == '\'') return std::nullopt;
      if (rest_[i] == '\\' && i + 1 < rest_.size()) {
        ++i;
        value.push_back(rest_[i] == 'n' ? '\n' : rest_[i] == 't' ? '\t' : rest_[i]);
      } else {
        value.push_back(rest_[i]);
      }
    }
    return std::nullopt;
  }

  bool done() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

/// Refuses a template of a known family that goes on in an unknown way.
tl::unexpected<Error> refuse_rest(std::string_view family, const Reader& reader) {
  if (reader.done()) return refuse(fmt::format("is a variant of {} that ends too early", family));
  return refuse(
      fmt::format("is a variant of {} that goes on with \"{}\"", family, excerpt(reader.rest())));
}

// What several families write.
constexpr std::string_view kEachMessage = "{%formessageinmessages%}";
constexpr std::string_view kEachOfLoop = "{%formessageinloop_messages%}";
constexpr std::string_view kIfSystem = "{%ifmessages[0]['role']=='system'%}";
constexpr std::string_view kAlternates =
    "{%if(message['role']=='user')!=(loop.index0%2==0)%}{{raise}}{%endif%}";

/// The line that opens the answer, asked for or always.
bool take_generation(Reader& reader, std::string_view line) {
  return reader.take(fmt::format("{{%ifadd_generation_prompt%}}{}{{%endif%}}", line)) ||
         reader.take(line);
}

/// `before`, a message's content and `after`; whether the content is trimmed.
std::optional<bool> take_content(Reader& reader, std::string_view before, std::string_view after) {
  const std::string kinds[] = {fmt::format("{}message['content']{}", before, after),
                               fmt::format("{}message['content']|trim{}", before, after)};
  const auto kind = reader.take_one(kinds);
  return kind ? std::optional(*kind == 1) : std::nullopt;
}

ChatLayout chatml_layout() {
  ChatLayout layout;
  layout.system_open = "<|im_start|>system\n";
  layout.user_open = "<|im_start|>user\n";
  layout.assistant_open = layout.generation = "<|im_start|>assistant\n";
  layout.system_close = layout.user_close = layout.assistant_close = "<|im_end|>\n";
  return layout;
}

Result<ChatTemplate> recognise_chatml(Reader reader) {
  for (const std::string_view extra : {"think", "reasoning", "strftime"}) {
    if (reader.rest().find(extra) != std::string_view::npos)
      return refuse(fmt::format("is ChatML with its own rules for \"{}\"", extra));
  }
  ChatTemplate chat{ChatFormat::chatml, {}, chatml_layout()};
  if (reader.take("{{bos_token}}")) chat.layout.begin = "\x01";
  const auto take_default = [&] {
    const auto text = reader.take_string("{{'<|im_start|>system\\n", "<|im_end|>\\n'}}");
    chat.default_system = text.value_or("");
    return text.has_value();
  };
  const auto take_turn = [&] {
    const auto trims =
        take_content(reader, "{{'<|im_start|>'+message['role']+'\\n'+", "+'<|im_end|>\\n'}}");
    ChatLayout& layout = chat.layout;
    layout.trims_system = layout.trims_user = layout.trims_assistant = trims.value_or(false);
    return trims.has_value();
  };
  bool known = false;
  if (reader.take(kIfSystem)) {
    known = reader.take("{{'<|im_start|>system\\n'+messages[0]['content']+'<|im_end|>\\n'}}") &&
            (!reader.take("{%else%}") || take_default()) && reader.take("{%endif%}") &&
            reader.take(kEachMessage) &&
            reader.take(
                "{%if(message['role']=='user')or(message['role']=='system'andnotloop.first)"
                "or(message['role']=='assistant'andnotmessage.tool_calls)%}") &&
            take_turn() && reader.take("{%endif%}");
  } else {
    known = reader.take(kEachMessage) &&
            (!reader.take("{%ifloop.firstandmessages[0]['role']!='system'%}") ||
             (take_default() && reader.take("{%endif%}"))) &&
            take_turn();
  }
  known = known && reader.take("{%endfor%}") &&
          take_generation(reader, "{{'<|im_start|>assistant\\n'}}");
  if (!known || !reader.done()) return refuse_rest("ChatML", reader);
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

constexpr std::string_view kLlama3Role =
    "'<|start_header_id|>'+message['role']+'<|end_header_id|>\\n\\n'+";
constexpr std::string_view kLlama3End = "+'<|eot_id|>'";

bool take_llama3_turn(Reader& reader, std::string_view open, std::string_view close,
                      ChatLayout& layout) {
  const auto trims = take_content(reader, fmt::format("{}{}", open, kLlama3Role),
                                  fmt::format("{}{}", kLlama3End, close));
  layout.trims_system = layout.trims_user = layout.trims_assistant = trims.value_or(false);
  return trims.has_value();
}

/// The system turn of Llama 3.1 and later, which is there in any case and starts with dates. Where
/// the template asks the clock, its own date for want of one keeps the prompt a function of the
/// request alone.
bool take_llama3_dates(Reader& reader, ChatLayout& layout) {
  if (!reader.take("{%ifnotdate_stringisdefined%}")) return false;
  const bool clock =
      reader.take("{%ifstrftime_nowisdefined%}{%setdate_string=strftime_now('%d %b %Y')%}{%else%}");
  const auto date = reader.take_string("{%setdate_string='", "'%}");
  if (!date || (clock && !reader.take("{%endif%}")) || !reader.take("{%endif%}")) return false;
  if (!reader.take(kIfSystem) ||
      !reader.take("{%setsystem_message=messages[0]['content']|trim%}{%setmessages=messages[1:]%}"
                   "{%else%}{%setsystem_message=''%}{%endif%}"
                   "{{'<|start_header_id|>system<|end_header_id|>\\n\\n'}}")) {
    return false;
  }
  const auto cutoff = reader.take_string("{{'Cutting Knowledge Date: ", "\\n'}}");
  if (!cutoff || !reader.take("{{'Today Date: '+date_string+'\\n\\n'}}")) return false;
  layout.preamble = fmt::format("Cutting Knowledge Date: {}\nToday Date: {}\n\n", *cutoff, *date);
  return reader.take("{{system_message}}{{'<|eot_id|>'}}");
}

Result<ChatTemplate> recognise_llama3(Reader reader) {
  ChatTemplate chat{ChatFormat::llama3, {}, llama3_layout()};
  ChatLayout& layout = chat.layout;
  bool known = false;
  if (reader.take("{%setloop_messages=messages%}")) {
    known = reader.take(kEachOfLoop) && take_llama3_turn(reader, "{%setcontent=", "%}", layout) &&
            reader.take(
                "{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}"
                "{{content}}");
  } else {
    if (!reader.take("{{bos_token}}")) layout.begin.clear();
    const bool dates = reader.rest().starts_with("{%ifnotdate_string");
    known = (!dates || take_llama3_dates(reader, layout)) && reader.take(kEachMessage);
    if (known && reader.take("{%ifmessage['role']=='user'%}")) {
      // As the model's first release has it, with the roles spelled out.
      for (const std::string_view role : {"user", "assistant"}) {
        known = known &&
                reader.take(fmt::format("{{{{'<|start_header_id|>{}<|end_header_id|>\\n\\n"
                                        "'+message['content']|trim{}}}}}",
                                        role, kLlama3End)) &&
                reader.take(role == "user" ? "{%elifmessage['role']=='assistant'%}" : "{%else%}");
      }
      known = known && take_llama3_turn(reader, "{{", "}}", layout) && layout.trims_user &&
              reader.take("{%endif%}");
    } else {
      known = known && take_llama3_turn(reader, "{{", "}}", layout);
    }
  }
  known = known && reader.take("{%endfor%}") &&
          take_generation(reader, "{{'<|start_header_id|>assistant<|end_header_id|>\\n\\n'}}");
  if (!known || !reader.done()) return refuse_rest("Llama 3's", reader);
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

Result<ChatTemplate> recognise_llama2(Reader reader) {
  const bool known =
      reader.take(kIfSystem) &&
      reader.take(
          "{%setloop_messages=messages[1:]%}{%setsystem_message=messages[0]['content']%}"
          "{%else%}{%setloop_messages=messages%}{%setsystem_message=false%}{%endif%}") &&
      reader.take(kEachOfLoop) && reader.take(kAlternates) &&
      reader.take(
          "{%ifloop.index0==0andsystem_message!=false%}"
          "{%setcontent='<<SYS>>\\n'+system_message+'\\n<</SYS>>\\n\\n'+message['content']%}"
          "{%else%}{%setcontent=message['content']%}{%endif%}") &&
      reader.take(
          "{%ifmessage['role']=='user'%}{{bos_token+'[INST] '+content|trim+' [/INST]'}}"
          "{%elifmessage['role']=='assistant'%}{{' '+content|trim+' '+eos_token}}"
          "{%endif%}{%endfor%}");
  if (!known || !reader.done()) return refuse_rest("Llama 2's", reader);
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

Result<ChatTemplate> recognise_gemma(Reader reader) {
  ChatTemplate chat{ChatFormat::gemma, {}, gemma_layout()};
  if (!reader.take("{{bos_token}}")) chat.layout.begin.clear();
  constexpr std::string_view kRole =
      "{%if(message['role']=='assistant')%}{%setrole='model'%}{%else%}"
      "{%setrole=message['role']%}{%endif%}";
  bool known = reader.take(kIfSystem);
  if (known && reader.take("{{raise}}{%endif%}")) {
    known = reader.take(kEachMessage) && reader.take(kAlternates) && reader.take(kRole) &&
            reader.take(
                "{{'<start_of_turn>'+role+'\\n'+message['content']|trim+"
                "'<end_of_turn>\\n'}}");
  } else {
    chat.layout.system = System::first_user;
    chat.layout.system_close = "\n\n";
    known = known &&
            reader.take(
                "{%setfirst_user_prefix=messages[0]['content']+'\\n\\n'%}"
                "{%setloop_messages=messages[1:]%}{%else%}{%setfirst_user_prefix=''%}"
                "{%setloop_messages=messages%}{%endif%}") &&
            reader.take(kEachOfLoop) && reader.take(kAlternates) && reader.take(kRole) &&
            reader.take(
                "{{'<start_of_turn>'+role+'\\n'+(first_user_prefixifloop.firstelse'')}}"
                "{{message['content']|trim}}{{'<end_of_turn>\\n'}}");
  }
  known = known && reader.take("{%endfor%}") &&
          take_generation(reader, "{{'<start_of_turn>model\\n'}}");
  if (!known || !reader.done()) return refuse_rest("Gemma's", reader);
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

/// A loop before the turns that checks their order, as templates with tools have it.
bool take_mistral_check(Reader& reader) {
  return reader.take(
             "{%setns=namespace()%}{%setns.index=0%}{%formessageinloop_messages%}"
             "{%if(message['role']=='user')!=(ns.index%2==0)%}{{raise}}{%endif%}"
             "{%setns.index=ns.index+1%}{%endfor%}") ||
         reader.take(fmt::format("{{%formessageinloop_messages|rejectattr('role','equalto','tool')|"
                                 "rejectattr('role','equalto','tool_results')|"
                                 "selectattr('tool_calls','undefined')%}}{}{{%endfor%}}",
                                 kAlternates));
}

bool take_mistral_user(Reader& reader, ChatLayout& layout, bool with_system) {
  if (with_system) {
    const bool first = reader.take("{%ifloop.firstandsystem_messageisdefined%}");
    if (!first && !reader.take("{%ifloop.lastandsystem_messageisdefined%}")) return false;
    layout.system = first ? System::first_user : System::last_user;
  }
  for (const std::string_view open : {"[INST] ", " [INST] ", "[INST]"}) {
    for (const std::string_view close : {" [/INST]", "[/INST]"}) {
      const std::string turn = fmt::format("message['content']+'{}'}}}}", close);
      const std::string plain = fmt::format("{{{{'{}'+{}", open, turn);
      if (!reader.take(with_system ? fmt::format("{{{{'{}'+system_message+'\\n\\n'+{}{{%else%}}{}"
                                                 "{{%endif%}}",
                                                 open, turn, plain)
                                   : plain)) {
        continue;
      }
      layout.user_open = open;
      layout.user_close = close;
      return true;
    }
  }
  return false;
}

bool take_mistral_assistant(Reader& reader, ChatLayout& layout) {
  for (const std::string_view before : {"", " "}) {
    for (const std::string_view after : {"", " "}) {
      const auto trims = take_content(reader, before.empty() ? "{{" : "{{' '+",
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

Result<ChatTemplate> recognise_mistral(Reader reader) {
  if (reader.rest().find("[SYSTEM_PROMPT]") != std::string_view::npos) {
    return refuse("is Mistral's version 7 ([SYSTEM_PROMPT])");
  }
  ChatTemplate chat{ChatFormat::mistral, {}, mistral_layout("", "")};
  const bool with_system = reader.take(kIfSystem);
  bool known = !with_system || reader.take(
                                   "{%setsystem_message=messages[0]['content']%}"
                                   "{%setloop_messages=messages[1:]%}{%else%}"
                                   "{%setloop_messages=messages%}{%endif%}");
  const bool checked = known && with_system && take_mistral_check(reader);
  known = known && reader.take("{{bos_token}}") &&
          reader.take(with_system ? kEachOfLoop : kEachMessage) &&
          (checked || reader.take(kAlternates)) && reader.take("{%ifmessage['role']=='user'%}") &&
          take_mistral_user(reader, chat.layout, with_system) &&
          reader.take("{%elifmessage['role']=='assistant'%}") &&
          take_mistral_assistant(reader, chat.layout) &&
          reader.take("{%else%}{{raise}}{%endif%}{%endfor%}");
  if (!known || !reader.done()) return refuse_rest("Mistral's", reader);
  return chat;
}

ChatLayout zephyr_layout() {
  ChatLayout layout;
  layout.system_open = "<|system|>\n";
  layout.user_open = "<|user|>\n";
  layout.assistant_open = layout.generation = "<|assistant|>\n";
  layout.system_close = layout.user_close = layout.assistant_close = "\x02\n";
  return layout;
}

Result<ChatTemplate> recognise_zephyr(Reader reader) {
  bool known = reader.take(kEachMessage);
  std::string_view tag = "if";
  for (const std::string_view role : {"user", "system", "assistant"}) {
    known = known && reader.take(fmt::format("{{%{}message['role']=='{}'%}}", tag, role)) &&
            reader.take(fmt::format("{{{{'<|{}|>\\n'+message['content']+eos_token}}}}"
                                    "{{{{text'\\n'}}}}",
                                    role));
    tag = "elif";
  }
  known = known && reader.take(
                       "{%endif%}{%ifloop.lastandadd_generation_prompt%}"
                       "{{'<|assistant|>'}}{{text'\\n'}}{%endif%}{%endfor%}");
  if (!known || !reader.done()) return refuse_rest("Zephyr's", reader);
  return ChatTemplate{ChatFormat::zephyr, {}, zephyr_layout()};
}

}  // namespace

Result<ChatTemplate> recognise_chat_template(std::string_view jinja) {
  if (jinja.empty()) return refuse("is missing");
  const std::string text = canonical_jinja(jinja);
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  const bool zephyr = has("<|user|>") && has("eos_token") && !has("<|end|>");
  if (zephyr) return recognise_zephyr(Reader(text));
  using Recogniser = Result<ChatTemplate> (*)(Reader);
  const std::pair<std::string_view, Recogniser> families[] = {
      {"<|im_start|>", recognise_chatml},   {"<|start_header_id|>", recognise_llama3},
      {"<start_of_turn>", recognise_gemma}, {"<<SYS>>", recognise_llama2},
      {"[INST]", recognise_mistral},
  };
  for (const auto& [marker, recognise] : families) {
    if (!has(marker)) continue;
    if (has("{{text'")) return refuse("prints text outside of its tags");
    return recognise(Reader(text));
  }
  // Its first marker says best which family it is.
  const std::size_t marker = std::min(jinja.find('<'), jinja.size());
  return refuse(fmt::format("is of an unknown format (\"{}\")",
                            excerpt(jinja.substr(marker == jinja.size() ? 0 : marker))));
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
