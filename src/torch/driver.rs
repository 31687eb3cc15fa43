//! NVIDIA's driver, asked directly: it answers where libtorch has no CUDA, and says why not.

use libloading::os::unix::{Library, RTLD_NOW};
use std::ffi::{c_char, c_int, c_uint};

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type ErrorName = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// Why the driver says nothing.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is none.
    #[error("{0}; install NVIDIA's driver")]
    Missing(String),
    /// It lacks a function.
    #[error("libcuda.so.1 has no {0}; it is too old")]
    Symbol(&'static str),
    /// A function failed.
    #[error("{function} returned {code} ({name})")]
    Refused {
        /// Which one.
        function: &'static str,
        /// Its `CUresult`.
        code: c_int,
        /// What the driver calls that.
        name: String,
    },
}

/// A GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDescription {
    /// Its model.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    /// How many streaming multiprocessors it has.
    pub multiprocessors: i32,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    library: Library,
}

impl Driver {
    /// Finds the driver and starts it.
    ///
    /// # Errors
    /// [`DriverError`], if there is none or it doesn't start; without a GPU it doesn't.
    pub fn open() -> Result<Self, DriverError> {
        // SAFETY: the driver's own library; loading it changes nothing until it is initialised.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }
            .map_err(|error| DriverError::Missing(super::device::loader_says(&error)))?;
        let driver = Self { library };
        // SAFETY: the function has this signature since CUDA 2.0, and 0 is its only argument.
        let code = unsafe { driver.find::<Init>("cuInit")?(0) };
        driver.check("cuInit", code)?;
        Ok(driver)
    }

    /// The newest CUDA that it can run, as 13.0.
    ///
    /// # Errors
    /// [`DriverError`], if it can't be asked.
    pub fn cuda(&self) -> Result<String, DriverError> {
        let version = self.number("cuDriverGetVersion")?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// All GPUs that this process may use, in the order in which libtorch counts them.
    ///
    /// # Errors
    /// [`DriverError`], if they can't be asked.
    pub fn gpus(&self) -> Result<Vec<GpuDescription>, DriverError> {
        let count = self.number("cuDeviceGetCount")?;
        (0..count).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<GpuDescription, DriverError> {
        let (mut device, mut memory, mut name) = (0, 0_usize, [0_u8; 256]);
        // SAFETY: the functions have these signatures since CUDA 3.2; each gets places of the right
        // size that outlive the call, and the name ends with a NUL within the 256 bytes.
        unsafe {
            let code = self.find::<Get>("cuDeviceGet")?(&mut device, index);
            self.check("cuDeviceGet", code)?;
            let length = name.len() as c_int;
            let code =
                self.find::<Name>("cuDeviceGetName")?(name.as_mut_ptr().cast(), length, device);
            self.check("cuDeviceGetName", code)?;
            let code = self.find::<Memory>("cuDeviceTotalMem_v2")?(&mut memory, device);
            self.check("cuDeviceTotalMem_v2", code)?;
        }
        let end = name.iter().position(|&byte| byte == 0);
        let name = &name[..end.unwrap_or(name.len())];
        let attribute = |which| self.attribute(which, device);
        Ok(GpuDescription {
            name: String::from_utf8_lossy(name).into_owned(),
            memory: memory as u64,
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?,
        })
    }

    fn attribute(&self, which: c_int, device: c_int) -> Result<c_int, DriverError> {
        let mut value = 0;
        // SAFETY: the function has this signature since CUDA 2.0; `value` outlives the call.
        let code =
            unsafe { self.find::<Attribute>("cuDeviceGetAttribute")?(&mut value, which, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    fn number(&self, function: &'static str) -> Result<c_int, DriverError> {
        let mut number = 0;
        // SAFETY: callers name functions of this signature; `number` outlives the call.
        let code = unsafe { self.find::<Number>(function)?(&mut number) };
        self.check(function, code)?;
        Ok(number)
    }

    /// # Safety
    /// `T` is the type of that function.
    unsafe fn find<T: Copy>(&self, function: &'static str) -> Result<T, DriverError> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.library.get::<T>(function.as_bytes()) };
        found
            .map(|symbol| *symbol)
            .map_err(|_| DriverError::Symbol(function))
    }

    fn check(&self, function: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the function has this signature since CUDA 6.0; it gives null, or a constant.
        let told = unsafe {
            self.find::<ErrorName>("cuGetErrorName")
                .map(|tell| tell(code, &mut name))
        };
        let name = match told {
            Ok(0) => super::text(name),
            _ => "no name".to_owned(),
        };
        Err(DriverError::Refused {
            function,
            code,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_tells_of_its_gpus_or_why_it_can_not() {
        match Driver::open() {
            Ok(driver) => {
                assert!(driver.cuda().unwrap().contains('.'));
                for gpu in driver.gpus().unwrap() {
                    assert!(!gpu.name.is_empty() && gpu.memory > 0, "{gpu:?}");
                }
            }
            Err(error) => {
                let error = error.to_string();
                assert!(
                    (error.contains("libcuda.so.1") && error.contains("install NVIDIA's driver"))
                        || error.contains("CUDA_ERROR"),
                    "{error}"
                );
            }
        }
    }
}
