//! Finding and loading the library.

use super::NcclError;
use super::sys::{self, Code, Handle, Table};
use crate::torch::loader_says;
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The environment variable that names the library; it wins over every other place.
pub const LIBRARY_VARIABLE: &str = "GAN_NCCL_LIBRARY";

const SONAME: &str = "libnccl.so.2";

/// The first version with non-blocking initialisation, 2.14.0.
const OLDEST: i32 = 21_400;

/// `RTLD_NOLOAD` of Linux's dlfcn.h: only what is loaded already.
const RTLD_NOLOAD: std::ffi::c_int = 4;

/// The loaded library. It stays loaded to the end of the process.
pub struct Library {
    pub(super) table: Table,
    version: i32,
    path: PathBuf,
}

/// What the ranks of one communicator share, and nobody else should know: whoever has it can take a
/// rank's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(…)")
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &dotted(self.version))
            .field("is_stand_in", &self.is_stand_in())
            .finish()
    }
}

impl Library {
    /// Loads the library from the first of these places that has it: what `GAN_NCCL_LIBRARY` names,
    /// and then no other; libtorch's own copy, if that is loaded; where the system's loader looks;
    /// beside libtorch.
    ///
    /// # Errors
    /// If it is nowhere, is not NCCL, or is too old. The message says what to install.
    pub fn load() -> Result<Arc<Self>, NcclError> {
        if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::open(Path::new(&path));
        }
        let soname = Path::new(SONAME);
        // SAFETY: nothing is loaded that is not there already.
        if let Ok(loaded) = unsafe { Loaded::open(Some(SONAME), RTLD_NOW | RTLD_NOLOAD) } {
            return Self::of(loaded, soname);
        }
        // SAFETY: NCCL's own library; its initialisers read the environment and do nothing else.
        let mut tried = match unsafe { Loaded::open(Some(SONAME), RTLD_NOW | RTLD_LOCAL) } {
            Ok(loaded) => return Self::of(loaded, soname),
            Err(error) => loader_says(&error),
        };
        for path in beside_libtorch().into_iter().filter(|path| path.exists()) {
            // SAFETY: as above.
            match unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
                Ok(loaded) => return Self::of(loaded, &path),
                Err(error) => tried = format!("{tried}; {}", loader_says(&error)),
            }
        }
        Err(NcclError::Missing { tried })
    }

    /// Loads this very library.
    ///
    /// # Errors
    /// As [`load`](Library::load).
    pub fn open(path: &Path) -> Result<Arc<Self>, NcclError> {
        // SAFETY: whoever runs this names a library that may be loaded into the process; what is no
        // NCCL is refused for what it lacks before anything of it is called.
        let loaded = unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let loaded = loaded.map_err(|error| NcclError::Unloadable {
            path: path.to_owned(),
            message: loader_says(&error),
        })?;
        Self::of(loaded, path)
    }

    fn of(loaded: Loaded, name: &Path) -> Result<Arc<Self>, NcclError> {
        let path = match name.file_name() {
            Some(file) if name.components().count() == 1 => {
                mapped(&file.to_string_lossy()).unwrap_or_else(|| name.to_owned())
            }
            _ => name.to_owned(),
        };
        // SAFETY: a library that has all of NCCL's names is taken for NCCL, whose signatures these
        // are since 2.14.
        let table = unsafe { Table::of(loaded, &path) }?;
        let mut library = Self {
            table,
            version: 0,
            path,
        };
        let mut version = 0;
        // SAFETY: a place for one number.
        let code = unsafe { (library.table.ncclGetVersion)(&mut version) };
        library.check("ncclGetVersion", code)?;
        if version < OLDEST {
            let path = library.path;
            return Err(NcclError::TooOld { version, path });
        }
        library.version = version;
        Ok(Arc::new(library))
    }

    /// Its version as NCCL codes it: 22809 is 2.28.9.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Its version as people write it.
    pub fn version_text(&self) -> String {
        dotted(self.version)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the tests' stand-in, which works in host memory.
    pub fn is_stand_in(&self) -> bool {
        self.table.ganStandInQuery.is_some()
    }

    /// A new id. One rank makes it, and all initialise with it.
    ///
    /// # Errors
    /// [`NcclError::Call`], if there is no network among others.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = sys::Id([0; 128]);
        // SAFETY: a place for one id.
        let code = unsafe { (self.table.ncclGetUniqueId)(&mut id) };
        self.check("ncclGetUniqueId", code)?;
        Ok(UniqueId(id.0))
    }

    /// Arms a fault of the stand-in for the next communicator that the calling thread makes; for
    /// tests. False if this is not the stand-in, or doesn't know the fault.
    pub fn arm_next(&self, words: &str) -> bool {
        self.arm(std::ptr::null_mut(), words)
    }

    pub(super) fn arm(&self, handle: Handle, words: &str) -> bool {
        let (Some(fault), Ok(words)) = (self.table.ganStandInFault, CString::new(words)) else {
            return false;
        };
        // SAFETY: null or a handle of the stand-in's, which stay valid, and a C string.
        unsafe { fault(handle, words.as_ptr()) == sys::SUCCESS }
    }

    pub(super) fn check(&self, function: &'static str, code: Code) -> Result<(), NcclError> {
        if code == sys::SUCCESS {
            return Ok(());
        }
        Err(NcclError::Call {
            function,
            code,
            text: self.text(code),
            last: self.last(),
        })
    }

    pub(super) fn text(&self, code: Code) -> String {
        // SAFETY: takes any number and returns a constant.
        text(unsafe { (self.table.ncclGetErrorString)(code) })
    }

    pub(super) fn last(&self) -> String {
        // SAFETY: null is allowed, and means the process's last error.
        text(unsafe { (self.table.ncclGetLastError)(std::ptr::null_mut()) })
    }
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NCCL's texts end in NUL and live as long as the library.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// How NCCL codes versions: 2.8 and older had one digit less for the minor number.
pub(super) fn dotted(version: i32) -> String {
    let major = if version < 10_000 { 1000 } else { 10_000 };
    format!(
        "{}.{}.{}",
        version / major,
        version % major / 100,
        version % 100
    )
}

