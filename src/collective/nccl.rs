//! Ranks whose vectors lie on GPUs, connected by NCCL.
//!
//! The tree is the one of `exact`, bit for bit: a rank adds up its own subtrees on the device; in one
//! group of sends and receipts each slice's sums go to the rank that finishes it; that one finishes
//! the tree, divides, and in a second group sends its slice of the mean to everybody. NCCL only moves
//! bits. All of it is queued on a stream of its own, ordered by events after what makes the vectors
//! and before what reads the mean, so that the device computes and reduces at the same time.
//!
//! The connections between the processes stay, with their proof of membership. Over them go the id
//! of the communicator, what each rank is about to do (so that one that is out of step or missing
//! has a name), and the news that a process has died: of that NCCL tells late, or never. `watch` has
//! what is done then.

mod ears;
mod forming;
mod halves;
mod watch;

use super::abort::Abort;
use super::error::{CollectiveError, VectorFault};
use super::exact::{Announcement, Exact};
use super::group::Group;
use super::limit::Limit;
use super::tcp::{Deadlines, Tcp};
use super::tree::{self, Add};
use super::{Collective, OnDevice};
use crate::config::Reduction;
use crate::faults::{self, Point};
use crate::ids::{Generation, Rank};
use crate::nccl::{Library, NcclError};
use crate::torch::{Event, Stream, TorchError, catch};
use ears::Ears;
use forming::initialise;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use watch::{Hung, Watch, launch, wait};

/// How long a collective that is dropped waits for its peers to need nothing more.
const LINGER: Duration = Duration::from_secs(2);

/// Elements of a share that are copied before the clock is set back: 16 MiB.
const ROUND: usize = 4 << 20;

/// One rank of a group over NCCL.
pub struct Nccl {
    control: Exact<Ears>,
    generation: Generation,
    device: Device,
    reduction: Reduction,
    deadline: Duration,
    abort: Abort,
    /// How this rank's subtrees are added up, in indices of the hosted vectors.
    own: Vec<Vec<Add>>,
    /// Nothing for a worker that is alone.
    watch: Option<Arc<Watch>>,
    /// Where reductions are queued.
    stream: Stream,
    /// What the vectors and the mean of a reduction are ordered by.
    ready: Event,
    /// R, where the mean is divided: a number of the host's would be multiplied by its inverse.
    divisor: Tensor,
    /// For the peers' sums; as long as the longest that were needed.
    received: Tensor,
    /// Events to be used again.
    events: Vec<Event>,
    pending: VecDeque<Pending>,
    sent: u64,
}

/// A reduction that was started and not settled.
struct Pending {
    announcement: Option<Announcement>,
    /// Held so that their memory is nobody else's while the device works.
    hosted: Vec<Tensor>,
    mean: Tensor,
    /// Whether its second half is queued.
    is_queued: bool,
    is_joined: bool,
    done: Event,
}

impl Nccl {
    /// Initialises NCCL between the ranks of a group that is connected, and tries it.
    ///
    /// `device` is the GPU of this process; all ranks need one of their own. `reduction` must be the
    /// same on all. Like every wait here this one can be called off by `abort`.
    ///
    /// # Errors
    /// [`CollectiveError::Device`], if the library can't work on `device`, NCCL fails, or not all
    /// ranks initialise it in time; if a peer is lost, or it was aborted.
    pub fn form(
        control: Tcp,
        group: &Group,
        library: &Arc<Library>,
        device: Device,
        reduction: Reduction,
        deadlines: Deadlines,
        abort: &Abort,
    ) -> Result<Self, CollectiveError> {
        let generation = group.generation;
        let refuse = |source: TorchError| failed(generation, source);
        let world_size = group.peers.len() as u32;
        let listen = |connections| Ears::listen(connections, generation, world_size);
        let mut control = control.into_exact().over(listen)?;
        let first = control.hosted().start;
        let own = control.parts().iter();
        let own = own.filter(|(owner, _)| *owner == group.rank);
        let own = own.map(|(_, part)| {
            let mut adds = tree::adds_of_replicas(part.clone());
            for add in &mut adds {
                (add.into, add.from) = (add.into - first, add.from - first);
            }
            adds
        });
        let own = own.collect();
        let (divisor, received) = catch("allocate", || {
            let replicas = f64::from(control.replicas());
            let divisor = Tensor::f_full([1], replicas, (Kind::Float, device));
            let received = Tensor::f_zeros([0], (Kind::Float, device));
            Ok((
                divisor.map_err(TorchError::from)?,
                received.map_err(TorchError::from)?,
            ))
        })
        .map_err(refuse)?;
        let ready = Event::new(device, false).map_err(refuse)?;
        // What can fail comes before: what watches must not be left behind.
        let watch = match world_size {
            0 | 1 => None,
            _ => Some(initialise(
                &mut control,
                group,
                library,
                device,
                deadlines,
                abort,
            )?),
        };
        let stream = match &watch {
            Some(watch) => watch.communicator.stream(),
            // Alone there is nothing to overlap with.
            None => Stream::current(device).map_err(NcclError::from),
        };
        let stream = stream.map_err(|source| failed(generation, source))?;
        let mut nccl = Self {
            control,
            generation,
            device,
            reduction,
            deadline: deadlines.collective,
            abort: abort.clone(),
            own,
            watch,
            stream,
            ready,
            divisor,
            received,
            events: Vec::new(),
            pending: VecDeque::new(),
            sent: 0,
        };
        nccl.warm_up()?;
        Ok(nccl)
    }

