// msgpack arrays to structs, in one pass without a tree between. Every count is held against its
// limit and against the bytes that are left before memory is spent on it. How deep a frame nests is
// given by the structs, so that nothing recurses on what the frame claims.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/unicode.hpp"
#include "transport/node_fields.hpp"

namespace sluice::transport {
namespace {

/// Elements that room is made for on a header's word alone: a step's worth of slots.
constexpr std::uint32_t claimed_max = 64;

constexpr std::string_view names[] = {
    "run_plan",      "sample_masks",   "step_done",    "admit",          "cancel_stream",
    "stats_ask",     "channel_joined", "refused_news", "open_stream",    "events",
    "stats_answer",  "tokenize",       "open_channel", "channel_opened", "channel_failed",
    "close_channel", "rank_blob",      "rank_blobs",   "offers",
};
static_assert(std::size(names) == std::variant_size_v<NodeMessage>);

/// Reads on from where it is. The first error stays; after it nothing is left to read.
class Reader {
 public:
  Reader(std::string_view frame, const NodeLimits& limits)
      : begin_(bytes_of(frame)), at_(begin_), end_(begin_ + frame.size()), limits_(limits) {}

  template <class... F>
  void operator()(F&&... fields) {
    array_of(sizeof...(F));
    (get(fields), ...);
  }

  template <class T>
  void read(T& value) {
    get(value);
  }
  void array_of(std::uint32_t fields) {
    const std::size_t place = at_ - begin_;
    const std::uint32_t count = head(0x90, 0xdc, "an array");
    if (count != fields && !error_)
      refuse(place, fmt::format("an array of {} must stand here, not of {}", fields, count));
  }
  void named(std::string_view name) { name_ = name; }
  std::size_t left() const { return end_ - at_; }
  std::optional<Error>& error() { return error_; }

 private:
  static const std::uint8_t* bytes_of(std::string_view text) {
    return reinterpret_cast<const std::uint8_t*>(text.data());
  }

  bool failed() const { return error_.has_value(); }
  void fail_with(Error error) {
    if (!failed()) error_ = std::move(error);
    at_ = end_;
  }
  void refuse(std::size_t place, std::string_view why) {
    fail_with({ErrorCode::bad_request, fmt::format("{}: byte {}: {}", name_, place, why), 0});
  }
  void wrong(std::string_view expected) {
    refuse(at_ - begin_, at_ == end_ ? fmt::format("the frame ends where {} must stand", expected)
                                     : fmt::format("{} must stand here", expected));
  }
  void too_large(const char* field, std::size_t size, std::size_t most, std::string_view unit) {
    fail_with({ErrorCode::too_large,
               fmt::format("{}.{} has {} {}; the limit is {}", name_, field, size, unit, most), 0});
  }

  /// The big-endian number behind a type's byte.
  template <class T>
  T big_endian(std::string_view expected) {
    if (left() <= sizeof(T)) return at_ = end_, wrong(expected), T{0};
    T value = 0;
    for (std::size_t i = 1; i <= sizeof(T); ++i) value = static_cast<T>(value << 8U | at_[i]);
    at_ += 1 + sizeof(T);
    return value;
  }

  std::uint64_t unsigned_number(std::uint64_t most) {
    if (at_ == end_) return wrong("an integer"), 0;
    const std::uint8_t* start = at_;
    std::uint64_t value = *at_;
    if (value < 0x80) {
      ++at_;
    } else {
      switch (value) {
        case 0xcc:
          value = big_endian<std::uint8_t>("an integer");
          break;
        case 0xcd:
          value = big_endian<std::uint16_t>("an integer");
          break;
        case 0xce:
          value = big_endian<std::uint32_t>("an integer");
          break;
        case 0xcf:
          value = big_endian<std::uint64_t>("an integer");
          break;
        default:
          return wrong("an integer of at least 0"), 0;
      }
    }
    if (value > most) {
      refuse(start - begin_, fmt::format("the integer {} must be at most {}", value, most));
      return 0;
    }
    return value;
  }

  std::int32_t signed_number() {
    constexpr std::uint64_t most = std::numeric_limits<std::int32_t>::max();
    if (at_ != end_ && *at_ >= 0xe0) return static_cast<std::int8_t>(*at_++);
    if (at_ == end_ || *at_ < 0xd0 || *at_ > 0xd2)
      return static_cast<std::int32_t>(unsigned_number(most));
    switch (*at_) {
      case 0xd0:
        return static_cast<std::int8_t>(big_endian<std::uint8_t>("an integer"));
      case 0xd1:
        return static_cast<std::int16_t>(big_endian<std::uint16_t>("an integer"));
      default:
        return static_cast<std::int32_t>(big_endian<std::uint32_t>("an integer"));
    }
  }

