//! What tch lacks: a C++ shim (`shim.cpp`, `streams.cpp`, `convolution.cpp`, `winograd.cpp`,
//! `script.cpp`) and its safe face; and CUDA graphs, a plug-in (`graphs.cpp`) that is loaded where
//! libtorch has CUDA.
//!
//! With `nccl/` this is the only room that says `unsafe`. It knows tensors, devices and threads,
//! and nothing of networks, games or jobs.

mod adam;
mod arithmetic;
mod convolution;
mod device;
mod driver;
mod generator;
mod graphs;
mod host;
mod memory;
mod script;
mod stream;
mod sys;

pub use adam::{AdamPass, Measure, measure};
pub use arithmetic::{Adopted, Rules, compute_capability, has_fast_bf16, keep_memory};
pub use convolution::{convolve_by_product, winograd};
pub(crate) use device::loader_says;
pub use device::{DeviceDescription, device_description, free_memory, load_cuda, why_no_cuda};
pub use driver::{Driver, DriverError, GpuDescription};
pub use generator::Generator;
pub use graphs::{Graph, GraphPool, graphs_available};
pub use host::{HostVector, write};
pub use memory::peak_memory;
pub use script::{Script, ScriptTensor};
pub use stream::{Event, Stream, StreamGuard, copy_async, pin_memory};

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Device, Kind, Tensor};

/// What libtorch refused.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A function of the shim failed.
    #[error("libtorch can't {doing}: {message}")]
    Shim {
        /// What it was asked to do.
        doing: &'static str,
        /// Its own account.
        message: String,
    },
    /// A function of tch failed.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
    /// A function of tch panicked.
    #[error("libtorch failed to {doing}: {message}")]
    Panic {
        /// What it was asked to do.
        doing: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The process computes by other rules already.
    #[error(
        "this process already computes with {held}, so not with {wanted}; use another process for that job"
    )]
    Rules {
        /// Those that are held.
        held: Rules,
        /// Those that were to be adopted.
        wanted: Rules,
    },
    /// A tensor that must be flat `f32` in host memory is not.
    #[error("expected a flat contiguous f32 tensor in host memory, found {found}")]
    NotHost {
        /// What it is.
        found: String,
    },
    /// Another tensor still reaches memory that is about to be read or written as a slice.
    #[error("a host vector is still lent out: every tensor made from it must be dropped first")]
    Lent,
}

