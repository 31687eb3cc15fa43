//! Pictures from a checkpoint: what its generator draws, and where from.
//!
//! One file a command. `source` opens a checkpoint and draws; `picks` are the latents that a person
//! has named; `naming` is for the files. All of it is on the CPU with one thread, so that the same
//! checkpoint and command give the same file, byte for byte, on any machine of a kind.

mod arithmetic;
mod film;
mod interpolate;
mod naming;
mod nearest;
mod picks;
mod sample;
mod source;
mod truncate;

pub(super) use arithmetic::Arithmetic;
pub(super) use film::Film;
pub(super) use interpolate::Interpolate;
pub(super) use naming::named;
pub(super) use nearest::NearestImages;
pub(super) use sample::Sample;
pub(super) use source::Weights;
pub(super) use truncate::Truncate;

use crate::checkpoint::CheckpointError;
use crate::command::{Failure, print};
use crate::config::ConfigError;
use crate::data::DataError;
use crate::export::ExportError;
use crate::sample::SampleError;
use crate::train::TrainError;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub(super) enum PictureError {
    /// What was typed can't be.
    #[error("{0}")]
    Command(String),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file of the run directory can't be listed.
    #[error("{path}: can't list it: {source}", path = path.display())]
    List {
        /// The folder.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl From<PictureError> for Failure {
    fn from(error: PictureError) -> Self {
        let wrong = match &error {
            PictureError::Command(_) | PictureError::Config(_) => true,
            PictureError::Checkpoint(error) => matches!(
                error,
                CheckpointError::NoCheckpoint { .. } | CheckpointError::NoSuchFile { .. }
            ),
            PictureError::Sample(error) => error.is_users(),
            PictureError::Export(error) => matches!(error, ExportError::Refused { .. }),
            _ => false,
        };
        match wrong {
            true => Failure::wrong(error),
            false => Failure::failed(error),
        }
    }
}

/// What was written.
pub(super) struct Report {
    /// For people.
    pub(super) text: String,
    /// For scripts.
    pub(super) object: serde_json::Value,
}

impl Report {
    /// Says it, as one JSON object if that is wanted.
    pub(super) fn print(&self, json: bool) -> Result<ExitCode, Failure> {
        match json {
            true => print(&format!("{:#}\n", self.object)),
            false => print(&format!("{}\n", self.text)),
        }
    }
}

/// A bar on stderr for work that takes long; nothing where there is no terminal.
fn progress(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
