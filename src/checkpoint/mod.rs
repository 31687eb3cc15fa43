//! Checkpoints: the training state on disk, whole or invisible, and verified when read.
//!
//! A checkpoint is a folder `step-00000500` of safetensors files and a manifest. It is written
//! under another name and renamed when every byte is on disk, so whoever sees the folder sees all
//! of it. Writers are fenced by generation: one that a newer generation has superseded takes nothing
//! of that one's away. Every file is known by its length and SHA-256, the manifest by its own checksum, and the
//! training state by a [`digest`] that doesn't depend on how it is encoded: two runs of a job
//! agree if and only if their digests do.
//!
//! This room knows names, shapes and bytes. It knows nothing of libtorch, of who trains, or of
//! when a checkpoint is due, and it reads no clock.

mod disk;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod manifest;
mod reading;
mod state;
mod store;
mod temporary;

pub use manifest::{Description, FORMAT, FileInfo, Manifest, read_manifest};
pub use reading::{read, read_file};
pub use state::{Kind, Snapshot, TensorData, digest, encode};
pub use store::{Store, Stored};

use crate::ids::{Generation, Step};
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a checkpoint. Each message says which file, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk refused an operation.
    #[error("{path}: can't {operation}: {source}", path = path.display())]
    Io {
        /// What was tried: "write", "rename", …
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no space left, or a file may not become as long. The checkpoints that were there are
    /// untouched.
    #[error(
        "{path}: there is no room for it ({source}); earlier checkpoints are untouched: free some space, lower checkpoint.keep_last, or raise the limits on space and file size (quota, ulimit -f)",
        path = path.display()
    )]
    DiskFull {
        /// The file that didn't fit.
        path: PathBuf,
        /// The system's account.
        source: io::Error,
    },
    /// A file is not what was written, or is missing.
    #[error("{path}: damaged: {detail}; use another checkpoint", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        detail: String,
    },
    /// There is no checkpoint at all: no folder, or one without a manifest.
    #[error(
        "{path} is no checkpoint; expected a folder like runs/NAME/checkpoints/step-00000500",
        path = path.display()
    )]
    NoCheckpoint {
        /// What was taken for one.
        path: PathBuf,
    },
    /// A later version of Ganglion wrote it.
    #[error(
        "{path}: checkpoint format {found}, but this program reads formats up to {known}: use the version that wrote it",
        path = path.display()
    )]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// The format it claims.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// It is whole, but another version of Ganglion wrote it, in words that this one lacks.
    #[error(
        "{path}: another version of Ganglion wrote it, and this one can't read it ({detail}): use the version that wrote it",
        path = path.display()
    )]
    OtherVersion {
        /// The manifest.
        path: PathBuf,
        /// What can't be read.
        detail: String,
    },
    /// Another state of the same step is there already. A job has one history, so one of the two
    /// states is wrong, or they are two jobs' in one folder.
    #[error(
        "{path}: TWO HISTORIES: the checkpoint of step {step} that is there has digest {stored}, the one to be written has {computed}; nothing was overwritten. Either two jobs share this folder, or software, device kind or data changed under the job: keep both, and start the job in a new run directory",
        path = path.display()
    )]
    TwoHistories {
        /// The checkpoint that is there.
        path: PathBuf,
        /// Its step.
        step: Step,
        /// Its digest.
        stored: String,
        /// The digest of the state that was to be written.
        computed: String,
    },
    /// A newer generation writes here: this writer was paused, or cut off, and the job goes on
    /// without it. Nothing was replaced or removed.
    #[error(
        "{path}: generation {generation} is over, for generation {newer} writes checkpoints here now: it is left as it is. If no newer generation can be running, two jobs share this folder",
        path = path.display()
    )]
    Superseded {
        /// What would have been replaced or removed.
        path: PathBuf,
        /// The writer's generation.
        generation: Generation,
        /// The newest one that has left a trace.
        newer: Generation,
    },
    /// The state can't be written as it is.
    #[error("{name}: can't be checkpointed: {detail}")]
    State {
        /// The file or tensor.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The checkpoint has no such file.
    #[error("{path}: no file {file} in this checkpoint; it has {present}", path = path.display())]
    NoSuchFile {
        /// The checkpoint.
        path: PathBuf,
        /// The file that was asked for.
        file: String,
        /// Those that are there.
        present: String,
    },
}

impl CheckpointError {
    /// The error of `operation` on `path`.
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::WriteZero => Self::DiskFull { path, source },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            detail: detail.into(),
        }
    }
}
