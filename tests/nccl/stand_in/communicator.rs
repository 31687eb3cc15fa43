//! Communicators: the table of their handles, and the thread that forms one and runs its groups.

use super::bootstrap::{Unformed, UniqueId};
use super::faults::{Armed, Faults, Kind};
use super::groups::{Operation, Running, is_paired};
use super::mesh::{Ended, Mesh};
use super::{Fault, IN_PROGRESS, REMOTE_ERROR, SUCCESS, refuse};
use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// All that were ever made: a handle stays one after an abort, so that its stream can be asked.
static ALL: Mutex<Vec<Arc<Communicator>>> = Mutex::new(Vec::new());

/// Handles look like addresses, and none is null.
const STRIDE: usize = 64;

pub(super) fn find(name: usize) -> Option<Arc<Communicator>> {
    let index = name.checked_sub(STRIDE)?;
    let all = lock(&ALL);
    let found = all.get(index / STRIDE);
    found.filter(|_| index.is_multiple_of(STRIDE)).cloned()
}

/// Begins to form a communicator, and gives its handle.
pub(super) fn make(id: UniqueId, rank: usize, world: usize, blocking: bool) -> Option<usize> {
    if !id.is_sound() {
        return None;
    }
    let communicator = Arc::new(Communicator {
        rank,
        world,
        blocking,
        aborted: AtomicBool::new(false),
        now: Mutex::new(Now {
            forming: true,
            error: SUCCESS,
            finalizing: false,
            ending: false,
            abort_hangs: false,
            groups: VecDeque::new(),
            faults: Faults::of_next(),
        }),
        changed: Condvar::new(),
        thread: Mutex::new(None),
    });
    let of_thread = Arc::clone(&communicator);
    let thread = std::thread::Builder::new().name(format!("stand-in {rank}"));
    let thread = thread.spawn(move || of_thread.live(&id)).ok()?;
    *lock(&communicator.thread) = Some(thread);
    let mut all = lock(&ALL);
    all.push(communicator);
    Some(all.len() * STRIDE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Communicator {
    pub(super) rank: usize,
    pub(super) world: usize,
    blocking: bool,
    aborted: AtomicBool,
    now: Mutex<Now>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What changes while a communicator lives.
struct Now {
    forming: bool,
    error: c_int,
    finalizing: bool,
    ending: bool,
    abort_hangs: bool,
    /// Those that are not over; the first is the one that runs.
    groups: VecDeque<Group>,
    faults: Faults,
}

struct Group {
    /// When it is in the stream.
    launched_at: Instant,
    operations: Vec<Operation>,
}

impl Now {
    fn async_error(&self) -> c_int {
        let now = Instant::now();
        let is_launching = self.groups.iter().any(|group| group.launched_at > now);
        let is_flushing = self.finalizing && !self.groups.is_empty();
        match self.error {
            SUCCESS if self.forming || is_launching || is_flushing => IN_PROGRESS,
            error => error,
        }
    }
}

impl Communicator {
    pub(super) fn peer(&self, rank: c_int) -> Option<usize> {
        let rank = usize::try_from(rank).ok()?;
        (rank < self.world).then_some(rank)
    }

    pub(super) fn arm(&self, armed: Vec<Armed>) {
        lock(&self.now).faults.arm(armed);
    }

    pub(super) fn async_error(&self) -> c_int {
        lock(&self.now).async_error()
    }

    /// Whether a call may be made.
    pub(super) fn ready(&self) -> Result<(), c_int> {
        if self.is_aborted() {
            return Err(refuse(Fault::NoCommunicator));
        }
        match self.async_error() {
            SUCCESS => Ok(()),
            IN_PROGRESS => Err(refuse(Fault::NotReady)),
            error => Err(error),
        }
    }

    /// Waits until it is formed, or can't be.
    pub(super) fn formed(&self) -> c_int {
        let now = lock(&self.now);
        let waited = self.changed.wait_while(now, |now| now.forming);
        waited.unwrap_or_else(PoisonError::into_inner).error
    }

    /// Takes a group; it runs when those before it are over.
    pub(super) fn launch(&self, operations: Vec<Operation>) -> c_int {
        if !is_paired(self.rank, &operations) {
            return refuse(Fault::ToItself);
        }
        let mut now = lock(&self.now);
        let launching = now.faults.launching();
        let launched_at = Instant::now() + launching;
        now.groups.push_back(Group {
            launched_at,
            operations,
        });
        drop(now);
        self.changed.notify_all();
        if launching.is_zero() {
            SUCCESS
        } else if self.blocking {
            std::thread::sleep(launching);
            SUCCESS
        } else {
            IN_PROGRESS
        }
    }

    /// What its stream would say.
    pub(super) fn query(&self) -> c_int {
        let asked_at = Instant::now();
        let now = lock(&self.now);
        let runs = |group: &Group| group.launched_at <= asked_at;
        if now.groups.iter().any(runs) {
            IN_PROGRESS
        } else {
            SUCCESS
        }
    }

    pub(super) fn finalize(&self) -> Result<(), c_int> {
        self.ready()?;
        let mut now = lock(&self.now);
        now.finalizing = true;
        if self.blocking {
            let waited = self.changed.wait_while(now, |now| !now.groups.is_empty());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            return Ok(());
        }
        if now.groups.is_empty() {
            Ok(())
        } else {
            Err(IN_PROGRESS)
        }
    }

    /// Waits for all groups, however long they take, and ends.
    pub(super) fn destroy(&self) {
        lock(&self.now).ending = true;
        self.end();
    }

    /// Ends without waiting, and leaves the data as they are.
    pub(super) fn abort(&self) {
        let abort_hangs = {
            let now = lock(&self.now);
            now.abort_hangs || now.faults.abort_hangs()
        };
        if abort_hangs {
            loop {
                std::thread::park();
            }
        }
        // Under the lock, so that whoever is about to wait for a change sees it.
        let now = lock(&self.now);
        self.aborted.store(true, Ordering::SeqCst);
        drop(now);
        self.end();
    }

    fn end(&self) {
        self.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// The thread.
    fn live(&self, id: &UniqueId) {
        if let Some(mesh) = self.form(id)
            && self.serve(&mesh) == Fate::Vanished
        {
            // To its peers it is still there.
            std::mem::forget(mesh);
        }
        let mut now = lock(&self.now);
        now.forming = false;
        now.groups.clear();
        drop(now);
        self.changed.notify_all();
    }

    fn form(&self, id: &UniqueId) -> Option<Mesh> {
        let stopped = || self.is_aborted();
        let (is_missing, launching) = {
            let now = lock(&self.now);
            (now.faults.is_missing(), now.faults.launching())
        };
        if is_missing {
            self.rest(None);
            return None;
        }
        let mesh = match id.join(self.rank, self.world, &stopped) {
            Ok(mesh) => mesh,
            Err(Unformed::Aborted) => return None,
            Err(Unformed::Failed) => {
                lock(&self.now).forming = false;
                self.fail();
                return None;
            }
        };
        self.rest(Some(launching));
        lock(&self.now).forming = false;
        self.changed.notify_all();
        Some(mesh)
    }

    /// Waits, at most for so long, until it is aborted.
    fn rest(&self, time: Option<Duration>) {
        let now = lock(&self.now);
        let is_on = |_: &mut Now| !self.is_aborted();
        match time {
            None => drop(self.changed.wait_while(now, is_on)),
            Some(time) => drop(self.changed.wait_timeout_while(now, time, is_on)),
        }
    }

    /// Tells of an error, and hangs as a kernel does that nobody frees.
    fn fail(&self) {
        lock(&self.now).error = REMOTE_ERROR;
        self.changed.notify_all();
        self.rest(None);
    }

    /// Runs groups until it is destroyed or aborted.
    fn serve(&self, mesh: &Mesh) -> Fate {
        while let Some(operations) = self.next() {
            let trouble = {
                let mut now = lock(&self.now);
                let trouble = now.faults.at_group();
                now.abort_hangs |= trouble.abort_hangs;
                trouble.how
            };
            match trouble {
                Some(Kind::Vanish | Kind::AbortHangs) => {
                    self.rest(None);
                    return Fate::Vanished;
                }
                Some(Kind::AsyncError) => {
                    self.fail();
                    return Fate::Over;
                }
                _ => {}
            }
            let running = Running {
                rank: self.rank,
                mesh,
                stopped: &|| self.is_aborted(),
                trouble,
            };
            // SAFETY: whoever made the calls promised it; an abort returns after this has.
            match unsafe { running.run(&operations) } {
                Ended::Done => {
                    lock(&self.now).groups.pop_front();
                    self.changed.notify_all();
                }
                Ended::Stopped => return Fate::Over,
                Ended::Lost if lock(&self.now).faults.is_silent() => {
                    self.rest(None);
                    return Fate::Over;
                }
                Ended::Lost => {
                    self.fail();
                    return Fate::Over;
                }
            }
        }
        Fate::Over
    }

    /// The next group, when it is launched; none if the communicator ends.
    fn next(&self) -> Option<Vec<Operation>> {
        let mut now = lock(&self.now);
        loop {
            if self.is_aborted() {
                return None;
            }
            let launched_at = now.groups.front().map(|group| group.launched_at);
            let wait = match launched_at {
                None if now.ending => return None,
                None => Duration::from_secs(3600),
                Some(at) => at.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                return now.groups.front().map(|group| group.operations.clone());
            }
            let waited = self.changed.wait_timeout(now, wait);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Fate {
    Over,
    /// Its sockets stay open.
    Vanished,
}