  std::uint32_t head(unsigned fixed, unsigned type, std::string_view expected) {
    if (at_ == end_) return wrong(expected), 0;
    if ((*at_ & 0xf0U) == fixed) return *at_++ & 0x0fU;
    if (*at_ == type) return big_endian<std::uint16_t>(expected);
    if (*at_ == type + 1) return big_endian<std::uint32_t>(expected);
    return wrong(expected), 0;
  }

  /// An array's header: so many elements follow, of a byte at least.
  std::uint32_t count(Most most, const char* field) {
    const std::uint32_t elements = head(0x90, 0xdc, "an array");
    if (elements > limits_.*most) return too_large(field, elements, limits_.*most, "elements"), 0;
    if (elements > left()) return at_ = end_, wrong("another element"), 0;
    return elements;
  }

  /// The content of a string or of bytes; it stays in the frame.
  std::string_view body(unsigned type, std::size_t most, const char* field,
                        std::string_view expected) {
    std::uint32_t size = 0;
    if (at_ == end_) return wrong(expected), std::string_view();
    if (type == 0xd9 && (*at_ & 0xe0U) == 0xa0)
      size = *at_++ & 0x1fU;
    else if (*at_ == type)
      size = big_endian<std::uint8_t>(expected);
    else if (*at_ == type + 1)
      size = big_endian<std::uint16_t>(expected);
    else if (*at_ == type + 2)
      size = big_endian<std::uint32_t>(expected);
    else
      wrong(expected);
    if (size > most) return too_large(field, size, most, "bytes"), std::string_view();
    if (size > left()) return at_ = end_, wrong("the rest of it"), std::string_view();
    const std::string_view found(reinterpret_cast<const char*>(at_), size);
    at_ += size;
    return found;
  }
  std::string_view bytes(std::size_t most, const char* field) {
    return body(0xc4, most, field, "bytes");
  }
  void text(std::string& out, Most most, const char* field) {
    const std::size_t place = at_ - begin_;
    const std::string_view found = body(0xd9, limits_.*most, field, "a string");
    if (!model::is_valid_utf8(found))
      return refuse(place, fmt::format("{} is not valid UTF-8", field));
    out = found;
  }

