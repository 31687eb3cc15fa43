//! The shim's functions as C has them; `shim.cpp` says what each does.

use std::ffi::{c_char, c_double, c_int, c_void};
use torch_sys::C_tensor;

unsafe extern "C" {
    pub(super) fn gan_last_error() -> *const c_char;
    pub(super) fn gan_use_deterministic_algorithms() -> c_int;
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
        step: c_double,
        rate: c_double,
        beta1: c_double,
        beta2: c_double,
        epsilon: c_double,
    ) -> c_int;
    pub(super) fn gan_is_sole_owner(tensor: *const C_tensor) -> c_int;
    pub(super) fn gan_peak_memory(cuda: c_int, bytes: *mut u64) -> c_int;
    pub(super) fn gan_libtorch_version() -> *const c_char;
    pub(super) fn gan_processor() -> *const c_char;
}
