// Shows how things get from producers to an I/O thread: in order, none lost, by the producer's own
// hand where the thread sleeps, and who is woken when.

#include "transport/wake_queue.hpp"

#include <poll.h>

#include <boost/test/unit_test.hpp>
#include <functional>
#include <optional>
#include <thread>

#include "tests/transport/server.hpp"

using namespace sluice;
using transport::WakeQueue;
using transport::testing::eventually;

namespace {

struct Item {
  int producer = 0, number = 0;
};

/// An owner of what turns are about: a list that says who did each item.
struct Owner {
  WakeQueue<Item> queue;
  std::vector<Item> done;
  std::vector<std::thread::id> by;
  std::vector<Item> leaving;
  std::function<void(const Item&)> on_item = [](const Item&) {};
  bool all_done = true;  ///< what a turn of another thread says
  std::atomic<bool> stopping = false, asleep = false;
  std::atomic<bool> hold = false, held = false;  ///< on its way from a sleep
  std::atomic<int> sleeps = 0;
  std::thread thread;

  Owner() { BOOST_REQUIRE(queue.open()); }
  ~Owner() { stop(); }

  bool turn() {
    queue.take(leaving);
    for (const Item& item : leaving) {
      done.push_back(item);
      by.push_back(std::this_thread::get_id());
      on_item(item);
    }
    leaving.clear();
    return all_done;
  }
  void start() {
    thread = std::thread([this] {
      queue.begin([this] { return turn(); });
      while (!stopping) {
        turn();
        queue.sleep([&] { return !stopping; },
                    [&] {
                      ++sleeps;
                      asleep = true;
                      pollfd item{queue.descriptor(), POLLIN, 0};
                      poll(&item, 1, -1);
                      asleep = false;
                      held = true;
                      while (hold) poll(nullptr, 0, 1);
                    });
      }
      turn();
      queue.end();
    });
    BOOST_REQUIRE(eventually([&] { return asleep.load(); }));
  }
  void stop() {
    if (!thread.joinable()) return;
    stopping = true;
    queue.wake();
    thread.join();
  }
  void post(Item item) { queue.post(item); }
  void post(std::vector<Item> items, std::size_t few) {
    queue.post_all(items, few);
    BOOST_TEST(items.empty());
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(wake_queue)

BOOST_AUTO_TEST_CASE(who_posts_to_a_sleeper_does_its_turn) {
  Owner owner;
  owner.start();
  owner.post({1, 0});
  owner.post({{1, 1}, {1, 2}}, 2);
  BOOST_TEST(owner.sleeps == 1);  // and it sleeps on: nobody else touches `done`
  BOOST_REQUIRE_EQUAL(owner.done.size(), 3U);
  for (int i = 0; i < 3; ++i) {
    BOOST_TEST(owner.done[static_cast<std::size_t>(i)].number == i);
    BOOST_CHECK(owner.by[static_cast<std::size_t>(i)] == std::this_thread::get_id());
  }
}

BOOST_AUTO_TEST_CASE(more_than_a_few_and_what_a_turn_leaves_over_wake_it) {
  Owner owner;
  owner.start();
  owner.post({{1, 0}, {1, 1}, {1, 2}}, 2);
  BOOST_REQUIRE(eventually([&] { return owner.sleeps == 2 && owner.asleep; }));
  owner.all_done = false;
  owner.post({1, 3});
  BOOST_REQUIRE(eventually([&] { return owner.sleeps == 3 && owner.asleep; }));
  const auto io = owner.thread.get_id();
  owner.stop();
  BOOST_REQUIRE_EQUAL(owner.done.size(), 4U);
  for (std::size_t i = 0; i < 3; ++i) BOOST_CHECK(owner.by[i] == io);
  BOOST_CHECK(owner.by[3] == std::this_thread::get_id());
}

BOOST_AUTO_TEST_CASE(nobody_goes_before_a_thread_that_was_woken) {
  Owner owner;
  owner.hold = true;
  owner.start();
  owner.post({{1, 0}, {1, 1}, {1, 2}}, 2);  // wakes it, and it is held on its way
  BOOST_REQUIRE(eventually([&] { return owner.held.load(); }));
  owner.post({1, 3});
  owner.hold = false;
  BOOST_REQUIRE(eventually([&] { return owner.sleeps == 2 && owner.asleep; }));
  const auto io = owner.thread.get_id();
  owner.stop();
  BOOST_REQUIRE_EQUAL(owner.done.size(), 4U);
  for (const auto id : owner.by) BOOST_CHECK(id == io);
}

BOOST_AUTO_TEST_CASE(what_a_turn_posts_is_the_next_turns) {
  Owner owner;
  owner.on_item = [&](const Item& item) {
    if (item.number < 3) owner.post({item.producer, item.number + 1});
  };
  owner.start();
  owner.post({1, 0});
  BOOST_REQUIRE(eventually([&] { return owner.sleeps >= 2 && owner.asleep; }));
  owner.stop();
  BOOST_REQUIRE_EQUAL(owner.done.size(), 4U);
  for (int i = 0; i < 4; ++i) BOOST_TEST(owner.done[static_cast<std::size_t>(i)].number == i);
}

BOOST_AUTO_TEST_CASE(nobody_stands_in_before_it_begins_or_after_it_ends) {
  Owner owner;
  owner.post({1, 0});
  BOOST_TEST(owner.done.empty());
  owner.start();
  owner.stop();
  BOOST_TEST(owner.done.size() == 1U);
  owner.post({1, 1});
  BOOST_TEST(owner.done.size() == 1U);
}

BOOST_AUTO_TEST_CASE(of_many_producers_nothing_is_lost_or_out_of_order) {
  constexpr int producers = 4, each = 3000;
  Owner owner;
  owner.start();
  std::vector<std::thread> threads;
  for (int producer = 0; producer < producers; ++producer)
    threads.emplace_back([&owner, producer] {
      for (int i = 0; i < each; i += 3) {
        owner.post({producer, i});
        std::vector<Item> two{{producer, i + 1}, {producer, i + 2}};
        owner.queue.post_all(two, static_cast<std::size_t>(i % 3));
        if (i % 7 == 0) std::this_thread::yield();
      }
    });
  for (auto& thread : threads) thread.join();
  owner.stop();
  std::vector<int> next(producers, 0);
  for (const Item& item : owner.done)
    BOOST_REQUIRE_EQUAL(item.number, next[static_cast<std::size_t>(item.producer)]++);
  for (const int count : next) BOOST_TEST(count == each);
}

BOOST_AUTO_TEST_SUITE_END()
