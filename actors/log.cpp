#include "actors/log.hpp"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <utility>

namespace sluice::actors {
namespace {

using Json = nlohmann::ordered_json;

std::string_view finish_name(engine::FinishReason finish) {
  switch (finish) {
    case engine::FinishReason::none:
      return "none";
    case engine::FinishReason::stop:
      return "stop";
    case engine::FinishReason::length:
      return "length";
    case engine::FinishReason::cancelled:
      return "cancelled";
    case engine::FinishReason::error:
      return "error";
  }
  return "error";
}

}  // namespace

struct RequestLog::State {
  std::shared_ptr<spdlog::logger> logger;
  bool prompts = false;

  void write(spdlog::level::level_enum level, const Json& line) const {
    if (!logger->should_log(level)) return;
    // Names come from clients: whatever is no UTF-8 in them is replaced, not thrown about.
    logger->log(level, line.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
};

RequestLog::RequestLog(std::unique_ptr<State> state) : state_(std::move(state)) {}
RequestLog::~RequestLog() = default;

Result<std::shared_ptr<RequestLog>> RequestLog::open(const NodeConfig& config) {
  const auto level = spdlog::level::from_str(config.log_level);
  if (level == spdlog::level::off && config.log_level != "off")
    return fail(ErrorCode::bad_request,
                "log level '{}' is not known: trace, debug, info, warn, error and off are",
                config.log_level);
  auto state = std::make_unique<State>();
  state->prompts = config.log_prompts;
  try {
    spdlog::sink_ptr sink;
    if (config.log_file.empty())
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    else
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(config.log_file);
    state->logger = std::make_shared<spdlog::logger>("sluice", std::move(sink));
  } catch (const spdlog::spdlog_ex& error) {
    return fail(ErrorCode::io, "cannot open log file {}: {}", config.log_file, error.what());
  }
  state->logger->set_level(level);
  state->logger->flush_on(spdlog::level::info);
  state->logger->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l","event":%v})",
                             spdlog::pattern_time_type::utc);
  return std::shared_ptr<RequestLog>(new RequestLog(std::move(state)));
}

void RequestLog::request(const StreamEnd& end) {
  const auto& receipt = end.receipt;
  Json line{{"name", "request"},
            {"stream", transport::to_hex(end.stream)},
            {"epoch", end.epoch},
            {"finish", finish_name(end.finish)},
            {"model", receipt.model},
            {"prompt_tokens", receipt.prompt_tokens},
            {"cached_tokens", receipt.cached_tokens},
            {"completion_tokens", receipt.completion_tokens},
            {"queue_ms", receipt.queue_ms},
            {"prefill_ms", receipt.prefill_ms},
            {"decode_ms", receipt.decode_ms}};
  if (end.finish == engine::FinishReason::error) {
    line["code"] = to_string(end.error.code);
    line["message"] = end.error.message;
  }
  state_->write(spdlog::level::info, line);
}

void RequestLog::refused(const Refusal& refusal) {
  state_->write(spdlog::level::info, {{"name", "refused"},
                                      {"stream", transport::to_hex(refusal.stream)},
                                      {"epoch", refusal.epoch},
                                      {"code", to_string(refusal.error.code)},
                                      {"message", refusal.error.message}});
}

void RequestLog::prompt(const transport::Submit& submit) {
  if (!state_->prompts) return;
  Json line{{"name", "prompt"}, {"stream", transport::to_hex(submit.stream)}};
  if (const auto* text = std::get_if<std::string>(&submit.prompt)) {
    line["text"] = *text;
  } else if (const auto* ids = std::get_if<std::vector<Token>>(&submit.prompt)) {
    line["tokens"] = *ids;
  } else {
    for (const auto& message : std::get<std::vector<transport::ChatMessage>>(submit.prompt))
      line["messages"].push_back({{"role", message.role}, {"content", message.content}});
  }
  state_->write(spdlog::level::debug, line);
}

void RequestLog::node(std::string_view event, std::string_view detail) {
  state_->write(spdlog::level::info, {{"name", event}, {"detail", detail}});
}

void RequestLog::node_warning(std::string_view event, std::string_view detail) {
  state_->write(spdlog::level::warn, {{"name", event}, {"detail", detail}});
}

void RequestLog::node_failed(std::string_view event, const Error& why) {
  state_->write(spdlog::level::err,
                {{"name", event}, {"code", to_string(why.code)}, {"message", why.message}});
}

}  // namespace sluice::actors
