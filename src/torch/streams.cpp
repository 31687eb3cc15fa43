// Streams, events and copies that nobody waits for, as C functions: on CUDA, and without its
// headers. c10's DeviceGuardImplInterface has all of it, once libtorch_cuda is loaded.
//
// As in shim.cpp every function catches, and returns -1 for a failure. `cuda` is the index of a
// CUDA device. A stream is its device and c10's number for it, which owns nothing.

#include "guarded.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdint>

using gan::guarded;

static c10::Device device_of(int cuda) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda));
}

static c10::Stream stream_of(int cuda, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, device_of(cuda), id);
}

// Throws where libtorch has no CUDA.
static const c10::impl::DeviceGuardImplInterface* cuda_guard() {
  return c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
}

static c10::Event* event_of(void* event) { return static_cast<c10::Event*>(event); }
static const c10::Event* event_of(const void* event) {
  return static_cast<const c10::Event*>(event);
}

extern "C" {

int gan_stream_current(int cuda, int64_t* id) {
  return guarded(-1, [&] {
    *id = cuda_guard()->getStream(device_of(cuda)).id();
    return 0;
  });
}

// Streams of the pool are not ordered with the legacy default stream, and are never destroyed.
int gan_stream_from_pool(int cuda, int high, int64_t* id) {
  return guarded(-1, [&] {
    *id = cuda_guard()->getStreamFromGlobalPool(device_of(cuda), high != 0).id();
    return 0;
  });
}

int gan_stream_native(int cuda, int64_t id, void** native) {
  return guarded(-1, [&] {
    *native = cuda_guard()->getStreamNativeHandle(stream_of(cuda, id));
    return 0;
  });
}

// Makes the stream current on its device, and its device the thread's; tells what was before.
int gan_stream_enter(int cuda, int64_t id, int64_t* previous_stream, int* previous_device) {
  return guarded(-1, [&] {
    const auto* guard = cuda_guard();
    *previous_device = guard->exchangeDevice(device_of(cuda)).index();
    try {
      *previous_stream = guard->exchangeStream(stream_of(cuda, id)).id();
    } catch (...) {
      guard->uncheckedSetDevice(device_of(*previous_device));
      throw;
    }
    return 0;
  });
}

int gan_stream_leave(int cuda, int64_t previous_stream, int previous_device) {
  return guarded(-1, [&] {
    const auto* guard = cuda_guard();
    guard->exchangeStream(stream_of(cuda, previous_stream));
    guard->uncheckedSetDevice(device_of(previous_device));
    return 0;
  });
}

// Whether all that the stream was given is done: 1, 0, or -1.
int gan_stream_query(int cuda, int64_t id) {
  return guarded(-1, [&] { return cuda_guard()->queryStream(stream_of(cuda, id)) ? 1 : 0; });
}

// The tensor's memory is not given to others before the stream has done what it was given so far.
int gan_record_stream(at::Tensor* tensor, int cuda, int64_t id) {
  return guarded(-1, [&] {
    tensor->record_stream(stream_of(cuda, id));
    return 0;
  });
}

void* gan_event_new(int timing) {
  return guarded<void*>(nullptr, [&]() -> void* {
    return new c10::Event(c10::DeviceType::CUDA, timing != 0 ? c10::EventFlag::BACKEND_DEFAULT
                                                             : c10::EventFlag::PYTORCH_DEFAULT);
  });
}

void gan_event_free(void* event) {
  guarded(0, [&] {
    delete event_of(event);
    return 0;
  });
}

int gan_event_record(void* event, int cuda, int64_t id) {
  return guarded(-1, [&] {
    event_of(event)->record(stream_of(cuda, id));
    return 0;
  });
}

int gan_event_block(const void* event, int cuda, int64_t id) {
  return guarded(-1, [&] {
    event_of(event)->block(stream_of(cuda, id));
    return 0;
  });
}

// 1, 0, or -1. An event that was never recorded is complete.
int gan_event_query(const void* event) {
  return guarded(-1, [&] { return event_of(event)->query() ? 1 : 0; });
}

int gan_event_elapsed(const void* first, const void* second, double* milliseconds) {
  return guarded(-1, [&] {
    *milliseconds = event_of(first)->elapsedTime(*event_of(second));
    return 0;
  });
}

int gan_copy_async(at::Tensor* into, at::Tensor* from) {
  return guarded(-1, [&] {
    at::NoGradGuard no_grad;
    into->copy_(*from, /*non_blocking=*/true);
    return 0;
  });
}

int gan_pin_memory(at::Tensor* tensor, at::Tensor** out) {
  return guarded(-1, [&] {
    *out = new at::Tensor(tensor->pin_memory());
    return 0;
  });
}

}  // extern "C"
