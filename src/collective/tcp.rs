//! Ranks that are processes, connected over TCP.
//!
//! Each pair of ranks shares one connection. The thread that calls the collective reads; a thread
//! a peer writes, so that two ranks that send to each other never wait for each other to read.
//! Frames pass through buffers that are used again and again.
//!
//! If the listener has keys, all of it is within TLS ([`stream`](super::stream)).
//!
//! Between ranks of one host frames may go through [`shared`] memory instead; the connection then
//! only tells when one is gone, and wakes who waits.

use super::Collective;
use super::abort::Abort;
use super::error::{CollectiveError, Operation, Peers};
use super::exact::{CHUNK, Exact, Links, frames_under_way};
use super::forming;
use super::group::Group;
use super::limit::Limit;
use super::listener::Listener;
use super::shared::{self, Neighbour, Shared, Trouble};
use super::socket;
use super::stream::Stream;
use super::tree;
use super::wire::{self, HEADER, Label, Mismatch};
use crate::ids::{Generation, Rank};
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a collective that is dropped goes on writing what its peers have not taken yet.
const LINGER: Duration = Duration::from_secs(5);

/// How long a group waits for its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For all of them to be connected.
    pub connect: Duration,
    /// For one reduction, barrier or gather, or for the next 64 KiB of a copy.
    pub collective: Duration,
}

/// One rank of a group over TCP.
pub struct Tcp {
    exact: Exact<Connections>,
}

impl Tcp {
    /// Connects to every peer of the group, and waits for those that have not come yet.
    ///
    /// A generation can be joined once; after a failure the next attempt needs a newer one. To know
    /// that the other ranks are connected too, follow with a
    /// [`barrier`](Collective::barrier). `abort` calls off this wait and every later one.
    ///
    /// # Errors
    /// If the group is impossible or stale, a peer refuses this worker or can't prove that it is
    /// one, somebody is missing at the deadline, or it was aborted.
    pub fn connect(
        listener: &Listener,
        group: &Group,
        deadlines: Deadlines,
        abort: &Abort,
    ) -> Result<Self, CollectiveError> {
        Self::form(listener, group, deadlines, abort, 0)
    }

    /// As [`connect`](Self::connect), but frames between ranks of one host go through memory, if
    /// both want that and can map the same. They are the same frames.
    ///
    /// # Errors
    /// As [`connect`](Self::connect). That memory can't be shared is none; a log of level `debug`
    /// says why.
    pub fn connect_sharing_memory(
        listener: &Listener,
        group: &Group,
        deadlines: Deadlines,
        abort: &Abort,
    ) -> Result<Self, CollectiveError> {
        Self::form(listener, group, deadlines, abort, shared::host())
    }

