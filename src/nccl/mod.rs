//! The binding to NCCL, NVIDIA's library for sums and copies between GPUs.
//!
//! The library is loaded at run time, so one binary runs with and without it: [`Library`] finds it
//! and says what to install if it can't, and a [`Communicator`] is the safe face of one group of
//! ranks: nothing in it waits without a bound, no group of calls can be left open, and tensors are
//! checked before NCCL, which trusts its caller, sees them. `sys` has the functions as C has them.
//!
//! This room knows tensors, streams and NCCL, and nothing of replicas, generations or peers'
//! addresses: what NCCL's sums and copies are for is `collective`'s business.
//!
//! The tests' stand-in of the library works in host memory. It is loaded through the same table
//! and known by one symbol that NCCL lacks; `Lane` has all that differs.

mod communicator;
mod descriptors;
mod lane;
mod library;
mod sys;

pub use communicator::{Communicator, Group};
pub use descriptors::close_on_exec;
#[cfg(test)]
pub(crate) use library::stand_in;
pub use library::{LIBRARY_VARIABLE, Library, UniqueId};

use crate::torch::TorchError;
use std::path::PathBuf;
use std::time::Duration;
use tch::Device;

/// What NCCL, or the lack of it, made impossible.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// There is no such library on this machine.
    #[error(
        "NCCL is not to be found ({tried}): install it, for instance by \
         `pip install nvidia-nccl-cu13==2.28.9`, and set {LIBRARY_VARIABLE} to its libnccl.so.2"
    )]
    Missing {
        /// Where it was looked for.
        tried: String,
    },
    /// The library that was asked for can't be loaded.
    #[error("{LIBRARY_VARIABLE} names {}, which can't be loaded: {message}", path.display())]
    Unloadable {
        /// The library.
        path: PathBuf,
        /// The loader's account.
        message: String,
    },
    /// The library is no NCCL, or one that is too old.
    #[error(
        "{} has no {symbol}: it is no NCCL, or one older than 2.14; install a newer one, for \
         instance by `pip install nvidia-nccl-cu13==2.28.9`, and set {LIBRARY_VARIABLE} to its \
         libnccl.so.2",
        path.display()
    )]
    Symbol {
        /// The function that is missing.
        symbol: &'static str,
        /// The library.
        path: PathBuf,
    },
    /// The library can't initialise without blocking.
    #[error(
        "{} is NCCL {}, and at least 2.14 is needed: install a newer one, for instance by \
         `pip install nvidia-nccl-cu13==2.28.9`, and set {LIBRARY_VARIABLE} to its libnccl.so.2",
        path.display(),
        library::dotted(*version)
    )]
    TooOld {
        /// Its version as NCCL codes it.
        version: i32,
        /// The library.
        path: PathBuf,
    },
    /// The environment has NCCL wait in its calls, however long they take.
    #[error(
        "NCCL_COMM_BLOCKING=1 has NCCL wait without a bound for peers that don't come: unset it"
    )]
    Blocking,
    /// The library is for another kind of device.
    #[error("{library} works on {expected}, and this worker's device is {device:?}")]
    Device {
        /// The library.
        library: &'static str,
        /// What it works on.
        expected: &'static str,
        /// What it was to work on.
        device: Device,
    },
    /// A function failed.
    #[error("{function}: {text} (code {code}){}", detail(last))]
    Call {
        /// The function.
        function: &'static str,
        /// Its result.
        code: i32,
        /// What the result means.
        text: String,
        /// NCCL's last error, if it has one to tell.
        last: String,
    },
    /// A peer failed or is gone, as NCCL found out by itself.
    #[error(
        "NCCL reports an error between the ranks: {text} (code {code}){}",
        detail(last)
    )]
    Async {
        /// The communicator's state.
        code: i32,
        /// What it means.
        text: String,
        /// NCCL's last error, if it has one to tell.
        last: String,
    },
    /// Not all ranks came in time.
    #[error(
        "NCCL waited {} for all ranks to initialise their communicators",
        humantime::format_duration(*waited)
    )]
    Deadline {
        /// For how long.
        waited: Duration,
    },
    /// A tensor that NCCL can't be given.
    #[error("NCCL needs flat contiguous f32 tensors on {device:?}, and was given {found}")]
    Tensor {
        /// Where the communicator works.
        device: Device,
        /// What the tensor is.
        found: String,
    },
    /// Two tensors of one call don't fit each other.
    #[error("{function} needs {expected} elements and was given {found}")]
    Length {
        /// The call.
        function: &'static str,
        /// How many it needs.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// No such rank.
    #[error("there is no rank {rank} among {world_size}")]
    Rank {
        /// The rank.
        rank: u32,
        /// How many there are.
        world_size: u32,
    },
    /// It was aborted or closed before.
    #[error("the communicator was aborted or closed")]
    Over,
    /// It can't be stopped.
    #[error(
        "NCCL did not end a communicator within {}: the process must end",
        humantime::format_duration(*waited)
    )]
    Stuck {
        /// For how long it was waited for.
        waited: Duration,
    },
    /// A stream failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

fn detail(last: &str) -> String {
    match last.trim() {
        "" => String::new(),
        last => format!(": {last}"),
    }
}
