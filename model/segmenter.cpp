#include "model/segmenter.hpp"

#include <algorithm>
#include <bit>

namespace sluice::model {

void KeyTable::reserve(std::size_t count) {
  const std::size_t wanted = std::bit_ceil(std::max<std::size_t>(16, count * 2));
  if (wanted <= slots_.size()) return;
  std::vector<Slot> old(wanted);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.key != kFree) slots_[slot_of(slot.key)] = slot;
  }
}

bool KeyTable::insert(std::uint64_t key, std::uint64_t value) {
  SLUICE_ASSERT(key != kFree, "the key of all ones marks a free slot");
  reserve(count_ + 1);
  Slot& slot = slots_[slot_of(key)];
  if (slot.key == key) return false;
  slot = {key, value};
  ++count_;
  return true;
}

const std::uint64_t* KeyTable::find(std::uint64_t key) const {
  if (slots_.empty()) return nullptr;
  const Slot& slot = slots_[slot_of(key)];
  return slot.key == key ? &slot.value : nullptr;
}

std::size_t KeyTable::home_of(std::uint64_t key) const {
  // Fibonacci hashing: the high bits of the product depend on every bit of the key.
  std::uint64_t mixed = key * 0x9E3779B97F4A7C15U;
  mixed ^= mixed >> 32;
  return static_cast<std::size_t>(mixed) & (slots_.size() - 1);
}

std::size_t KeyTable::slot_of(std::uint64_t key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = home_of(key);
  while (slots_[at].key != key && slots_[at].key != kFree) at = (at + 1) & mask;
  return at;
}

ByteTrie::ByteTrie() : ids_{kNoToken} {}

void ByteTrie::insert(std::string_view text, Token id) {
  if (text.empty()) return;
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    std::uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<std::uint32_t>(ids_.size());
      ids_.push_back(kNoToken);
      if (node == 0) {
        first_[byte] = next;
      } else {
        children_.insert((std::uint64_t{node} << 8) | byte, next);
      }
    }
    node = next;
  }
  ids_[node] = id;
}

std::uint32_t ByteTrie::child(std::uint32_t node, unsigned char byte) const {
  if (node == 0) return first_[byte];
  const std::uint64_t* next = children_.find((std::uint64_t{node} << 8) | byte);
  return next ? static_cast<std::uint32_t>(*next) : 0;
}

}  // namespace sluice::model
