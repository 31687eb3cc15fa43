//! Folders that are being written or taken away, and whose they are.
//!
//! A generation has one writer, so a name carries its generation, and the process that chose it. A
//! writer that was paused may go on when a newer generation has taken over, in another process:
//! each finds in the names what it may touch. This room touches no disk.

use crate::ids::{Generation, Step};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Folders whose names begin so are being written or removed, or are what a crash left of that.
const PREFIX: &str = ".tmp-step-";

/// Numbers of this process's folders that are in use.
static IN_USE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

fn in_use() -> MutexGuard<'static, BTreeSet<u64>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that nobody else chooses, in use until this is dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    number: u64,
}

impl Temporary {
    /// A name in the folder `dir` for something of `step`; `what` is for people.
    pub(super) fn new(dir: &Path, step: Step, generation: Generation, what: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        in_use().insert(number);
        let process = std::process::id();
        let name = format!(
            "{PREFIX}{:08}-g{generation}-{process}-{number}-{what}",
            step.0
        );
        Self {
            path: dir.join(name),
            number,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        in_use().remove(&self.number);
    }
}

/// Who chose a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) generation: Generation,
    process: u32,
    number: u64,
}

impl Owner {
    /// Whose temporary folder has this name; nothing if it is none. One that can't be read, as
    /// those of earlier versions can't, is older than any generation.
    pub(super) fn of(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let mut parts = rest.split('-').skip(1);
        let mut read = || {
            Some(Self {
                generation: Generation(parts.next()?.strip_prefix('g')?.parse().ok()?),
                process: parts.next()?.parse().ok()?,
                number: parts.next()?.parse().ok()?,
            })
        };
        Some(read().unwrap_or(Self {
            generation: Generation(0),
            process: 0,
            number: 0,
        }))
    }

    /// Whether a writer of `generation` in this process may take the folder away: it is of an older
    /// generation, or this writer left it behind. That of another process of the same generation
    /// stays until the next one: it should not be there at all.
    pub(super) fn is_leftover(&self, generation: Generation) -> bool {
        let own = self.generation == generation && self.process == std::process::id();
        self.generation < generation || (own && !in_use().contains(&self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        let folder = Temporary::new(Path::new("/x"), Step(7), Generation(3), "new");
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        let owner = Owner::of(name).unwrap();
        assert_eq!(owner.generation, Generation(3));
        assert!(owner.is_leftover(Generation(4)));
        assert!(!owner.is_leftover(Generation(3)), "it is in use");
        assert!(!owner.is_leftover(Generation(2)), "that one is superseded");
        drop(folder);
        assert!(owner.is_leftover(Generation(3)), "it was left behind");
        assert!(!owner.is_leftover(Generation(2)));
        let elsewhere = Owner {
            process: owner.process + 1,
            ..owner
        };
        assert!(!elsewhere.is_leftover(Generation(3)));
        assert!(elsewhere.is_leftover(Generation(4)));
    }

    #[test]
    fn names_of_earlier_versions_are_old_and_others_are_not_temporary() {
        let old = Owner::of(".tmp-step-00000009-1-new").unwrap();
        assert_eq!(old.generation, Generation(0));
        assert!(old.is_leftover(Generation(1)));
        for name in ["step-00000009", "best", ".tmp", ""] {
            assert_eq!(Owner::of(name), None);
        }
    }
}
