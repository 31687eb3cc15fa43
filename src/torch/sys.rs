//! The shim's functions as C has them; `shim.cpp` and `streams.cpp` say what each does.

use std::ffi::{c_char, c_double, c_int, c_void};
use torch_sys::C_tensor;

unsafe extern "C" {
    pub(super) fn gan_last_error() -> *const c_char;
    pub(super) fn gan_set_rules(deterministic: c_int, tf32: c_int) -> c_int;
    pub(super) fn gan_keep_memory();
    pub(super) fn gan_lower_priority();
    pub(super) fn gan_convolve_by_product(
        x: *const C_tensor,
        weight: *const C_tensor,
        transposed: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(super) fn gan_winograd(
        x: *const C_tensor,
        weight: *const C_tensor,
        transposed: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(super) fn gan_generator_new(cuda: c_int, seed: u64) -> *mut c_void;
    pub(super) fn gan_generator_free(generator: *mut c_void);
    pub(super) fn gan_normal_(
        tensor: *const C_tensor,
        mean: c_double,
        deviation: c_double,
        generator: *mut c_void,
    ) -> c_int;
    pub(super) fn gan_channels_last(tensor: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
    pub(super) fn gan_is_channels_last(tensor: *const C_tensor) -> c_int;
    pub(super) fn gan_leaky_relu_(tensor: *const C_tensor, slope: c_double) -> c_int;
    pub(super) fn gan_adam_(
        parameters: *const C_tensor,
        gradients: *const C_tensor,
        mean: *const C_tensor,
        square: *const C_tensor,
        count: *const C_tensor,
        rate: *const C_tensor,
        beta1: c_double,
        beta2: c_double,
        epsilon: c_double,
    ) -> c_int;
    pub(super) fn gan_free_memory(cuda: c_int, free: *mut u64, total: *mut u64) -> c_int;
    pub(super) fn gan_is_sole_owner(tensor: *const C_tensor) -> c_int;
    pub(super) fn gan_peak_memory(cuda: c_int, bytes: *mut u64) -> c_int;
    pub(super) fn gan_libtorch_version() -> *const c_char;
    pub(super) fn gan_processor() -> *const c_char;
}

// streams.cpp
unsafe extern "C" {
    pub(super) fn gan_stream_current(cuda: c_int, id: *mut i64) -> c_int;
    pub(super) fn gan_stream_from_pool(cuda: c_int, high: c_int, id: *mut i64) -> c_int;
    pub(super) fn gan_stream_native(cuda: c_int, id: i64, native: *mut *mut c_void) -> c_int;
    pub(super) fn gan_stream_enter(
        cuda: c_int,
        id: i64,
        previous_stream: *mut i64,
        previous_device: *mut c_int,
    ) -> c_int;
    pub(super) fn gan_stream_leave(
        cuda: c_int,
        previous_stream: i64,
        previous_device: c_int,
    ) -> c_int;
    pub(super) fn gan_stream_query(cuda: c_int, id: i64) -> c_int;
    pub(super) fn gan_record_stream(tensor: *const C_tensor, cuda: c_int, id: i64) -> c_int;
    pub(super) fn gan_event_new(timing: c_int) -> *mut c_void;
    pub(super) fn gan_event_free(event: *mut c_void);
    pub(super) fn gan_event_record(event: *mut c_void, cuda: c_int, id: i64) -> c_int;
    pub(super) fn gan_event_block(event: *const c_void, cuda: c_int, id: i64) -> c_int;
    pub(super) fn gan_event_query(event: *const c_void) -> c_int;
    pub(super) fn gan_event_elapsed(
        first: *const c_void,
        second: *const c_void,
        milliseconds: *mut c_double,
    ) -> c_int;
    pub(super) fn gan_copy_async(into: *const C_tensor, from: *const C_tensor) -> c_int;
    pub(super) fn gan_pin_memory(tensor: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
}

// script.cpp
unsafe extern "C" {
    pub(super) fn gan_script(
        name: *const c_char,
        source: *const c_char,
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        buffers: *const c_int,
        count: usize,
    ) -> *mut c_void;
    pub(super) fn gan_script_bytes(script: *mut c_void) -> *const c_char;
    pub(super) fn gan_script_length(script: *mut c_void) -> usize;
    pub(super) fn gan_script_free(script: *mut c_void);
}