    /// The tests' stand-in of the library: arms a fault of this rank's communicator. False if it
    /// has none, or doesn't know the fault.
    pub fn arm(&self, words: &str) -> bool {
        let watch = self.watch.as_ref();
        watch.is_some_and(|watch| watch.communicator.arm(words))
    }

    fn check(&self, hosted: &[Tensor], mean: &Tensor) -> Result<(), VectorFault> {
        let hosts = self.control.hosted().len();
        if hosted.len() != hosts {
            return Err(VectorFault::Count {
                hosted: hosts,
                given: hosted.len(),
            });
        }
        for (index, vector) in hosted.iter().chain([mean]).enumerate() {
            check_vector(index, vector, self.device)?;
        }
        for (index, vector) in hosted.iter().enumerate() {
            if vector.numel() != mean.numel() {
                return Err(VectorFault::Length {
                    index,
                    found: vector.numel(),
                    expected: mean.numel(),
                });
            }
        }
        Ok(())
    }

    fn peers(&self) -> impl Iterator<Item = Rank> + use<> {
        let (rank, world_size) = (self.control.rank().0, self.control.world_size());
        (1..world_size).map(move |step| Rank((rank + step) % world_size))
    }

    /// An error if it has failed, or was called off.
    fn usable(&mut self) -> Result<(), CollectiveError> {
        self.control.whole()?;
        let aborted = self.abort.reason().map(|reason| CollectiveError::Aborted {
            generation: self.generation,
            reason: reason.to_owned(),
        });
        let outcome = aborted.map_or(Ok(()), Err);
        self.conclude(outcome)
    }

    /// The end of every operation: a failure is the last thing that happens.
    fn conclude<T>(&mut self, outcome: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        let error = match (outcome, &self.watch) {
            (Ok(value), None) => return Ok(value),
            (Ok(value), Some(watch)) if !watch.is_poisoned() => return Ok(value),
            (Ok(_), Some(watch)) => watch.verdict(),
            (Err(error), None) => error,
            (Err(error), Some(watch)) => {
                watch.poison(error);
                watch.verdict()
            }
        };
        self.control.break_off(&error);
        if let Some(watch) = &self.watch {
            watch.has_landed();
            if matches!(error, CollectiveError::Stuck { .. }) {
                // The device may write there for ever.
                std::mem::forget(std::mem::take(&mut self.pending));
                std::mem::forget(self.received.shallow_clone());
            }
        }
        self.pending.clear();
        Err(error)
    }

    /// Something is in flight. The wait that ends it has its own deadline; this is for a thread that
    /// never comes to it.
    fn flies(&self) {
        if let Some(watch) = &self.watch {
            watch.takes_off(self.deadline.saturating_mul(2));
        }
    }

