//! The data room: from what `data.uri` names to batches of bytes.
//!
//! `source` lists and reads IDX files and folders of images; `pack` shuffles them once and
//! writes shards with a [`Manifest`]; [`Dataset`] opens those, checks each before its first use,
//! and knows the digest that identifies the data; [`Loader`] turns the spans that
//! [`plan`](crate::plan) deals into batches, ahead of the training thread. This room knows nothing
//! of tensors, workers or the network, and never decides who reads what.
#![deny(unsafe_code)]

mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod idx;
mod images;
mod jpeg;
mod loader;
mod manifest;
mod mixture;
mod pack;
mod shard;
mod source;
#[cfg(test)]
mod tests;

pub use error::DataError;
pub use loader::{Loader, LoaderSettings, Next};
pub use manifest::{Element, FORMAT_VERSION, Manifest, ShardInfo};
pub use mixture::Mixture;
pub use shard::{Sample, Shard};

use crate::config::Job;
use crate::ids::{Epoch, ReplicaId, Step};
use manifest::Shape;
use source::Source;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A packed data set. Its shards are mapped into memory, each verified before its first use.
pub struct Dataset {
    folder: PathBuf,
    manifest: Manifest,
    shape: Shape,
    digest: String,
    ignored: u64,
    /// Those used so far. Each has a lock of its own, so that it is verified once.
    shards: Vec<Mutex<Option<Arc<Shard>>>>,
}

/// The means over squares of `by` × `by` pixels, 0 … 255, of planes of `side` × `side` pixels.
pub(crate) fn averages(pixels: &[u8], side: usize, by: usize) -> impl Iterator<Item = f32> {
    let places = move || (0..side / by).flat_map(move |y| (0..side / by).map(move |x| (y, x)));
    pixels.chunks_exact(side * side).flat_map(move |plane| {
        places().map(move |(row, column)| {
            let rows = plane.chunks_exact(side).skip(row * by).take(by);
            let square = rows.flat_map(|row| &row[column * by..][..by]);
            let sum: u32 = square.map(|&value| u32::from(value)).sum();
            sum as f32 / (by * by) as f32
        })
    })
}

/// What one replica trains on in one step.
#[derive(Clone, PartialEq)]
pub struct Batch {
    /// The state that the step starts from.
    pub step: Step,
    /// The pass that it belongs to.
    pub epoch: Epoch,
    /// Whose batch it is.
    pub replica: ReplicaId,
    /// Its images.
    pub pixels: Pixels,
    /// One class a sample, if the data set has labels.
    pub labels: Option<Vec<u32>>,
}

/// The samples of a batch.
#[derive(Clone, PartialEq)]
pub enum Pixels {
    /// `[batch, channels, size, size]`, row-major; 0 is black.
    Bytes(Vec<u8>),
    /// The coordinates of points, `[batch, dimensions]`, row-major.
    Numbers(Vec<f32>),
    /// One number a sample: its place in the data set, all shards in the manifest's order. For who
    /// holds all of it.
    Places(Vec<i64>),
}

impl From<Vec<u8>> for Pixels {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl fmt::Debug for Pixels {
    /// Without the pixels: nobody reads megabytes of numbers in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Numbers(numbers) => write!(f, "{} numbers", numbers.len()),
            Self::Places(places) => write!(f, "{} places", places.len()),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("step", &self.step)
            .field("epoch", &self.epoch)
            .field("replica", &self.replica)
            .field("pixels", &self.pixels)
            .field("labels", &self.labels)
            .finish()
    }
}

