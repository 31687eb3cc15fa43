//! Queues of work on a device, and marks in them.
//!
//! A GPU does what its streams were given, in each stream in order, and the host goes on meanwhile.
//! An [`Event`] is a mark in a stream that other streams can wait for without the host. On the CPU
//! work is done when the call returns, so there all of this is trivial: there is one stream, and
//! every event is complete.

use super::{TorchError, check, failed, sys};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::Instant;
use tch::{Device, Tensor};

/// A stream of a device. It is a name and owns nothing: copies name the same stream, which lives as
/// long as the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    device: Device,
    /// libtorch's number for it.
    id: i64,
}

impl Stream {
    /// The stream that the calling thread's work for `device` goes to.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device is not there.
    pub fn current(device: Device) -> Result<Self, TorchError> {
        let mut id = 0;
        if let Some(cuda) = cuda(device) {
            // SAFETY: `id` is a place for one number.
            check("ask for the current stream", unsafe {
                sys::gan_stream_current(cuda, &mut id)
            })?;
        }
        Ok(Self { device, id })
    }

    /// A stream beside the current ones, not ordered with any. There are 32 a device and priority,
    /// handed out in turns. Work in a stream of high priority goes first where it competes.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device is not there.
    pub fn from_pool(device: Device, high_priority: bool) -> Result<Self, TorchError> {
        let mut id = 0;
        if let Some(cuda) = cuda(device) {
            // SAFETY: `id` is a place for one number.
            check("make a stream", unsafe {
                sys::gan_stream_from_pool(cuda, c_int::from(high_priority), &mut id)
            })?;
        }
        Ok(Self { device, id })
    }

    /// Its device.
    pub fn device(self) -> Device {
        self.device
    }

    /// The `cudaStream_t`, for other libraries; null on the CPU, and for the legacy default stream.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device is not there.
    pub fn native_handle(self) -> Result<*mut c_void, TorchError> {
        let mut native = std::ptr::null_mut();
        if let Some(cuda) = cuda(self.device) {
            // SAFETY: a stream that libtorch named, and a place for one pointer.
            check("ask for a stream's handle", unsafe {
                sys::gan_stream_native(cuda, self.id, &mut native)
            })?;
        }
        Ok(native)
    }

    /// While the guard lives, the calling thread's work for the device goes to this stream, and the
    /// device is the thread's current one.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device is not there.
    pub fn guard(self) -> Result<StreamGuard, TorchError> {
        let mut guard = StreamGuard {
            cuda: cuda(self.device),
            previous_stream: 0,
            previous_device: 0,
            not_send: PhantomData,
        };
        if let Some(cuda) = guard.cuda {
            // SAFETY: a stream that libtorch named, and places for two numbers.
            let entered = check("change the current stream", unsafe {
                sys::gan_stream_enter(
                    cuda,
                    self.id,
                    &mut guard.previous_stream,
                    &mut guard.previous_device,
                )
            });
            if let Err(error) = entered {
                guard.cuda = None;
                return Err(error);
            }
        }
        Ok(guard)
    }

    /// Whether all that it was given is done.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device has failed.
    pub fn is_idle(self) -> Result<bool, TorchError> {
        match cuda(self.device) {
            None => Ok(true),
            // SAFETY: a stream that libtorch named.
            Some(cuda) => yes_or_no("ask whether a stream is idle", unsafe {
                sys::gan_stream_query(cuda, self.id)
            }),
        }
    }

    /// Keeps libtorch from giving the tensor's memory to others before this stream has done what it
    /// was given so far. For tensors that were made for another stream.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the tensor lies on another device.
    pub fn holds(self, tensor: &Tensor) -> Result<(), TorchError> {
        match cuda(self.device) {
            None => Ok(()),
            // SAFETY: a live tensor, and a stream that libtorch named.
            Some(cuda) => check("hold a tensor for a stream", unsafe {
                sys::gan_record_stream(tensor.as_ptr(), cuda, self.id)
            }),
        }
    }
}

