//! What is watched while the device works, and what happens when something is wrong.
//!
//! NCCL doesn't tell of most troubles, and what is aborted looks as if it were done: so a collective
//! is *poisoned first*, which nobody can overlook, then its peers are cut off, then NCCL is aborted
//! within a bound. Whoever finds the trouble does all three: the thread that waits for the device,
//! or, should that one hang in a call of the device's, a watchdog.

use super::ears::Heard;
use crate::collective::abort::Abort;
use crate::collective::error::CollectiveError;
use crate::collective::limit::Limit;
use crate::ids::{Generation, Rank};
use crate::nccl::{Communicator, Group as Calls, NcclError};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// How often the watchdog looks while something is in flight, unless it is called.
const ROUND: Duration = Duration::from_millis(50);

/// How long an error of NCCL's waits for a better account of it.
const GRACE: Duration = Duration::from_millis(300);

/// What one rank's threads know of its communicator.
pub(super) struct Watch {
    pub(super) generation: Generation,
    pub(super) abort: Abort,
    pub(super) heard: Arc<Heard>,
    pub(super) addresses: Vec<String>,
    pub(super) communicator: Communicator,
    /// For an abort, or a peaceful end, of the communicator.
    pub(super) bound: Duration,
    /// Set before anything is done about an error.
    poisoned: AtomicBool,
    /// The first error, until somebody takes it, and in words.
    error: Mutex<Option<CollectiveError>>,
    cause: Mutex<String>,
    /// Whether the communicator could be ended; nothing while it is being tried.
    ended: Mutex<Option<bool>>,
    end_told: Condvar,
    flight: Mutex<Flight>,
    flight_changed: Condvar,
}

/// What the watchdog is to know.
#[derive(Default)]
struct Flight {
    /// Since when something has been in flight, and for how long that is no reason to worry.
    limit: Option<Limit>,
    /// Something has happened.
    called: bool,
    over: bool,
}

/// All ranks have begun, and the device doesn't come to the end of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the device did not finish within {}, though every rank is still connected: a rank's NCCL or \
     device hangs",
    humantime::format_duration(*waited)
)]
pub(super) struct Hung {
    pub(super) waited: Duration,
}

