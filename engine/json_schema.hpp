#pragma once
// JSON Schema as a grammar of the documents that fit it.

#include <string_view>

#include "engine/grammar.hpp"

namespace sluice::engine {

/// Every text of the grammar is valid under `schema` (JSON Schema 2020-12, as text); not every
/// valid document is a text of it: properties come in the schema's order, those it does not name
/// only when `additionalProperties` asks for them, white space is bounded (JsonGrammar).
///
/// Known: type, enum, const, properties, required, additionalProperties, items, prefixItems,
/// minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4;
/// others say nothing), minimum, maximum, exclusiveMinimum, exclusiveMaximum (whole numbers),
/// anyOf, allOf, oneOf whose branches cannot both hold, $ref within the document. Keywords
/// that only annotate are ignored. `unsupported` names any other that JSON Schema has, and where;
/// `bad_request` what is no schema, or one that no document fits; `too_large` beyond bounds.
Result<Grammar> json_schema_grammar(std::string_view schema);

}  // namespace sluice::engine
