// How every C function of the shim keeps C++ exceptions from Rust.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace gan {

// The reason of the calling thread's last failure, in whichever file of the shim.
inline thread_local std::string last_error;

// Runs `body` and returns what it returns; an exception becomes `failure`.
template <typename Result, typename Body>
Result guarded(Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const c10::Error& error) {
    try { last_error = error.what_without_backtrace(); } catch (...) {}
  } catch (const std::exception& error) {
    try { last_error = error.what(); } catch (...) {}
  } catch (...) {
    try { last_error = "an exception of unknown type"; } catch (...) {}
  }
  return failure;
}

}  // namespace gan
