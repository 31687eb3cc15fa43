//! Where a communicator's work is queued, and how to tell that it is done.
//!
//! This is all that differs between NCCL, which works on a CUDA stream, and the tests' stand-in,
//! which works in host memory on a thread of its own.

use super::sys::{self, Code, Handle};
use super::{Library, NcclError};
use crate::torch::{Stream, StreamGuard};
use tch::Device;

#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    /// A stream of the GPU's, beside those that the networks compute in.
    Cuda(Stream),
    /// The stand-in's thread.
    Host,
}

impl Lane {
    /// A lane for what this library does on this device.
    pub(super) fn of(library: &Library, device: Device) -> Result<Self, NcclError> {
        match (library.is_stand_in(), device) {
            (false, Device::Cuda(_)) => Ok(Lane::Cuda(Stream::from_pool(device, true)?)),
            (true, Device::Cpu) => Ok(Lane::Host),
            (false, device) => Err(NcclError::Device {
                library: "NCCL",
                expected: "CUDA devices",
                device,
            }),
            (true, device) => Err(NcclError::Device {
                library: "the stand-in for NCCL",
                expected: "the CPU",
                device,
            }),
        }
    }

    /// Makes the lane's device the calling thread's, and its stream the current one.
    pub(super) fn guard(self) -> Result<Option<StreamGuard>, NcclError> {
        match self {
            Lane::Cuda(stream) => Ok(Some(stream.guard()?)),
            Lane::Host => Ok(None),
        }
    }

    /// What NCCL takes for the stream.
    pub(super) fn native(self) -> Result<sys::Stream, NcclError> {
        match self {
            Lane::Cuda(stream) => Ok(stream.native_handle()?),
            Lane::Host => Ok(std::ptr::null_mut()),
        }
    }

    /// Whether all that was launched is done, or was ended by an abort.
    pub(super) fn is_idle(self, library: &Library, handle: Handle) -> Result<bool, NcclError> {
        match (self, library.table.ganStandInQuery) {
            (Lane::Cuda(stream), _) => Ok(stream.is_idle()?),
            (Lane::Host, Some(query)) => {
                // SAFETY: a handle that the stand-in gave; it takes those that are over too.
                let code: Code = unsafe { query(handle) };
                match code {
                    sys::IN_PROGRESS => Ok(false),
                    code => library.check("ganStandInQuery", code).map(|()| true),
                }
            }
            (Lane::Host, None) => Ok(true),
        }
    }
}
