#pragma once
// Steps under way on a device: a thread waits for each one's end and answers the tickets in order.
// It also looks after the group of ranks that the steps run in, for a step of which other ranks are
// missing ends on no device by itself.

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/cuda/collectives.hpp"
#include "kernels/cuda/device.hpp"

namespace sluice::kernels::cuda {

/// A step, or the second half of one, between its submission and its end.
struct Flight {
  Ticket ticket = 0;
  PinnedMemory input;   ///< metadata on its way to the device
  PinnedMemory output;  ///< DrawnRow of each drawn row
  Event begin, end;
  std::vector<SlotRef> drawn;
  bool closes = false;         ///< the ticket's last flight
  std::optional<Error> error;  ///< it never reached the device
};

/// Calls come from the backend's caller.
class Flights {
 public:
  explicit Flights(Completion completion) : completion_(std::move(completion)) {}
  ~Flights() { finish(); }

  /// `unavailable` without a thread.
  Result<void> start(int device);

  /// Waits for what is under way, and fails the steps that still wait for masks.
  void finish();

  /// A ticket whose completion is owed from now on, for the tokens of these slots.
  void expect(Ticket ticket, std::span<const SlotRef> drawn);

  /// One that has landed, or a new one: as many as steps were ever under way together.
  std::unique_ptr<Flight> take();

  /// On its way, behind those before it; or never, with its error.
  void send(std::unique_ptr<Flight> flight);

  /// Why every step fails from now on, if it does.
  std::optional<Error> lost();

  /// Until nothing is under way. An error when steps were lost.
  Result<void> wait_idle();

  /// Waits until nothing is under way, fails steps that wait for masks, and gives the group back;
  /// what was lost to it is lost no more. An error where the device itself is.
  Result<std::unique_ptr<DeviceGroup>> leave_group();

  /// The group of the steps to come.
  void enter_group(std::unique_ptr<DeviceGroup> group);

  DeviceGroup* group() const { return group_.get(); }

 private:
  /// A ticket whose completion is still owed.
  struct Pending {
    StepResult result;
    bool done = false;
  };

  void run();
  Result<std::uint64_t> land(const Flight& flight, DeviceGroup* group);
  void enter(const Flight& flight, const Result<std::uint64_t>& device_ns);
  void complete_done(std::unique_lock<std::mutex>& lock);
  void end_held(std::unique_lock<std::mutex>& lock, const char* why);
  void lose(const Error& why);

  const Completion completion_;
  int device_ = 0;
  std::unique_ptr<DeviceGroup> group_;  ///< replaced with the lock held, when no step is under way

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<std::unique_ptr<Flight>> flights_;  ///< in the stream's order
  std::vector<std::unique_ptr<Flight>> landed_;  ///< to be used again
  std::deque<Pending> pending_;
  std::optional<Error> lost_;   ///< after it, every step fails at once
  bool lost_to_group_ = false;  ///< until there is another
  bool leave_held_ = false;     ///< steps that wait for masks are to end
  bool waiting_ = false;        ///< for a step, outside the lock
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace sluice::kernels::cuda