/// Sets the intra-op threads of the calling thread.
///
/// Kernels add in another order with other thread counts, so every thread that computes something
/// the state depends on calls this first, with the job's number.
pub fn set_threads(threads: u32) {
    // A thread's first parallel kernel takes over the number that any thread set last. Asking
    // does the same, so that it happens before the setting and not after.
    tch::get_num_threads();
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Gives the calling thread, and those that it starts from now on, the lowest priority: they compute
/// when nobody else wants to. There is no way back.
pub fn lower_priority() {
    // SAFETY: no arguments; it concerns the calling thread alone.
    unsafe { sys::gan_lower_priority() }
}

/// `tensor` with its channels innermost in memory; a shallow copy if it is so already.
///
/// # Shapes
/// `[n, c, h, w]`, before and after: only the memory's order changes.
///
/// # Errors
/// [`TorchError::Shim`], for another number of dimensions among others.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `tensor` is a live tensor, `out` a place for one pointer.
    check("order a tensor channels-last", unsafe {
        sys::gan_channels_last(tensor.as_ptr(), &mut out)
    })?;
    // SAFETY: on success the shim has put a tensor there that is ours to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Whether the channels of `tensor` are innermost in memory.
pub fn is_channels_last(tensor: &Tensor) -> bool {
    // SAFETY: `tensor` is a live tensor; the shim only looks at it.
    unsafe { sys::gan_is_channels_last(tensor.as_ptr()) == 1 }
}

/// max(x, slope·x), in place. Autograd allows it after layers that don't save their output:
/// convolutions and batch norm.
///
/// # Errors
/// [`TorchError::Shim`], for a leaf that requires its gradient among others.
pub fn leaky_relu_(tensor: Tensor, slope: f64) -> Result<Tensor, TorchError> {
    // SAFETY: `tensor` is a live tensor, and this function owns the handle.
    check("apply a leaky ReLU", unsafe {
        sys::gan_leaky_relu_(tensor.as_ptr(), slope)
    })?;
    Ok(tensor)
}

/// One step of Adam on flat tensors.
#[derive(Debug)]
pub struct FusedAdam<'a> {
    /// What is updated.
    pub parameters: &'a mut Tensor,
    /// The mean gradient.
    pub gradients: &'a Tensor,
    /// First moment, updated.
    pub exp_avg: &'a mut Tensor,
    /// Second moment, updated.
    pub exp_avg_sq: &'a mut Tensor,
    /// One f32 on the same device that counts steps from 1, exactly up to 2²⁴. It is read when the
    /// device comes to it.
    pub count: &'a Tensor,
    /// Step size, as [`learning_rate`] makes one on the same device; read likewise.
    pub learning_rate: &'a Tensor,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

impl FusedAdam<'_> {
    /// Does it, in one pass over memory.
    ///
    /// # Errors
    /// [`TorchError`], for tensors of unequal shapes, kinds or devices among others.
    pub fn apply(self) -> Result<(), TorchError> {
        let alike = |tensor: &Tensor| {
            tensor.size() == self.parameters.size()
                && tensor.kind() == Kind::Float
                && tensor.device() == self.parameters.device()
                && tensor.is_contiguous()
        };
        // The fused kernel trusts its arguments.
        if ![
            &*self.parameters,
            self.gradients,
            self.exp_avg,
            self.exp_avg_sq,
        ]
        .into_iter()
        .all(alike)
        {
            return Err(TorchError::Shim {
                doing: "apply Adam",
                message: "parameters, gradients and moments must be contiguous f32 tensors of one shape on one device".to_owned(),
            });
        }
        let device = self.parameters.device();
        let number = |tensor: &Tensor, kind: Kind| {
            tensor.numel() == 1 && tensor.kind() == kind && tensor.device() == device
        };
        if !number(self.count, Kind::Float) || !number(self.learning_rate, rate_kind(device)) {
            return Err(TorchError::Shim {
                doing: "apply Adam",
                message: "the count of steps and the learning rate must be one number each on the \
                          parameters' device"
                    .to_owned(),
            });
        }
        // SAFETY: six live tensors: four of one shape, kind and device, and two numbers beside them,
        // as checked above.
        check("apply Adam", unsafe {
            sys::gan_adam_(
                self.parameters.as_ptr(),
                self.gradients.as_ptr(),
                self.exp_avg.as_ptr(),
                self.exp_avg_sq.as_ptr(),
                self.count.as_ptr(),
                self.learning_rate.as_ptr(),
                self.beta1,
                self.beta2,
                self.epsilon,
            )
        })
    }
}

/// A step size for [`FusedAdam`], in memory of the device that reads it.
///
/// # Errors
/// [`TorchError`], if the device has no memory for it.
pub fn learning_rate(value: f64, device: Device) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_full(
        [0i64; 0],
        value,
        (rate_kind(device), device),
    )?)
}

/// A GPU's kernel takes it in single precision.
fn rate_kind(device: Device) -> Kind {
    match device {
        Device::Cpu => Kind::Double,
        _ => Kind::Float,
    }
}

/// Runs `body`, which may use the functions of tch that panic, and turns a panic into an error.
///
/// # Errors
/// What `body` returns, or [`TorchError::Panic`].
pub fn catch<T, E: From<TorchError>>(
    doing: &'static str,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    // A tensor that a panic left half written is the caller's to discard; it is no unsound one.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        Err(TorchError::Panic {
            doing,
            message: first_lines(message),
        }
        .into())
    })
}

