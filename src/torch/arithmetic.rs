//! By which rules libtorch computes in this process, and what the device is good at.

use super::{TorchError, check, sys};
use libloading::os::unix::{Library, RTLD_NOW};
use std::ffi::{c_int, c_uint};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tch::Device;

/// The rules of libtorch's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The same bits from run to run on one device kind: deterministic kernels only, and none chosen
    /// by timing.
    pub deterministic: bool,
    /// Whether factors of convolutions and matrix products in single precision may be rounded to
    /// TensorFloat-32.
    pub tf32: bool,
}

impl Rules {
    /// What they come to on `device`: a CPU's kernels are deterministic anyway, and it has no TF32.
    fn on(self, device: Device) -> Self {
        match device {
            Device::Cuda(_) => self,
            _ => Rules {
                deterministic: true,
                tf32: false,
            },
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = if self.deterministic {
            "deterministic"
        } else {
            "any"
        };
        let tf32 = if self.tf32 { "with" } else { "without" };
        write!(f, "{kernels} kernels {tf32} TF32")
    }
}

/// What the process computes by, and how many hold it to that.
static HELD: Mutex<Option<(Rules, usize)>> = Mutex::new(None);

/// Holds the process to the rules that were adopted. libtorch has one set of rules for all threads,
/// so no others can be adopted meanwhile.
#[derive(Debug)]
pub struct Adopted(());

impl Adopted {
    /// Has the whole process compute by these rules, for as long as the result lives.
    ///
    /// # Errors
    /// [`TorchError::Rules`], if somebody holds the process to others; [`TorchError::Shim`].
    pub fn new(rules: Rules, device: Device) -> Result<Self, TorchError> {
        let rules = rules.on(device);
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let holders = match *held {
            Some((others, holders)) if holders > 0 && others != rules => {
                return Err(TorchError::Rules {
                    wanted: rules,
                    held: others,
                });
            }
            Some((_, holders)) => holders,
            None => 0,
        };
        // SAFETY: plain numbers; sets process-wide flags, under the lock above.
        check("set the rules of its kernels", unsafe {
            sys::gan_set_rules(c_int::from(rules.deterministic), c_int::from(rules.tf32))
        })?;
        *held = Some((rules, holders + 1));
        Ok(Self(()))
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, holders)) = held.as_mut() {
            *holders = holders.saturating_sub(1);
        }
    }
}

/// Has this process keep the memory that it frees, for its own later use.
///
/// A training step on a CPU allocates the same large tensors every time. By default glibc hands them
/// back to the system, which zeroes each page anew: 8,000 page faults and some 3 % of a step at 64×64,
/// width 64, batch 32. The price is that a process stays as large as it ever was.
///
/// Call it first thing in `main`: memory that was handed out before stays where it is. Where there is
/// no glibc, nothing happens.
pub fn keep_memory() {
    // SAFETY: takes nothing; glibc sets its own parameters under its own lock.
    unsafe { sys::gan_keep_memory() }
}

/// Whether this processor multiplies bfloat16 numbers itself. Without that, bf16 is computed in
/// single precision and rounded, which is slower than single precision alone.
pub fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let fast = std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    let fast = std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let fast = false;
    fast
}

/// A GPU's compute capability, major and minor, from CUDA's driver.
///
/// # Errors
/// [`TorchError::Shim`], if there is no driver or no such GPU.
pub fn compute_capability(index: usize) -> Result<(u32, u32), TorchError> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;

    let refuse = |message: String| TorchError::Shim {
        doing: "ask a GPU for its compute capability",
        message,
    };
    let check = |function: &str, code: c_int| match code {
        0 => Ok(()),
        code => Err(refuse(format!("{function} returned {code}"))),
    };
    let index = c_int::try_from(index).map_err(|error| refuse(error.to_string()))?;
    let (mut device, mut major, mut minor) = (0, 0, 0);
    // SAFETY: the functions have these signatures since CUDA 5.0, and each gets a place for one int
    // that outlives the call.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW)
            .map_err(|error| refuse(error.to_string()))?;
        let find = |error: libloading::Error| refuse(error.to_string());
        let init = driver.get::<Init>(b"cuInit\0").map_err(find)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(find)?;
        let attribute = driver
            .get::<Attribute>(b"cuDeviceGetAttribute\0")
            .map_err(find)?;
        check("cuInit", init(0))?;
        check("cuDeviceGet", get(&mut device, index))?;
        let name = "cuDeviceGetAttribute";
        check(name, attribute(&mut major, MAJOR, device))?;
        check(name, attribute(&mut minor, MINOR, device))?;
    }
    let number = |value: c_int| u32::try_from(value).map_err(|error| refuse(error.to_string()));
    Ok((number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        deterministic: true,
        tf32: false,
    };

    #[test]
    fn a_process_computes_by_one_set_of_rules() {
        let first = Adopted::new(RULES, Device::Cpu).unwrap();
        // On a CPU all rules come to the same.
        let any = Rules {
            deterministic: false,
            tf32: true,
        };
        let second = Adopted::new(any, Device::Cpu).unwrap();
        drop(first);
        let error = Adopted::new(any, Device::Cuda(0)).unwrap_err();
        assert!(matches!(error, TorchError::Rules { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("any kernels with TF32"), "{text}");
        drop(second);
    }

    #[test]
    fn a_missing_gpu_has_no_compute_capability() {
        let error = compute_capability(999).unwrap_err();
        assert!(error.to_string().contains("compute capability"), "{error}");
    }
}
