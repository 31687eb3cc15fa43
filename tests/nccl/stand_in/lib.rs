//! A stand-in for NCCL's library, for tests on machines without a GPU.
//!
//! It has the symbols of libnccl that Ganglion uses, with the same signatures, codes and manners,
//! but works on host memory: the ranks of a communicator, which are threads or processes of one
//! machine, send to each other through sockets. `stream` is ignored. A communicator's groups run
//! one after another on a thread of its own once `ncclGroupEnd` has returned; what a CUDA stream
//! would tell, `ganStandInQuery` tells. It is loaded as the real library is, by `dlopen`, and uses
//! neither Ganglion nor libtorch.
//!
//! What real NCCL does badly, it does on demand: see [`faults`]. Without being asked it hangs or
//! leaves data where it should not be when two ranks disagree about what is sent, as the real one
//! does, and after an abort it says that all is done, though the data are incomplete.
//!
//! Symbols that NCCL lacks:
//!
//! - `int ganStandInQuery(ncclComm_t)`: 0 if all groups that were launched are over, 7
//!   (`ncclInProgress`) if not. As with a stream, a group that is still being launched does not
//!   count, and neither does one that was aborted. The handle may be one that was aborted or
//!   destroyed.
//! - `int ganStandInFault(ncclComm_t, const char *)`: arms faults for this communicator or, with
//!   null, for the next one that the calling thread makes. 4 (`ncclInvalidArgument`) for words that
//!   it doesn't know.

#![allow(
    non_snake_case,
    clippy::disallowed_methods,
    reason = "it has a foreign library's names and waits in real time"
)]

mod bootstrap;
mod communicator;
mod faults;
mod groups;
mod mesh;

use bootstrap::UniqueId;
use communicator::Communicator;
use groups::Operation;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const INTERNAL_ERROR: c_int = 3;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;

/// The version that it stands in for: 2.28.9.
const VERSION: c_int = 22809;

type Handle = *mut c_void;

/// What went wrong last, as an index of [`MESSAGES`].
static LAST_ERROR: AtomicUsize = AtomicUsize::new(0);

const MESSAGES: [&CStr; 7] = [
    c"",
    c"stand-in: no such communicator",
    c"stand-in: Attempt to use communicator before the previous operation returned ncclSuccess",
    c"stand-in: an argument is null, out of range or of a type that is not supported",
    c"stand-in: ncclGroupEnd without ncclGroupStart",
    c"stand-in: a rank sends to itself without receiving, or the other way round",
    c"stand-in: no such fault",
];

#[derive(Clone, Copy)]
enum Fault {
    NoCommunicator = 1,
    NotReady,
    Argument,
    NoGroup,
    ToItself,
    Words,
}

fn refuse(fault: Fault) -> c_int {
    LAST_ERROR.store(fault as usize, Ordering::Relaxed);
    match fault {
        Fault::NoGroup | Fault::ToItself => INVALID_USAGE,
        _ => INVALID_ARGUMENT,
    }
}

/// The configuration's beginning; nothing after it matters here.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(SUCCESS)
}

