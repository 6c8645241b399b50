#pragma once
// Chat messages to a prompt, in the format the model was trained on.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/core.hpp"
#include "model/tokenizer.hpp"

namespace sluice::model {

struct ChatMessage {
  std::string role;     ///< "system", "user" or "assistant"
  std::string content;  ///< UTF-8

  bool operator==(const ChatMessage&) const = default;
};

/// Formats this project knows. Each is recognised from the checkpoint's own Jinja template.
enum class ChatFormat : std::uint8_t { chatml, llama2, llama3, gemma, mistral, zephyr };

struct ChatTemplate {
  ChatFormat format = ChatFormat::chatml;
  std::string default_system;  ///< added by the checkpoint's template when no system message is
};

std::string_view to_string(ChatFormat format);

/// Recognises `jinja`. `unsupported` names what was found and the way out (`chat_format` in the
/// configuration, or plain prompts).
Result<ChatTemplate> recognise_chat_template(std::string_view jinja);

/// The conversation as text, ending where the assistant's answer starts. `bad_request` for roles
/// that the format does not know or an order it does not allow.
Result<std::string> render(const ChatTemplate& chat, std::span<const ChatMessage> messages);

/// As ids: the template's markers become special tokens, message content never does.
Result<std::vector<Token>> encode_chat(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                       std::span<const ChatMessage> messages);

}  // namespace sluice::model
