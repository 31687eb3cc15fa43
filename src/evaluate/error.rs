//! What can keep a generator from being scored. Each message says what, where, and what to do.

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::torch::TorchError;
use crate::train::TrainError;
use std::io;
use std::path::PathBuf;

/// Why there are no scores.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The data can't be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The checkpoint can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The generator can't be built from it, or can't draw.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// There is nothing to train the built-in extractor on.
    #[error(
        "{data} has no labels, and the built-in feature extractor is trained on them: put each \
         class of images into a folder of its own, or the labels' IDX file beside the images'; or \
         name an extractor that needs none, --extractor FILE.pt (evaluate.extractor in a job file)"
    )]
    NoLabels {
        /// The data.
        data: String,
    },
    /// All samples are of one class.
    #[error(
        "{data} has labels of {classes} class, and a classifier needs two at least: name a feature \
         extractor instead, --extractor FILE.pt (evaluate.extractor in a job file)"
    )]
    TooFewClasses {
        /// The data.
        data: String,
        /// How many there are.
        classes: usize,
    },
    /// There are too few samples to compare.
    #[error("{of}: {found} samples; an evaluation compares {fewest} at least")]
    TooFew {
        /// Whose.
        of: String,
        /// How many there are.
        found: u64,
        /// How many are needed.
        fewest: u64,
    },
    /// The extractor is no TorchScript module that this libtorch reads.
    #[error(
        "{path}: no TorchScript module that can be loaded: {detail}; expected a file that \
         torch.jit.save wrote", path = path.display()
    )]
    Script {
        /// The file.
        path: PathBuf,
        /// libtorch's account.
        detail: String,
    },
    /// The extractor fails on images of this data.
    #[error(
        "{path}: the extractor refuses images [{n}, {channels}, {side}, {side}], f32 in -1 … 1: {detail}",
        path = path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// Images that it was given.
        n: i64,
        /// Their channels.
        channels: i64,
        /// Their side.
        side: i64,
        /// libtorch's account.
        detail: String,
    },
    /// The extractor returns something else than features.
    #[error(
        "{path}: the extractor returned {found} for {n} images; expected one tensor [{n}, features] \
         of floating-point numbers", path = path.display()
    )]
    NoFeatures {
        /// The file.
        path: PathBuf,
        /// What it returned.
        found: String,
        /// Images that it was given.
        n: i64,
    },
    /// Features are not finite.
    #[error("{of}: features are NaN or infinite, so there is nothing to compare")]
    NotFinite {
        /// Of whose samples.
        of: String,
    },
    /// Nobody knows what the generator was trained on.
    #[error(
        "{path}: the checkpoint doesn't say where its data is; name it with --data URI",
        path = path.display()
    )]
    NoData {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A file of the cache, or the extractor's, can't be read or written.
    #[error("{path}: can't {operation}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread died.
    #[error("a thread of the evaluation died: {0}")]
    Thread(String),
    /// It was called off.
    #[error("the evaluation was called off")]
    CalledOff,
}

impl From<tch::TchError> for EvaluateError {
    fn from(error: tch::TchError) -> Self {
        TorchError::from(error).into()
    }
}

impl EvaluateError {
    /// Whether what was asked for is wrong: trying again won't help.
    pub fn is_users(&self) -> bool {
        matches!(
            self,
            Self::NoLabels { .. }
                | Self::TooFewClasses { .. }
                | Self::TooFew { .. }
                | Self::Script { .. }
                | Self::Refused { .. }
                | Self::NoFeatures { .. }
                | Self::NoData { .. }
                | Self::Train(TrainError::Coarse { .. })
        )
    }
}