    /// Runs tensor arithmetic.
    fn arithmetic<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce() -> Result<T, TorchError>,
    ) -> Result<T, CollectiveError> {
        tch::no_grad(|| catch(doing, body)).map_err(|source| failed(self.generation, source))
    }

    /// Orders the stream after what the calling thread's current stream was given so far.
    fn follow(&mut self) -> Result<(), CollectiveError> {
        let generation = self.generation;
        let (ready, stream, device) = (&mut self.ready, self.stream, self.device);
        let ordered = Stream::current(device).and_then(|current| {
            if current == stream {
                return Ok(());
            }
            ready.record(current)?;
            ready.block(stream)
        });
        ordered.map_err(|source| failed(generation, source))
    }

    /// Whether the second half of a reduction can be queued behind the first without waiting for it.
    fn is_ordered(&self) -> bool {
        let watch = self.watch.as_ref();
        watch.is_none_or(|watch| watch.communicator.is_ordered())
    }

    /// Hears all that is to be heard, and waits for the device.
    fn finish(&mut self) -> Result<(), CollectiveError> {
        for index in 0..self.pending.len() {
            self.hear(index)?;
        }
        let limit = Limit::start(self.deadline);
        self.queue_rest(&limit)?;
        if let Some(watch) = &self.watch {
            return wait(watch, &limit, || watch.communicator.release());
        }
        let Some(last) = self.pending.back() else {
            return Ok(());
        };
        let ask = |error| failed(self.generation, error);
        while !last.done.is_complete().map_err(ask)? {
            if let Some(reason) = self.abort.reason() {
                return Err(CollectiveError::Aborted {
                    generation: self.generation,
                    reason: reason.to_owned(),
                });
            }
            if limit.left().is_none() {
                let waited = limit.waited();
                return Err(failed(self.generation, Hung { waited }));
            }
            thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Before something else goes over the connections: what was announced comes first there.
    fn hear_all(&mut self) -> Result<(), CollectiveError> {
        self.usable()?;
        let outcome = (0..self.pending.len()).try_for_each(|index| self.hear(index));
        self.conclude(outcome)
    }

    fn share(&mut self, holders: &[Rank], vector: &Tensor) -> Result<(), CollectiveError> {
        let announcement = self.control.announce_copy(holders, vector.numel())?;
        let Some(watch) = self.watch.clone() else {
            return Ok(());
        };
        self.control.hear(announcement)?;
        self.flies();
        self.follow()?;
        let rank = self.control.rank();
        let is_holder = |rank: &Rank| holders.contains(rank);
        let needy: Vec<Rank> = self.peers().filter(|peer| !is_holder(peer)).collect();
        let count = holders.len() as u32;
        let slice = |index: usize| tree::slice(vector.numel(), count, index as u32);
        for round in 0..slice(0).len().div_ceil(ROUND) {
            // A step of the way, with a deadline of its own.
            self.flies();
            let limit = Limit::start(self.deadline);
            let mut calls = watch.communicator.group();
            for (index, holder) in holders.iter().enumerate() {
                let slice = slice(index);
                let start = slice.end.min(slice.start + round * ROUND);
                let piece = self.piece(vector, start..slice.end.min(start + ROUND))?;
                let refuse = |error| watch.device(error);
                if *holder == rank {
                    for peer in &needy {
                        calls.send(&piece, peer.0).map_err(refuse)?;
                    }
                } else if !is_holder(&rank) {
                    calls.receive(&piece, holder.0).map_err(refuse)?;
                }
            }
            launch(&watch, calls, &limit)?;
            faults::pass(match is_holder(&rank) {
                true => Point::HealSource,
                false => Point::HealTarget,
            });
            wait(&watch, &limit, || watch.communicator.release())?;
        }
        Ok(())
    }
}

impl OnDevice for Nccl {
    fn start(&mut self, hosted: &[Tensor], mean: &Tensor) -> Result<(), CollectiveError> {
        self.check(hosted, mean)
            .map_err(|fault| self.unfit(fault))?;
        self.usable()?;
        let outcome = self.begin(hosted, mean);
        self.conclude(outcome)
    }

    fn join(&mut self) -> Result<(), CollectiveError> {
        self.usable()?;
        let Some(index) = self.pending.iter().position(|pending| !pending.is_joined) else {
            return Err(self.unfit(VectorFault::NothingStarted));
        };
        let outcome = self.await_on_device(index);
        self.conclude(outcome)
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.usable()?;
        let outcome = self.finish();
        self.conclude(outcome)?;
        if let Some(watch) = &self.watch {
            watch.has_landed();
        }
        let settled = self.pending.drain(..).map(|pending| pending.done);
        self.events.extend(settled);
        Ok(())
    }

    fn copy(&mut self, holders: &[Rank], vector: &Tensor) -> Result<(), CollectiveError> {
        check_vector(0, vector, self.device).map_err(|fault| self.unfit(fault))?;
        self.settle()?;
        let outcome = self.share(holders, vector);
        if matches!(outcome, Err(CollectiveError::Holders { .. })) {
            return outcome;
        }
        let outcome = self.conclude(outcome);
        if let Some(watch) = &self.watch {
            watch.has_landed();
        }
        outcome
    }
}

impl Nccl {
    fn unfit(&self, fault: VectorFault) -> CollectiveError {
        CollectiveError::Vectors {
            rank: self.control.rank(),
            fault,
        }
    }

    fn await_on_device(&mut self, index: usize) -> Result<(), CollectiveError> {
        if !self.is_ordered() {
            let limit = Limit::start(self.deadline);
            self.queue_rest(&limit)?;
            if let Some(watch) = &self.watch {
                wait(watch, &limit, || watch.communicator.is_idle())?;
            }
        }
        let pending = &mut self.pending[index];
        pending.is_joined = true;
        let current = Stream::current(self.device);
        let waits = current.and_then(|current| pending.done.block(current));
        waits.map_err(|source| failed(self.generation, source))
    }
}

impl Collective for Nccl {
    fn rank(&self) -> Rank {
        self.control.rank()
    }

    fn world_size(&self) -> u32 {
        self.control.world_size()
    }

    /// By the way through the device.
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let device = self.device;
        let upload = |values: &[f32]| -> Result<Tensor, TorchError> {
            Ok(Tensor::f_from_slice(values)?.f_to_device(device)?)
        };
        let vectors = self.arithmetic("copy vectors to the device", || {
            let vectors = hosted.iter().map(|vector| upload(vector));
            vectors.collect::<Result<Vec<_>, _>>()
        })?;
        let result = self.arithmetic("allocate", || {
            Ok(Tensor::f_empty([mean.len() as i64], (Kind::Float, device))?)
        })?;
        self.start(&vectors, &result)?;
        self.settle()?;
        self.arithmetic("copy a mean from the device", || {
            Ok(result
                .f_to_device(Device::Cpu)?
                .f_copy_data(mean, mean.len())?)
        })
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.hear_all()?;
        let outcome = self.control.barrier();
        self.conclude(outcome)
    }

    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.hear_all()?;
        let outcome = self.control.gather(word);
        self.conclude(outcome)
    }

    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        self.hear_all()?;
        let outcome = self.control.copy(holders, vector);
        if matches!(outcome, Err(CollectiveError::Holders { .. })) {
            return outcome;
        }
        self.conclude(outcome)
    }

    fn sent_bytes(&self) -> u64 {
        self.sent
    }

    fn on_device(&mut self) -> Option<&mut dyn OnDevice> {
        Some(self)
    }
}

