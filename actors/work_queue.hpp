#pragma once
// How CAF's workers share their work: one queue for all of them, as CAF's own `sharing` policy has
// it, except that whoever adds a job wakes a worker only after letting go of the lock. CAF notifies
// under it: on a busy machine the worker takes the core at once, finds the lock held, and gives the
// core back, two switches of threads for nothing in every token's way.

#include <caf/policy/unprofiled.hpp>
#include <caf/scheduler/coordinator.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "actors/actors.hpp"

namespace sluice::actors {

class WorkQueue : public caf::policy::unprofiled {
 public:
  struct coordinator_data {
    explicit coordinator_data(caf::scheduler::abstract_coordinator*) {}
    std::mutex mutex;
    std::condition_variable added;
    std::deque<caf::resumable*> jobs;
    std::size_t idle = 0;  ///< workers that wait
  };
  struct worker_data {
    explicit worker_data(caf::scheduler::abstract_coordinator*) {}
  };

  template <class Coordinator>
  void central_enqueue(Coordinator* self, caf::resumable* job) {
    auto& data = d(self);
    bool wanted = false;
    {
      const std::lock_guard lock(data.mutex);
      data.jobs.push_back(job);
      wanted = data.idle > 0;
    }
    if (wanted) data.added.notify_one();
  }
  template <class Worker>
  void external_enqueue(Worker* self, caf::resumable* job) {
    central_enqueue(self->parent(), job);
  }
  template <class Worker>
  void internal_enqueue(Worker* self, caf::resumable* job) {
    central_enqueue(self->parent(), job);
  }
  template <class Worker>
  void resume_job_later(Worker* self, caf::resumable* job) {
    central_enqueue(self->parent(), job);
  }

  template <class Worker>
  caf::resumable* dequeue(Worker* self) {
    auto& data = d(self->parent());
    std::unique_lock lock(data.mutex);
    ++data.idle;
    data.added.wait(lock, [&] { return !data.jobs.empty(); });
    --data.idle;
    auto* const job = data.jobs.front();
    data.jobs.pop_front();
    return job;
  }

  // When the system stops: whatever is left.
  template <class Worker, class Function>
  void foreach_resumable(Worker*, Function) {}
  template <class Coordinator, class Function>
  void foreach_central_resumable(Coordinator* self, Function f) {
    auto& data = d(self);
    const std::lock_guard lock(data.mutex);
    for (; !data.jobs.empty(); data.jobs.pop_front()) f(data.jobs.front());
  }
};

using WorkScheduler = caf::scheduler::coordinator<WorkQueue>;

}  // namespace sluice::actors
