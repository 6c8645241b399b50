#pragma once
// How a msgpack frame is read: its shape first, then key by key. Only protocol_decode.cpp includes
// this, so that nobody else pays for the msgpack headers.

#define MSGPACK_NO_BOOST
#include <algorithm>
#include <cmath>
#include <limits>
#include <msgpack.hpp>

#include "model/unicode.hpp"
#include "transport/protocol.hpp"

namespace sluice::transport {

/// The walk: bounds depth and the sum of all claimed elements, so that a lying header cannot make
/// the second pass allocate, and notes the stream of a frame that proves broken further on.
class Shape : public msgpack::null_visitor {
 public:
  Shape(std::string_view frame, const Limits& limits) : budget_(frame.size()), limits_(limits) {}

  bool start_array(std::uint32_t count) { return enter(count); }
  bool start_map(std::uint32_t count) {
    if (count > limits_.map_keys_max && !values_) return refuse(&Shape::too_many_keys_);
    return enter(std::uint64_t{count} * 2);
  }
  bool end_array() { return --depth_, true; }
  bool end_map() { return --depth_, true; }
  bool start_map_key() {
    in_key_ = depth_ == 1;
    return true;
  }
  bool end_map_key() { return in_key_ = false, true; }
  bool visit_str(const char* text, std::uint32_t size) {
    if (in_key_) {
      key_ = std::string_view(text, size);
      values_ = key_ == "values";  // a stats answer: bounded by its own limit when it is read
    }
    return true;
  }
  bool visit_bin(const char* bytes, std::uint32_t size) {
    StreamId id{};
    if (depth_ == 1 && !in_key_ && key_ == "stream" && size == id.size()) {
      std::copy_n(bytes, id.size(), reinterpret_cast<char*>(id.data()));
      subject_.stream = id;
    }
    return true;
  }
  bool visit_positive_integer(std::uint64_t value) {
    if (depth_ == 1 && !in_key_ && key_ == "epoch") subject_.epoch = value;
    return true;
  }

  const Subject& subject() const { return subject_; }
  bool too_deep() const { return too_deep_; }
  bool too_many_keys() const { return too_many_keys_; }

 private:
  bool refuse(bool Shape::*why) { return this->*why = true, false; }
  bool enter(std::uint64_t elements) {
    if (++depth_ > limits_.depth_max) return refuse(&Shape::too_deep_);
    if (elements > budget_) return false;  // each element takes a byte at least: the frame is short
    budget_ -= elements;
    return true;
  }

  std::uint64_t budget_;
  const Limits& limits_;
  std::uint32_t depth_ = 0;
  bool in_key_ = false;
  bool values_ = false;
  std::string_view key_;
  bool too_deep_ = false;
  bool too_many_keys_ = false;
  Subject subject_;
};

using Object = msgpack::object;
enum class Need : std::uint8_t { optional, required };

/// Reads the keys of one map. The first error stays; after it nothing is read.
class Reader {
 public:
  Reader(std::string name, const Object& map, const Limits& bounds, std::optional<Error>& error)
      : limits(bounds), name_(std::move(name)), map_(map), error_(error) {
    if (map_.type != msgpack::type::MAP) wrong("", "a map");
  }

  const Limits& limits;

  bool failed() const { return error_.has_value(); }

  /// The value of a key; null when absent, nil, or after an error.
  const Object* find(std::string_view key, Need need = Need::optional) {
    if (failed()) return nullptr;
    const Object* found = nullptr;
    for (std::uint32_t i = 0; i < map_.via.map.size; ++i) {
      const auto& [name, value] = map_.via.map.ptr[i];
      if (name.type != msgpack::type::STR ||
          std::string_view(name.via.str.ptr, name.via.str.size) != key)
        continue;
      if (found != nullptr) return refuse(key, "stands twice in the map; send it once"), nullptr;
      found = &value;
    }
    if (found != nullptr && found->type == msgpack::type::NIL) found = nullptr;
    if (found == nullptr && need == Need::required) refuse(key, "is missing");
    return found;
  }

  template <class T>
  void integer(std::string_view key, T& out, Need need = Need::optional,
               T least = std::numeric_limits<T>::min(), T most = std::numeric_limits<T>::max()) {
    if (const Object* value = find(key, need)) integer_value(key, *value, out, least, most);
  }

  template <class T>
  void integer_value(std::string_view key, const Object& value, T& out, T least, T most) {
    if (value.type == msgpack::type::POSITIVE_INTEGER) {
      if (std::cmp_less_equal(value.via.u64, most) &&
          std::cmp_greater_equal(value.via.u64, least)) {
        out = static_cast<T>(value.via.u64);
        return;
      }
    } else if (value.type == msgpack::type::NEGATIVE_INTEGER) {
      if (std::cmp_greater_equal(value.via.i64, least) &&
          std::cmp_less_equal(value.via.i64, most)) {
        out = static_cast<T>(value.via.i64);
        return;
      }
    } else {
      return wrong(key, "an integer");
    }
    refuse(key, fmt::format("must be from {} to {}", least, most));
  }

