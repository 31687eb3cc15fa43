//! What real NCCL does badly, on demand.
//!
//! Faults are words with commas between them:
//!
//! | word | what happens |
//! |---|---|
//! | `vanish` | nothing moves any more, no error is told anywhere, and this rank's sockets stay open even when it is aborted |
//! | `async-error` | nothing moves any more, and `ncclCommGetAsyncError` tells `ncclRemoteError` |
//! | `partial` | half of the data moves, then nothing any more; no error is told |
//! | `abort-hangs` | `ncclCommAbort` never returns. Given as `abort-hangs@N`, it begins like `vanish` at group N |
//! | `init-missing` | the rank never comes to the others: initialisation stays in progress on all |
//! | `in-progress:MS` | initialisation and each group take so many milliseconds to be launched, and calls are in progress meanwhile |
//! | `silent` | a peer that is gone is no error: what waits for it hangs |
//!
//! `@N` after a word has it happen at the N-th group (for `init-missing` the N-th communicator)
//! rather than the first. Groups are counted from when a communicator was given the words. Those
//! in the environment, `GAN_STAND_IN_FAULT`, are for all communicators of the process: groups are
//! counted over all of them, and each word happens once. If `GAN_STAND_IN_FIRED` names a file, the
//! words happen once in all processes that name the same: it is made when the first happens, and
//! none happens where it is.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vanish,
    AsyncError,
    Partial,
    AbortHangs,
    InitMissing,
    InProgress(Duration),
    Silent,
}

/// One word.
#[derive(Debug)]
pub(super) struct Armed {
    kind: Kind,
    /// The group that it happens at, if it was said.
    at: Option<u64>,
    passed: AtomicU64,
    fired: AtomicBool,
}

pub(super) fn parse(words: &str) -> Option<Vec<Armed>> {
    let words = words.split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).map(word).collect()
}

fn word(word: &str) -> Option<Armed> {
    let (name, at) = match word.split_once('@') {
        Some((name, at)) => (name, Some(at.parse().ok()?)),
        None => (word, None),
    };
    let kind = match name.split_once(':') {
        Some(("in-progress", millis)) => {
            Kind::InProgress(Duration::from_millis(millis.parse().ok()?))
        }
        Some(_) => return None,
        None => match name {
            "vanish" => Kind::Vanish,
            "async-error" => Kind::AsyncError,
            "partial" => Kind::Partial,
            "abort-hangs" => Kind::AbortHangs,
            "init-missing" => Kind::InitMissing,
            "silent" => Kind::Silent,
            _ => return None,
        },
    };
    Some(Armed {
        kind,
        at,
        passed: AtomicU64::new(0),
        fired: AtomicBool::new(false),
    })
}

impl Armed {
    /// Whether it happens now, at one more passage of the place where it can.
    fn happens(&self) -> bool {
        let passed = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        passed == self.at.unwrap_or(1) && !self.fired.swap(true, Ordering::SeqCst)
    }
}

thread_local! {
    static NEXT: RefCell<Vec<Armed>> = const { RefCell::new(Vec::new()) };
}

/// Has these faults wait for this thread's next communicator.
pub(super) fn arm_next(armed: Vec<Armed>) {
    NEXT.with_borrow_mut(|next| next.extend(armed));
}

/// The process's words.
struct Environment {
    armed: Vec<Armed>,
    once: Option<PathBuf>,
}

fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let words = std::env::var("GAN_STAND_IN_FAULT").unwrap_or_default();
        // A test whose fault is not known must not pass.
        let armed = parse(&words).unwrap_or_else(|| {
            eprintln!("stand-in: GAN_STAND_IN_FAULT={words}: no such fault");
            std::process::abort()
        });
        let once = std::env::var_os("GAN_STAND_IN_FIRED").map(PathBuf::from);
        Environment { armed, once }
    })
}

impl Environment {
    /// Whether it is the first in all processes that share the file.
    fn is_first(&self) -> bool {
        self.once.as_ref().is_none_or(|path| {
            let mut new = std::fs::File::options();
            new.write(true).create_new(true).open(path).is_ok()
        })
    }

    fn happens(&self, armed: &Armed) -> bool {
        armed.happens() && self.is_first()
    }
}

/// One communicator's faults.
#[derive(Default)]
pub(super) struct Faults {
    own: Vec<Armed>,
}

/// What is to go wrong with a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// How the group goes wrong.
    pub(super) how: Option<Kind>,
    /// Aborts hang from now on.
    pub(super) abort_hangs: bool,
}

impl Faults {
    /// Those that wait for this thread's next communicator.
    pub(super) fn of_next() -> Self {
        let own = NEXT.with_borrow_mut(std::mem::take);
        Self { own }
    }

    pub(super) fn arm(&mut self, armed: Vec<Armed>) {
        self.own.extend(armed);
    }

    fn all(&self) -> impl Iterator<Item = &Armed> {
        self.own.iter().chain(&environment().armed)
    }

    fn happening(&self, can: impl Fn(&Armed) -> bool) -> Vec<Kind> {
        let of_process = environment();
        let own = self.own.iter().filter(|armed| can(armed));
        let own = own.filter(|armed| armed.happens());
        let all = of_process.armed.iter().filter(|armed| can(armed));
        let all = all.filter(|armed| of_process.happens(armed));
        own.chain(all).map(|armed| armed.kind).collect()
    }

    /// Whether this rank doesn't come to the others.
    pub(super) fn is_missing(&self) -> bool {
        let missing = self.happening(|armed| armed.kind == Kind::InitMissing);
        !missing.is_empty()
    }

    /// What goes wrong with the group that is about to run.
    pub(super) fn at_group(&self) -> Trouble {
        let happening = self.happening(|armed| match armed.kind {
            Kind::Vanish | Kind::AsyncError | Kind::Partial => true,
            Kind::AbortHangs => armed.at.is_some(),
            Kind::InitMissing | Kind::InProgress(_) | Kind::Silent => false,
        });
        Trouble {
            how: happening.first().copied(),
            abort_hangs: happening.contains(&Kind::AbortHangs),
        }
    }

    /// How long it takes to launch something.
    pub(super) fn launching(&self) -> Duration {
        let longest = self.all().filter_map(|armed| match armed.kind {
            Kind::InProgress(time) => Some(time),
            _ => None,
        });
        longest.max().unwrap_or_default()
    }

    pub(super) fn is_silent(&self) -> bool {
        self.all().any(|armed| armed.kind == Kind::Silent)
    }

    /// Whether an abort hangs whatever happened before.
    pub(super) fn abort_hangs(&self) -> bool {
        self.all()
            .any(|armed| armed.kind == Kind::AbortHangs && armed.at.is_none())
    }
}
