// Shows that streams with a constraint keep to it, beside others that have none.

#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "tests/actors/hearing.hpp"

using namespace sluice;
using fakes::greet;
using fakes::listen;
using fakes::World;

BOOST_AUTO_TEST_SUITE(constraints)

BOOST_AUTO_TEST_CASE(a_constraint_holds_and_others_are_as_without) {
  World world({.slots = 3});
  greet(world, "ann");
  auto digits = World::submit(1, "number", 40);
  digits.constraint = {engine::Constraint::Kind::regex, "[0-9]{12}"};
  auto list = World::submit(2, "list", 60);
  list.constraint = {engine::Constraint::Kind::json_schema,
                     R"({"items": {"enum": [1, 22]}, "minItems": 4, "maxItems": 4})"};
  auto wrong = World::submit(3, "wrong", 60);
  wrong.constraint = {engine::Constraint::Kind::regex, "(a"};
  const auto plain = World::submit(4, "plain", 50);
  for (const auto& submit : {digits, list, wrong, plain})
    caf::anon_send(world.session, actors::inbound_atom::value, actors::Inbound{"ann", submit});
  world.run();
  const auto number = listen(world, "ann", digits.stream);
  BOOST_TEST(number.text.size() == 12U);
  BOOST_TEST(number.text.find_first_not_of("0123456789") == std::string::npos);
  BOOST_REQUIRE(number.done);
  BOOST_TEST((number.done->finish.at(0) == engine::FinishReason::stop));
  const auto items = listen(world, "ann", list.stream);
  BOOST_TEST(items.text.front() == '[');
  BOOST_TEST(items.text.back() == ']');
  BOOST_TEST(std::ranges::count(items.text, ',') == 3);
  const auto refused = listen(world, "ann", wrong.stream);
  BOOST_REQUIRE(refused.failed);
  BOOST_TEST((refused.failed->error.code == ErrorCode::bad_request));
  BOOST_TEST(listen(world, "ann", plain.stream).text == World::expected("plain", 4, 50));
}

BOOST_AUTO_TEST_SUITE_END()
