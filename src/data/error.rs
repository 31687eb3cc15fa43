//! What can go wrong between a data set and a batch. Each message says where, what, and what to do.

use crate::ids::Epoch;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused.
    #[error("{path}: can't {action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `data.uri` names nothing.
    #[error(
        "{path}: no such file or folder; data.uri names a folder of IDX files, an IDX file of \
         images, or a folder of PNG and JPEG images"
    )]
    Missing {
        /// The path in `data.uri`.
        path: PathBuf,
    },
    /// The source holds no sample.
    #[error("{path}: no images found; looked for {looked_for}")]
    Empty {
        /// The folder or file.
        path: PathBuf,
        /// What would have been taken.
        looked_for: &'static str,
    },
    /// The files of a source don't fit together.
    #[error("{path}: {reason}")]
    Source {
        /// The file or folder at fault.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The labels are not what the model needs.
    #[error("{uri} (data.uri) {reason}")]
    Labels {
        /// `data.uri`.
        uri: String,
        /// What is wrong with them, and what to do.
        reason: String,
    },
    /// An IDX file is not what its header says.
    #[error("{path}: {found}; expected {expected}")]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// An image can't be decoded or made a square. It is refused, never skipped.
    #[error("{image}: {reason}; repair or remove it")]
    Image {
        /// The file, or the IDX file and the number of the image.
        image: String,
        /// Why not.
        reason: String,
    },
    /// An image is larger than the square, and `data.fit = "pad"` doesn't scale.
    #[error(
        "{image}: {width}×{height} pixels don't fit into {size}×{size} with data.fit = \"pad\"; \
         use data.fit = \"cover\" or a larger model.image_size"
    )]
    TooLarge {
        /// The file, or the IDX file and the number of the image.
        image: String,
        /// Its width, pixels.
        width: u32,
        /// Its height, pixels.
        height: u32,
        /// `model.image_size`.
        size: u32,
    },
    /// The source was written to while it was being packed.
    #[error("{path}: files changed while they were being packed; try again when they are complete")]
    Changed {
        /// The source.
        path: PathBuf,
    },
    /// A packed shard or its manifest is not what was packed.
    #[error(
        "{path}: {found}, expected {expected}; remove the folder {folder}, it is made again from \
         the source", folder = folder(path).display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What was packed.
        expected: String,
    },
    /// Nobody said where packed shards go.
    #[error("no place for packed shards: set data.shard_folder, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// The loader was given work that the plan can't have made.
    #[error("epoch {epoch} can't be loaded: {reason}")]
    Assignment {
        /// The epoch.
        epoch: Epoch,
        /// What is wrong with its spans.
        reason: String,
    },
    /// A batch did not come in time (`deadlines.data`).
    #[error("waited {} for {awaited}", humantime::format_duration(*waited))]
    Deadline {
        /// Which batches.
        awaited: String,
        /// For how long.
        waited: Duration,
    },
    /// The loader has told its error, or its thread has panicked.
    #[error("the loader has ended; an earlier error says why")]
    Ended,
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// Names the path and the action in an I/O error.
pub(super) fn io(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> DataError {
    let path = path.into();
    move |source| DataError::Io {
        action,
        path,
        source,
    }
}