impl Dataset {
    /// Opens the packed shards of `job.data` for the job's image size and channels. Packs them
    /// first if they aren't there yet; `progress` is then called with (done, total) images.
    ///
    /// # Errors
    /// [`DataError`], which names the file and what to do. Packing leaves nothing behind then.
    pub fn open(job: &Job, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, DataError> {
        let shape = Shape::of(job);
        let shard_samples = job.data.shard_samples;
        let source = Source::of(&job.data)?;
        let folder = cache(job)?.join(pack::key(&source, &shape, shard_samples));
        if !folder.is_dir() {
            pack::pack(&source, &shape, shard_samples, &folder, progress)?;
        }
        let manifest = Manifest::read(&folder, &shape, shard_samples)?;
        check_labels(job, &manifest)?;
        Ok(Self {
            digest: manifest.digest(),
            ignored: source.ignored,
            shards: manifest.shards.iter().map(|_| Mutex::default()).collect(),
            folder,
            manifest,
            shape,
        })
    }

    /// What was packed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder of the packed shards.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The SHA-256 that identifies the data, hex: [`Manifest::digest`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Files in the source that look like images but are of formats that aren't read, such as
    /// WebP: counted when the source was listed, and no part of the [`digest`](Self::digest).
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The samples of each shard: what a [`Plan`](crate::plan::Plan) is made from.
    pub fn shard_sizes(&self) -> Vec<u64> {
        let shards = self.manifest.shards.iter();
        shards.map(|shard| shard.samples).collect()
    }

    /// All samples of all shards.
    pub fn samples(&self) -> u64 {
        self.shard_sizes().iter().sum()
    }

    /// What samples consist of.
    pub fn element(&self) -> Element {
        self.shape.element
    }

    /// Shape of a sample: channels, size, size.
    pub fn sample_shape(&self) -> [u32; 3] {
        [self.shape.channels, self.shape.size, self.shape.size]
    }

    /// Bytes of one sample: channels · size² · bytes of an element.
    pub fn sample_bytes(&self) -> usize {
        self.shape.bytes()
    }

    /// The first `count` images as numbers in -1 … 1, averaged over squares of `by` × `by` pixels; from
    /// the beginning again, if there are fewer.
    ///
    /// # Shapes
    /// `[count, channels, size / by, size / by]`.
    ///
    /// # Errors
    /// As [`shard`](Self::shard).
    pub fn first_reduced(&self, count: usize, by: usize) -> Result<Vec<f32>, DataError> {
        let side = self.shape.size as usize;
        let mut values = Vec::new();
        let (mut number, mut index) = (0, 0);
        for _ in 0..count {
            let mut shard = self.shard(number)?;
            if index == shard.samples() {
                number = (number + 1) % self.shards.len() as u32;
                index = 0;
                shard = self.shard(number)?;
            }
            let Some(sample) = shard.sample(index) else {
                break;
            };
            index += 1;
            values.extend(averages(sample.pixels, side, by).map(|value| value / 127.5 - 1.0));
        }
        Ok(values)
    }

    /// A shard, verified. The first call reads all of it.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when it isn't what was packed, or isn't there.
    pub fn shard(&self, index: u32) -> Result<Arc<Shard>, DataError> {
        let number = index as usize;
        let (Some(place), Some(info)) = (self.shards.get(number), self.manifest.shards.get(number))
        else {
            return Err(DataError::Corrupt {
                path: self.folder.join(manifest::FILE),
                found: format!("it has {} shards", self.shards.len()),
                expected: format!("a shard {index}"),
            });
        };
        // A thread that died while it verified left nothing half done.
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = &*place {
            return Ok(Arc::clone(shard));
        }
        let path = self.folder.join(&info.file);
        let shard = Arc::new(Shard::open(&path, info, &self.shape, self.manifest.labels)?);
        *place = Some(Arc::clone(&shard));
        Ok(shard)
    }
}

/// Refuses data that a conditional model can't be told of.
fn check_labels(job: &Job, manifest: &Manifest) -> Result<(), DataError> {
    let model = &job.model;
    if !model.is_conditional() {
        return Ok(());
    }
    let refuse = |reason: String| {
        Err(DataError::Labels {
            uri: job.data.uri.clone(),
            reason,
        })
    };
    if !manifest.labels {
        return refuse(format!(
            "has no labels, and model.conditional = \"{}\" needs them; put images of a class into a \
             folder of their own, or a file of labels beside an IDX file",
            model.conditional
        ));
    }
    match manifest.classes {
        Some(classes) if classes > model.classes => refuse(format!(
            "has the labels 0 to {}, but model.classes = {}",
            classes - 1,
            model.classes
        )),
        _ => Ok(()),
    }
}

/// The folder that holds packed data sets, and what else is made from them once.
pub(crate) fn cache(job: &Job) -> Result<PathBuf, DataError> {
    let base = |variable| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    job.data
        .shard_folder
        .clone()
        .or_else(|| base("XDG_CACHE_HOME").map(|path| path.join("ganglion")))
        .or_else(|| base("HOME").map(|path| path.join(".cache").join("ganglion")))
        .ok_or(DataError::NoCache)
}
