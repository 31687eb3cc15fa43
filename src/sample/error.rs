//! What can go wrong with a picture.

use super::Format;
use std::io;
use std::path::PathBuf;

/// What can go wrong with a picture.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The images can't be put on a picture.
    #[error("can't draw a grid: {detail}")]
    Images {
        /// What is wrong with them.
        detail: String,
    },
    /// The file's name promises another format.
    #[error("{path}: this is written as {}; expected a name that ends in {}", formats(known), extensions(known), path = path.display())]
    Name {
        /// The file that was asked for.
        path: PathBuf,
        /// What it may be.
        known: &'static [Format],
    },
    /// The picture can't be encoded.
    #[error("{path}: can't encode the picture: {source}", path = path.display())]
    Encode {
        /// The file it was for.
        path: PathBuf,
        /// Why not.
        source: image::ImageError,
    },
    /// A picture can't be read.
    #[error("{path}: can't read the picture: {source}", path = path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: image::ImageError,
    },
    /// The frames can't be a film.
    #[error("can't make a film: {detail}")]
    Frames {
        /// What is wrong with them.
        detail: String,
    },
    /// The disk refused.
    #[error("{path}: can't {operation}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SampleError {
    /// Whether the command is wrong: trying again won't help.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::Name { .. })
    }
}

fn formats(known: &[Format]) -> String {
    let names: Vec<String> = known.iter().map(Format::to_string).collect();
    names.join(" or ")
}

fn extensions(known: &[Format]) -> String {
    let names = known
        .iter()
        .map(|format| format!(".{}", format.extension()));
    names.collect::<Vec<_>>().join(" or ")
}
