//! The data room from end to end, on real files.

mod idx;
mod jpeg;
mod loading;
mod making;
mod packing;
mod sources;

use super::{DataError, Dataset};
use crate::config::{self, Job, Override};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder for the source and one for the cache.
struct TempDirs {
    source: TempDir,
    cache: TempDir,
}

impl TempDirs {
    fn new() -> Self {
        let new = || TempDir::new().unwrap();
        Self {
            source: new(),
            cache: new(),
        }
    }
}

/// A job on `uri`, 32×32 grey and padded unless `sets` says otherwise.
fn job(uri: &Path, cache: &Path, sets: &[&str]) -> Job {
    let text = "[job]\nname = \"j\"\nseed = 5\n[data]\nuri = \"?\"\nfit = \"pad\"\n\
                [model]\nimage_size = 32\nchannels = 1\n[train]\nsteps = 1\n";
    let overrides: Vec<Override> = sets.iter().map(|set| set.parse().unwrap()).collect();
    let mut job = config::parse(text, "test", Path::new("/"), &overrides).unwrap();
    job.data.uri = uri.to_str().unwrap().to_owned();
    job.data.shard_folder = Some(cache.to_owned());
    job
}

fn open(job: &Job) -> Result<Dataset, DataError> {
    Dataset::open(job, &mut |_, _| {})
}

fn refusal(job: &Job) -> String {
    open(job).err().expect("it must be refused").to_string()
}

#[track_caller]
fn assert_says(message: &str, needles: &[&str]) {
    for needle in needles {
        assert!(message.contains(needle), "{message:?} lacks {needle:?}");
    }
}

/// MNIST's 10,000 test images and their labels.
fn mnist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mnist")
}

/// An IDX file.
fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    file.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    file.extend(bytes);
    file
}

/// Writes `count` images of 4×1 pixels that spell their own number, and labels.
fn numbered(folder: &Path, count: u32) {
    let pixels: Vec<u8> = (0..count).flat_map(u32::to_be_bytes).collect();
    let labels: Vec<u8> = (0..count).map(|i| (i % 7) as u8).collect();
    let images = folder.join("n-images-idx3-ubyte");
    std::fs::write(images, idx(&[count, 1, 4], &pixels)).unwrap();
    let file = folder.join("n-labels-idx1-ubyte");
    std::fs::write(file, idx(&[count], &labels)).unwrap();
}

/// What [`numbered`] wrote into a padded 32×32 sample.
fn number(pixels: &[u8]) -> u32 {
    assert_eq!(pixels.len(), 32 * 32);
    let at = 15 * 32 + 14;
    u32::from_be_bytes(pixels[at..at + 4].try_into().unwrap())
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
