#pragma once
// A folder as Hugging Face's transformers saves a model.

#include <memory>
#include <string>

#include "model/checkpoint.hpp"

namespace sluice::model {

/// Opens a folder with config.json and model.safetensors, or model.safetensors.index.json and the
/// files that it names; or one of these two by its path. tokenizer.json, tokenizer_config.json,
/// chat_template.jinja and generation_config.json are looked for beside them.
///
/// Tensors that the model does not compute with (rope tables of old files, the output of tied
/// embeddings) are left out; vectors come as float32, whatever the file has. `io` for what is
/// missing or cannot be read, `bad_file` and `unsupported` as the readers of the files. What
/// `config` and `tokenizer` refuse does not keep a folder from being opened.
Result<std::shared_ptr<const Checkpoint>> open_hf_checkpoint(const std::string& path);

}  // namespace sluice::model
