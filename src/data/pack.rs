//! Packing: from a source to a folder of shards, once.
//!
//! The samples are put into one fixed random order (the same for every job, so that all jobs share
//! the shards), made square, and written shard by shard, on all cores, with one image a core in
//! memory. A folder gets its name when all of it is on disk: it is whole or invisible. Processes
//! that pack the same data at the same time don't wait for each other; who is last throws its own
//! work away. What a killed process left behind is taken over by the next.

use super::error::{DataError, io};
use super::manifest::{self, FORMAT_VERSION, Manifest, Shape, ShardInfo, shard_file};
use super::shard;
use super::source::{Samples, Source};
use crate::random::{Domain, Key};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// The name of the folder for `source` in the cache: 32 hex digits that change when a file, the
/// form of a sample, or the format does.
pub(super) fn key(source: &Source, shape: &Shape, shard_samples: u64) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(b"ganglion cache");
    part(&FORMAT_VERSION.to_le_bytes());
    part(&shape.channels.to_le_bytes());
    part(&shape.size.to_le_bytes());
    part(format!("{:?}", shape.fit).as_bytes());
    part(&shard_samples.to_le_bytes());
    if let Some(settings) = source.settings() {
        part(settings.as_bytes());
    }
    part(source.root.as_os_str().as_encoded_bytes());
    for file in &source.files {
        part(file.name.as_os_str().as_encoded_bytes());
        part(&file.bytes.to_le_bytes());
        part(&file.modified.to_le_bytes());
    }
    let mut key = manifest::hex(&hash.finalize());
    key.truncate(32);
    key
}

/// Packs `source` into `folder`, which is not there yet. If it is there at the end, because another
/// process was faster, that one is left as it is.
pub(super) fn pack(
    source: &Source,
    shape: &Shape,
    shard_samples: u64,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DataError> {
    let cache = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(cache).map_err(io("create it", cache))?;
    let unfinished = Unfinished::beside(folder)?;
    let samples = source.read()?;
    let manifest =
        Packing::new(&samples, *shape, shard_samples).write(&unfinished.path, progress)?;
    if !source.is_unchanged()? {
        return Err(DataError::Changed {
            path: source.root.clone(),
        });
    }

    let path = unfinished.path.join(manifest::FILE);
    let mut file = File::create_new(&path).map_err(io("create it", &path))?;
    serde_json::to_writer_pretty(&mut file, &manifest)
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(io("write it", &path))?;
    unfinished.publish(folder)
}

fn sync_folder(folder: &Path) -> Result<(), DataError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io("write it", folder))
}

/// A folder of our own, which is gone at the end unless it was published.
struct Unfinished {
    path: PathBuf,
    published: bool,
    /// Locked as long as we live: whoever can lock a folder knows that its owner is dead.
    _lock: File,
}

impl Unfinished {
    /// Makes a folder beside `folder`, or takes over one whose owner died.
    fn beside(folder: &Path) -> Result<Self, DataError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        // Numbers, for process ids tell nothing: in containers that share a cache, all are 1.
        for number in 0u32.. {
            let path = folder.with_file_name(format!(".{name}.unfinished-{number}"));
            let created = match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                created => created.map(|()| true).map_err(io("create it", &path))?,
            };
            if let Some(lock) = claim(&path, created)? {
                for leftover in fs::read_dir(&path).map_err(io("list it", &path))? {
                    let leftover = leftover.map_err(io("list it", &path))?.path();
                    fs::remove_file(&leftover).map_err(io("remove it", &leftover))?;
                }
                return Ok(Self {
                    path,
                    published: false,
                    _lock: lock,
                });
            }
        }
        Err(io("create it", folder)(ErrorKind::AlreadyExists.into()))
    }

    /// Gives the folder its final name, unless somebody else was faster.
    fn publish(mut self, folder: &Path) -> Result<(), DataError> {
        sync_folder(&self.path)?;
        match fs::rename(&self.path, folder) {
            Ok(()) => {
                // From now on somebody else may own the old name.
                self.published = true;
                sync_folder(folder.parent().unwrap_or(Path::new(".")))
            }
            Err(_) if folder.is_dir() => Ok(()),
            Err(error) => Err(io("give it its final name", &self.path)(error)),
        }
    }
}

