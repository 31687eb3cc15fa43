//! What a packed data set is: the list of its shards, with the digest of each.

use super::error::{DataError, io};
use crate::config::{Fit, Job};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

/// Version of the shard format and of everything that decides a shard's bytes. It is part of the
/// cache key: another version packs again.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const FILE: &str = "manifest.json";

/// The form of every sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) channels: u32,
    pub(super) size: u32,
    pub(super) fit: Fit,
    pub(super) element: Element,
}

/// What a sample's values are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Element {
    /// One byte: 0 is black, 255 white.
    #[default]
    Byte,
    /// A number as it is, f32, little-endian.
    Float,
}

impl Element {
    fn is_byte(&self) -> bool {
        *self == Self::Byte
    }

    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Float => 4,
        }
    }
}

impl Shape {
    pub(super) fn of(job: &Job) -> Self {
        let [channels, size, _] = job.packed_shape();
        Self {
            channels,
            size,
            fit: job.data.fit,
            element: match job.model.has_points() {
                true => Element::Float,
                false => Element::Byte,
            },
        }
    }

    /// Bytes of one sample: channels · size² · bytes of an element.
    pub(super) fn bytes(&self) -> usize {
        self.channels as usize * self.size as usize * self.size as usize * self.element.bytes()
    }
}

/// A packed data set: `manifest.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// Channels of every sample.
    pub channels: u32,
    /// Side of every sample, pixels.
    pub image_size: u32,
    /// What samples consist of.
    #[serde(default, skip_serializing_if = "Element::is_byte")]
    pub element: Element,
    /// How images were made square.
    pub fit: Fit,
    /// Samples of every shard but the last, which may have fewer.
    pub shard_samples: u64,
    /// Samples of all shards.
    pub samples: u64,
    /// Whether samples have labels.
    pub labels: bool,
    /// One more than the largest label, if they have. Manifests of before it was counted lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u32>,
    /// The shards, in order.
    pub shards: Vec<ShardInfo>,
}

/// One shard of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardInfo {
    /// Name of the file, beside the manifest.
    pub file: String,
    /// Its samples.
    pub samples: u64,
    /// SHA-256 of the whole file, hex.
    pub sha256: String,
}

/// The name of a shard's file.
pub(super) fn shard_file(index: usize) -> String {
    format!("{index:06}.shard")
}

impl Manifest {
    /// The SHA-256 that identifies the data. It hangs on what is in the shards, and on nothing
    /// else: not on paths, times, or where they were packed.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"ganglion data 1\0");
        for number in [self.channels, self.image_size, self.labels.into()] {
            hash.update(number.to_le_bytes());
        }
        for shard in &self.shards {
            hash.update(shard.samples.to_le_bytes());
            hash.update(shard.sha256.as_bytes());
        }
        hex(&hash.finalize())
    }

    /// Reads the manifest in `folder` and checks that it is one of `shape` and `shard_samples`.
    pub(super) fn read(
        folder: &Path,
        shape: &Shape,
        shard_samples: u64,
    ) -> Result<Self, DataError> {
        let path = folder.join(FILE);
        let corrupt = |found: String, expected: &str| DataError::Corrupt {
            path: path.clone(),
            found,
            expected: expected.to_owned(),
        };
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt("it is missing".to_owned(), "a manifest"));
            }
            text => text.map_err(io("read it", &path))?,
        };
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| corrupt(error.to_string(), "a manifest"))?;
        let expected = Self {
            version: FORMAT_VERSION,
            channels: shape.channels,
            image_size: shape.size,
            element: shape.element,
            fit: shape.fit,
            shard_samples,
            ..manifest.clone()
        };
        if manifest != expected {
            let found = "the manifest of other settings".to_owned();
            return Err(corrupt(found, "those of the job"));
        }
        let full = manifest.samples.div_ceil(shard_samples.max(1));
        let mut left = manifest.samples;
        let consistent = manifest.shards.len() as u64 == full
            && u32::try_from(full).is_ok()
            && manifest.shards.iter().enumerate().all(|(index, shard)| {
                let samples = left.min(shard_samples);
                left -= samples;
                shard.file == shard_file(index) && shard.samples == samples
            });
        if !consistent {
            let found = "a list of shards that doesn't add up".to_owned();
            return Err(corrupt(found, "one that was packed"));
        }
        Ok(manifest)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String can't fail
    }
    text
}