/// Puts the stream and the device back that were the thread's before.
#[derive(Debug)]
#[must_use = "the stream is current only while the guard lives"]
pub struct StreamGuard {
    cuda: Option<c_int>,
    previous_stream: i64,
    previous_device: c_int,
    /// What it puts back belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if let Some(cuda) = self.cuda {
            // SAFETY: what `Stream::guard` was told on this thread. It can't fail for a device and
            // a stream that were current before; if it does, there is nobody to tell.
            let _ =
                unsafe { sys::gan_stream_leave(cuda, self.previous_stream, self.previous_device) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    mark: Mark,
}

#[derive(Debug)]
enum Mark {
    /// When it was recorded, if it was and has the time.
    Host { timing: bool, at: Option<Instant> },
    /// A `c10::Event`.
    Cuda(NonNull<c_void>),
}

// SAFETY: c10's events may be used from any thread, by one at a time: `&mut self` and the lack of
// `Sync` see to that.
unsafe impl Send for Event {}

impl Event {
    /// A mark that is in no stream yet. Only those with `timing` tell times, which costs the device
    /// a little.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if libtorch has no such devices.
    pub fn new(device: Device, timing: bool) -> Result<Self, TorchError> {
        let mark = match cuda(device) {
            None => Mark::Host { timing, at: None },
            Some(_) => {
                // SAFETY: takes a number only.
                let event = unsafe { sys::gan_event_new(c_int::from(timing)) };
                Mark::Cuda(NonNull::new(event).ok_or_else(|| failed("make an event"))?)
            }
        };
        Ok(Self { device, mark })
    }

    /// Marks the end of what `stream` was given so far. A mark that it had before is forgotten.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the stream is another device's.
    pub fn record(&mut self, stream: Stream) -> Result<(), TorchError> {
        match (&mut self.mark, cuda(stream.device)) {
            (Mark::Host { at, .. }, None) => {
                *at = Some(now());
                Ok(())
            }
            // SAFETY: `event` is alive while `self` is; a stream that libtorch named.
            (Mark::Cuda(event), Some(cuda)) => check("record an event", unsafe {
                sys::gan_event_record(event.as_ptr(), cuda, stream.id)
            }),
            _ => Err(self.misplaced("record an event", stream)),
        }
    }

    /// Has `stream` wait, with what it is given from now on, until it comes to the mark. The host
    /// does not wait. A mark that is in no stream holds up nothing.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the stream is another kind of device's.
    pub fn block(&self, stream: Stream) -> Result<(), TorchError> {
        match (&self.mark, cuda(stream.device)) {
            (Mark::Host { .. }, None) => Ok(()),
            // SAFETY: as in `record`.
            (Mark::Cuda(event), Some(cuda)) => check("wait for an event", unsafe {
                sys::gan_event_block(event.as_ptr(), cuda, stream.id)
            }),
            _ => Err(self.misplaced("wait for an event", stream)),
        }
    }

    /// Whether all before the mark is done. One that is in no stream is complete.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if the device has failed.
    pub fn is_complete(&self) -> Result<bool, TorchError> {
        match &self.mark {
            Mark::Host { .. } => Ok(true),
            // SAFETY: `event` is alive while `self` is.
            Mark::Cuda(event) => yes_or_no("ask for an event", unsafe {
                sys::gan_event_query(event.as_ptr())
            }),
        }
    }

    /// Milliseconds from this mark to a later one. Both must have timing, and be complete.
    ///
    /// # Errors
    /// [`TorchError::Shim`], if one of them isn't.
    pub fn elapsed_ms(&self, later: &Event) -> Result<f64, TorchError> {
        let doing = "tell the time between two events";
        match (&self.mark, &later.mark) {
            (
                Mark::Host {
                    timing: true,
                    at: Some(first),
                },
                Mark::Host {
                    timing: true,
                    at: Some(second),
                },
            ) => Ok(second.saturating_duration_since(*first).as_secs_f64() * 1e3),
            (Mark::Cuda(first), Mark::Cuda(second)) => {
                let mut milliseconds = 0.0;
                // SAFETY: both are alive; a place for one number.
                check(doing, unsafe {
                    sys::gan_event_elapsed(first.as_ptr(), second.as_ptr(), &mut milliseconds)
                })?;
                Ok(milliseconds)
            }
            _ => Err(TorchError::Shim {
                doing,
                message: "both must have timing, be recorded, and be of one device".to_owned(),
            }),
        }
    }

