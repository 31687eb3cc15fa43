//! Connections on which a thread a peer listens, so that the end of one is known at once.
//!
//! While the numbers travel between devices, nobody reads the connections between the processes:
//! that a peer has died would be noticed only with the next frame that is waited for. NCCL itself
//! tells of a death late, and on one host never.

use crate::collective::error::{CollectiveError, Operation};
use crate::collective::exact::{CHUNK, Links, frames_under_way};
use crate::collective::stream::Stream;
use crate::collective::tcp::Connections;
use crate::collective::wire::{self, HEADER, Label};
use crate::ids::{Generation, Rank};
use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// What a peer sent: a header and its numbers.
type Frame = ([u8; HEADER], Vec<u8>);

/// Frames that a peer may be ahead; more wait in the connection.
const AHEAD: usize = frames_under_way(16);

/// Connections that are listened to.
pub(super) struct Ears {
    connections: Connections,
    generation: Generation,
    /// By rank; there is none for this one.
    inboxes: Vec<Option<Receiver<Frame>>>,
    heard: Arc<Heard>,
}

/// What the ears know, for those who don't read.
pub(super) struct Heard {
    ends: Mutex<Vec<(Rank, End)>>,
    streams: Vec<Weak<Stream>>,
    /// This rank has cut its peers off: that they are gone afterwards says nothing of them.
    is_cut: AtomicBool,
}

/// How a peer's connection ended.
#[derive(Clone, Debug)]
enum End {
    /// It said that it needs nothing more, or this rank doesn't.
    Left,
    Lost(io::ErrorKind, String),
}

impl Heard {
    fn ends(&self) -> MutexGuard<'_, Vec<(Rank, End)>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first peer that is gone without having said goodbye.
    pub(super) fn lost(&self) -> Option<(Rank, io::Error)> {
        self.ends().iter().find_map(|(rank, end)| match end {
            End::Left => None,
            End::Lost(kind, text) => Some((*rank, io::Error::new(*kind, text.clone()))),
        })
    }

    /// Cuts every peer off, so that it learns of it.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.streams.iter().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many peers are gone, one way or the other.
    pub(super) fn gone(&self) -> usize {
        self.ends().len()
    }

    fn of(&self, rank: Rank) -> Option<io::Error> {
        let ends = self.ends();
        let (_, end) = ends.iter().find(|(of, _)| *of == rank)?;
        Some(match end {
            End::Left => io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "it has left the generation",
            ),
            End::Lost(kind, text) => io::Error::new(*kind, text.clone()),
        })
    }
}

impl Ears {
    /// Listens to every connection.
    pub(super) fn listen(
        connections: Connections,
        generation: Generation,
        world_size: u32,
    ) -> Result<Self, CollectiveError> {
        let streams = connections.streams();
        let heard = Arc::new(Heard {
            ends: Mutex::new(Vec::new()),
            streams: streams.map(|(_, stream)| Arc::downgrade(&stream)).collect(),
            is_cut: AtomicBool::new(false),
        });
        let mut inboxes: Vec<_> = (0..world_size).map(|_| None).collect();
        for (rank, stream) in connections.streams() {
            let (sender, inbox) = mpsc::sync_channel(AHEAD);
            let heard = Arc::clone(&heard);
            thread::Builder::new()
                .name(format!("collective-ear-{rank}"))
                .spawn(move || {
                    let mut end = listen(&stream, &sender);
                    if heard.is_cut.load(Ordering::SeqCst) {
                        end = End::Left;
                    }
                    heard.ends().push((rank, end));
                    // Only then: whoever finds the inbox closed finds out why.
                    drop(sender);
                })
                .map_err(|source| CollectiveError::Thread {
                    purpose: "listening to a peer",
                    source,
                })?;
            inboxes[rank.0 as usize] = Some(inbox);
        }
        Ok(Self {
            connections,
            generation,
            inboxes,
            heard,
        })
    }

    /// What is known without reading.
    pub(super) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.heard)
    }

    /// Where every peer is, for those who may not read the connections.
    pub(super) fn addresses(&self) -> Vec<String> {
        let ranks = (0..self.inboxes.len() as u32).map(Rank);
        ranks.map(|rank| self.connections.address(rank)).collect()
    }
}

/// An ear's life: until the peer says goodbye, or the connection ends.
fn listen(stream: &Stream, inbox: &SyncSender<Frame>) -> End {
    let lost = |error: io::Error| End::Lost(error.kind(), error.to_string());
    // Forming the group read with a limit.
    if let Err(error) = stream.set_read_timeout(None) {
        return lost(error);
    }
    let mut stream = stream;
    loop {
        let mut header = [0; HEADER];
        if let Err(error) = stream.read_exact(&mut header) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => lost(io::Error::new(
                    error.kind(),
                    "the peer closed the connection",
                )),
                _ => lost(error),
            };
        }
        let (is_goodbye, length) = wire::outline(&header);
        if is_goodbye {
            return End::Left;
        }
        // Nothing is allocated because a peer said so: this is what a frame can hold.
        if length > CHUNK as u64 * 4 {
            let text = format!("a frame of {length} bytes");
            return lost(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut numbers = vec![0; length as usize];
        if let Err(error) = stream.read_exact(&mut numbers) {
            return lost(error);
        }
        if inbox.send((header, numbers)).is_err() {
            return End::Left; // Nobody reads any more: the collective is gone.
        }
    }
}

impl Links for Ears {
    fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        self.connections.begin(operation)
    }

    fn send(&mut self, to: Rank, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        self.connections.send(to, label, values)
    }

    fn send_all(&mut self, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        self.connections.send_all(label, values)
    }

    fn receive(
        &mut self,
        from: Rank,
        label: Label,
        into: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.connections.aborted()?;
        let inbox = self.inboxes.get(from.0 as usize).and_then(Option::as_ref);
        let left = self.connections.left().unwrap_or(Duration::ZERO);
        let frame = match inbox {
            Some(inbox) => inbox.recv_timeout(left),
            None => Err(RecvTimeoutError::Disconnected),
        };
        let (header, numbers) = frame.map_err(|error| {
            let source = match error {
                RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
                RecvTimeoutError::Disconnected => self
                    .heard
                    .of(from)
                    .unwrap_or_else(|| io::ErrorKind::NotConnected.into()),
            };
            self.connections.lost(from, source)
        })?;
        label
            .check(into.len(), &header)
            .map_err(|mismatch| CollectiveError::Protocol {
                generation: self.generation,
                rank: from,
                address: self.connections.address(from),
                field: mismatch.field,
                expected: mismatch.expected,
                found: mismatch.found,
            })?;
        wire::decode(&numbers, into);
        Ok(())
    }

    fn cut(&mut self) {
        self.heard.cut();
        self.connections.cut();
    }
}
