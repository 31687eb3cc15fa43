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
use crate::nccl::{Communicator, Group as Calls, Library, NcclError, UniqueId};
use crate::torch::{Event, Stream, TorchError, catch};
use ears::Ears;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use watch::{Hung, Poisoned, Watch};

/// How long NCCL may take to end a communicator: no more than a collective, within these.
const SHORTEST_END: Duration = Duration::from_secs(1);
const LONGEST_END: Duration = Duration::from_secs(10);

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
            ready: Event::new(device, false).map_err(refuse)?,
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

    /// NCCL makes its connections when they are first used: here, and not in the first step.
    fn warm_up(&mut self) -> Result<(), CollectiveError> {
        let Some(watch) = self.watch.clone() else {
            return Ok(());
        };
        let outcome = self.greet(&watch);
        let outcome = self.conclude(outcome);
        watch.has_landed();
        outcome
    }

    fn greet(&mut self, watch: &Watch) -> Result<(), CollectiveError> {
        let announcement = self.control.announce_reduction(0)?;
        self.flies();
        let limit = Limit::start(self.deadline);
        let device = self.device;
        let world_size = i64::from(self.control.world_size());
        let (own, others) = self.arithmetic("allocate", || {
            let own = Tensor::f_zeros([1], (Kind::Float, device))?;
            Ok((own, Tensor::f_zeros([world_size], (Kind::Float, device))?))
        })?;
        // What was just made may not be there yet for another stream.
        self.follow()?;
        let mut calls = watch.communicator.group();
        for peer in self.peers() {
            let place = peer.0 as usize;
            let place = self.arithmetic("take a part of a vector", || {
                part(&others, place..place + 1)
            })?;
            let added = calls.send(&own, peer.0);
            let added = added.and_then(|calls| calls.receive(&place, peer.0));
            added.map_err(|error| watch.device(error))?;
        }
        launch(watch, calls, &limit)?;
        self.control.hear(announcement)?;
        wait(watch, &limit, || watch.communicator.release())
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

    fn begin(&mut self, hosted: &[Tensor], mean: &Tensor) -> Result<(), CollectiveError> {
        let limit = Limit::start(self.deadline);
        self.queue_rest(&limit)?;
        let announcement = match self.watch {
            Some(_) => Some(self.control.announce_reduction(mean.numel())?),
            None => None,
        };
        self.flies();
        self.follow()?;
        let done = match self.events.pop() {
            Some(event) => event,
            None => Event::new(self.device, false).map_err(|e| failed(self.generation, e))?,
        };
        let mut pending = Pending {
            announcement,
            hosted: hosted.iter().map(Tensor::shallow_clone).collect(),
            mean: mean.shallow_clone(),
            is_queued: false,
            is_joined: false,
            done,
        };
        self.first_half(&pending, &limit)?;
        if self.watch.is_some() {
            faults::pass(Point::InReduction);
        }
        if self.is_ordered() {
            self.second_half(&mut pending, &limit)?;
        }
        self.pending.push_back(pending);
        Ok(())
    }

    /// Queues what could not be queued at the start, for want of a stream that orders it: the second
    /// halves, which then wait for the first ones here.
    fn queue_rest(&mut self, limit: &Limit) -> Result<(), CollectiveError> {
        for index in 0..self.pending.len() {
            if self.pending[index].is_queued {
                continue;
            }
            self.hear(index)?;
            if let Some(watch) = &self.watch {
                wait(watch, limit, || watch.communicator.is_idle())?;
            }
            // Taken out and put back in its place: it is there again whatever happens.
            let Some(mut pending) = self.pending.remove(index) else {
                continue;
            };
            let queued = self.second_half(&mut pending, limit);
            self.pending.insert(index, pending);
            queued?;
        }
        Ok(())
    }

    /// Waits until all ranks have begun this reduction.
    fn hear(&mut self, index: usize) -> Result<(), CollectiveError> {
        match self.pending[index].announcement.take() {
            Some(announcement) => self.control.hear(announcement),
            None => Ok(()),
        }
    }

    /// Adds up what this rank hosts, and exchanges the sums.
    fn first_half(&mut self, pending: &Pending, limit: &Limit) -> Result<(), CollectiveError> {
        let Pending { hosted, mean, .. } = pending;
        let guard = self.stream.guard();
        let _guard = guard.map_err(|source| failed(self.generation, source))?;
        let reduction = self.reduction;
        self.arithmetic("add up the hosted vectors", || {
            for add in self.own.iter().flatten() {
                add_to(&hosted[add.into as usize], &hosted[add.from as usize])?;
            }
            if reduction == Reduction::Fast && self.watch.is_some() {
                for index in self.own_places().into_iter().skip(1) {
                    add_to(&hosted[0], &hosted[index])?;
                }
            }
            Ok(())
        })?;
        let Some(watch) = self.watch.clone() else {
            return Ok(());
        };
        let length = mean.numel();
        let mut calls = watch.communicator.group();
        let refuse = |error| watch.device(error);
        if reduction == Reduction::Fast {
            calls.all_reduce(&hosted[0], mean).map_err(refuse)?;
            let world_size = u64::from(self.control.world_size());
            // A ring's, which is the least there can be; NCCL may have other ways.
            self.sent += 4 * length as u64 * 2 * (world_size - 1) / world_size;
            return launch(&watch, calls, limit);
        }
        for peer in self.peers() {
            let slice = self.control.slice(length, peer);
            for place in self.own_places() {
                let sum = self.piece(&hosted[place], slice.clone())?;
                calls.send(&sum, peer.0).map_err(refuse)?;
                self.sent += 4 * slice.len() as u64;
            }
        }
        self.make_room(length)?;
        let others = self.received_from();
        for (slot, owner) in others.into_iter().enumerate() {
            let sum = self.slot(slot, length)?;
            calls.receive(&sum, owner.0).map_err(refuse)?;
        }
        launch(&watch, calls, limit)
    }

    /// Finishes the tree over this rank's slice, and exchanges the means.
    fn second_half(&mut self, pending: &mut Pending, limit: &Limit) -> Result<(), CollectiveError> {
        let guard = self.stream.guard();
        let _guard = guard.map_err(|source| failed(self.generation, source))?;
        let Pending { hosted, mean, .. } = &*pending;
        let length = mean.numel();
        match self.watch.clone() {
            None => self.divide(&hosted[0], mean)?,
            Some(_) if self.reduction == Reduction::Fast => self.divide(mean, mean)?,
            Some(watch) => {
                let own_slice = self.control.slice(length, self.control.rank());
                let sums = self.sums(hosted, length)?;
                self.arithmetic("finish the tree", || {
                    let mut finishing = self.control.finishing().iter();
                    finishing.try_for_each(|&(into, from)| add_to(&sums[into], &sums[from]))
                })?;
                let own_mean = self.piece(mean, own_slice.clone())?;
                self.divide(&sums[0], &own_mean)?;
                let mut calls = watch.communicator.group();
                for peer in self.peers() {
                    let theirs = self.piece(mean, self.control.slice(length, peer))?;
                    let added = calls.send(&own_mean, peer.0);
                    let added = added.and_then(|calls| calls.receive(&theirs, peer.0));
                    added.map_err(|error| watch.device(error))?;
                    self.sent += 4 * own_slice.len() as u64;
                }
                launch(&watch, calls, limit)?;
            }
        }
        pending.is_queued = true;
        let recorded = pending.done.record(self.stream);
        recorded.map_err(|source| failed(self.generation, source))
    }

    /// Where this rank's subtree sums are among the hosted vectors.
    fn own_places(&self) -> Vec<usize> {
        let (rank, first) = (self.control.rank(), self.control.hosted().start);
        let parts = self.control.parts().iter();
        let own = parts.filter(|(owner, _)| *owner == rank);
        own.map(|(_, part)| (part.start - first) as usize).collect()
    }

    /// Who sends the other subtrees' sums, in the order of the replicas.
    fn received_from(&self) -> Vec<Rank> {
        let rank = self.control.rank();
        let owners = self.control.parts().iter().map(|(owner, _)| *owner);
        owners.filter(|owner| *owner != rank).collect()
    }

    /// Makes `received` long enough for a vector of this length. Called with the stream current, to
    /// which libtorch then counts the memory.
    fn make_room(&mut self, length: usize) -> Result<(), CollectiveError> {
        let slice = self.control.slice(length, self.control.rank()).len();
        let needed = self.received_from().len() * slice;
        if self.received.numel() < needed {
            let (needed, device) = (needed as i64, self.device);
            self.received = self.arithmetic("allocate", || {
                Ok(Tensor::f_empty([needed], (Kind::Float, device))?)
            })?;
        }
        Ok(())
    }

    /// Where one of the other subtrees' sums comes, over this rank's slice.
    fn slot(&self, slot: usize, length: usize) -> Result<Tensor, CollectiveError> {
        let slice = self.control.slice(length, self.control.rank()).len();
        self.piece(&self.received, slot * slice..(slot + 1) * slice)
    }

    /// Every subtree's sum over this rank's slice, in the order of the replicas.
    fn sums(&self, hosted: &[Tensor], length: usize) -> Result<Vec<Tensor>, CollectiveError> {
        let own_slice = self.control.slice(length, self.control.rank());
        let (rank, first) = (self.control.rank(), self.control.hosted().start);
        let mut slots = 0..;
        let parts = self.control.parts().iter();
        let sums = parts.map(|(owner, part)| {
            if *owner == rank {
                let place = (part.start - first) as usize;
                self.piece(&hosted[place], own_slice.clone())
            } else {
                self.slot(slots.next().unwrap_or_default(), length)
            }
        });
        sums.collect()
    }

    /// The mean from the sum, with one NaN for all: see `exact`.
    fn divide(&self, sum: &Tensor, mean: &Tensor) -> Result<(), CollectiveError> {
        self.arithmetic("divide a sum", || {
            let _ = sum.f_div_out(mean, &self.divisor)?;
            let mut mean = mean.shallow_clone();
            let nan = mean.f_isnan()?;
            let _ = mean.f_masked_fill_(&nan, f64::NAN)?;
            Ok(())
        })
    }

    fn piece(&self, tensor: &Tensor, range: Range<usize>) -> Result<Tensor, CollectiveError> {
        self.arithmetic("take a part of a vector", || part(tensor, range))
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

/// Makes the communicator of a group, and whoever watches it.
fn initialise(
    control: &mut Exact<Ears>,
    group: &Group,
    library: &Arc<Library>,
    device: Device,
    deadlines: Deadlines,
    abort: &Abort,
) -> Result<Arc<Watch>, CollectiveError> {
    let generation = group.generation;
    let refuse = |error: NcclError| failed(generation, error);
    // Its 128 bytes travel as numbers, whose bits nothing changes.
    let mut words = [0.0; 32];
    if group.rank == Rank(0) {
        let id = library.unique_id().map_err(refuse)?;
        for (word, bytes) in words.iter_mut().zip(id.0.as_chunks().0) {
            *word = f32::from_le_bytes(*bytes);
        }
    }
    control.copy(&[Rank(0)], &mut words)?;
    let mut id = UniqueId([0; 128]);
    for (bytes, word) in id.0.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    let limit = Limit::start(deadlines.connect);
    let (rank, world_size) = (group.rank.0, control.world_size());
    let communicator =
        Communicator::begin(library, &id, rank, world_size, device).map_err(refuse)?;
    let bound = deadlines.collective.clamp(SHORTEST_END, LONGEST_END);
    let (heard, addresses) = (control.links().heard(), control.links().addresses());
    let watch = Watch::keep(generation, abort, heard, addresses, communicator, bound)?;
    watch.takes_off(deadlines.connect.saturating_mul(2));
    let outcome = wait(&watch, &limit, || watch.communicator.launched());
    watch.has_landed();
    let Err(error) = outcome else {
        return Ok(watch);
    };
    let error = match (error, limit.left()) {
        (CollectiveError::Device { .. }, None) => watch.device(NcclError::Deadline {
            waited: limit.waited(),
        }),
        (error, _) => error,
    };
    watch.poison(error);
    let error = watch.verdict();
    control.break_off(&error);
    watch.is_over();
    Err(error)
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

fn part(tensor: &Tensor, range: Range<usize>) -> Result<Tensor, TorchError> {
    Ok(tensor.f_narrow(0, range.start as i64, range.len() as i64)?)
}

/// `into = into + from`, by element.
fn add_to(into: &Tensor, from: &Tensor) -> Result<(), TorchError> {
    let _ = into.shallow_clone().f_add_(from)?;
    Ok(())
}

/// Launches a group, and waits until it is in the stream.
fn launch(watch: &Watch, calls: Calls<'_>, limit: &Limit) -> Result<(), CollectiveError> {
    calls.launch().map_err(|error| watch.device(error))?;
    wait(watch, limit, || watch.communicator.launched())
}

/// Waits until something is true, with an eye on everything that could keep it from becoming so.
fn wait(
    watch: &Watch,
    limit: &Limit,
    is_true: impl Fn() -> Result<bool, NcclError>,
) -> Result<(), CollectiveError> {
    let mut turns = 0u32;
    loop {
        let answer = is_true();
        // In this order: what a poisoning has ended looks done.
        if watch.is_poisoned() {
            // Whoever concludes asks for the verdict.
            return Err(watch.device(Poisoned));
        }
        if answer.map_err(|error| watch.device(error))? {
            return Ok(());
        }
        if let Some(trouble) = watch.trouble() {
            return Err(trouble);
        }
        if limit.left().is_none() {
            let waited = limit.waited();
            return Err(watch.device(Hung { waited }));
        }
        turns = turns.saturating_add(1);
        match turns {
            0..100 => thread::yield_now(),
            100..300 => thread::sleep(Duration::from_micros(20)),
            _ => thread::sleep(Duration::from_micros(200)),
        }
    }
}

#[cfg(test)]
mod tests;
