#pragma once
// Hugging Face's names of tensors, and the parts they play.

#include <string>
#include <string_view>

namespace sluice::model {

/// "model.layers.3.mlp.up_proj.weight" to "blk.3.ffn_up.weight". A layer with `branch_norms` has
/// four norms, and one name means another there. Different names give different parts; one that
/// plays none here becomes "hf." and itself.
std::string part_of_hf_name(std::string_view name, bool branch_norms);

/// The way back.
std::string hf_name_of_part(std::string_view part, bool branch_norms);

}  // namespace sluice::model