  template <class T>
  void get(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      if (at_ == end_ || (*at_ & 0xfeU) != 0xc2) return wrong("true or false");
      value = *at_++ == 0xc3;
    } else if constexpr (std::is_floating_point_v<T>) {
      constexpr bool single = sizeof(T) == 4;
      constexpr std::string_view expected = single ? "a float32" : "a float64";
      if (at_ == end_ || *at_ != (single ? 0xca : 0xcb)) return wrong(expected);
      using Bits = std::conditional_t<single, std::uint32_t, std::uint64_t>;
      value = std::bit_cast<T>(big_endian<Bits>(expected));
    } else if constexpr (std::is_same_v<T, std::int32_t>) {
      value = signed_number();
    } else if constexpr (std::is_integral_v<T>) {
      value = static_cast<T>(unsigned_number(std::numeric_limits<T>::max()));
    } else {
      Fields<T>::visit(*this, value);
    }
  }
  void get(StreamId& id) {
    const std::size_t place = at_ - begin_;
    const auto found = body(0xc4, std::numeric_limits<std::size_t>::max(), "id", "16 bytes");
    if (found.size() != id.size()) return refuse(place, "16 bytes must stand here");
    std::memcpy(id.data(), found.data(), id.size());
  }
  template <class T>
  void get(std::optional<T>& value) {
    if (at_ != end_ && *at_ == 0xc0)
      ++at_;
    else
      get(value.emplace());
  }
  template <class V>
  void get(Text<V>& field) {
    text(field.value, field.most, field.name);
  }
  template <class V>
  void get(Bytes<V>& field) {
    field.value = bytes(limits_.*field.most, field.name);
  }
  template <class V>
  void get(List<V>& field) {
    using Item = typename V::value_type;
    const std::uint32_t elements = count(field.most, field.name);
    // An integer is little larger than its byte in the frame; a struct may be a hundred times.
    field.values.reserve(std::is_unsigned_v<Item> ? elements : std::min(elements, claimed_max));
    for (std::uint32_t i = 0; i < elements && !failed(); ++i) {
      Item& item = field.values.emplace_back();
      if constexpr (std::is_same_v<Item, std::string>) {
        text(item, field.each, field.name);
      } else if constexpr (requires { item.begin(); }) {
        List inner{item, field.each, field.name};
        get(inner);
      } else {
        get(item);
      }
    }
  }
  template <class V>
  void get(Blobs<V>& field) {
    const std::uint32_t elements = count(field.most, field.name);
    for (std::uint32_t i = 0; i < elements && !failed(); ++i)
      field.values.emplace_back(bytes(limits_.*field.each, field.name));
  }
  template <class V>
  void get(Words<V>& field) {
    static_assert(std::endian::native == std::endian::little);
    constexpr std::size_t word = sizeof(typename V::value_type);
    const std::size_t place = at_ - begin_;
    const auto found = bytes(limits_.*field.most * word, field.name);
    if (found.size() % word != 0)
      return refuse(place, fmt::format("{} must be whole words of {} bytes", field.name, word));
    field.values.resize(found.size() / word);
    if (!found.empty()) std::memcpy(field.values.data(), found.data(), found.size());
  }
  template <class E>
  void get(Choice<E>& field) {
    field.value = static_cast<E>(unsigned_number(static_cast<std::uint64_t>(field.last)));
  }
  template <class V>
  void get(Positive<V>& field) {
    const std::size_t place = at_ - begin_;
    get(field.value);
    if (field.value == 0) refuse(place, "the integer must be at least 1");
  }
  template <class V>
  void get(Amount<V>& field) {
    const std::size_t place = at_ - begin_;
    get(field.value);
    if (!std::isfinite(field.value) || field.value < 0)
      refuse(place, "the number must be finite and at least 0");
  }
  template <class R, class E, class V>
  void get(Ending<R, E, V>& field) {
    if (field.finish != engine::FinishReason::none) return (*this)(field.error, field.receipt);
    if (at_ == end_ || *at_ != 0xc0) return wrong("nil, for want of a finish,");
    ++at_;
  }
  template <class V>
  void get(Frame<V>& field) {
    const auto frame = bytes(limits_.client.frame_bytes_max, "frame");
    if (failed()) return;
    auto message = transport::decode(frame, limits_.client);
    if (!message) {
      message.error().message = fmt::format("{}: {}", name_, message.error().message);
      return fail_with(std::move(message.error()));
    }
    V* found = std::get_if<V>(&*message);
    if (found == nullptr) return refuse(at_ - begin_, "the client's message is of another type");
    field.value = std::move(*found);
  }

  const std::uint8_t* begin_;
  const std::uint8_t* at_;
  const std::uint8_t* end_;
  const NodeLimits& limits_;
  std::string_view name_ = "the frame";
  std::optional<Error> error_;
};

template <std::size_t... kinds>
void read_kind(Reader& in, std::size_t kind, NodeMessage& out, std::index_sequence<kinds...>) {
  using Read = void (*)(Reader&, NodeMessage&);
  constexpr Read reads[] = {
      [](Reader& from, NodeMessage& message) { from.read(message.emplace<kinds>()); }...};
  reads[kind](in, out);
}

}  // namespace

std::string_view name_of(const NodeMessage& message) { return names[message.index()]; }

Result<Routed> decode(std::string_view frame, const NodeLimits& limits) {
  if (frame.size() > limits.frame_bytes_max)
    return fail(ErrorCode::too_large, "the frame has {} bytes; the limit is {}", frame.size(),
                limits.frame_bytes_max);
  try {
    Reader in(frame, limits);
    Routed routed;
    std::uint32_t kind = 0;
    in.array_of(3);
    in.read(routed.channel);
    in.read(kind);
    if (!in.error() && kind >= std::size(names))
      return fail(ErrorCode::unsupported,
                  "kind {} of a message between nodes is unknown here: both "
                  "nodes must be of the same version",
                  kind);
    if (!in.error()) {
      in.named(names[kind]);
      read_kind(in, kind, routed.message,
                std::make_index_sequence<std::variant_size_v<NodeMessage>>());
    }
    if (in.error()) return tl::unexpected(std::move(*in.error()));
    if (in.left() != 0)
      return fail(ErrorCode::bad_request, "{}: {} bytes follow the message", names[kind],
                  in.left());
    return routed;
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::out_of_memory, "no memory to decode a frame of {} bytes", frame.size());
  }
}

}  // namespace sluice::transport