/// Locks an unfinished folder; `None` when somebody else has it. Where the file system knows no
/// locks, a folder belongs to the one who created it.
fn claim(path: &Path, created: bool) -> Result<Option<File>, DataError> {
    let folder = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        folder => folder.map_err(io("open it", path))?,
    };
    let same = |found: fs::Metadata| {
        let ours = folder.metadata();
        ours.is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
    };
    let ours = match folder.try_lock() {
        // Its owner may have published it meanwhile: then the name is no longer this folder's.
        Ok(()) => fs::metadata(path).is_ok_and(same),
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => created,
    };
    Ok(ours.then_some(folder))
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("{}: can't remove it: {error}", self.path.display());
        }
    }
}

/// One more than the largest label.
fn classes(labels: &[u32]) -> u32 {
    let largest = labels.iter().copied().max().unwrap_or(0);
    largest.saturating_add(1)
}

struct Packing<'a> {
    samples: &'a Samples,
    shape: Shape,
    shard_samples: u64,
    /// The samples in their order over all shards.
    order: Vec<u64>,
}

impl<'a> Packing<'a> {
    fn new(samples: &'a Samples, shape: Shape, shard_samples: u64) -> Self {
        let mut order: Vec<u64> = (0..samples.count()).collect();
        Key::new(Domain::Packing, &[samples.count()])
            .stream()
            .shuffle(&mut order);
        Self {
            samples,
            shape,
            shard_samples,
            order,
        }
    }

    /// Writes all shards into `folder`. The first error stops every thread.
    fn write(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Manifest, DataError> {
        let shards: Vec<&[u64]> = self.order.chunks(self.shard_samples as usize).collect();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let total = self.samples.count();
        let (written, count) = mpsc::channel();
        progress(0, total);

        let work = |written: mpsc::Sender<()>| {
            let mut infos = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(samples) = shards.get(index) else {
                    break;
                };
                match self.shard(&folder.join(shard_file(index)), samples, &stop, &written) {
                    Ok(sha256) => infos.push((
                        index,
                        ShardInfo {
                            file: shard_file(index),
                            samples: samples.len() as u64,
                            sha256,
                        },
                    )),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(infos)
        };
        let results: Vec<Result<Vec<(usize, ShardInfo)>, DataError>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.min(shards.len()))
                .map(|_| {
                    let written = written.clone();
                    scope.spawn(|| work(written))
                })
                .collect();
            drop(written);
            for (done, ()) in (1..).zip(count) {
                progress(done, total);
            }
            workers
                .into_iter()
                .map(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        let mut shards = Vec::new();
        for result in results {
            shards.extend(result?);
        }
        shards.sort_by_key(|(index, _)| *index);
        Ok(Manifest {
            version: FORMAT_VERSION,
            channels: self.shape.channels,
            image_size: self.shape.size,
            element: self.shape.element,
            fit: self.shape.fit,
            shard_samples: self.shard_samples,
            samples: total,
            labels: self.samples.labels().is_some(),
            classes: self.samples.labels().map(classes),
            shards: shards.into_iter().map(|(_, info)| info).collect(),
        })
    }

    /// Writes one shard, and returns its SHA-256. When told to stop it returns early: somebody
    /// else has an error to report.
    fn shard(
        &self,
        path: &Path,
        samples: &[u64],
        stop: &AtomicBool,
        written: &mpsc::Sender<()>,
    ) -> Result<String, DataError> {
        let labels = self.samples.labels();
        let count = samples.len() as u64;
        let mut shard = shard::Writer::create(path.into(), &self.shape, count, labels.is_some())?;
        for &sample in samples {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let pixels = self.samples.pixels(sample, &self.shape)?;
            shard.push(&pixels, labels.map(|labels| labels[sample as usize]))?;
            let _ = written.send(()); // nobody counts: packing goes on
        }
        shard.finish()
    }
}
