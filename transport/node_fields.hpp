#pragma once
// The fields of every struct that nodes exchange, in the order of the wire: written once, for the
// encoder and the decoder. Each struct is an array of its fields. Structured bindings name all of
// them, so that a field added to a struct and forgotten here does not compile. Explicit deduction
// guides are for clang before 17. Only node_protocol_encode.cpp and node_protocol_decode.cpp
// include this.

#include <type_traits>

#include "transport/node_protocol.hpp"

namespace sluice::transport {

using Most = std::uint32_t NodeLimits::*;

/// UTF-8, of so many bytes at most. `V` is const when it is written, here and below.
template <class V>
struct Text {
  V& value;
  Most most;
  const char* name;
};
template <class V>
Text(V&, Most, const char*) -> Text<V>;

/// Any bytes.
template <class V>
struct Bytes {
  V& value;
  Most most;
  const char* name;
};
template <class V>
Bytes(V&, Most, const char*) -> Bytes<V>;

/// An array; strings and lists in it are bounded by `each`.
template <class V>
struct List {
  V& values;
  Most most;
  const char* name;
  Most each = nullptr;
};
template <class V>
List(V&, Most, const char*) -> List<V>;
template <class V>
List(V&, Most, const char*, Most) -> List<V>;

/// Of byte strings.
template <class V>
struct Blobs {
  V& values;
  Most most;
  const char* name;
  Most each;
};
template <class V>
Blobs(V&, Most, const char*, Most) -> Blobs<V>;

/// Words as little-endian bytes: copied, not coded one by one.
template <class V>
struct Words {
  V& values;
  Most most;
  const char* name;
};
template <class V>
Words(V&, Most, const char*) -> Words<V>;

/// One of an enumeration's values, the last of which is `last`.
template <class E>
struct Choice {
  E& value;
  std::remove_const_t<E> last;
};
template <class E>
Choice(E&, std::remove_const_t<E>) -> Choice<E>;

/// An integer of at least 1, by which the receiver may divide.
template <class V>
struct Positive {
  V& value;
};
template <class V>
Positive(V&) -> Positive<V>;

/// Finite and at least 0.
template <class V>
struct Amount {
  V& value;
};
template <class V>
Amount(V&) -> Amount<V>;

/// The array of these two with a finish, else nil.
template <class R, class E, class V>
struct Ending {
  R& finish;  ///< sent before them
  E& error;
  V& receipt;
};
template <class R, class E, class V>
Ending(R&, E&, V&) -> Ending<R, E, V>;

/// A client's message, as a client would send it.
template <class V>
struct Frame {
  V& value;
};
template <class V>
Frame(V&) -> Frame<V>;

template <class T>
struct Fields;

template <class A, class B>
struct Fields<std::pair<A, B>> {
  static void visit(auto& io, auto& v) { io(v.first, v.second); }
};

template <>
struct Fields<std::pair<std::string, double>> {
  static void visit(auto& io, auto& v) {
    io(Text{v.first, &NodeLimits::name_bytes_max, "name"}, v.second);
  }
};

template <>
struct Fields<Error> {
  static void visit(auto& io, auto& v) {
    auto& [code, message, retry_after_ms] = v;
    io(Choice{code, ErrorCode::internal},
       Text{message, &NodeLimits::explanation_bytes_max, "message"}, retry_after_ms);
  }
};

template <>
struct Fields<kernels::SlotRef> {
  static void visit(auto& io, auto& v) {
    auto& [slot, generation] = v;
    io(slot, generation);
  }
};

template <>
struct Fields<engine::SamplingParams> {
  static void visit(auto& io, auto& v) {
    auto& [temperature, top_k, top_p, min_p, repetition, presence, frequency, logit_bias, seed,
           min_tokens, stop_tokens, logprobs] = v;
    io(temperature, top_k, top_p, min_p, repetition, presence, frequency,
       List{logit_bias, &NodeLimits::logit_bias_max, "logit_bias"}, seed, min_tokens,
       List{stop_tokens, &NodeLimits::stop_tokens_max, "stop_tokens"}, logprobs);
  }
};

template <>
struct Fields<kernels::SlotOpen> {
  static void visit(auto& io, auto& v) {
    auto& [slot, tokens, prompt_tokens, sampling] = v;
    io(slot, List{tokens, &NodeLimits::tokens_max, "tokens"}, prompt_tokens, sampling);
  }
};

template <>
struct Fields<kernels::BlockGrant> {
  static void visit(auto& io, auto& v) {
    auto& [slot, first_block, blocks] = v;
    io(slot, first_block, List{blocks, &NodeLimits::blocks_max, "blocks"});
  }
};

template <>
struct Fields<kernels::Segment> {
  static void visit(auto& io, auto& v) {
    auto& [slot, position, rows, path, sample] = v;
    io(slot.slot, slot.generation, position, rows, Choice{path, kernels::Path::decode}, sample);
  }
};

template <>
struct Fields<kernels::Batch> {
  static void visit(auto& io, auto& v) {
    auto& [opens, grants, segments, closes, sample_now] = v;
    io(List{opens, &NodeLimits::slots_max, "opens"}, List{grants, &NodeLimits::slots_max, "grants"},
       List{segments, &NodeLimits::slots_max, "segments"},
       List{closes, &NodeLimits::slots_max, "closes"}, sample_now);
  }
};

template <>
struct Fields<kernels::Mask> {
  static void visit(auto& io, auto& v) {
    auto& [slot, allowed] = v;
    io(slot, Words{allowed, &NodeLimits::mask_words_max, "allowed"});
  }
};

template <>
struct Fields<engine::TokenLogprob> {
  static void visit(auto& io, auto& v) {
    auto& [token, logprob] = v;
    io(token, logprob);
  }
};

template <>
struct Fields<kernels::SlotTokens> {
  static void visit(auto& io, auto& v) {
    auto& [slot, tokens, logprobs, error] = v;
    io(slot.slot, slot.generation, List{tokens, &NodeLimits::tokens_max, "tokens"},
       List{logprobs, &NodeLimits::tokens_max, "logprobs", &NodeLimits::logprobs_max}, error);
  }
};

template <>
struct Fields<engine::StepResult> {
  static void visit(auto& io, auto& v) {
    auto& [ticket, slots, device_ns, error, failed] = v;
    io(ticket, List{slots, &NodeLimits::slots_max, "slots"}, device_ns, error, failed);
  }
};

template <>
struct Fields<RunPlan> {
  static void visit(auto& io, auto& v) {
    auto& [ticket, batch] = v;
    io(ticket, batch);
  }
};

template <>
struct Fields<SampleMasks> {
  static void visit(auto& io, auto& v) {
    auto& [ticket, masks] = v;
    io(ticket, List{masks, &NodeLimits::slots_max, "masks"});
  }
};

template <>
struct Fields<StepDone> {
  static void visit(auto& io, auto& v) {
    auto& [result, checksum] = v;
    io(result, checksum);
  }
};

template <>
struct Fields<engine::Constraint> {
  static void visit(auto& io, auto& v) {
    auto& [kind, text] = v;
    io(Choice{kind, engine::Constraint::Kind::json_schema},
       Text{text, &NodeLimits::constraint_bytes_max, "constraint"});
  }
};

/// A tenant may be a connection's name, which is no text. `deadline` stays at home: it is a time of
/// this host.
template <>
struct Fields<engine::Request> {
  static void visit(auto& io, auto& v) {
    auto& [id, prompt, resumed, sampling, max_tokens, stops, constraint, continues_text, priority,
           tenant, deadline] = v;
    static_cast<void>(deadline);
    io(id, List{prompt, &NodeLimits::tokens_max, "prompt"},
       List{resumed, &NodeLimits::tokens_max, "resumed"}, sampling, max_tokens,
       List{stops, &NodeLimits::stops_max, "stops", &NodeLimits::stop_bytes_max}, constraint,
       continues_text, priority, Bytes{tenant, &NodeLimits::peer_bytes_max, "tenant"});
  }
};

template <>
struct Fields<ResumedChoice> {
  static void visit(auto& io, auto& v) {
    auto& [tokens, text_bytes] = v;
    io(List{tokens, &NodeLimits::tokens_max, "tokens"}, text_bytes);
  }
};

template <>
struct Fields<Accepted> {
  static void visit(auto& io, auto& v) {
    auto& [stream, epoch, numerics, prompt_tokens, chain] = v;
    io(stream, epoch, Text{numerics, &NodeLimits::name_bytes_max, "numerics"}, prompt_tokens,
       chain);
  }
};

template <>
struct Fields<Admit> {
  static void visit(auto& io, auto& v) {
    auto& [owner, stream, request, choices, accepted, age, remaining] = v;
    io(Bytes{owner, &NodeLimits::peer_bytes_max, "owner"}, stream, request,
       List{choices, &NodeLimits::choices_max, "choices"}, accepted, age, remaining);
  }
};

template <>
struct Fields<CancelStream> {
  static void visit(auto& io, auto& v) {
    auto& [stream, epoch] = v;
    io(stream, epoch);
  }
};

template <>
struct Fields<StatsAsk> {
  static void visit(auto& io, auto& v) {
    auto& [number] = v;
    io(number);
  }
};

template <>
struct Fields<Refusal> {
  static void visit(auto& io, auto& v) {
    auto& [stream, epoch, error] = v;
    io(stream, epoch, error);
  }
};

template <>
struct Fields<OpenStream> {
  static void visit(auto& io, auto& v) {
    auto& [stream, epoch] = v;
    io(stream, epoch);
  }
};

template <>
struct Fields<Receipt> {
  static void visit(auto& io, auto& v) {
    auto& [model, numerics, backend, site, jurisdiction, queue_ms, prefill_ms, decode_ms,
           device_seconds, price, prompt_tokens, cached_tokens, completion_tokens] = v;
    const Most name = &NodeLimits::name_bytes_max;
    io(Text{model, name, "model"}, Text{numerics, name, "numerics"}, Text{backend, name, "backend"},
       Text{site, name, "site"}, Text{jurisdiction, name, "jurisdiction"}, Amount{queue_ms},
       Amount{prefill_ms}, Amount{decode_ms}, Amount{device_seconds}, Amount{price}, prompt_tokens,
       cached_tokens, completion_tokens);
  }
};

template <>
struct Fields<StreamEvent> {
  static void visit(auto& io, auto& v) {
    auto& [stream, choice, epoch, event, receipt] = v;
    auto& [id, first_index, tokens, logprobs, finish, text_bytes, error] = event;
    io(stream, choice, epoch, id, first_index, List{tokens, &NodeLimits::tokens_max, "tokens"},
       List{logprobs, &NodeLimits::tokens_max, "logprobs", &NodeLimits::logprobs_max},
       Choice{finish, engine::FinishReason::error}, text_bytes, Ending{finish, error, receipt});
  }
};

template <>
struct Fields<StepEvents> {
  static void visit(auto& io, auto& v) {
    auto& [events] = v;
    io(List{events, &NodeLimits::events_max, "events"});
  }
};

template <>
struct Fields<StatsAnswer> {
  static void visit(auto& io, auto& v) {
    auto& [number, values] = v;
    io(number, List{values, &NodeLimits::values_max, "values"});
  }
};

template <>
struct Fields<Tokenize> {
  static void visit(auto& io, auto& v) {
    auto& [owner, submit] = v;
    io(Bytes{owner, &NodeLimits::peer_bytes_max, "owner"}, Frame{submit});
  }
};

template <>
struct Fields<OpenChannel> {
  static void visit(auto& io, auto& v) {
    auto& [number, service, engine, rank, world, epoch] = v;
    io(number, Text{service, &NodeLimits::name_bytes_max, "service"},
       Text{engine, &NodeLimits::name_bytes_max, "engine"}, rank, world, epoch);
  }
};

template <>
struct Fields<SiteConfig> {
  static void visit(auto& io, auto& v) {
    auto& [site, cloud, region, jurisdiction, price_per_million_tokens] = v;
    const Most name = &NodeLimits::name_bytes_max;
    io(Text{site, name, "name"}, Text{cloud, name, "cloud"}, Text{region, name, "region"},
       Text{jurisdiction, name, "jurisdiction"}, Amount{price_per_million_tokens});
  }
};

template <>
struct Fields<engine::SchedulerConfig> {
  static void visit(auto& io, auto& v) {
    auto& [slots, blocks, block_tokens, context_tokens, rows_max, itl_target, prompt_rows_min,
           queue_max, steps_in_flight, prefix_root, paths_equal] = v;
    io(Positive{slots}, blocks, Positive{block_tokens}, context_tokens, Positive{rows_max},
       itl_target, prompt_rows_min, queue_max, Positive{steps_in_flight}, prefix_root, paths_equal);
  }
};

template <>
struct Fields<ChannelOpened> {
  static void visit(auto& io, auto& v) {
    auto& [engine, numerics, backend, site, tokenizer, scheduler] = v;
    const Most name = &NodeLimits::name_bytes_max;
    io(Text{engine, name, "engine"}, Text{numerics, name, "numerics"},
       Text{backend, name, "backend"}, site, Text{tokenizer, name, "tokenizer"}, scheduler);
  }
};

template <>
struct Fields<ChannelFailed> {
  static void visit(auto& io, auto& v) {
    auto& [error] = v;
    io(error);
  }
};

template <>
struct Fields<CloseChannel> {
  static void visit(auto& io, auto& v) {
    auto& [number] = v;
    io(number);
  }
};

template <>
struct Fields<ChannelJoined> {
  static void visit(auto& io, auto&) { io(); }
};

template <>
struct Fields<Offer> {
  static void visit(auto& io, auto& v) {
    auto& [service, engine] = v;
    io(Text{service, &NodeLimits::name_bytes_max, "service"},
       Text{engine, &NodeLimits::name_bytes_max, "engine"});
  }
};

template <>
struct Fields<Offers> {
  static void visit(auto& io, auto& v) {
    auto& [offers] = v;
    io(List{offers, &NodeLimits::offers_max, "offers"});
  }
};

template <>
struct Fields<RankBlob> {
  static void visit(auto& io, auto& v) {
    auto& [bytes] = v;
    io(Bytes{bytes, &NodeLimits::blob_bytes_max, "bytes"});
  }
};

template <>
struct Fields<RankBlobs> {
  static void visit(auto& io, auto& v) {
    auto& [blobs] = v;
    io(Blobs{blobs, &NodeLimits::world_max, "blobs", &NodeLimits::blob_bytes_max});
  }
};

}  // namespace sluice::transport
