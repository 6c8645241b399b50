#include "kernels/sampling.hpp"

namespace sluice::kernels {

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::uint64_t key) {
  const NoiseWords words = philox_words({{c[0], c[1], c[2], c[3]}}, key);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

std::uint32_t noise_bits(std::uint64_t seed, std::uint32_t index, Token token) {
  return philox_words({{token / 4, index, 0, 0}}, seed).word[token % 4];
}

}  // namespace sluice::kernels
