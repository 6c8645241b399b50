#pragma once
// Chat messages to a prompt, in the format the model was trained on.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

/// What surrounds the turns of a conversation. "\x01" and "\x02" stand for the model's
/// begin-of-text and end-of-text tokens.
struct ChatLayout {
  enum class System : std::uint8_t {
    own_turn,    ///< a turn like any other, wherever it comes
    first_user,  ///< within the first user turn
    last_user,   ///< within the last user turn, if that is the last turn
    refused,
  };

  std::string begin;
  std::string system_open, system_close;
  std::string user_open, user_close;
  std::string assistant_open, assistant_close;
  std::string generation;  ///< opens the answer
  /// Starts the content of the first system turn, which is there even if no message is.
  std::string preamble;
  System system = System::own_turn;
  /// White space at the ends of contents goes, as Jinja's `trim` takes it.
  bool trims_system = false;
  bool trims_user = false;
  bool trims_assistant = false;
  /// The first user turn is trimmed as a whole, its system text included: the content's start
  /// stays.
  bool trims_with_system = false;
  bool alternates = false;  ///< user, assistant, user ... after an optional system message
};

struct ChatTemplate {
  ChatFormat format = ChatFormat::chatml;
  std::string
      default_system;  ///< what the checkpoint's template adds when no system message is given
  ChatLayout layout;
};

std::string_view to_string(ChatFormat format);

/// Recognises `jinja`. `unsupported` names what was found and the way out (`chat_format` in the
/// configuration, or plain prompts).
Result<ChatTemplate> recognise_chat_template(std::string_view jinja);

/// A format by its name in the configuration: chatml, llama2, llama3, gemma, mistral-v1,
/// mistral-v3, mistral-tekken or zephyr. `bad_request` lists them.
Result<ChatTemplate> named_chat_template(std::string_view name);

/// The conversation as text, ending where the assistant's answer starts; begin-of-text and
/// end-of-text as the format's first models spell them. `bad_request` for roles that the format
/// does not know or an order it does not allow.
Result<std::string> render(const ChatTemplate& chat, std::span<const ChatMessage> messages);

/// As ids: the template's markers become special tokens, message content never does. Starts with
/// begin-of-text once, if the template or the tokenizer has it so.
Result<std::vector<Token>> encode_chat(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                       std::span<const ChatMessage> messages);

}  // namespace sluice::model
