//! A shard: a file of samples that are ready to use.
//!
//! ```text
//! offset  bytes
//!      0      8  "ganshard"
//!      8      4  format version            (all numbers are little-endian)
//!     12      4  channels
//!     16      4  side, pixels
//!     20      4  1 if samples have labels, else 0; and 2 more, if pixels are f32 and not bytes
//!     24      8  samples
//!     32         pixels  [samples, channels, side, side]
//!                labels  [samples] u32, if any
//! ```
//!
//! Readers map it into memory, so the page cache is the only copy that a machine keeps, however
//! many workers it runs. A mapped shard has passed its checksum.

use super::error::{DataError, io};
use super::manifest::{Element, FORMAT_VERSION, Shape, ShardInfo, hex};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const HEADER: usize = 32;

fn header(shape: &Shape, samples: u64, labels: bool) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(b"ganshard");
    let form = u32::from(labels) + 2 * u32::from(shape.element == Element::Float);
    let numbers = [FORMAT_VERSION, shape.channels, shape.size, form];
    for (place, number) in header[8..24].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    header[24..].copy_from_slice(&samples.to_le_bytes());
    header
}

/// Writes one shard, sample by sample; it holds no more than the labels in memory.
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    labels: Vec<u8>,
}

impl Writer {
    pub(super) fn create(
        path: PathBuf,
        shape: &Shape,
        samples: u64,
        labels: bool,
    ) -> Result<Self, DataError> {
        let file = File::create_new(&path).map_err(io("create it", &path))?;
        let mut writer = Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            hash: Sha256::new(),
            labels: Vec::new(),
        };
        writer.write(&header(shape, samples, labels))?;
        Ok(writer)
    }

    pub(super) fn push(&mut self, pixels: &[u8], label: Option<u32>) -> Result<(), DataError> {
        if let Some(label) = label {
            self.labels.extend(label.to_le_bytes());
        }
        self.write(pixels)
    }

    /// Writes the labels, waits until all is on disk, and returns the SHA-256.
    pub(super) fn finish(mut self) -> Result<String, DataError> {
        let labels = std::mem::take(&mut self.labels);
        self.write(&labels)?;
        self.file.flush().map_err(io("write it", &self.path))?;
        let file = self.file.get_ref();
        file.sync_all().map_err(io("write it", &self.path))?;
        Ok(hex(&self.hash.finalize()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hash.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(io("write it", &self.path))
    }
}

/// A shard in memory, verified.
pub struct Shard {
    map: Mmap,
    samples: u64,
    sample_bytes: usize,
    labels: bool,
}

/// One sample of a [`Shard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// `[channels, size, size]`, row-major; four bytes each, little-endian, if they are
    /// [`Element::Float`].
    pub pixels: &'a [u8],
    /// Its class, if the data set has labels.
    pub label: Option<u32>,
}

impl Shard {
    /// Maps `path` and checks length, header and checksum.
    pub(super) fn open(
        path: &Path,
        info: &ShardInfo,
        shape: &Shape,
        labels: bool,
    ) -> Result<Self, DataError> {
        let corrupt = |found: String, expected: String| DataError::Corrupt {
            path: path.to_owned(),
            found,
            expected,
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt("it is missing".to_owned(), "a shard".to_owned()));
            }
            file => file.map_err(io("open it", path))?,
        };
        let sample_bytes = shape.bytes();
        let label_bytes = if labels { 4 } else { 0 };
        let expected = (sample_bytes as u64 + label_bytes)
            .checked_mul(info.samples)
            .and_then(|bytes| bytes.checked_add(HEADER as u64))
            .filter(|&bytes| bytes < isize::MAX as u64)
            .ok_or_else(|| {
                let found = format!("its manifest says {} samples", info.samples);
                corrupt(found, "a size that fits in memory".to_owned())
            })?;
        let found = file.metadata().map_err(io("read it", path))?.len();
        if found != expected {
            let found = format!("it has {found} bytes");
            return Err(corrupt(found, expected.to_string()));
        }
        let map = map(&file).map_err(io("map it into memory", path))?;
        if map.len() as u64 != expected || map[..HEADER] != header(shape, info.samples, labels) {
            let expected = format!(
                "{} samples of {}×{}×{}",
                info.samples, shape.channels, shape.size, shape.size
            );
            return Err(corrupt("its header is another".to_owned(), expected));
        }
        let sha256 = hex(&Sha256::digest(&map[..]));
        if sha256 != info.sha256 {
            return Err(corrupt(
                format!("its SHA-256 is {sha256}"),
                info.sha256.clone(),
            ));
        }
        Ok(Self {
            map,
            samples: info.samples,
            sample_bytes,
            labels,
        })
    }

    /// How many samples it has.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The pixels of all samples, one after the other.
    pub fn pixels(&self) -> &[u8] {
        // Checked when the shard was opened, as in `sample`.
        &self.map[HEADER..][..self.samples as usize * self.sample_bytes]
    }

    /// One sample; `None` past the end.
    pub fn sample(&self, index: u64) -> Option<Sample<'_>> {
        if index >= self.samples {
            return None;
        }
        // Checked when the shard was opened: both products fit, and the map is that long.
        let index = index as usize;
        let pixels = &self.map[HEADER + index * self.sample_bytes..][..self.sample_bytes];
        let label = self.labels.then(|| {
            let labels = HEADER + self.samples as usize * self.sample_bytes;
            let bytes = &self.map[labels + index * 4..][..4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        });
        Some(Sample { pixels, label })
    }
}

/// memmap2 has no safe way to map a file: somebody else might change it underneath.
#[expect(unsafe_code, reason = "the one map of the data room")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the bytes behind the map must not change while it lives. A shard is written once,
    // under a folder that nobody else knows, and is never opened for writing after that folder got
    // its final name; packing again goes to a new folder and never renames over a full one. Taking
    // the folder away leaves the mapped file alive. (Somebody who writes into the cache by hand
    // breaks this; a truncated file then ends the process by SIGBUS.)
    unsafe { Mmap::map(file) }
}