/// Where a file of this name is mapped into the process.
fn mapped(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|file| file == name))?;
    Some(path.to_owned())
}

/// Where installations of libtorch have their NCCL.
fn beside_libtorch() -> Vec<PathBuf> {
    let libtorch = mapped("libtorch_cuda.so").or_else(|| mapped("libtorch_cpu.so"));
    let Some(folder) = libtorch.as_deref().and_then(Path::parent) else {
        return Vec::new();
    };
    ["", "../../nvidia/nccl/lib", "../../nccl"]
        .map(|place| folder.join(place).join(SONAME))
        .to_vec()
}

/// The tests' stand-in, which cargo builds as an example.
#[cfg(test)]
pub(crate) fn stand_in() -> Arc<Library> {
    // target/<profile>/deps/<this test>
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples/libnccl_stand_in.so");
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, and so does \
         `cargo build --example nccl_stand_in`",
        path.display()
    );
    let library = Library::open(&path).unwrap();
    assert!(library.is_stand_in());
    library
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_write_them() {
        assert_eq!(dotted(22_809), "2.28.9");
        assert_eq!(dotted(21_400), "2.14.0");
        assert_eq!(dotted(2_708), "2.7.8");
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_the_variable() {
        let error = Library::open(Path::new("/nowhere/libnccl.so.2")).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, NcclError::Unloadable { .. }), "{text}");
        assert!(text.contains("/nowhere/libnccl.so.2") && text.contains(LIBRARY_VARIABLE));
    }

    #[test]
    fn a_library_that_is_no_nccl_is_refused_for_what_it_lacks() {
        let error = Library::open(Path::new("libm.so.6")).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, NcclError::Symbol { .. }), "{text}");
        assert!(text.contains("ncclGetVersion") && text.contains("nvidia-nccl-cu13"));
    }

    #[test]
    fn an_id_is_never_printed() {
        let shown = format!("{:?}", UniqueId([0xab; 128]));
        assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
    }
}
