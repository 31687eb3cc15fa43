//! A folder of checkpoints: writing one so that no crash leaves half of it in sight, finding the
//! newest whole one, and letting old ones go.

use super::disk::{Disk, FileSystem};
use super::manifest::{self, unreadable};
use super::state::{self, Snapshot, TensorData, digest};
use super::{CheckpointError, Description, FileInfo, Manifest, read_manifest};
use crate::ids::Step;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SUFFIX: &str = ".safetensors";
/// Folders whose names begin so are being written or removed, or are what a crash left of that.
const TEMPORARY: &str = ".tmp-step-";

/// The checkpoints of a run, usually `<run_dir>/checkpoints`.
///
/// One writer at a time: [`write`](Self::write) and [`retain`](Self::retain) take away what they
/// find half written. A second writer makes one of the two fail, and harms nothing else. Readers
/// need no care.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

/// A checkpoint in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Store {
    /// The store in the folder `dir`, which the first [`write`](Self::write) creates.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(FileSystem), dir)
    }

    pub(super) fn on(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            disk,
        }
    }

    /// The folder of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder that the checkpoint of `step` has or would have.
    pub fn path(&self, step: Step) -> PathBuf {
        self.dir.join(folder_name(step))
    }

    /// Writes a checkpoint. When it returns, all of it is on the disk; if it fails, or the machine
    /// does, nothing of it is in sight and what was there before is untouched.
    ///
    /// If the same state is there already, that is as good. A damaged checkpoint of the same step
    /// is replaced.
    ///
    /// # Errors
    /// [`CheckpointError::TwoHistories`] if another state of the same step is there;
    /// [`CheckpointError::DiskFull`] and [`CheckpointError::Io`] from the disk.
    pub fn write(
        &self,
        snapshot: &Snapshot,
        about: &Description,
    ) -> Result<Manifest, CheckpointError> {
        state::check(snapshot)?;
        let computed = digest(snapshot);
        let target = self.path(snapshot.step);
        self.create()?;
        self.sweep();
        if let Some(manifest) = self.present(&target, snapshot.step, &computed)? {
            return Ok(manifest);
        }
        let temporary = self.temporary(snapshot.step, "new");
        let written = self
            .fill(&temporary, snapshot, about, &computed)
            .and_then(|manifest| {
                match self.disk.rename(&temporary, &target) {
                    Ok(()) => {}
                    // Another writer was quicker.
                    Err(error) if is_taken(&error) => {
                        return match self.present(&target, snapshot.step, &computed)? {
                            Some(manifest) => {
                                self.clear(&temporary);
                                Ok(manifest)
                            }
                            None => Err(CheckpointError::io("rename to it", &target, error)),
                        };
                    }
                    Err(error) => return Err(CheckpointError::io("rename to it", &target, error)),
                }
                self.sync(&self.dir)?;
                Ok(manifest)
            });
        if written.is_err() {
            self.clear(&temporary);
        }
        written
    }

    /// The checkpoints that are there, oldest first. They are not verified; what is being written
    /// or removed, and whatever else lies in the folder, is not among them.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if the folder can't be read. One that isn't there is empty.
    pub fn list(&self) -> Result<Vec<(Step, PathBuf)>, CheckpointError> {
        let mut found = self.folders()?;
        found.retain(|(_, path)| path.join(manifest::FILE).is_file());
        Ok(found)
    }

    /// The newest checkpoint that verifies. A damaged one is logged, and the one before it taken.
    ///
    /// # Errors
    /// What another version wrote, and a file that this user may not read, are no reason to fall
    /// back: somebody has to look.
    pub fn newest(&self) -> Result<Option<Stored>, CheckpointError> {
        for (step, path) in self.folders()?.into_iter().rev() {
            match read(&path) {
                Ok((manifest, _)) if manifest.step == step => {
                    return Ok(Some(Stored { path, manifest }));
                }
                Ok((manifest, _)) => tracing::warn!(
                    checkpoint = %path.display(),
                    step = %manifest.step,
                    "the folder's name and its manifest disagree on the step; trying the one before"
                ),
                Err(
                    error
                    @ (CheckpointError::Damaged { .. } | CheckpointError::NoCheckpoint { .. }),
                ) => {
                    tracing::warn!(%error, "a checkpoint is damaged; trying the one before");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Removes all checkpoints but the newest `keep_last` and those whose step is a multiple of
    /// `keep_every` (0: no such), and says which went. The newest always stays. One that is half
    /// removed is not in sight.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] from the disk.
    pub fn retain(&self, keep_last: u32, keep_every: u64) -> Result<Vec<Step>, CheckpointError> {
        let found = self.list()?;
        let old = found.len().saturating_sub(keep_last.max(1) as usize);
        let mut removed = Vec::new();
        for (step, path) in found.into_iter().take(old) {
            if keep_every > 0 && step.0.is_multiple_of(keep_every) {
                continue;
            }
            self.remove(step, &path)?;
            removed.push(step);
        }
        Ok(removed)
    }

    /// The checkpoint at `target`, if it is whole and holds the state `computed`. A damaged one is
    /// taken out of the way.
    fn present(
        &self,
        target: &Path,
        step: Step,
        computed: &str,
    ) -> Result<Option<Manifest>, CheckpointError> {
        match target.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(CheckpointError::io("look for", target, error)),
        }
        match read(target) {
            Ok((manifest, _)) if manifest.digest == computed => Ok(Some(manifest)),
            Ok((manifest, _)) => Err(CheckpointError::TwoHistories {
                path: target.to_owned(),
                step,
                stored: manifest.digest,
                computed: computed.to_owned(),
            }),
            Err(
                error @ (CheckpointError::Damaged { .. } | CheckpointError::NoCheckpoint { .. }),
            ) => {
                tracing::warn!(%error, "replacing a damaged checkpoint");
                self.remove(step, target)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the files and then the manifest into the new folder `temporary`.
    fn fill(
        &self,
        temporary: &Path,
        snapshot: &Snapshot,
        about: &Description,
        computed: &str,
    ) -> Result<Manifest, CheckpointError> {
        self.disk
            .create_folder(temporary)
            .map_err(|error| CheckpointError::io("create", temporary, error))?;
        let mut files = BTreeMap::new();
        for (name, tensors) in &snapshot.files {
            let file = format!("{name}{SUFFIX}");
            let bytes = state::encode(&file, tensors)?;
            self.put(&temporary.join(&file), &bytes)?;
            let info = FileInfo {
                bytes: bytes.len() as u64,
                sha256: state::sha256(&bytes),
            };
            files.insert(file, info);
        }
        let path = temporary.join(manifest::FILE);
        let text = Manifest::new(about, snapshot.step, computed.to_owned(), files).seal(&path)?;
        self.put(&path, text.as_bytes())?;
        self.sync(temporary)?;
        // What a reader will see, to the last bit of every float.
        Manifest::parse(&path, text.as_bytes())
    }

    fn put(&self, path: &Path, content: &[u8]) -> Result<(), CheckpointError> {
        self.disk
            .write(path, content)
            .map_err(|error| CheckpointError::io("write", path, error))
    }

    fn sync(&self, folder: &Path) -> Result<(), CheckpointError> {
        self.disk
            .sync_folder(folder)
            .map_err(|error| CheckpointError::io("sync", folder, error))
    }

    /// Creates the store's folder, if it isn't there.
    fn create(&self) -> Result<(), CheckpointError> {
        if self.dir.is_dir() {
            return Ok(());
        }
        self.disk
            .create_folders(&self.dir)
            .map_err(|error| CheckpointError::io("create", &self.dir, error))?;
        match self.dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync(parent),
            _ => Ok(()),
        }
    }

    /// Takes a checkpoint out of sight, then away.
    fn remove(&self, step: Step, path: &Path) -> Result<(), CheckpointError> {
        let temporary = self.temporary(step, "old");
        self.clear(&temporary);
        self.disk
            .rename(path, &temporary)
            .map_err(|error| CheckpointError::io("rename", path, error))?;
        self.clear(&temporary);
        Ok(())
    }

    /// Removes what crashes have left. What can't be removed is not in anybody's way.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                self.clear(&entry.path());
            }
        }
    }

    /// Removes a temporary folder, as far as it goes.
    fn clear(&self, temporary: &Path) {
        let cleared = match fs::read_dir(temporary) {
            Ok(mut entries) => entries
                .try_for_each(|entry| self.disk.remove_file(&entry?.path()))
                .and_then(|()| self.disk.remove_folder(temporary)),
            Err(error) => Err(error),
        };
        match cleared {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(
                folder = %temporary.display(),
                %error,
                "can't remove a temporary folder; the next checkpoint will try again"
            ),
            _ => {}
        }
    }

    fn temporary(&self, step: Step, what: &str) -> PathBuf {
        self.dir.join(format!(
            "{TEMPORARY}{:08}-{}-{what}",
            step.0,
            std::process::id()
        ))
    }

    /// Folders that are named like checkpoints, oldest first.
    fn folders(&self) -> Result<Vec<(Step, PathBuf)>, CheckpointError> {
        let failed = |error| CheckpointError::io("read", &self.dir, error);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let step = path
                .file_name()
                .and_then(|name| step_of(name.to_str()?))
                .filter(|_| path.is_dir());
            if let Some(step) = step {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }
}

fn folder_name(step: Step) -> String {
    format!("step-{:08}", step.0)
}

fn step_of(folder: &str) -> Option<Step> {
    let step = Step(folder.strip_prefix("step-")?.parse().ok()?);
    (folder_name(step) == folder).then_some(step)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Reads the checkpoint in the folder `dir` and verifies all of it: the manifest, every file's
/// length and SHA-256, and the state's digest.
///
/// # Errors
/// [`CheckpointError::Damaged`] names the first file that is not what was written;
/// [`CheckpointError::NoCheckpoint`] if there is no manifest at all.
pub fn read(dir: &Path) -> Result<(Manifest, Snapshot), CheckpointError> {
    let manifest = read_manifest(dir)?;
    let mut snapshot = Snapshot {
        step: manifest.step,
        files: BTreeMap::new(),
    };
    for (file, info) in &manifest.files {
        let name = state_name(dir, file)?;
        snapshot
            .files
            .insert(name.to_owned(), verified(&dir.join(file), info)?);
    }
    let computed = digest(&snapshot);
    if computed != manifest.digest {
        return Err(CheckpointError::damaged(
            &dir.join(manifest::FILE),
            format!(
                "it gives the state's digest as {}, but the files hold {computed}",
                manifest.digest
            ),
        ));
    }
    Ok((manifest, snapshot))
}

/// Reads and verifies one file of the checkpoint in the folder `dir`, such as `generator`.
///
/// # Errors
/// [`CheckpointError::NoSuchFile`] if the checkpoint has none of this name, otherwise as [`read`].
pub fn read_file(dir: &Path, file: &str) -> Result<(Manifest, Vec<TensorData>), CheckpointError> {
    let manifest = read_manifest(dir)?;
    let name = format!("{}{SUFFIX}", file.strip_suffix(SUFFIX).unwrap_or(file));
    let Some(info) = manifest.files.get(&name) else {
        let present: Vec<&str> = manifest.files.keys().map(String::as_str).collect();
        return Err(CheckpointError::NoSuchFile {
            path: dir.to_owned(),
            file: name,
            present: present.join(", "),
        });
    };
    state_name(dir, &name)?;
    let tensors = verified(&dir.join(&name), info)?;
    Ok((manifest, tensors))
}

/// `generator` of `generator.safetensors`. A manifest is not trusted to name other places.
fn state_name<'a>(dir: &Path, file: &'a str) -> Result<&'a str, CheckpointError> {
    file.strip_suffix(SUFFIX)
        .filter(|name| state::is_file_name(name))
        .ok_or_else(|| {
            CheckpointError::damaged(
                &dir.join(manifest::FILE),
                format!("{file:?} is no name for a file of a checkpoint"),
            )
        })
}

fn verified(path: &Path, info: &FileInfo) -> Result<Vec<TensorData>, CheckpointError> {
    let length = fs::metadata(path)
        .map_err(|error| unreadable(path, error))?
        .len();
    if length != info.bytes {
        return Err(CheckpointError::damaged(
            path,
            format!("{length} bytes, expected {}", info.bytes),
        ));
    }
    let bytes = fs::read(path).map_err(|error| unreadable(path, error))?;
    let found = state::sha256(&bytes);
    if found != info.sha256 {
        return Err(CheckpointError::damaged(
            path,
            format!("SHA-256 {found}, expected {}", info.sha256),
        ));
    }
    state::decode(path, &bytes)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
