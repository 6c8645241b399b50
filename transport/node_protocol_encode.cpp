// Structs to msgpack arrays. Integers take their shortest form; so many bytes as an item may need
// are made room for at once, then written without further checks.

#include <algorithm>
#include <bit>
#include <cstring>

#include "transport/node_fields.hpp"

namespace sluice::transport {
namespace {

class Writer {
 public:
  explicit Writer(std::size_t room) : bytes_(room, '\0'), at_(bytes_.data()) {}

  template <class... F>
  void operator()(const F&... fields) {
    head(0x90, 0xdc, sizeof...(F));
    (put(fields), ...);
  }

  std::string take() {
    bytes_.resize(at_ - bytes_.data());
    return std::move(bytes_);
  }

 private:
  static constexpr std::size_t item_bytes_max = 9;  ///< of a number or a header

  void reserve(std::size_t bytes) {
    const std::size_t used = at_ - bytes_.data();
    if (bytes <= bytes_.size() - used) return;
    bytes_.resize(std::max(bytes_.size() * 2, used + bytes));
    at_ = bytes_.data() + used;
  }
  void byte(unsigned value) { *at_++ = static_cast<char>(value); }
  template <class T>
  void big_endian(unsigned type, T value) {
    byte(type);
    for (int shift = sizeof(T) * 8 - 8; shift >= 0; shift -= 8)
      byte(static_cast<unsigned>(value >> shift & 0xffU));
  }
  void number(std::uint64_t value) {
    if (value < 0x80)
      byte(static_cast<unsigned>(value));
    else if (value <= 0xff)
      big_endian(0xcc, static_cast<std::uint8_t>(value));
    else if (value <= 0xffff)
      big_endian(0xcd, static_cast<std::uint16_t>(value));
    else if (value <= 0xffff'ffff)
      big_endian(0xce, static_cast<std::uint32_t>(value));
    else
      big_endian(0xcf, value);
  }

  void negative(std::int64_t value) {
    if (value >= -32)
      byte(static_cast<unsigned>(value) & 0xffU);
    else if (value >= -0x80)
      big_endian(0xd0, static_cast<std::uint8_t>(value));
    else if (value >= -0x8000)
      big_endian(0xd1, static_cast<std::uint16_t>(value));
    else if (value >= -0x8000'0000LL)
      big_endian(0xd2, static_cast<std::uint32_t>(value));
    else
      big_endian(0xd3, static_cast<std::uint64_t>(value));
  }

  /// Of an array: sixteen short forms, then two more types.
  void head(unsigned fixed, unsigned type, std::size_t count) {
    reserve(item_bytes_max);
    if (count < 16)
      byte(fixed | static_cast<unsigned>(count));
    else if (count <= 0xffff)
      big_endian(type, static_cast<std::uint16_t>(count));
    else
      big_endian(type + 1, static_cast<std::uint32_t>(count));
  }
  /// Of strings and bytes: the 8-bit size has a type of its own.
  void body(unsigned type, const void* data, std::size_t size) {
    reserve(item_bytes_max + size);
    if (type == 0xd9 && size < 32)
      byte(0xa0U | static_cast<unsigned>(size));
    else if (size <= 0xff)
      big_endian(type, static_cast<std::uint8_t>(size));
    else if (size <= 0xffff)
      big_endian(type + 1, static_cast<std::uint16_t>(size));
    else
      big_endian(type + 2, static_cast<std::uint32_t>(size));
    if (size != 0) std::memcpy(at_, data, size);
    at_ += size;
  }
  void text(std::string_view value) { body(0xd9, value.data(), value.size()); }
  void bytes(std::string_view value) { body(0xc4, value.data(), value.size()); }
  void nil() {
    reserve(item_bytes_max);
    byte(0xc0);
  }

  template <class T>
  void put(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      reserve(item_bytes_max);
      byte(value ? 0xc3 : 0xc2);
    } else if constexpr (std::is_floating_point_v<T>) {
      using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
      reserve(item_bytes_max);
      big_endian(sizeof(T) == 4 ? 0xca : 0xcb, std::bit_cast<Bits>(value));
    } else if constexpr (std::is_integral_v<T>) {
      reserve(item_bytes_max);
      if (std::is_signed_v<T> && value < 0)
        negative(static_cast<std::int64_t>(value));
      else
        number(static_cast<std::uint64_t>(value));
    } else {
      Fields<T>::visit(*this, value);
    }
  }
  void put(const StreamId& id) { body(0xc4, id.data(), id.size()); }
  template <class T>
  void put(const std::optional<T>& value) {
    value ? put(*value) : nil();
  }
  template <class V>
  void put(const Text<V>& field) {
    text(field.value);
  }
  template <class V>
  void put(const Bytes<V>& field) {
    bytes(field.value);
  }
  template <class V>
  void put(const List<V>& field) {
    using Item = typename std::remove_const_t<V>::value_type;
    head(0x90, 0xdc, field.values.size());
    if constexpr (std::is_unsigned_v<Item>) {
      reserve(field.values.size() * item_bytes_max);
      for (const Item value : field.values) number(value);
    } else {
      for (const auto& item : field.values) {
        if constexpr (std::is_same_v<Item, std::string>)
          text(item);
        else if constexpr (requires { item.begin(); })
          put(List{item, field.each, field.name});
        else
          put(item);
      }
    }
  }
  template <class V>
  void put(const Blobs<V>& field) {
    head(0x90, 0xdc, field.values.size());
    for (const auto& blob : field.values) bytes(blob);
  }
  template <class V>
  void put(const Words<V>& field) {
    static_assert(std::endian::native == std::endian::little);
    body(0xc4, field.values.data(), field.values.size() * sizeof(field.values[0]));
  }
  template <class E>
  void put(const Choice<E>& field) {
    put(static_cast<std::uint8_t>(field.value));
  }
  template <class V>
  void put(const Positive<V>& field) {
    put(field.value);
  }
  template <class V>
  void put(const Amount<V>& field) {
    put(field.value);
  }
  template <class R, class E, class V>
  void put(const Ending<R, E, V>& field) {
    if (field.finish == engine::FinishReason::none)
      nil();
    else
      (*this)(field.error, field.receipt);
  }
  template <class V>
  void put(const Frame<V>& field) {
    bytes(encode(Message(field.value)));
  }

  std::string bytes_;
  char* at_;
};

/// Most steps fit into 1 KiB; masks are large, and growing would copy them.
std::size_t room_for(const NodeMessage& message) {
  std::size_t room = 1024;
  if (const auto* step = std::get_if<SampleMasks>(&message))
    for (const auto& mask : step->masks) room += 32 + mask.allowed.size() * sizeof(mask.allowed[0]);
  return room;
}

}  // namespace

std::string encode(std::uint32_t channel, const NodeMessage& message) {
  Writer out(room_for(message));
  const auto kind = static_cast<std::uint32_t>(message.index());
  std::visit([&](const auto& m) { out(channel, kind, m); }, message);
  return out.take();
}

}  // namespace sluice::transport
