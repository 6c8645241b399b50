#include "model/chat_template.hpp"

#include <algorithm>

#include "model/unicode.hpp"

namespace sluice::model {

namespace {

using System = ChatLayout::System;

constexpr char kBeginMark = '\x01';
constexpr char kEndMark = '\x02';

/// What the marks of a layout stand for.
struct Spellings {
  std::string begin, end;
};

Spellings usual_spellings(ChatFormat format) {
  switch (format) {
    case ChatFormat::chatml: return {"<|endoftext|>", "<|im_end|>"};
    case ChatFormat::llama3: return {"<|begin_of_text|>", "<|eot_id|>"};
    case ChatFormat::gemma: return {"<bos>", "<eos>"};
    case ChatFormat::llama2:
    case ChatFormat::mistral:
    case ChatFormat::zephyr: break;
  }
  return {"<s>", "</s>"};
}

/// Without the white space at its end. A letter in front keeps that at its start.
std::string strip_end(std::string_view text) {
  const std::string framed = "x" + std::string(text);
  return std::string(strip(framed).substr(1));
}

struct Piece {
  std::string text;
  bool trusted = false;
};

/// Collects the pieces of one conversation.
class Renderer {
 public:
  Renderer(const ChatTemplate& chat, Spellings spellings)
      : chat_(chat), layout_(chat.layout), spellings_(std::move(spellings)) {}

  std::vector<Piece> render(std::span<const ChatMessage> messages);

 private:
  void marker(std::string_view text);
  void content(std::string_view text, bool trims) {
    pieces_.push_back({std::string(trims ? strip(text) : text), false});
  }
  void system_turn(std::string_view text, bool first);
  void user_turn(std::string_view text, const std::string* system);

  const ChatTemplate& chat_;
  const ChatLayout& layout_;
  Spellings spellings_;
  std::vector<Piece> pieces_;
};

void Renderer::marker(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == kBeginMark) {
      out += spellings_.begin;
    } else if (c == kEndMark) {
      out += spellings_.end;
    } else {
      out.push_back(c);
    }
  }
  if (!out.empty()) pieces_.push_back({std::move(out), true});
}

void Renderer::system_turn(std::string_view text, bool first) {
  marker(layout_.system_open);
  if (first) marker(layout_.preamble);
  content(text, layout_.trims_system);
  marker(layout_.system_close);
}

void Renderer::user_turn(std::string_view text, const std::string* system) {
  marker(layout_.user_open);
  if (!system) {
    content(text, layout_.trims_user);
  } else if (!layout_.trims_with_system) {
    marker(layout_.system_open);
    content(*system, layout_.trims_system);
    marker(layout_.system_close);
    content(text, layout_.trims_user);
  } else {
    marker(layout_.system_open);
    content(*system, layout_.trims_system);
    // Trimmed together, the start of the content is no end; without content the system's end is.
    const std::string kept = strip_end(text);
    marker(kept.empty() ? strip_end(layout_.system_close) : layout_.system_close);
    content(kept, false);
  }
  marker(layout_.user_close);
}

std::vector<Piece> Renderer::render(std::span<const ChatMessage> messages) {
  marker(layout_.begin);
  const bool has_system = messages.front().role == "system";
  const std::string* system = has_system ? &messages.front().content : nullptr;
  if (layout_.system == System::own_turn && !has_system) {
    if (!chat_.default_system.empty() || !layout_.preamble.empty()) {
      system_turn(chat_.default_system, true);
    }
  }
  const bool attached = layout_.system != System::own_turn;
  if (attached && has_system) messages = messages.subspan(1);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "system") {
      system_turn(message.content, i == 0);
    } else if (message.role == "user") {
      const bool here = layout_.system == System::first_user  ? i == 0
                        : layout_.system == System::last_user ? i + 1 == messages.size()
                                                              : false;
      user_turn(message.content, here ? system : nullptr);
    } else {
      marker(layout_.assistant_open);
      content(message.content, layout_.trims_assistant);
      marker(layout_.assistant_close);
    }
  }
  marker(layout_.generation);
  return std::move(pieces_);
}

Result<void> check(const ChatTemplate& chat, std::span<const ChatMessage> messages) {
  const std::string_view format = to_string(chat.format);
  if (messages.empty()) {
    return fail(ErrorCode::bad_request, "the conversation is empty; send at least one message");
  }
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return fail(ErrorCode::bad_request,
                  "unknown role \"{}\" in a chat message; use system, user or assistant",
                  message.role);
    }
  }
  const bool has_system = messages.front().role == "system";
  if (has_system && chat.layout.system == System::refused) {
    return fail(ErrorCode::bad_request,
                "this model's {} format has no system messages; put the text into the first user "
                "message",
                format);
  }
  if (!chat.layout.alternates) return {};
  if (has_system) messages = messages.subspan(1);
  if (messages.empty()) {
    return fail(ErrorCode::bad_request,
                "this model's {} format needs a user message after the system message", format);
  }
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string_view wanted = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role == wanted) continue;
    return fail(ErrorCode::bad_request,
                "this model's {} format wants user and assistant in turn, after at most one system "
                "message; message {} is of \"{}\", not \"{}\"",
                format, i + (has_system ? 1 : 0), messages[i].role, wanted);
  }
  return {};
}

/// The model's own spellings, where a layout's marks stand for them.
Spellings spellings_of(const ChatTemplate& chat, const Tokenizer& tokenizer) {
  Spellings own = usual_spellings(chat.format);
  if (const auto begin = tokenizer.begin_of_text()) own.begin = tokenizer.spelling(*begin);
  if (!tokenizer.end_tokens().empty()) own.end = tokenizer.spelling(tokenizer.end_tokens()[0]);
  return own;
}

}  // namespace

std::string_view to_string(ChatFormat format) {
  switch (format) {
    case ChatFormat::chatml: return "chatml";
    case ChatFormat::llama2: return "llama2";
    case ChatFormat::llama3: return "llama3";
    case ChatFormat::gemma: return "gemma";
    case ChatFormat::mistral: return "mistral";
    case ChatFormat::zephyr: return "zephyr";
  }
  return "unknown";
}

Result<std::string> render(const ChatTemplate& chat, std::span<const ChatMessage> messages) {
  if (auto checked = check(chat, messages); !checked) return tl::unexpected(checked.error());
  std::string out;
  for (const Piece& piece : Renderer(chat, usual_spellings(chat.format)).render(messages)) {
    out += piece.text;
  }
  return out;
}

Result<std::vector<Token>> encode_chat(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                       std::span<const ChatMessage> messages) {
  if (auto checked = check(chat, messages); !checked) return tl::unexpected(checked.error());
  const std::vector<Piece> pieces = Renderer(chat, spellings_of(chat, tokenizer)).render(messages);
  std::vector<TextPart> parts;
  parts.reserve(pieces.size());
  for (const Piece& piece : pieces) parts.push_back({piece.text, piece.trusted});
  std::vector<Token> ids = tokenizer.encode_parts(parts);
  const auto begin = tokenizer.begin_of_text();
  const bool has_begin = !ids.empty() && begin && ids.front() == *begin;
  if (tokenizer.adds_begin_of_text() && begin && !has_begin) ids.insert(ids.begin(), *begin);
  return ids;
}

}  // namespace sluice::model
