// Debian's libcaf is not instrumented, so ThreadSanitizer does not see how its mailboxes and
// reference counts order what actors do. Linked into sanitized programs only, these definitions
// take the place of the library's own, say what order there is, and call the library's.

#include <dlfcn.h>

#include <caf/all.hpp>

extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

namespace {

/// The library's definition of what is defined here, by its mangled name.
template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

/// By each of the addresses that a receiver's side may know it by.
void release(caf::mailbox_element& element) {
  __tsan_release(&element);
  __tsan_release(static_cast<caf::memory_managed*>(&element));
  __tsan_release(&element.content());
}

}  // namespace

namespace caf {

// A message: what its sender did before is seen by the receiver.

void scheduled_actor::enqueue(mailbox_element_ptr element, execution_unit* host) {
  static auto* const own = next<void(scheduled_actor*, mailbox_element_ptr, execution_unit*)>(
      "_ZN3caf15scheduled_actor7enqueueESt10unique_ptrINS_15mailbox_elementENS_6detail8disposer"
      "EEPNS_14execution_unitE");
  release(*element);
  own(this, std::move(element), host);
}

/// Also of a message that is never received, because its receiver has ended.
void memory_managed::request_deletion(bool decremented) const noexcept {
  static auto* const own = next<void(const memory_managed*, bool)>(
      "_ZNK3caf14memory_managed16request_deletionEb");
  __tsan_acquire(const_cast<memory_managed*>(this));
  own(this, decremented);
}

auto scheduled_actor::reactivate(mailbox_element& element) -> activation_result {
  static auto* const own = next<activation_result(scheduled_actor*, mailbox_element&)>(
      "_ZN3caf15scheduled_actor10reactivateERNS_15mailbox_elementE");
  __tsan_acquire(&element);
  return own(this, element);
}

void blocking_actor::enqueue(mailbox_element_ptr element, execution_unit* host) {
  static auto* const own = next<void(blocking_actor*, mailbox_element_ptr, execution_unit*)>(
      "_ZN3caf14blocking_actor7enqueueESt10unique_ptrINS_15mailbox_elementENS_6detail8disposer"
      "EEPNS_14execution_unitE");
  release(*element);
  own(this, std::move(element), host);
}

/// What a blocking receive looks at first.
bool type_erased_tuple::matches(size_t index, uint16_t number, const std::type_info* type) const
    noexcept {
  static auto* const own =
      next<bool(const type_erased_tuple*, size_t, uint16_t, const std::type_info*)>(
          "_ZNK3caf17type_erased_tuple7matchesEmtPKSt9type_info");
  __tsan_acquire(const_cast<type_erased_tuple*>(this));
  return own(this, index, number, type);
}

// An actor: what one of its turns did is seen by the next, on whichever thread.

resumable::resume_result scheduled_actor::resume(execution_unit* host, size_t messages_max) {
  static auto* const own = next<resume_result(scheduled_actor*, execution_unit*, size_t)>(
      "_ZN3caf15scheduled_actor6resumeEPNS_14execution_unitEm");
  __tsan_acquire(this);
  const resume_result result = own(this, host, messages_max);
  __tsan_release(this);
  return result;
}

// A reference count: what its holders did is seen by who destroys it.

void intrusive_ptr_release(actor_control_block* block) {
  static auto* const own =
      next<void(actor_control_block*)>("_ZN3caf21intrusive_ptr_releaseEPNS_19actor_control_blockE");
  __tsan_release(block);
  __tsan_acquire(block);
  own(block);
}

}  // namespace caf