    fn misplaced(&self, doing: &'static str, stream: Stream) -> TorchError {
        TorchError::Shim {
            doing,
            message: format!(
                "it is for {:?} and the stream is one of {:?}",
                self.device, stream.device
            ),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Mark::Cuda(event) = self.mark {
            // SAFETY: made by `new`, freed only here. CUDA allows it before the mark is reached.
            unsafe { sys::gan_event_free(event.as_ptr()) }
        }
    }
}

/// Copies `from` over `into`, in the current stream, and does not wait for it where the two can
/// copy without the host: between devices, and from or to pinned memory. Until it is done both must
/// live, and `from` keep its values.
///
/// # Errors
/// [`TorchError::Shim`], if the shapes don't fit.
pub fn copy_async(into: &mut Tensor, from: &Tensor) -> Result<(), TorchError> {
    // SAFETY: two live tensors.
    check("copy a tensor", unsafe {
        sys::gan_copy_async(into.as_ptr(), from.as_ptr())
    })
}

/// A copy of a tensor of the CPU in memory that a GPU reads and writes by itself.
///
/// # Errors
/// [`TorchError::Shim`], if there is no GPU, or the tensor is not the CPU's.
pub fn pin_memory(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a live tensor, and a place for one pointer.
    check("pin memory", unsafe {
        sys::gan_pin_memory(tensor.as_ptr(), &mut out)
    })?;
    // SAFETY: on success the shim has put a tensor there that is ours to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The index of a CUDA device; nothing for those whose work is done when a call returns.
fn cuda(device: Device) -> Option<c_int> {
    match device {
        Device::Cuda(index) => Some(c_int::try_from(index).unwrap_or(c_int::MAX)),
        _ => None,
    }
}

fn yes_or_no(doing: &'static str, answer: c_int) -> Result<bool, TorchError> {
    match answer {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(failed(doing)),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an event with timing is a clock that is read"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn on_a_cpu_work_is_done_when_the_call_returns() {
        let stream = Stream::from_pool(Device::Cpu, true).unwrap();
        assert_eq!(stream, Stream::current(Device::Cpu).unwrap());
        assert!(stream.native_handle().unwrap().is_null());
        let _guard = stream.guard().unwrap();
        let mut event = Event::new(Device::Cpu, false).unwrap();
        event.record(stream).unwrap();
        event.block(stream).unwrap();
        assert!(event.is_complete().unwrap() && stream.is_idle().unwrap());

        let from = Tensor::arange(5, (Kind::Float, Device::Cpu));
        let mut into = from.zeros_like();
        copy_async(&mut into, &from).unwrap();
        stream.holds(&into).unwrap();
        assert!(into.equal(&from));
        let shorter = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        assert!(copy_async(&mut into, &shorter).is_err());
    }

    #[test]
    fn only_events_with_timing_tell_times() {
        let stream = Stream::current(Device::Cpu).unwrap();
        let event = |timing| {
            let mut event = Event::new(Device::Cpu, timing).unwrap();
            event.record(stream).unwrap();
            event
        };
        let first = event(true);
        std::thread::sleep(std::time::Duration::from_millis(2));
        let second = event(true);
        assert!(first.elapsed_ms(&second).unwrap() >= 2.0);
        assert!(first.elapsed_ms(&event(false)).is_err());
        let unrecorded = Event::new(Device::Cpu, true).unwrap();
        assert!(first.elapsed_ms(&unrecorded).is_err());
    }

    #[test]
    fn a_missing_device_is_an_error_and_no_abort() {
        if tch::Cuda::device_count() > 0 {
            return on_a_gpu();
        }
        let gpu = Device::Cuda(0);
        assert!(Stream::current(gpu).is_err());
        assert!(Stream::from_pool(gpu, true).is_err());
        assert!(Event::new(gpu, false).is_err());
        let stream = Stream { device: gpu, id: 0 };
        assert!(stream.native_handle().is_err());
        assert!(stream.guard().is_err());
        assert!(stream.is_idle().is_err());
        let tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        assert!(stream.holds(&tensor).is_err());
        assert!(pin_memory(&tensor).is_err());
        let mut event = Event::new(Device::Cpu, false).unwrap();
        assert!(event.record(stream).is_err());
        assert!(event.block(stream).is_err());
    }

    /// What the host doesn't wait for is done in the order that events demand.
    fn on_a_gpu() {
        let gpu = Device::Cuda(0);
        let (main, side) = (
            Stream::current(gpu).unwrap(),
            Stream::from_pool(gpu, true).unwrap(),
        );
        assert_ne!(main, side);
        let mut ready = Event::new(gpu, true).unwrap();
        let mut done = Event::new(gpu, true).unwrap();
        let mut x = Tensor::ones([1 << 22], (Kind::Float, gpu));
        for _ in 0..200 {
            x += 1.0;
        }
        ready.record(main).unwrap();
        ready.block(side).unwrap();
        let y = {
            let _guard = side.guard().unwrap();
            assert_eq!(Stream::current(gpu).unwrap(), side);
            side.holds(&x).unwrap();
            &x * 2.0
        };
        assert_eq!(Stream::current(gpu).unwrap(), main);
        done.record(side).unwrap();
        done.block(main).unwrap();
        assert_eq!(y.max().double_value(&[]), 402.0);
        assert!(done.is_complete().unwrap());
        assert!(ready.elapsed_ms(&done).unwrap() >= 0.0);
    }
}