/// The index that the shim takes for a device: -1 for the CPU.
fn cuda_index(device: Device) -> c_int {
    match device {
        Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
        _ => -1,
    }
}

fn check(doing: &'static str, code: c_int) -> Result<(), TorchError> {
    if code == 0 {
        Ok(())
    } else {
        Err(failed(doing))
    }
}

fn failed(doing: &'static str) -> TorchError {
    // SAFETY: never null, and lives until this thread's next failure.
    let message = text(unsafe { sys::gan_last_error() });
    TorchError::Shim {
        doing,
        message: first_lines(&message),
    }
}

/// A copy of a C string of the shim's; empty for null.
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null; the shim's strings end in NUL and outlive the call.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// Without the C++ backtrace that follows.
fn first_lines(message: &str) -> String {
    message
        .lines()
        .take_while(|line| !line.starts_with("Exception raised from"))
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_last_changes_the_order_in_memory_and_nothing_else() {
        let x = Tensor::arange(48, (Kind::Float, Device::Cpu)).view([2, 3, 2, 4]);
        let y = channels_last(&x).unwrap();
        assert!(!is_channels_last(&x) && is_channels_last(&y));
        assert_eq!(y.stride(), [24, 1, 12, 3]);
        assert!(x.equal(&y));
        assert!(channels_last(&x.view([48])).is_err());
    }

    #[test]
    fn a_leaky_relu_keeps_its_slope_and_its_gradient() {
        let x = Tensor::from_slice(&[-2f32, 3.0]).set_requires_grad(true);
        let y = leaky_relu_(&x * 1.0, 0.2).unwrap();
        assert_eq!(Vec::<f32>::try_from(&y).unwrap(), [-0.4, 3.0]);
        y.sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [0.2, 1.0]);
        let error = leaky_relu_(x, 0.2).unwrap_err().to_string();
        assert!(error.contains("leaf"), "{error}");
    }

    #[test]
    fn adam_is_kingma_and_bas() {
        let mut p = Tensor::from_slice(&[1f32, -1.0]);
        let g = Tensor::from_slice(&[0.5f32, -0.25]);
        let (mut m, mut v) = (p.zeros_like(), p.zeros_like());
        for step in [1f32, 2.0] {
            FusedAdam {
                parameters: &mut p,
                gradients: &g,
                exp_avg: &mut m,
                exp_avg_sq: &mut v,
                count: &Tensor::from(step),
                learning_rate: &learning_rate(0.1, Device::Cpu).unwrap(),
                beta1: 0.5,
                beta2: 0.999,
                epsilon: 1e-8,
            }
            .apply()
            .unwrap();
        }
        // With a constant gradient the corrected moments are g and g², so a step is the rate.
        let p = Vec::<f32>::try_from(&p).unwrap();
        assert!(
            (p[0] - 0.8).abs() < 1e-6 && (p[1] + 0.8).abs() < 1e-6,
            "{p:?}"
        );
        assert_eq!(Vec::<f32>::try_from(&m).unwrap(), [0.375, -0.1875]);
    }

    #[test]
    fn a_failure_is_an_error_and_no_abort() {
        let mut p = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let (mut m, mut v) = (p.zeros_like(), p.zeros_like());
        let wrong = FusedAdam {
            parameters: &mut p,
            gradients: &Tensor::zeros([3], (Kind::Float, Device::Cpu)),
            exp_avg: &mut m,
            exp_avg_sq: &mut v,
            count: &Tensor::from(1f32),
            learning_rate: &learning_rate(0.1, Device::Cpu).unwrap(),
            beta1: 0.5,
            beta2: 0.999,
            epsilon: 1e-8,
        };
        assert!(matches!(wrong.apply(), Err(TorchError::Shim { .. })));
        let error: Result<Tensor, TorchError> = catch("add", || {
            Ok(Tensor::from_slice(&[1f32, 2.0]) + Tensor::from_slice(&[1f32, 2.0, 3.0]))
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("size of tensor"), "{error}");
    }
}