    /// `host` is what stands for this host among those who share memory, 0 to share none.
    fn form(
        listener: &Listener,
        group: &Group,
        deadlines: Deadlines,
        abort: &Abort,
        host: u64,
    ) -> Result<Self, CollectiveError> {
        let generation = group.generation;
        group
            .check()
            .map_err(|fault| CollectiveError::Group { generation, fault })?;
        let limit = Limit::start(deadlines.connect);
        let streams = forming::connect(listener, group, &limit, abort)?;
        let ranges: Vec<_> = group
            .peers
            .iter()
            .map(|peer| peer.replicas.clone())
            .collect();
        let frames: Vec<usize> = ranges
            .iter()
            .map(|range| tree::subtrees(group.replicas, range.clone()).len())
            .map(frames_under_way)
            .collect();
        let mut connections = Connections {
            generation,
            links: (0..ranges.len()).map(|_| None).collect(),
            frames: Vec::new(),
            incoming: vec![0; HEADER + CHUNK * 4],
            abort: abort.clone(),
            deadline: deadlines.collective,
            operation: Operation::Connect,
            limit,
        };
        for (rank, stream) in streams {
            let address = group.peers[rank.0 as usize].address.clone();
            let link = Link::new(
                stream,
                address,
                deadlines.collective,
                frames[group.rank.0 as usize],
            )
            .map_err(|source| CollectiveError::Thread {
                purpose: "writing to a peer",
                source,
            })?;
            let stream = Arc::downgrade(&link.stream);
            abort.on_abort(move || {
                if let Some(stream) = stream.upgrade() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
            connections.links[rank.0 as usize] = Some(link);
        }
        connections.share(group.rank, host, &frames)?;
        Ok(Self {
            exact: Exact::new(connections, generation, group.rank, &ranges),
        })
    }

    /// Its parts, for a collective that has other ways for large vectors.
    #[cfg(feature = "torch")]
    pub(super) fn into_exact(self) -> Exact<Connections> {
        self.exact
    }

    /// The ranks that this one shares memory with.
    pub fn neighbours(&self) -> Vec<Rank> {
        let links = (0..).map(Rank).zip(&self.exact.links().links);
        links
            .filter(|(_, link)| link.as_ref().is_some_and(|link| link.shared.is_some()))
            .map(|(rank, _)| rank)
            .collect()
    }

    /// What calls this collective off from another thread: the handle that it was connected with.
    pub fn abort_handle(&self) -> Abort {
        self.exact.links().abort.clone()
    }
}

impl Collective for Tcp {
    fn rank(&self) -> Rank {
        self.exact.rank()
    }

    fn world_size(&self) -> u32 {
        self.exact.world_size()
    }

    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.exact.reduce_mean(hosted, mean)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.exact.barrier()
    }

    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.exact.gather(word)
    }

    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        self.exact.copy(holders, vector)
    }

    fn sent_bytes(&self) -> u64 {
        self.exact.sent_bytes()
    }
}

/// A frame on its way out; several writers may hold the same one.
type Frame = Arc<Vec<u8>>;

/// The connections of one rank.
pub(super) struct Connections {
    generation: Generation,
    /// By rank; there is none with itself.
    links: Vec<Option<Link>>,
    /// Frames to be filled again once no writer holds them.
    frames: Vec<Frame>,
    /// The frame that is being read.
    incoming: Vec<u8>,
    abort: Abort,
    deadline: Duration,
    operation: Operation,
    limit: Limit,
}

/// The connection with one peer.
struct Link {
    address: String,
    stream: Arc<Stream>,
    /// Nothing once no more will be sent.
    queue: Option<SyncSender<Frame>>,
    writer: Option<JoinHandle<()>>,
    /// Why the writer stopped, if it failed.
    failure: Arc<OnceLock<io::Error>>,
    /// What frames go through instead, if there is such a thing.
    shared: Option<Shared>,
}

impl Link {
    fn new(stream: Stream, address: String, deadline: Duration, frames: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(deadline))?;
        let stream = Arc::new(stream);
        let failure = Arc::new(OnceLock::new());
        let (queue, frames) = mpsc::sync_channel(frames);
        let writer = thread::Builder::new()
            .name("collective-writer".to_owned())
            .spawn({
                let (stream, failure) = (Arc::clone(&stream), Arc::clone(&failure));
                move || write(&stream, &frames, &failure)
            })?;
        Ok(Self {
            address,
            stream,
            queue: Some(queue),
            writer: Some(writer),
            failure,
            shared: None,
        })
    }
}

