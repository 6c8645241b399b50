#include "model/hf_names.hpp"

#include <array>
#include <optional>
#include <span>

namespace sluice::model {
namespace {

struct Pair {
  std::string_view hf, part;
};

constexpr std::array whole = std::to_array<Pair>({
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
});
constexpr std::string_view hf_layers = "model.layers.";
constexpr std::string_view part_layers = "blk.";
constexpr std::string_view no_part = "hf.";

constexpr std::array in_every_layer = std::to_array<Pair>({
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
});
constexpr std::array two_norms = std::to_array<Pair>({
    {"post_attention_layernorm", "ffn_norm"},
});
constexpr std::array four_norms = std::to_array<Pair>({
    {"post_attention_layernorm", "post_attention_norm"},
    {"pre_feedforward_layernorm", "ffn_norm"},
    {"post_feedforward_layernorm", "post_ffw_norm"},
});

using Side = std::string_view Pair::*;

std::optional<std::string_view> look_up(std::span<const Pair> pairs, std::string_view name,
                                        Side from, Side to) {
  for (const Pair& pair : pairs) {
    if (pair.*from == name) return pair.*to;
  }
  return std::nullopt;
}

/// LAYERS + number + "." + name + ".weight" or ".bias". Nothing for a name of no part.
std::optional<std::string> translate(std::string_view name, bool branch_norms, Side from, Side to,
                      std::string_view from_layers, std::string_view to_layers) {
  if (const auto found = look_up(whole, name, from, to)) return std::string(*found);
  if (!name.starts_with(from_layers)) return std::nullopt;
  name.remove_prefix(from_layers.size());
  const std::size_t number_end = name.find('.');
  const std::size_t kind_begin = name.rfind('.');
  if (number_end == name.npos || kind_begin <= number_end) return std::nullopt;
  const std::string_view number = name.substr(0, number_end);
  const std::string_view kind = name.substr(kind_begin);
  if (kind != ".weight" && kind != ".bias") return std::nullopt;
  const std::string_view inner = name.substr(number_end + 1, kind_begin - number_end - 1);
  auto found = look_up(in_every_layer, inner, from, to);
  if (!found) {
    found = branch_norms ? look_up(four_norms, inner, from, to)
                         : look_up(two_norms, inner, from, to);
  }
  if (!found) return std::nullopt;
  std::string out(to_layers);
  out.append(number).append(".").append(*found).append(kind);
  return out;
}

}  // namespace

std::string part_of_hf_name(std::string_view name, bool branch_norms) {
  return translate(name, branch_norms, &Pair::hf, &Pair::part, hf_layers, part_layers)
      .value_or(std::string(no_part).append(name));
}

std::string hf_name_of_part(std::string_view part, bool branch_norms) {
  if (part.starts_with(no_part)) return std::string(part.substr(no_part.size()));
  return translate(part, branch_norms, &Pair::part, &Pair::hf, part_layers, hf_layers)
      .value_or(std::string(part));
}

}  // namespace sluice::model
