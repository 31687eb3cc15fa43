//! Bodies for [`crate::fuzzing`]: files of data that anybody may have written.

use super::idx::{read_images, read_labels};
use super::manifest::{self, Element, Manifest, Shape, ShardInfo, hex};
use super::shard::Shard;
use crate::config::Fit;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;

/// A place that no other thread or process writes to.
fn scratch(name: &str) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let folder = format!("ganglion-fuzz-{}-{thread}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    fs::create_dir_all(&folder).expect("a folder for what is fuzzed");
    folder.join(name)
}

/// The bytes are the file, gzipped or not.
pub(crate) fn idx(bytes: &[u8]) {
    let path = scratch("file.idx");
    fs::write(&path, bytes).expect("a file that is fuzzed");
    if let Ok(images) = read_images(&path) {
        let last = images.count.checked_sub(1);
        for index in [Some(0), last]
            .into_iter()
            .flatten()
            .take(last.map_or(0, |_| 2))
        {
            let pixels = images.pixels(index).len() as u64;
            assert_eq!(pixels, u64::from(images.rows) * u64::from(images.columns));
        }
    }
    if let Ok(labels) = read_labels(&path)
        && bytes.first() == Some(&0)
    {
        assert_eq!(labels.len(), bytes.len() - 8, "all that follows the header");
    }
}

/// The first four bytes say what the manifest claims, and what follows is the file: with the checksum
/// that it has, as if somebody had packed it like that. Both are read as a manifest too.
pub(crate) fn shard(bytes: &[u8]) {
    let Some((claim, file)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let [channels, size, samples, form] = *claim;
    let shape = Shape {
        channels: u32::from(channels),
        size: u32::from(size),
        fit: Fit::Pad,
        element: match form & 2 {
            0 => Element::Byte,
            _ => Element::Float,
        },
    };
    let info = ShardInfo {
        file: "file.shard".to_owned(),
        // All that a u64 can be, for what a byte can say.
        samples: u64::from(samples) << (form >> 2),
        sha256: hex(&Sha256::digest(file)),
    };
    let path = scratch("file.shard");
    // Whatever maps the file before keeps it: it goes, and another one comes.
    let _ = fs::remove_file(&path);
    fs::write(&path, file).expect("a file that is fuzzed");
    if let Ok(shard) = Shard::open(&path, &info, &shape, form & 1 == 1) {
        assert_eq!(shard.samples(), info.samples);
        assert_eq!(
            shard.pixels().len() as u64,
            info.samples * shape.bytes() as u64
        );
        for index in 0..shard.samples().min(64) {
            let sample = shard.sample(index).expect("it says that it has so many");
            assert_eq!(sample.pixels.len(), shape.bytes());
            assert_eq!(sample.label.is_some(), form & 1 == 1);
        }
        assert!(shard.sample(shard.samples()).is_none());
    }
    let path = scratch(manifest::FILE);
    fs::write(&path, file).expect("a file that is fuzzed");
    let folder = path.parent().unwrap_or(&path);
    if let Ok(manifest) = Manifest::read(folder, &shape, u64::from(samples)) {
        let sum: u64 = manifest.shards.iter().map(|shard| shard.samples).sum();
        assert_eq!(sum, manifest.samples);
    }
}
