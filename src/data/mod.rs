//! The data room: from what `data.uri` names to batches of bytes.
//!
//! `source` lists and reads IDX files and folders of images; `pack` shuffles them once and
//! writes shards with a [`Manifest`]; [`Dataset`] opens those, checks each before its first use,
//! and knows the digest that identifies the data; [`Loader`] turns the spans that
//! [`plan`](crate::plan) deals into batches, ahead of the training thread. This room knows nothing
//! of tensors, workers or the network, and never decides who reads what.
#![deny(unsafe_code)]

mod error;
mod idx;
mod images;
mod jpeg;
mod loader;
mod manifest;
mod pack;
mod shard;
mod source;
#[cfg(test)]
mod tests;

pub use error::DataError;
pub use loader::{Loader, LoaderSettings, Next};
pub use manifest::{FORMAT_VERSION, Manifest, ShardInfo};
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

/// What one replica trains on in one step.
#[derive(Clone, PartialEq, Eq)]
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

/// The images of a batch.
#[derive(Clone, PartialEq, Eq)]
pub enum Pixels {
    /// `[batch, channels, size, size]`, row-major; 0 is black.
    Bytes(Vec<u8>),
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
        let source = Source::find(&job.data.uri)?;
        let folder = cache(job)?.join(pack::key(&source, &shape, shard_samples));
        if !folder.is_dir() {
            pack::pack(&source, &shape, shard_samples, &folder, progress)?;
        }
        let manifest = Manifest::read(&folder, &shape, shard_samples)?;
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

    /// Shape of a sample: channels, size, size.
    pub fn sample_shape(&self) -> [u32; 3] {
        [self.shape.channels, self.shape.size, self.shape.size]
    }

    /// Bytes of one sample: channels · size².
    pub fn sample_bytes(&self) -> usize {
        self.shape.bytes()
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
