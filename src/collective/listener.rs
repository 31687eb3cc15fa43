//! The door: where peers connect, in every generation of this process.

use super::error::CollectiveError;
use super::error::Refusal;
use super::forming::Event;
use super::handshake::{self, Credentials, Stranger};
use super::limit::Limit;
use super::stream::{Lock, Stream};
use super::wire::{Hello, Verdict};
use crate::ids::Generation;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long whoever connects may take to prove that they belong here.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(3);

/// How many may be trying at once; a connection more is closed.
const AT_ONCE: usize = 128;

/// The address where this process's peers reach it, for as long as the process lives.
///
/// It answers from a thread of its own, also when no group is being formed: calls of older
/// generations are refused, callers of newer ones are asked to come back, and a stranger, however
/// slow, costs one connection and one line in the log.
#[derive(Debug)]
pub struct Listener {
    door: Arc<Door>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Door {
    lock: Option<Lock>,
    state: Mutex<State>,
    closing: AtomicBool,
    handshakes: AtomicUsize,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let newest = self.state().newest;
        f.debug_struct("Door")
            .field("newest", &newest)
            .finish_non_exhaustive()
    }
}

struct State {
    /// The newest generation that this process has joined or tried to.
    newest: Generation,
    /// Its group, while it is being formed.
    forming: Option<(Credentials, Sender<Event>)>,
}

impl Listener {
    /// Listens on `host:port`; port 0 lets the system choose one.
    ///
    /// # Errors
    /// If the address is not to be had.
    pub fn bind(address: &str) -> Result<Self, CollectiveError> {
        Self::bind_locked(address, None)
    }

    /// As [`bind`](Self::bind), but all connections, those of the groups that are formed with it too,
    /// are within TLS if there is a lock.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_locked(address: &str, lock: Option<Lock>) -> Result<Self, CollectiveError> {
        let listen = |source| CollectiveError::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let door = Arc::new(Door {
            lock,
            state: Mutex::new(State {
                newest: Generation::default(),
                forming: None,
            }),
            closing: AtomicBool::new(false),
            handshakes: AtomicUsize::new(0),
        });
        let inside = Arc::clone(&door);
        let thread = thread::Builder::new()
            .name("collective-door".to_owned())
            .spawn(move || inside.keep(&listener))
            .map_err(|source| CollectiveError::Thread {
                purpose: "incoming connections of peers",
                source,
            })?;
        Ok(Self {
            door,
            address: local,
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether connections are within TLS.
    pub fn is_locked(&self) -> bool {
        self.door.lock.is_some()
    }

    /// How connections are locked.
    pub(super) fn lock(&self) -> Option<&Lock> {
        self.door.lock.as_ref()
    }

    /// From now on members of this generation are let in, and older ones are refused for good.
    pub(super) fn form(
        &self,
        credentials: Credentials,
        events: Sender<Event>,
    ) -> Result<Forming<'_>, CollectiveError> {
        let generation = credentials.generation;
        let mut state = self.door.state();
        if generation <= state.newest {
            return Err(CollectiveError::Stale {
                generation,
                newest: state.newest,
            });
        }
        state.newest = generation;
        state.forming = Some((credentials, events));
        Ok(Forming {
            door: &self.door,
            generation,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.door.closing.store(true, Ordering::SeqCst);
        // The thread waits in `accept`; a connection wakes it up.
        let mut address = self.address;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let woken = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// While it lives, the group's members are let in.
pub(super) struct Forming<'a> {
    door: &'a Door,
    generation: Generation,
}

impl Drop for Forming<'_> {
    fn drop(&mut self) {
        let mut state = self.door.state();
        // Another thread may be forming a newer one by now.
        if state.newest == self.generation {
            state.forming = None;
        }
    }
}

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the door until it closes.
    fn keep(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let call = listener.accept();
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            match call {
                Ok((stream, peer)) => self.clone().receive(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection; is the limit of open files too low?");
                    // The reason is not gone at once, and this must not become a busy loop.
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Gives one caller a thread, so that a silent one holds up nobody.
    fn receive(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        if self.handshakes.fetch_add(1, Ordering::SeqCst) >= AT_ONCE {
            self.handshakes.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(%peer, "closed a connection: {AT_ONCE} others are shaking hands");
            return;
        }
        let door = Arc::clone(&self);
        let spawned = thread::Builder::new()
            .name("collective-handshake".to_owned())
            .spawn(move || {
                door.shake_hands(stream, peer);
                door.handshakes.fetch_sub(1, Ordering::SeqCst);
            });
        if let Err(error) = spawned {
            self.handshakes.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(%peer, %error, "closed a connection: no thread for it");
        }
    }

    fn shake_hands(&self, stream: TcpStream, peer: SocketAddr) {
        let limit = Limit::start(HANDSHAKE);
        let stream = match Stream::called(stream, self.lock.as_ref(), &limit) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%peer, "refused a connection: {error}");
                return;
            }
        };
        let mut admitted = None;
        let outcome = handshake::answer(&stream, &limit, |hello| {
            let (credentials, events) = self.admit(hello)?;
            admitted = Some(events);
            Ok(credentials)
        });
        match (outcome, admitted) {
            (Ok(hello), Some(events)) => {
                // Nobody listens if forming was given up; dropping the stream tells the caller.
                let _ = events.send(Event::Connected(hello.from, stream));
            }
            (
                Err(Stranger::Refused {
                    hello,
                    refusal: Refusal::NotYet,
                }),
                _,
            ) => {
                tracing::debug!(%peer, generation = %hello.generation, "a peer of a generation to come");
            }
            (Err(stranger), _) => tracing::warn!(%peer, "refused a connection: {stranger}"),
            (Ok(_), None) => {}
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(Credentials, Sender<Event>), Verdict> {
        let state = self.state();
        if hello.generation < state.newest {
            return Err(Verdict::Stale(state.newest));
        }
        if hello.generation > state.newest {
            return Err(Verdict::NotYet);
        }
        let (credentials, events) = state.forming.as_ref().ok_or(Verdict::Closed)?;
        let expected = credentials.rank.0 + 1..credentials.world_size;
        if hello.to != credentials.rank || !expected.contains(&hello.from.0) {
            return Err(Verdict::NotMember);
        }
        Ok((credentials.clone(), events.clone()))
    }
}
