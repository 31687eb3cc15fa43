//! Which device there is, and what about it decides the bits.

use super::{TorchError, check, cuda_index, sys, text};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_uint};
use std::fmt;
use std::sync::OnceLock;
use tch::Device;

/// The device kind that results hold for: two that are equal give the same bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDescription {
    /// `cpu` or `cuda`.
    pub kind: &'static str,
    /// The processor's vendor, family, model and vector instructions, or the GPU's name.
    pub model: String,
    /// The version of libtorch.
    pub libtorch: String,
}

impl fmt::Display for DeviceDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            model,
            libtorch,
        } = self;
        write!(f, "{kind} ({model}), libtorch {libtorch}")
    }
}

/// Loads libtorch's CUDA half, if this installation has one, and says whether it has.
///
/// The linker drops it from the binary, for nothing refers to it; without it libtorch sees no GPU.
/// Call it first thing in `main`: libtorch asks once whether there is CUDA and remembers.
pub fn load_cuda() -> bool {
    why_no_cuda().is_none()
}

/// Why libtorch's CUDA half can't be loaded, if that is so.
pub fn why_no_cuda() -> Option<&'static str> {
    // Held for the life of the process: unloading a half of libtorch is not supported.
    static CUDA: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = CUDA.get_or_init(|| {
        // SAFETY: libtorch's own library; its initialisers register kernels and do nothing else.
        unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|error| loader_says(&error))
    });
    loaded.as_ref().err().map(String::as_str)
}

/// What the dynamic loader has to say: which file it is about, and why.
pub(crate) fn loader_says(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

/// Bytes of a GPU's memory that nobody has taken, and all that it has.
///
/// # Errors
/// [`TorchError::Shim`], if there is no such GPU.
pub fn free_memory(device: Device) -> Result<(u64, u64), TorchError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: places for two numbers; a device that is not there is an error, not undefined.
    check("ask for a GPU's free memory", unsafe {
        sys::gan_free_memory(cuda_index(device), &mut free, &mut total)
    })?;
    Ok((free, total))
}

/// What `device` is.
///
/// # Errors
/// [`TorchError::Shim`], if it can't be asked.
pub fn device_description(device: Device) -> Result<DeviceDescription, TorchError> {
    // SAFETY: a constant of the shim's.
    let libtorch = text(unsafe { sys::gan_libtorch_version() });
    let (kind, model) = match device {
        Device::Cuda(index) => ("cuda", gpu_name(index)?),
        // SAFETY: null, or this thread's text until its next call here.
        _ => ("cpu", text(unsafe { sys::gan_processor() })),
    };
    Ok(DeviceDescription {
        kind,
        model,
        libtorch,
    })
}

/// The GPU's name from CUDA's driver, which counts devices as libtorch does.
fn gpu_name(index: usize) -> Result<String, TorchError> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;

    let refuse = |message: String| TorchError::Shim {
        doing: "name the GPU",
        message,
    };
    let succeed = |function: &str, code: c_int| match code {
        0 => Ok(()),
        code => Err(refuse(format!("{function} returned {code}"))),
    };
    let index = c_int::try_from(index).map_err(|error| refuse(error.to_string()))?;
    let mut name = [0u8; 256];
    // SAFETY: the functions have these signatures since CUDA 2.0; each gets places of the right
    // size that outlive the call, and the driver ends the name with a NUL within the 256 bytes.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW)
            .map_err(|error| refuse(loader_says(&error)))?;
        let find = |error: libloading::Error| refuse(loader_says(&error));
        let init = driver.get::<Init>(b"cuInit\0").map_err(find)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(find)?;
        let name_of = driver.get::<Name>(b"cuDeviceGetName\0").map_err(find)?;
        let mut device = 0;
        succeed("cuInit", init(0))?;
        succeed("cuDeviceGet", get(&mut device, index))?;
        succeed(
            "cuDeviceGetName",
            name_of(name.as_mut_ptr().cast(), name.len() as c_int, device),
        )?;
    }
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_memory_of_a_gpus() {
        assert!(free_memory(Device::Cpu).is_err());
        assert!(free_memory(Device::Cuda(4_000)).is_err());
    }

    #[test]
    fn a_processor_has_a_description() {
        load_cuda();
        let description = device_description(Device::Cpu).unwrap();
        assert_eq!(description.kind, "cpu");
        assert!(!description.model.trim().is_empty());
        assert!(description.libtorch.starts_with("2."), "{description}");
        assert_eq!(description, device_description(Device::Cpu).unwrap());
    }
}