/// A writer's life: until there is nothing more to write, or it can't be written.
fn write(mut stream: &Stream, frames: &Receiver<Frame>, failure: &OnceLock<io::Error>) {
    for frame in frames {
        if let Err(error) = stream.write_all(&frame) {
            let _ = failure.set(error);
            // The reader may be waiting for this peer: it must not wait to no purpose.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

#[cfg(feature = "torch")]
impl Connections {
    /// Every peer's stream, for whoever reads in this one's place.
    pub(super) fn streams(&self) -> impl Iterator<Item = (Rank, Arc<Stream>)> {
        let links = (0..).map(Rank).zip(&self.links);
        links.filter_map(|(rank, link)| Some((rank, Arc::clone(&link.as_ref()?.stream))))
    }

    /// What is left of the time since the last `begin`.
    pub(super) fn left(&self) -> Option<Duration> {
        self.limit.left()
    }
}

impl Connections {
    pub(super) fn address(&self, rank: Rank) -> String {
        let link = self.link(rank);
        link.map_or_else(String::new, |link| link.address.clone())
    }

    /// Finds out who shares memory with this rank. `frames[rank]` may be under way from a rank.
    fn share(&mut self, own: Rank, host: u64, frames: &[usize]) -> Result<(), CollectiveError> {
        let links = (0..).map(Rank).zip(&self.links).zip(frames);
        let peers: Vec<_> = links
            .filter_map(|((rank, link), from_it)| {
                Some(Neighbour {
                    rank,
                    stream: &link.as_ref()?.stream,
                    to_it: frames[own.0 as usize],
                    from_it: *from_it,
                })
            })
            .collect();
        let shared = shared::share(own, host, &peers, &self.limit)
            .map_err(|(rank, source)| self.lost(rank, source))?;
        for (rank, shared) in shared {
            if let Some(link) = &mut self.links[rank.0 as usize] {
                link.shared = Some(shared);
            }
        }
        Ok(())
    }

    /// Sends through memory, if that is where this peer's frames go.
    fn send_through_memory(
        &mut self,
        to: Rank,
        label: Label,
        values: &[f32],
    ) -> Result<bool, CollectiveError> {
        let link = self.links.get_mut(to.0 as usize).and_then(Option::as_mut);
        let Some((shared, stream)) =
            link.and_then(|link| Some((link.shared.as_mut()?, &link.stream)))
        else {
            return Ok(false);
        };
        let sent = shared.send(stream, &self.limit, label, values);
        sent.map_err(|source| self.lost(to, source))?;
        Ok(true)
    }

    /// A frame that no writer holds, filled.
    fn frame(&mut self, label: Label, values: &[f32]) -> Frame {
        // The first that is free was used last, and may still be in the cache.
        let free = |frame: &Frame| Arc::strong_count(frame) == 1;
        let index = self.frames.iter().position(free).unwrap_or_else(|| {
            let frame = Vec::with_capacity(HEADER + CHUNK * 4);
            self.frames.push(Arc::new(frame));
            self.frames.len() - 1
        });
        // Nobody else holds it, so this never copies.
        let bytes = Arc::make_mut(&mut self.frames[index]);
        bytes.resize(HEADER + values.len() * 4, 0);
        bytes[..HEADER].copy_from_slice(&label.header(values.len()));
        wire::encode(values, &mut bytes[HEADER..]);
        Arc::clone(&self.frames[index])
    }

    fn queue(&self, to: Rank, frame: Frame) -> Result<(), CollectiveError> {
        let sent = match self.link(to).and_then(|link| link.queue.as_ref()) {
            // Should the queue be full, the peer is not reading, and the writer's own deadline
            // ends the wait.
            Some(queue) => queue.send(frame).is_ok(),
            None => false,
        };
        if sent {
            Ok(())
        } else {
            Err(self.lost(to, io::ErrorKind::BrokenPipe.into()))
        }
    }

    fn link(&self, rank: Rank) -> Option<&Link> {
        self.links.get(rank.0 as usize)?.as_ref()
    }

    pub(super) fn aborted(&self) -> Result<(), CollectiveError> {
        match self.abort.reason() {
            None => Ok(()),
            Some(reason) => Err(CollectiveError::Aborted {
                generation: self.generation,
                reason: reason.to_owned(),
            }),
        }
    }

    /// What it means that reading from a peer, or writing to it, ended like this.
    pub(super) fn lost(&self, rank: Rank, source: io::Error) -> CollectiveError {
        if let Err(aborted) = self.aborted() {
            return aborted;
        }
        let (link, address) = (self.link(rank), self.address(rank));
        // What stopped the writer is the cause; that reading ended too is the consequence.
        let source = match link.and_then(|link| link.failure.get()) {
            Some(failure) => io::Error::new(failure.kind(), failure.to_string()),
            None => source,
        };
        if socket::timed_out(&source) {
            CollectiveError::Deadline {
                generation: self.generation,
                operation: self.operation,
                missing: Peers(vec![(rank, address)]),
                waited: self.limit.waited(),
                last: String::new(),
            }
        } else {
            CollectiveError::PeerLost {
                generation: self.generation,
                rank,
                address,
                source,
            }
        }
    }
}

impl Links for Connections {
    fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        self.operation = operation;
        self.limit = Limit::start(self.deadline);
        self.aborted()
    }

    fn send(&mut self, to: Rank, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        if self.send_through_memory(to, label, values)? {
            return Ok(());
        }
        let frame = self.frame(label, values);
        self.queue(to, frame)
    }

    fn send_all(&mut self, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        let mut frame = None;
        for to in (0..self.links.len() as u32).map(Rank) {
            if self.link(to).is_some() && !self.send_through_memory(to, label, values)? {
                let frame = frame.get_or_insert_with(|| self.frame(label, values));
                self.queue(to, Arc::clone(frame))?;
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        from: Rank,
        label: Label,
        into: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let link = self.links.get_mut(from.0 as usize).and_then(Option::as_mut);
        if let Some(link) = link
            && let Some(shared) = &mut link.shared
        {
            let received = shared.receive(&link.stream, &self.limit, label, into);
            return received.map_err(|trouble| match trouble {
                Trouble::Io(source) => self.lost(from, source),
                Trouble::Mismatch(mismatch) => self.out_of_step(from, mismatch),
            });
        }
        let end = HEADER + into.len() * 4;
        let mut incoming = std::mem::take(&mut self.incoming);
        let outcome = self.read(from, label, into.len(), &mut incoming[..end]);
        if outcome.is_ok() {
            wire::decode(&incoming[HEADER..end], into);
        }
        self.incoming = incoming;
        outcome
    }

    fn cut(&mut self) {
        for link in self.links.iter().flatten() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Connections {
    /// Reads one frame and compares its header before waiting for the rest, which another frame
    /// would not have.
    fn read(
        &self,
        from: Rank,
        label: Label,
        values: usize,
        frame: &mut [u8],
    ) -> Result<(), CollectiveError> {
        let Some(link) = self.link(from) else {
            return Err(self.lost(from, io::ErrorKind::NotConnected.into()));
        };
        let read = |frame: &mut [u8], filled, enough| {
            socket::fill(&link.stream, frame, filled, enough, &self.limit)
                .map_err(|source| self.lost(from, source))
        };
        let filled = read(frame, 0, HEADER)?;
        let mut header = [0; HEADER];
        header.copy_from_slice(&frame[..HEADER]);
        label
            .check(values, &header)
            .map_err(|mismatch| self.out_of_step(from, mismatch))?;
        let end = frame.len();
        read(frame, filled, end)?;
        Ok(())
    }

    /// What it means that a peer sent another frame than had to come.
    fn out_of_step(&self, from: Rank, mismatch: Mismatch) -> CollectiveError {
        CollectiveError::Protocol {
            generation: self.generation,
            rank: from,
            address: self.address(from),
            field: mismatch.field,
            expected: mismatch.expected,
            found: mismatch.found,
        }
    }
}

/// What was sent is written out first: a peer may still need it to complete the last collective.
impl Drop for Connections {
    fn drop(&mut self) {
        for link in self.links.iter_mut().flatten() {
            link.queue = None;
        }
        let limit = Limit::start(LINGER);
        let writers = || {
            self.links
                .iter()
                .flatten()
                .filter_map(|link| link.writer.as_ref())
        };
        while writers().any(|writer| !writer.is_finished()) && limit.left().is_some() {
            thread::sleep(Duration::from_millis(1));
        }
        self.cut();
        for link in self.links.iter_mut().flatten() {
            if let Some(writer) = link.writer.take() {
                let _ = writer.join();
            }
        }
    }
}

#[cfg(test)]
mod tests;