/// It was ended by another thread, which knows why.
#[derive(Debug, thiserror::Error)]
#[error("it was ended by its watchdog")]
struct Poisoned;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Watches a communicator, and has a thread do so.
    pub(super) fn keep(
        generation: Generation,
        abort: &Abort,
        heard: Arc<Heard>,
        addresses: Vec<String>,
        communicator: Communicator,
        bound: Duration,
    ) -> Result<Arc<Self>, CollectiveError> {
        let watch = Arc::new(Self {
            generation,
            abort: abort.clone(),
            heard,
            addresses,
            communicator,
            bound,
            poisoned: AtomicBool::new(false),
            error: Mutex::new(None),
            cause: Mutex::new(String::new()),
            ended: Mutex::new(None),
            end_told: Condvar::new(),
            flight: Mutex::new(Flight::default()),
            flight_changed: Condvar::new(),
        });
        let listening: Weak<Self> = Arc::downgrade(&watch);
        abort.on_abort(move || {
            if let Some(watch) = listening.upgrade() {
                lock(&watch.flight).called = true;
                watch.flight_changed.notify_all();
            }
        });
        let dog = Arc::clone(&watch);
        thread::Builder::new()
            .name("collective-watchdog".to_owned())
            .spawn(move || dog.live())
            .map_err(|source| CollectiveError::Thread {
                purpose: "watching a collective on a device",
                source,
            })?;
        Ok(watch)
    }

    /// Something is in flight from now on; if it is for longer than this, the watchdog ends it.
    pub(super) fn takes_off(&self, worry: Duration) {
        let mut flight = lock(&self.flight);
        flight.limit = Some(Limit::start(worry));
        self.flight_changed.notify_all();
    }

    /// Nothing is in flight any more.
    pub(super) fn has_landed(&self) {
        lock(&self.flight).limit = None;
    }

    /// The watchdog goes home.
    pub(super) fn is_over(&self) {
        lock(&self.flight).over = true;
        self.flight_changed.notify_all();
    }

    /// What is wrong, if something is. Asks neither the device nor a peer.
    pub(super) fn trouble(&self) -> Option<CollectiveError> {
        let of_nccl = || self.communicator.launched().err();
        self.told()
            .or_else(|| of_nccl().map(|error| self.device(error)))
    }

    /// What this process or a peer has said is wrong.
    fn told(&self) -> Option<CollectiveError> {
        if let Some(reason) = self.abort.reason() {
            return Some(CollectiveError::Aborted {
                generation: self.generation,
                reason: reason.to_owned(),
            });
        }
        let (rank, source) = self.heard.lost()?;
        Some(self.lost(rank, source))
    }

    fn lost(&self, rank: Rank, source: io::Error) -> CollectiveError {
        let address = self.addresses.get(rank.0 as usize).cloned();
        CollectiveError::PeerLost {
            generation: self.generation,
            rank,
            address: address.unwrap_or_default(),
            source,
        }
    }

    pub(super) fn device(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CollectiveError {
        CollectiveError::Device {
            generation: self.generation,
            source: source.into(),
        }
    }

    /// Whether anything has gone wrong. What was in flight then is not to be trusted, whatever the
    /// device says.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }

    /// Poisons it for this reason, unless it is already; then cuts the peers off and ends the
    /// communicator.
    pub(super) fn poison(&self, error: CollectiveError) {
        if self.poisoned.swap(true, Ordering::SeqCst) {
            return;
        }
        let error = self.better(error);
        self.heard.cut();
        *lock(&self.cause) = error.to_string();
        *lock(&self.error) = Some(error);
        let ended = self.communicator.abort(self.bound);
        if let Err(error) = &ended {
            tracing::error!(%error, "a collective on a device can't be ended");
        }
        *lock(&self.ended) = Some(ended.is_ok());
        self.end_told.notify_all();
    }

    /// A peer's death makes NCCL fail too, and may be known a moment later: it has a name.
    fn better(&self, error: CollectiveError) -> CollectiveError {
        let limit = Limit::start(GRACE);
        while matches!(error, CollectiveError::Device { .. }) && limit.left().is_some() {
            if let Some(better) = self.told() {
                return better;
            }
            thread::sleep(Duration::from_millis(1));
        }
        error
    }

    /// Waits until the communicator of what was poisoned is ended, by whomever, or that has taken
    /// too long. The first error, to the first who asks; `Stuck`, if it can't be ended.
    pub(super) fn verdict(&self) -> CollectiveError {
        let patience = self.bound * 2 + GRACE;
        let ended = self
            .end_told
            .wait_timeout_while(lock(&self.ended), patience, |ended| ended.is_none());
        let is_ended = *ended.unwrap_or_else(PoisonError::into_inner).0 == Some(true);
        let cause = lock(&self.cause).clone();
        if !is_ended {
            return CollectiveError::Stuck {
                generation: self.generation,
                cause,
                waited: self.bound,
            };
        }
        let first = lock(&self.error).take();
        first.unwrap_or(CollectiveError::Broken {
            generation: self.generation,
            cause,
        })
    }

    /// Ends the communicator in peace, if nothing was wrong.
    pub(super) fn close(&self) -> Result<(), NcclError> {
        if self.is_poisoned() {
            return Ok(());
        }
        self.communicator.close(self.bound)
    }

    /// The watchdog's life.
    fn live(&self) {
        let mut flight = lock(&self.flight);
        while !flight.over {
            let is_flying = flight.limit.is_some();
            let is_late = flight.limit.is_some_and(|limit| limit.left().is_none());
            let waited = flight.limit.map_or(Duration::ZERO, |limit| limit.waited());
            flight.called = false;
            drop(flight);
            if is_flying && !self.is_poisoned() {
                let late = || is_late.then(|| self.device(Hung { waited }));
                if let Some(trouble) = self.trouble().or_else(late) {
                    self.poison(trouble);
                }
            }
            let round = match is_flying {
                true => ROUND,
                false => Duration::from_secs(3600),
            };
            flight = lock(&self.flight);
            let quiet = |flight: &mut Flight| {
                !flight.called && !flight.over && flight.limit.is_some() == is_flying
            };
            let waited = self.flight_changed.wait_timeout_while(flight, round, quiet);
            flight = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Launches a group, and waits until it is in the stream.
pub(super) fn launch(
    watch: &Watch,
    calls: Calls<'_>,
    limit: &Limit,
) -> Result<(), CollectiveError> {
    calls.launch().map_err(|error| watch.device(error))?;
    wait(watch, limit, || watch.communicator.launched())
}

/// Waits until something is true, with an eye on everything that could keep it from becoming so.
pub(super) fn wait(
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
