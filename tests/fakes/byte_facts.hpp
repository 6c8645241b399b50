#pragma once
// What a node knows of an engine of bytes without loading it.

#include <memory>

#include "actors/executor.hpp"
#include "tests/fakes/byte_tokenizer.hpp"

namespace sluice::fakes {

inline std::shared_ptr<actors::EngineFacts> byte_facts() {
  auto facts = std::make_shared<actors::EngineFacts>();
  facts->name = "bytes";
  facts->tokenizer = std::make_shared<ByteTokenizer>();
  facts->chat_refusal = {ErrorCode::unsupported, "bytes have no chat template", 0};
  return facts;
}

}  // namespace sluice::fakes