fn found(handle: Handle) -> Result<Arc<Communicator>, c_int> {
    communicator::find(handle as usize).ok_or_else(|| refuse(Fault::NoCommunicator))
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's place for a number.
    match unsafe { version.as_mut() } {
        Some(version) => {
            *version = VERSION;
            SUCCESS
        }
        None => refuse(Fault::Argument),
    }
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    // SAFETY: null, or the caller's place for an id.
    let Some(id) = (unsafe { id.as_mut() }) else {
        return refuse(Fault::Argument);
    };
    match UniqueId::open() {
        Ok(opened) => {
            *id = opened;
            SUCCESS
        }
        Err(_) => SYSTEM_ERROR,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(result: c_int) -> *const c_char {
    let text = match result {
        SUCCESS => c"no error",
        1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        SYSTEM_ERROR => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        INTERNAL_ERROR => c"internal error - please report this issue to the NCCL developers",
        INVALID_ARGUMENT => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        INVALID_USAGE => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        REMOTE_ERROR => c"remote process exited or there was a network error",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_: Handle) -> *const c_char {
    MESSAGES[LAST_ERROR.load(Ordering::Relaxed)].as_ptr()
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    handle: *mut Handle,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> c_int {
    // SAFETY: null, or the caller's place for a handle, and its configuration.
    let (handle, config) = unsafe { (handle.as_mut(), config.as_ref()) };
    let is_sound = config.is_none_or(|config| config.magic == 0xcafe_beef);
    let (Some(handle), true, true) = (handle, is_sound, (0..ranks).contains(&rank)) else {
        return refuse(Fault::Argument);
    };
    let blocking = config.is_none_or(|config| config.blocking != 0);
    let Some(name) = communicator::make(id, rank as usize, ranks as usize, blocking) else {
        return refuse(Fault::Argument);
    };
    *handle = name as Handle;
    match communicator::find(name) {
        Some(communicator) if blocking => communicator.formed(),
        _ => IN_PROGRESS,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: Handle) -> c_int {
    code(found(handle).and_then(|communicator| communicator.finalize()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: Handle) -> c_int {
    code(found(handle).map(|communicator| communicator.destroy()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: Handle) -> c_int {
    code(found(handle).map(|communicator| communicator.abort()))
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(handle: Handle, error: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's place for a code.
    unsafe { tell(handle, error, |communicator| communicator.async_error()) }
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCount(handle: Handle, count: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's place for a number.
    unsafe { tell(handle, count, |communicator| communicator.world as c_int) }
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommUserRank(handle: Handle, rank: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's place for a number.
    unsafe { tell(handle, rank, |communicator| communicator.rank as c_int) }
}

/// # Safety
/// As NCCL's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCuDevice(handle: Handle, device: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's place for a number.
    unsafe { tell(handle, device, |_| 0) }
}

/// # Safety
/// `place` is null or may be written.
unsafe fn tell(handle: Handle, place: *mut c_int, what: impl Fn(&Communicator) -> c_int) -> c_int {
    // SAFETY: the caller's promise.
    let Some(place) = (unsafe { place.as_mut() }) else {
        return refuse(Fault::Argument);
    };
    code(found(handle).map(|communicator| *place = what(&communicator)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> c_int {
    groups::start();
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> c_int {
    groups::end()
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    handle: Handle,
    _: *mut c_void,
) -> c_int {
    groups::add(handle, |communicator| {
        Some(Operation::Send {
            peer: communicator.peer(peer)?,
            from: from as usize,
            bytes: bytes(from as usize, count, kind)?,
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    handle: Handle,
    _: *mut c_void,
) -> c_int {
    groups::add(handle, |communicator| {
        Some(Operation::Receive {
            peer: communicator.peer(peer)?,
            to: to as usize,
            bytes: bytes(to as usize, count, kind)?,
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    handle: Handle,
    _: *mut c_void,
) -> c_int {
    groups::add(handle, |_| {
        bytes(to as usize, count, kind)?;
        Some(Operation::AllGather {
            from: from as usize,
            to: to as usize,
            bytes: bytes(from as usize, count, kind)?,
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    root: c_int,
    handle: Handle,
    _: *mut c_void,
) -> c_int {
    groups::add(handle, |communicator| {
        let root = communicator.peer(root)?;
        if root == communicator.rank {
            bytes(from as usize, count, kind)?; // Nobody else's is read.
        }
        Some(Operation::Broadcast {
            root,
            from: from as usize,
            to: to as usize,
            bytes: bytes(to as usize, count, kind)?,
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    reduction: c_int,
    handle: Handle,
    _: *mut c_void,
) -> c_int {
    const FLOAT32: c_int = 7;
    const SUM: c_int = 0;
    const AVERAGE: c_int = 4;
    groups::add(handle, |_| {
        bytes(from as usize, count, kind)?;
        bytes(to as usize, count, kind)?;
        let is_supported = kind == FLOAT32 && [SUM, AVERAGE].contains(&reduction);
        is_supported.then_some(Operation::AllReduce {
            from: from as usize,
            to: to as usize,
            count,
            average: reduction == AVERAGE,
        })
    })
}

/// The length of `count` elements of an `ncclDataType_t`, if that and their address can be.
fn bytes(address: usize, count: usize, kind: c_int) -> Option<usize> {
    let size = match kind {
        0 | 1 | 10 | 11 => 1,
        6 | 9 => 2,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        _ => return None,
    };
    let is_there = address != 0 || count == 0;
    count.checked_mul(size).filter(|_| is_there)
}

#[unsafe(no_mangle)]
extern "C" fn ganStandInQuery(handle: Handle) -> c_int {
    found(handle).map_or_else(|error| error, |communicator| communicator.query())
}

/// # Safety
/// `words` is null or a string that ends in NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn ganStandInFault(handle: Handle, words: *const c_char) -> c_int {
    if words.is_null() {
        return refuse(Fault::Argument);
    }
    // SAFETY: the caller's promise.
    let words = unsafe { CStr::from_ptr(words) };
    let Some(armed) = words.to_str().ok().and_then(faults::parse) else {
        return refuse(Fault::Words);
    };
    if handle.is_null() {
        faults::arm_next(armed);
        return SUCCESS;
    }
    code(found(handle).map(|communicator| communicator.arm(armed)))
}
