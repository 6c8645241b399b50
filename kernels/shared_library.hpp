#pragma once
// What is not linked but looked for when it is needed.

#include <dlfcn.h>

#include <string>

namespace sluice::kernels {

inline std::string last_dl_error() {
  const char* text = ::dlerror();
  return text == nullptr ? "unknown" : text;
}

/// False, and null, when the library lacks it.
template <class Function>
bool find_symbol(void* library, const char* symbol, Function*& function) {
  function = reinterpret_cast<Function*>(::dlsym(library, symbol));
  return function != nullptr;
}

}  // namespace sluice::kernels
