//! Connecting a group: rank i calls the ranks below it and waits for those above it.

use super::abort::Abort;
use super::error::{CollectiveError, Operation, Peers, Refusal};
use super::group::Group;
use super::handshake::{self, CallError, Credentials};
use super::limit::Limit;
use super::listener::{HANDSHAKE, Listener};
use super::stream::{Lock, Stream};
use crate::ids::Rank;
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

/// The longest wait for one attempt to connect: a lost packet is sent again after a second.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The wait after the first failed attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What happens while a group is being formed.
pub(super) enum Event {
    /// A peer is connected, and has proved that it is one.
    Connected(Rank, Stream),
    /// A call failed and will be tried again.
    Tried(Rank, String),
    /// A call failed for good.
    Failed(CollectiveError),
    /// It was called off.
    Aborted,
}

/// Connects to every peer of the group.
pub(super) fn connect(
    listener: &Listener,
    group: &Group,
    limit: &Limit,
    abort: &Abort,
) -> Result<BTreeMap<Rank, Stream>, CollectiveError> {
    let credentials = Credentials::of(group);
    let (sender, events) = mpsc::channel();
    let _forming = listener.form(credentials.clone(), sender.clone())?;
    let on_abort = sender.clone();
    abort.on_abort(move || drop(on_abort.send(Event::Aborted)));
    let over = Over(Arc::new(AtomicBool::new(false)));
    for rank in (0..group.rank.0).map(Rank) {
        let caller = Caller {
            credentials: credentials.clone(),
            lock: listener.lock().cloned(),
            rank,
            address: group.peers[rank.0 as usize].address.clone(),
            limit: *limit,
            over: Arc::clone(&over.0),
            events: sender.clone(),
        };
        thread::Builder::new()
            .name(format!("collective-call-{rank}"))
            .spawn(move || caller.run())
            .map_err(|source| CollectiveError::Thread {
                purpose: "calling a peer",
                source,
            })?;
    }
    let mut connected = BTreeMap::new();
    let mut last = BTreeMap::new();
    while connected.len() + 1 < group.peers.len() {
        let event = limit.left().and_then(|left| events.recv_timeout(left).ok());
        match event {
            // A peer that calls again has given up the connection before.
            Some(Event::Connected(rank, stream)) => drop(connected.insert(rank, stream)),
            Some(Event::Tried(rank, how)) => drop(last.insert(rank, how)),
            Some(Event::Failed(error)) => return Err(error),
            Some(Event::Aborted) => break,
            None => return Err(missing(group, limit, &connected, &last)),
        }
    }
    match abort.reason() {
        None => Ok(connected),
        Some(reason) => Err(CollectiveError::Aborted {
            generation: group.generation,
            reason: reason.to_owned(),
        }),
    }
}

fn missing(
    group: &Group,
    limit: &Limit,
    connected: &BTreeMap<Rank, Stream>,
    last: &BTreeMap<Rank, String>,
) -> CollectiveError {
    let missing: Vec<_> = (0..)
        .map(Rank)
        .zip(&group.peers)
        .filter(|(rank, _)| *rank != group.rank && !connected.contains_key(rank))
        .map(|(rank, peer)| (rank, peer.address.clone()))
        .collect();
    let last = missing.iter().find_map(|(rank, _)| last.get(rank).cloned());
    CollectiveError::Deadline {
        generation: group.generation,
        operation: Operation::Connect,
        missing: Peers(missing),
        waited: limit.waited(),
        last: last.unwrap_or_default(),
    }
}

/// Tells the callers to stop when the forming ends, whichever way.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Calls one peer until it answers. Runs on a thread of its own, so that a peer that is missing
/// doesn't keep this rank from the others, who would then miss it.
struct Caller {
    credentials: Credentials,
    lock: Option<Lock>,
    rank: Rank,
    address: String,
    limit: Limit,
    over: Arc<AtomicBool>,
    events: Sender<Event>,
}

impl Caller {
    fn run(self) {
        let mut pause = FIRST_PAUSE;
        while !self.over.load(Ordering::SeqCst) && self.limit.left().is_some() {
            let event = match self.call() {
                Ok(stream) => Event::Connected(self.rank, stream),
                Err(CallError::Refused(refusal)) if refusal != Refusal::NotYet => {
                    Event::Failed(CollectiveError::Refused {
                        generation: self.credentials.generation,
                        rank: self.rank,
                        address: self.address.clone(),
                        refusal,
                    })
                }
                Err(error) => Event::Tried(self.rank, error.to_string()),
            };
            let again = matches!(event, Event::Tried(..));
            if self.events.send(event).is_err() || !again {
                return;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn call(&self) -> Result<Stream, CallError> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.address.to_socket_addrs()? {
            let over = || io::Error::from(io::ErrorKind::TimedOut);
            let left = self.limit.left().ok_or_else(over)?;
            match TcpStream::connect_timeout(&address, left.min(ATTEMPT)) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let limit = Limit::start(left.min(HANDSHAKE));
                    let stream = Stream::calling(stream, self.lock.as_ref(), &limit)?;
                    handshake::call(&stream, &self.credentials, self.rank, &limit)?;
                    return Ok(stream);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure.into())
    }
}
