//! One rank's end of a group of ranks.

use super::NcclError;
use super::lane::Lane;
use super::library::{Library, UniqueId};
use super::sys::{self, Code, Config, Handle, IN_PROGRESS};
use crate::torch::{Stream, StreamGuard};
use std::ffi::{c_int, c_void};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long a communicator that is dropped without having been closed may take to end.
const DROP: Duration = Duration::from_secs(5);

/// One rank's end of a group of ranks, each with a device of its own.
///
/// Calls are queued on a stream of the communicator's and return at once; [`is_idle`] tells when
/// they are done. The tensors of a call are held until [`release`] finds them done, so that no
/// device writes to memory that belongs to others. Any thread may [`abort`] it.
///
/// [`is_idle`]: Communicator::is_idle
/// [`release`]: Communicator::release
/// [`abort`]: Communicator::abort
pub struct Communicator {
    library: Arc<Library>,
    lane: Lane,
    device: Device,
    world_size: u32,
    /// Held during each call. Nothing once the communicator is over: its memory is NCCL's then.
    alive: Mutex<Option<Raw>>,
    /// The same, for the stand-in, which can be asked afterwards.
    name: Raw,
    /// What the device may still read and write.
    held: Mutex<Vec<Tensor>>,
}

/// An `ncclComm_t`.
#[derive(Clone, Copy, Debug)]
struct Raw(Handle);

// SAFETY: NCCL lets any thread use a communicator, by one at a time, and any thread abort it. The
// lock `alive` sees to the first.
unsafe impl Send for Raw {}
// SAFETY: as above; a shared `Raw` is only a number.
unsafe impl Sync for Raw {}

impl Communicator {
    /// Begins to initialise this rank's end, and returns at once. It is usable once
    /// [`launched`](Communicator::launched) says so, which needs all ranks.
    ///
    /// # Errors
    /// [`NcclError::Device`], if the library can't work on `device`; [`NcclError::Call`], if there
    /// is no driver among others.
    pub fn begin(
        library: &Arc<Library>,
        id: &UniqueId,
        rank: u32,
        world_size: u32,
        device: Device,
    ) -> Result<Self, NcclError> {
        if rank >= world_size {
            return Err(NcclError::Rank { rank, world_size });
        }
        let lane = Lane::of(library, device)?;
        // It overrides what the configuration says.
        if std::env::var_os("NCCL_COMM_BLOCKING").is_some_and(|value| value == "1") {
            return Err(NcclError::Blocking);
        }
        let _guard = lane.guard()?;
        let mut handle: Handle = std::ptr::null_mut();
        let mut config = Config::NON_BLOCKING;
        let as_int = |number: u32| c_int::try_from(number).unwrap_or(c_int::MAX);
        // SAFETY: places for a handle and a configuration of the size that it names; the id is
        // passed by value; the device is current. NCCL copies all of it.
        let code = unsafe {
            (library.table.ncclCommInitRankConfig)(
                &mut handle,
                as_int(world_size),
                sys::Id(id.0),
                as_int(rank),
                &mut config,
            )
        };
        let alive = (!handle.is_null()).then_some(Raw(handle));
        let communicator = Self {
            library: Arc::clone(library),
            lane,
            device,
            world_size,
            alive: Mutex::new(alive),
            name: Raw(handle),
            held: Mutex::new(Vec::new()),
        };
        // A handle that came with an error is ended by the drop.
        if code != IN_PROGRESS {
            library.check("ncclCommInitRankConfig", code)?;
        }
        Ok(communicator)
    }

