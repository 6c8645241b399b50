// Shows that Jinja comes into one spelling whatever its white space, quotes and comments, that what
// would be printed is kept as Jinja prints it, and that only branches for tools go. What Jinja does
// is checked by rendering in tests/model/chat_template.cpp; here it is pinned case by case.
#include "model/jinja.hpp"

#include <boost/test/unit_test.hpp>

namespace sluice::model {
namespace {

void check(std::string_view jinja, std::string_view wanted) {
  BOOST_CHECK_EQUAL(canonical_jinja(jinja), wanted);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(jinja)

BOOST_AUTO_TEST_CASE(one_spelling_for_all) {
  for (const char* same : {
           "{{ 'a\n' + message['content'].strip() }}",
           "{{- \"a\\n\"+message.content|trim -}}\n",
           "{# why #}{{ 'a' + '\\n' + message[\"content\"] | trim }}",
           "\r\n{{- 'a\\n' + message . content.strip() }}\r\n",
       }) {
    check(same, "{{'a\\n'+message['content']|trim}}");
  }
  check("{{ \"it's\" }}{{ 'it\\'s' }}{{ '\\\"' }}", "{{'it\\'s'}}{{'it\\'s'}}{{'\"'}}");
  check("{% if messages[0].role == 'user' %}{% endif %}",
        "{%ifmessages[0]['role']=='user'%}{%endif%}");
  check("{{ raise_exception('No ' + 'way.') }}", "{{raise}}");
}

BOOST_AUTO_TEST_CASE(text_is_kept_as_it_would_be_printed) {
  check("a\n", "{{text'a'}}");
  check("{{ x }}\n{{ y }}\n\n", "{{x}}{{text'\\n'}}{{y}}{{text'\\n'}}");
  check("{% set x = 1 %}\n{{ x }}", "{%setx=1%}{{x}}");
  check("{{ x }}\n  {% set x = 1 %}", "{{x}}{{text'\\n'}}{%setx=1%}");
  check("{{ x }}  \n  {{- y -}}\n  z", "{{x}}{{y}}{{text'z'}}");
  check("  {% set x = 1 %}", "{%setx=1%}");
  // A blank between two blocks of one line is printed; at the start of a line it is not.
  check("{% set x = 1 %} {% set x = 2 %}", "{%setx=1%}{{text' '}}{%setx=2%}");
  check("{% set x = 1 %}\n {% set x = 2 %}", "{%setx=1%}{%setx=2%}");
  check("{# c #}\n\t{% set x = 2 %}", "{%setx=2%}");
}

BOOST_AUTO_TEST_CASE(branches_for_tools_go) {
  check("{% if tools %}a{% else %}b{% endif %}", "{{text'b'}}");
  check("{% if tools %}a{% elif x %}b{% else %}c{% endif %}",
        "{%ifx%}{{text'b'}}{%else%}{{text'c'}}{%endif%}");
  check("{% if x %}a{% elif tools %}b{% endif %}", "{%ifx%}{{text'a'}}{%endif%}");
  check("{% if tools %}{% if x %}a{% else %}b{% endif %}{% endif %}c", "{{text'c'}}");
  check("{% if x %}{% if tools %}a{% endif %}b{% endif %}", "{%ifx%}{{text'b'}}{%endif%}");
  check("{% if tools %}{% for t in tools %}a{% else %}b{% endfor %}{% endif %}", "");
}

BOOST_AUTO_TEST_CASE(what_always_holds_is_no_condition) {
  check("{% if message.content is string %}a{% else %}b{% endif %}", "{{text'a'}}");
  check("{% if x %}a{% elif message.content is string %}b{% else %}c{% endif %}",
        "{%ifx%}{{text'a'}}{%else%}{{text'b'}}{%endif%}");
}

BOOST_AUTO_TEST_CASE(other_branches_stay) {
  check("{% if not tools %}a{% endif %}", "{%ifnottools%}{{text'a'}}{%endif%}");
  check("{% for m in x %}a{% else %}b{% endfor %}",
        "{%forminx%}{{text'a'}}{%else%}{{text'b'}}{%endfor%}");
  check("{% if x %}{% for m in x %}a{% else %}b{% endfor %}{% else %}c{% endif %}",
        "{%ifx%}{%forminx%}{{text'a'}}{%else%}{{text'b'}}{%endfor%}{%else%}{{text'c'}}{%endif%}");
}

BOOST_AUTO_TEST_CASE(an_answer_is_left_over_only_where_tools_are_called) {
  constexpr std::string_view kText =
      "{% if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
      "(message.role == 'assistant' and not message.tool_calls) %}a";
  const std::string start = canonical_jinja(std::string(kText) + "{% endif %}");
  check(std::string(kText) + "{% elif message.role == 'assistant' %}b{% endif %}", start);
  check("{% if message.role == 'user' %}a{% elif message.role == 'assistant' %}b{% endif %}",
        "{%ifmessage['role']=='user'%}{{text'a'}}{%elifmessage['role']=='assistant'%}{{text'b'}}"
        "{%endif%}");
}

BOOST_AUTO_TEST_CASE(no_jinja_comes_through) {
  check("", "");
  check("{% endif %}{% else %}{% elif x %}", "{%endif%}{%else%}{%elifx%}");
  check("{% if x", "{%ifx%}");
  check("{{ 'a", "{{'a'}}");
  check("{#", "");
  check("{", "{{text'{'}}");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