  /// A float or an integer, as other languages write whole numbers. `fits` says what is in range.
  template <class T, class Fits>
  void number(std::string_view key, T& out, Fits fits, std::string_view range) {
    if (const Object* value = find(key)) number_value(key, *value, out, fits, range);
  }
  template <class T, class Fits>
  void number_value(std::string_view key, const Object& value, T& out, Fits fits,
                    std::string_view range) {
    double number = 0;
    switch (value.type) {
      case msgpack::type::FLOAT32:
      case msgpack::type::FLOAT64: number = value.via.f64; break;
      case msgpack::type::POSITIVE_INTEGER: number = static_cast<double>(value.via.u64); break;
      case msgpack::type::NEGATIVE_INTEGER: number = static_cast<double>(value.via.i64); break;
      default: return wrong(key, "a number");
    }
    // Judged as it will be used: 1e300 is no float, and -0.0 counts as 0.
    const T used = std::abs(number) <= static_cast<double>(std::numeric_limits<T>::max())
                       ? static_cast<T>(number) + T{0}
                       : static_cast<T>(std::copysign(std::numeric_limits<T>::infinity(), number));
    if (std::isnan(number) || !fits(used))
      return refuse(key, fmt::format("must be {}, not {}", range, number));
    out = used;
  }

  void boolean(std::string_view key, bool& out, Need need = Need::optional) {
    const Object* value = find(key, need);
    if (value == nullptr) return;
    if (value->type != msgpack::type::BOOLEAN) return wrong(key, "true or false");
    out = value->via.boolean;
  }

  void bytes16(std::string_view key, StreamId& out, Need need = Need::optional) {
    const Object* value = find(key, need);
    if (value == nullptr) return;
    if (value->type != msgpack::type::BIN || value->via.bin.size != out.size())
      return wrong(key, "16 bytes of the bin type");
    std::copy_n(value->via.bin.ptr, out.size(), reinterpret_cast<char*>(out.data()));
  }
  /// Zero names nothing: it is what a forgotten field holds.
  void name16(std::string_view key, StreamId& out) {
    bytes16(key, out, Need::required);
    if (out == StreamId{}) refuse(key, "must not be all zero");
  }

  void text(std::string_view key, std::string& out, std::size_t bytes_max,
            Need need = Need::optional) {
    if (const Object* value = find(key, need)) text_value(key, *value, out, bytes_max);
  }
  void text_value(std::string_view key, const Object& value, std::string& out,
                  std::size_t bytes_max) {
    if (value.type != msgpack::type::STR) return wrong(key, "a string");
    if (value.via.str.size > bytes_max)
      return too_large(key, value.via.str.size, bytes_max, "bytes");
    const std::string_view text(value.via.str.ptr, value.via.str.size);
    if (!model::is_valid_utf8(text)) return refuse(key, "is not valid UTF-8");
    out = text;
  }

  /// Calls `item` with each element and stops at the first error.
  template <class Item>
  void list(std::string_view key, std::size_t count_max, Need need, Item item) {
    if (const Object* value = find(key, need)) list_value(key, *value, count_max, item);
  }
  template <class Item>
  void list_value(std::string_view key, const Object& value, std::size_t count_max, Item item) {
    if (value.type != msgpack::type::ARRAY) return wrong(key, "an array");
    if (value.via.array.size > count_max)
      return too_large(key, value.via.array.size, count_max, "elements");
    for (std::uint32_t i = 0; i < value.via.array.size && !failed(); ++i)
      item(value.via.array.ptr[i]);
  }

  template <class T>
  void integers(std::string_view key, std::vector<T>& out, std::size_t count_max,
                Need need = Need::optional) {
    if (const Object* value = find(key, need)) integers_value(key, *value, out, count_max);
  }
  template <class T>
  void integers_value(std::string_view key, const Object& value, std::vector<T>& out,
                      std::size_t count_max) {
    if (value.type == msgpack::type::ARRAY && value.via.array.size <= count_max)
      out.reserve(value.via.array.size);
    list_value(key, value, count_max, [&](const Object& item) {
      T number = 0;
      integer_value(key, item, number, std::numeric_limits<T>::min(),
                    std::numeric_limits<T>::max());
      out.push_back(number);
    });
  }

  void texts(std::string_view key, std::vector<std::string>& out, std::size_t count_max,
             std::size_t bytes_max) {
    list(key, count_max, Need::optional,
         [&](const Object& item) { text_value(key, item, out.emplace_back(), bytes_max); });
  }

  /// A [token, number] pair, as logit biases and log probabilities are written.
  template <class Fits>
  void pair(std::string_view key, const Object& value, Token& token, float& number, Fits fits,
            std::string_view range) {
    if (value.type != msgpack::type::ARRAY || value.via.array.size != 2)
      return wrong(key, "an array of [token, number] pairs");
    integer_value<Token>(key, value.via.array.ptr[0], token, 0, std::numeric_limits<Token>::max());
    if (!failed()) number_value(key, value.via.array.ptr[1], number, fits, range);
  }

  /// A map inside this one; its keys are named with a dot.
  Reader inner(std::string_view key, const Object& value) {
    return {fmt::format("{}{}.", name_, key), value, limits, error_};
  }

  void refuse(std::string_view key, std::string_view why) {
    if (!failed())
      error_ = Error{ErrorCode::bad_request, fmt::format("{}{} {}", name_, key, why), 0};
  }
  void too_large(std::string_view key, std::size_t size, std::size_t most, std::string_view unit) {
    if (!failed())
      error_ =
          Error{ErrorCode::too_large,
                fmt::format("{}{} has {} {}; the limit is {}", name_, key, size, unit, most), 0};
  }

 private:
  void wrong(std::string_view key, std::string_view expected) {
    refuse(key, fmt::format("must be {}", expected));
  }

  std::string name_;
  const Object& map_;
  std::optional<Error>& error_;
};

}  // namespace sluice::transport
