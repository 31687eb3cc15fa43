//! NCCL's functions as C has them, looked up in a library that was loaded at run time.
//!
//! Result codes are C ints and never Rust enums: a newer library may return codes that no enum has.

use super::NcclError;
use libloading::os::unix::Library;
use std::ffi::{c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;

pub(super) type Code = c_int;
pub(super) type Handle = *mut c_void;
pub(super) type Stream = *mut c_void;

/// `ncclSuccess`
pub(super) const SUCCESS: Code = 0;
/// `ncclInProgress`
pub(super) const IN_PROGRESS: Code = 7;
/// `ncclFloat32`
pub(super) const FLOAT32: c_int = 7;
/// `ncclSum`
pub(super) const SUM: c_int = 0;

/// `ncclUniqueId`, which C passes by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Id(pub(super) [u8; 128]);

/// `ncclConfig_t` as it was when non-blocking communicators came, in 2.14. Newer libraries read the
/// size and the version, and give every field that is not here its default.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    /// Where 2.17 has `cgaClusterSize`: undefined, as NCCL spells it.
    padding: c_int,
}

impl Config {
    pub(super) const NON_BLOCKING: Self = Self {
        size: size_of::<Self>(),
        magic: 0xcafe_beef,
        version: 21_400,
        blocking: 0,
        padding: c_int::MIN,
    };
}

macro_rules! table {
    (
        $($name:ident: fn($($argument:ty),*) -> $result:ty;)*
        [optional] $($extra:ident: fn($($of_extra:ty),*) -> $extra_result:ty;)*
    ) => {
        /// The functions, for as long as the library is loaded.
        #[expect(non_snake_case, reason = "these are the library's names")]
        pub(super) struct Table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            $(pub(super) $extra: Option<unsafe extern "C" fn($($of_extra),*) -> $extra_result>,)*
            /// Never unloaded: NCCL has threads of its own, such as the one that waits for the ranks
            /// of a unique id, and nobody can tell when they have ended.
            _library: ManuallyDrop<Library>,
        }

        impl Table {
            /// Looks up every function; `path` is for the message if one is missing.
            ///
            /// # Safety
            /// The library is NCCL, or has functions of these signatures under these names.
            pub(super) unsafe fn of(library: Library, path: &Path) -> Result<Self, NcclError> {
                Ok(Self {
                    $(
                        // SAFETY: the caller's promise.
                        $name: *unsafe {
                            library.get(concat!(stringify!($name), "\0").as_bytes())
                        }
                        .map_err(|_| NcclError::Symbol {
                            symbol: stringify!($name),
                            path: path.to_owned(),
                        })?,
                    )*
                    $(
                        // SAFETY: the caller's promise.
                        $extra: unsafe {
                            library.get(concat!(stringify!($extra), "\0").as_bytes())
                        }
                        .ok()
                        .map(|symbol| *symbol),
                    )*
                    _library: ManuallyDrop::new(library),
                })
            }
        }
    };
}

table! {
    ncclGetVersion: fn(*mut c_int) -> Code;
    ncclGetUniqueId: fn(*mut Id) -> Code;
    ncclGetErrorString: fn(Code) -> *const c_char;
    ncclGetLastError: fn(Handle) -> *const c_char;
    ncclCommInitRankConfig: fn(*mut Handle, c_int, Id, c_int, *mut Config) -> Code;
    ncclCommFinalize: fn(Handle) -> Code;
    ncclCommDestroy: fn(Handle) -> Code;
    ncclCommAbort: fn(Handle) -> Code;
    ncclCommGetAsyncError: fn(Handle, *mut Code) -> Code;
    ncclAllReduce: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    ncclAllGather: fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> Code;
    ncclBroadcast: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    ncclSend: fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    ncclRecv: fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    ncclGroupStart: fn() -> Code;
    ncclGroupEnd: fn() -> Code;
    [optional]
    // The tests' stand-in alone has these.
    ganStandInQuery: fn(Handle) -> Code;
    ganStandInFault: fn(Handle, *const c_char) -> Code;
}
