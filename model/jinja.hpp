#pragma once
// Jinja, so far as telling chat templates apart needs it: not run, only brought into one spelling.

#include <string>
#include <string_view>

namespace sluice::model {

/// `jinja` in one spelling, without what a plain conversation cannot reach: messages of a role and
/// a text each, from system, user and assistant, and no tools or documents.
///
/// Tags have no white space or trimming marks; strings are in single quotes with newlines as \n,
/// joined where two are added; fields read message['role']; `.strip()` reads `|trim`; comments are
/// gone. What Jinja would print outside of tags, with trim_blocks and lstrip_blocks on as
/// transformers has them, is {{text'...'}}. A call of raise_exception is {{raise}}. Whatever is no
/// Jinja comes through in some form: the result is to be compared, never run.
std::string canonical_jinja(std::string_view jinja);

}  // namespace sluice::model