    /// Initialises this rank's end, and waits for all others.
    ///
    /// # Errors
    /// As [`begin`](Communicator::begin), and [`NcclError::Deadline`].
    pub fn init(
        library: &Arc<Library>,
        id: &UniqueId,
        rank: u32,
        world_size: u32,
        device: Device,
        deadline: Duration,
    ) -> Result<Self, NcclError> {
        let communicator = Self::begin(library, id, rank, world_size, device)?;
        let started = now();
        while !communicator.launched()? {
            let waited = started.elapsed();
            if waited >= deadline {
                return Err(NcclError::Deadline { waited });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(communicator)
    }

    /// Where it works.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The stream that its calls are queued on; the CPU's for the stand-in.
    ///
    /// # Errors
    /// [`NcclError::Torch`].
    pub fn stream(&self) -> Result<Stream, NcclError> {
        match self.lane {
            Lane::Cuda(stream) => Ok(stream),
            Lane::Host => Ok(Stream::current(Device::Cpu)?),
        }
    }

    /// Whether work that is queued waits for the work before it without the host: on a stream. The
    /// stand-in has none: what is computed on the host from its results must wait for them.
    pub fn is_ordered(&self) -> bool {
        matches!(self.lane, Lane::Cuda(_))
    }

    /// Whether all calls so far are in the stream. Until then no other may be made, and an event
    /// that is recorded would come before them. Never waits: while another thread is in a call, that
    /// one is not launched.
    ///
    /// # Errors
    /// [`NcclError::Async`], if a peer is lost or initialisation failed.
    pub fn launched(&self) -> Result<bool, NcclError> {
        let alive = match self.alive.try_lock() {
            Ok(alive) => alive,
            Err(TryLockError::Poisoned(alive)) => alive.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let raw = alive.ok_or(NcclError::Over)?;
        let mut state = sys::SUCCESS;
        // SAFETY: a live handle, under the lock, and a place for one code.
        let code = unsafe { (self.library.table.ncclCommGetAsyncError)(raw.0, &mut state) };
        self.library.check("ncclCommGetAsyncError", code)?;
        match state {
            sys::SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            code => Err(NcclError::Async {
                code,
                text: self.library.text(code),
                last: self.library.last(),
            }),
        }
    }

    /// An empty group of calls, which run together.
    pub fn group(&self) -> Group<'_> {
        Group {
            communicator: self,
            calls: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Whether all that was launched is done. *After an abort it is, with partial data.*
    ///
    /// # Errors
    /// [`NcclError::Torch`], if the device has failed.
    pub fn is_idle(&self) -> Result<bool, NcclError> {
        self.lane.is_idle(&self.library, self.name.0)
    }

    /// Lets go of the tensors of all calls if they are done; says whether they are.
    ///
    /// # Errors
    /// As [`is_idle`](Communicator::is_idle).
    pub fn release(&self) -> Result<bool, NcclError> {
        let idle = self.is_idle()?;
        if idle {
            self.held().clear();
        }
        Ok(idle)
    }

    /// Frees whatever hangs in a call or on the device, and ends the communicator. What was in
    /// flight looks done afterwards and is not: say so before, where it will be asked for.
    ///
    /// # Errors
    /// [`NcclError::Stuck`], if it takes longer than `bound`; the process must end then.
    pub fn abort(&self, bound: Duration) -> Result<(), NcclError> {
        self.end(bound, |library, raw| {
            // SAFETY: a handle that was taken out of `alive`, so that nobody uses it any more.
            unsafe { (library.table.ncclCommAbort)(raw) };
        })
    }

    /// Ends the communicator in peace, after all that was launched is done here and on the peers.
    ///
    /// # Errors
    /// As [`abort`](Communicator::abort).
    pub fn close(&self, bound: Duration) -> Result<(), NcclError> {
        self.end(bound, |library, raw| {
            let table = &library.table;
            let mut state = sys::SUCCESS;
            // SAFETY: as in `abort`; NCCL wants a communicator finalized, until that is no more in
            // progress, before it is destroyed.
            unsafe {
                let mut code = (table.ncclCommFinalize)(raw);
                while code == IN_PROGRESS {
                    thread::sleep(Duration::from_millis(1));
                    code = (table.ncclCommGetAsyncError)(raw, &mut state);
                    if code == sys::SUCCESS {
                        code = state;
                    }
                }
                match code {
                    sys::SUCCESS => (table.ncclCommDestroy)(raw),
                    _ => (table.ncclCommAbort)(raw),
                };
            }
        })
    }

    /// Arms a fault of the tests' stand-in; false if this is not the stand-in, or it doesn't know
    /// the fault.
    pub fn arm(&self, words: &str) -> bool {
        self.library.arm(self.name.0, words)
    }

    /// Ends it on a thread of its own, which may hang, and lets go of what the device used.
    fn end(
        &self,
        bound: Duration,
        how: impl FnOnce(&Library, Handle) + Send + 'static,
    ) -> Result<(), NcclError> {
        let started = now();
        let stuck = || NcclError::Stuck { waited: bound };
        // A call that hangs holds the lock, and nothing can be done about it.
        let raw = loop {
            match self.alive.try_lock() {
                Ok(mut alive) => break alive.take(),
                Err(TryLockError::Poisoned(alive)) => break alive.into_inner().take(),
                Err(TryLockError::WouldBlock) if started.elapsed() < bound => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Err(stuck()),
            }
        };
        let Some(raw) = raw else {
            return Ok(());
        };
        let (sender, ended) = mpsc::channel();
        let library = Arc::clone(&self.library);
        let spawned = thread::Builder::new()
            .name("nccl-end".to_owned())
            .spawn(move || {
                let raw = raw;
                how(&library, raw.0);
                let _ = sender.send(());
            });
        let left = bound.saturating_sub(started.elapsed());
        if spawned.is_err() || ended.recv_timeout(left).is_err() {
            self.forget();
            return Err(stuck());
        }
        // Freed from what it hung in, the stream goes on to what was queued behind.
        while !self.is_idle().unwrap_or(true) {
            if started.elapsed() >= bound {
                self.forget();
                return Err(stuck());
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.held().clear();
        Ok(())
    }

    /// The device may use these for ever.
    fn forget(&self) {
        std::mem::forget(std::mem::take(&mut *self.held()));
    }

    fn alive(&self) -> MutexGuard<'_, Option<Raw>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Tensor>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a tensor's values lie and how many there are, if NCCL can be given it.
    fn memory(&self, tensor: &Tensor) -> Result<(*mut c_void, usize), NcclError> {
        let fits = tensor.defined()
            && tensor.device() == self.device
            && tensor.kind() == Kind::Float
            && tensor.dim() == 1
            && tensor.is_contiguous();
        if !fits {
            return Err(NcclError::Tensor {
                device: self.device,
                found: format!("{tensor:?}"),
            });
        }
        Ok((tensor.data_ptr(), tensor.numel()))
    }

    fn peer(&self, rank: u32) -> Result<c_int, NcclError> {
        match c_int::try_from(rank) {
            Ok(peer) if rank < self.world_size => Ok(peer),
            _ => Err(NcclError::Rank {
                rank,
                world_size: self.world_size,
            }),
        }
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator")
            .field("device", &self.device)
            .field("world_size", &self.world_size)
            .finish_non_exhaustive()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if let Err(error) = self.abort(DROP) {
            tracing::error!(%error, "left a communicator behind");
        }
    }
}

/// A call of a group.
#[derive(Clone, Copy)]
enum Call {
    Send(*mut c_void, usize, c_int),
    Receive(*mut c_void, usize, c_int),
    AllReduce(*mut c_void, *mut c_void, usize),
    AllGather(*mut c_void, *mut c_void, usize),
    Broadcast(*mut c_void, *mut c_void, usize, c_int),
}

/// Calls that run together: sends and receipts between the same ranks don't wait for each other.
///
/// Nothing reaches NCCL before [`launch`](Group::launch), so a group that is given up, for a tensor
/// that doesn't fit for instance, was never begun.
#[must_use = "nothing is done before `launch`"]
pub struct Group<'a> {
    communicator: &'a Communicator,
    calls: Vec<Call>,
    tensors: Vec<Tensor>,
}

impl Group<'_> {
    /// Sends `tensor` to a peer, which must receive as many elements. None is no call.
    ///
    /// # Errors
    /// [`NcclError::Tensor`], [`NcclError::Rank`].
    pub fn send(&mut self, tensor: &Tensor, peer: u32) -> Result<&mut Self, NcclError> {
        let (memory, count) = self.communicator.memory(tensor)?;
        let peer = self.communicator.peer(peer)?;
        self.call(count, Call::Send(memory, count, peer), &[tensor])
    }

    /// Receives from a peer, over `tensor`.
    ///
    /// # Errors
    /// As [`send`](Group::send).
    pub fn receive(&mut self, tensor: &Tensor, peer: u32) -> Result<&mut Self, NcclError> {
        let (memory, count) = self.communicator.memory(tensor)?;
        let peer = self.communicator.peer(peer)?;
        self.call(count, Call::Receive(memory, count, peer), &[tensor])
    }

    /// The sum of all ranks' `from`, in NCCL's order, over `into`, which may be the same.
    ///
    /// # Errors
    /// [`NcclError::Tensor`], [`NcclError::Length`].
    pub fn all_reduce(&mut self, from: &Tensor, into: &Tensor) -> Result<&mut Self, NcclError> {
        let (source, count) = self.communicator.memory(from)?;
        let target = self.place("ncclAllReduce", into, count)?;
        self.call(count, Call::AllReduce(source, target, count), &[from, into])
    }

    /// All ranks' `from`, one after the other, over `into`.
    ///
    /// # Errors
    /// As [`all_reduce`](Group::all_reduce).
    pub fn all_gather(&mut self, from: &Tensor, into: &Tensor) -> Result<&mut Self, NcclError> {
        let (source, count) = self.communicator.memory(from)?;
        let all = count.saturating_mul(self.communicator.world_size as usize);
        let target = self.place("ncclAllGather", into, all)?;
        self.call(count, Call::AllGather(source, target, count), &[from, into])
    }

    /// The root's `tensor`, over every rank's.
    ///
    /// # Errors
    /// As [`send`](Group::send).
    pub fn broadcast(&mut self, tensor: &Tensor, root: u32) -> Result<&mut Self, NcclError> {
        let (memory, count) = self.communicator.memory(tensor)?;
        let root = self.communicator.peer(root)?;
        let call = Call::Broadcast(memory, memory, count, root);
        self.call(count, call, &[tensor])
    }

    fn place(
        &self,
        function: &'static str,
        tensor: &Tensor,
        expected: usize,
    ) -> Result<*mut c_void, NcclError> {
        let (memory, found) = self.communicator.memory(tensor)?;
        if found != expected {
            return Err(NcclError::Length {
                function,
                expected,
                found,
            });
        }
        Ok(memory)
    }

    fn call(
        &mut self,
        count: usize,
        call: Call,
        tensors: &[&Tensor],
    ) -> Result<&mut Self, NcclError> {
        if count > 0 {
            self.calls.push(call);
            let held = tensors.iter().map(|tensor| tensor.shallow_clone());
            self.tensors.extend(held);
        }
        Ok(self)
    }

    /// Hands all calls to NCCL. They are in the stream once
    /// [`launched`](Communicator::launched) says so.
    ///
    /// # Errors
    /// [`NcclError::Call`]; the communicator must be aborted then, for some calls may have begun.
    pub fn launch(self) -> Result<(), NcclError> {
        let Self {
            communicator,
            calls,
            tensors,
        } = self;
        if calls.is_empty() {
            return Ok(());
        }
        let library = &*communicator.library;
        let alive = communicator.alive();
        let raw = alive.ok_or(NcclError::Over)?;
        let _guard: Option<StreamGuard> = communicator.lane.guard()?;
        let stream = communicator.lane.native()?;
        // Held before they can be used, and however this ends.
        communicator.held().extend(tensors);
        // SAFETY: takes nothing; it is ended below whatever happens in between.
        let code = unsafe { (library.table.ncclGroupStart)() };
        library.check("ncclGroupStart", code)?;
        let mut outcome = Ok(());
        for call in calls {
            let (function, code) = begin(library, call, raw.0, stream);
            if code != IN_PROGRESS && outcome.is_ok() {
                outcome = library.check(function, code);
            }
        }
        // SAFETY: ends the group of this thread that was started above.
        let code = unsafe { (library.table.ncclGroupEnd)() };
        outcome?;
        match code {
            IN_PROGRESS => Ok(()),
            code => library.check("ncclGroupEnd", code),
        }
    }
}

/// Makes one call of an open group.
fn begin(library: &Library, call: Call, raw: Handle, stream: sys::Stream) -> (&'static str, Code) {
    let table = &library.table;
    let kind = sys::FLOAT32;
    // SAFETY: the addresses are those of tensors of so many f32 on the communicator's device, which
    // are held until the stream is done; a live handle, under its lock; its own stream.
    unsafe {
        match call {
            Call::Send(from, count, peer) => (
                "ncclSend",
                (table.ncclSend)(from, count, kind, peer, raw, stream),
            ),
            Call::Receive(into, count, peer) => (
                "ncclRecv",
                (table.ncclRecv)(into, count, kind, peer, raw, stream),
            ),
            Call::AllReduce(from, into, count) => (
                "ncclAllReduce",
                (table.ncclAllReduce)(from, into, count, kind, sys::SUM, raw, stream),
            ),
            Call::AllGather(from, into, count) => (
                "ncclAllGather",
                (table.ncclAllGather)(from, into, count, kind, raw, stream),
            ),
            Call::Broadcast(from, into, count, root) => (
                "ncclBroadcast",
                (table.ncclBroadcast)(from, into, count, kind, root, raw, stream),
            ),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "NCCL and its threads are waited for on the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