/// Whatever was started and not settled is given up. Otherwise a peer may still need what this
/// rank's device has sent it, so the end is waited for, a little.
impl Drop for Nccl {
    fn drop(&mut self) {
        let Some(watch) = self.watch.take() else {
            return;
        };
        if !self.pending.is_empty() {
            watch.poison(CollectiveError::Aborted {
                generation: self.generation,
                reason: "it was dropped in the middle of a reduction".to_owned(),
            });
        } else if !watch.is_poisoned() {
            self.control.say_goodbye();
            let limit = Limit::start(LINGER);
            let peers = self.control.world_size() as usize - 1;
            while watch.heard.gone() < peers && limit.left().is_some() {
                thread::sleep(Duration::from_millis(1));
            }
            if let Err(error) = watch.close() {
                tracing::warn!(%error, "left a communicator behind");
            }
        }
        watch.is_over();
    }
}

fn failed(
    generation: Generation,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CollectiveError {
    CollectiveError::Device {
        generation,
        source: source.into(),
    }
}

fn check_vector(index: usize, vector: &Tensor, device: Device) -> Result<(), VectorFault> {
    let fits = vector.defined()
        && vector.device() == device
        && vector.kind() == Kind::Float
        && vector.dim() == 1
        && vector.is_contiguous();
    if fits {
        return Ok(());
    }
    Err(VectorFault::Unfit {
        index,
        found: format!("{vector:?}"),
        device: format!("{device:?}"),
    })
}

#[cfg(test)]
mod tests;
