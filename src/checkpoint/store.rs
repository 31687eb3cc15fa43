//! A folder of checkpoints: writing one so that no crash leaves half of it in sight, finding the
//! newest whole one, and letting old ones go.

use super::disk::{Disk, FileSystem};
use super::manifest;
use super::reading::{SUFFIX, read};
use super::state::{self, Snapshot, digest};
use super::temporary::{Owner, Temporary};
use super::{CheckpointError, Description, FileInfo, Manifest, read_manifest};
use crate::faults::{self, Point};
use crate::ids::{Generation, Step};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The checkpoints of a run, usually `<run_dir>/checkpoints`.
///
/// A generation has one writer. One of a newer generation takes away what older ones have left half
/// written; an older one that doesn't know of it yet finds its traces, and then replaces and removes
/// nothing any more. Should several write the same state at a time, one whole checkpoint comes of
/// it. Readers need no care.
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

/// The link to the checkpoint that fared best.
const BEST: &str = "best";

/// Tries to write a checkpoint and to give it its name, when other writers come and go there.
const ATTEMPTS: u32 = 5;

/// What is where a checkpoint is to be.
enum Found {
    Nothing,
    /// A whole checkpoint of the same state.
    Same(Box<Manifest>),
    Damaged(CheckpointError),
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
    /// [`CheckpointError::Superseded`] if a newer generation than `about`'s has written here, and
    /// this write would need to replace something, or has been swept away;
    /// [`CheckpointError::DiskFull`] and [`CheckpointError::Io`] from the disk.
    pub fn write(
        &self,
        snapshot: &Snapshot,
        about: &Description,
    ) -> Result<Manifest, CheckpointError> {
        state::check(snapshot)?;
        let computed = digest(snapshot);
        self.create()?;
        let mut attempts = 1..ATTEMPTS;
        loop {
            self.sweep(about.generation);
            match self.found(snapshot.step, &computed)? {
                Found::Same(manifest) => return Ok(*manifest),
                // Before the work rather than after it.
                Found::Damaged(_) => {
                    self.check_newest(about.generation, &self.path(snapshot.step))?;
                }
                Found::Nothing => {}
            }
            let temporary = Temporary::new(&self.dir, snapshot.step, about.generation, "new");
            let written = self
                .fill(temporary.path(), snapshot, about, &computed)
                .and_then(|manifest| self.publish(&temporary, manifest, about.generation));
            let Err(error) = written else {
                return written;
            };
            if !is_missing(&error) || temporary.path().exists() {
                self.clear(temporary.path());
                return Err(error);
            }
            // A newer generation took the folder for what a crash had left. Maybe it has written
            // the same state by now; maybe it has left no trace yet, and is none the worse for
            // another attempt.
            self.check_newest(about.generation, temporary.path())?;
            if attempts.next().is_none() {
                return Err(error);
            }
        }
    }

    /// Gives the finished folder `temporary` its name, unless the same state has it already.
    fn publish(
        &self,
        temporary: &Temporary,
        manifest: Manifest,
        generation: Generation,
    ) -> Result<Manifest, CheckpointError> {
        let (step, target) = (manifest.step, self.path(manifest.step));
        for _ in 0..ATTEMPTS {
            match self.disk.rename(temporary.path(), &target) {
                Ok(()) => {
                    self.sync(&self.dir)?;
                    return Ok(manifest);
                }
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(CheckpointError::io("rename to it", &target, error)),
            }
            match self.found(step, &manifest.digest)? {
                // Another writer was quicker.
                Found::Same(manifest) => {
                    self.clear(temporary.path());
                    return Ok(*manifest);
                }
                Found::Damaged(error) => {
                    tracing::warn!(%error, "replacing a damaged checkpoint");
                    self.displace(step, generation)?;
                }
                Found::Nothing => {}
            }
        }
        let error = io::ErrorKind::ResourceBusy.into();
        Err(CheckpointError::io("rename to it", &target, error))
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

    /// The step of the checkpoint that `best` leads to, if it leads to one.
    pub fn best(&self) -> Option<Step> {
        let target = fs::read_link(self.dir.join(BEST)).ok()?;
        let step = step_of(target.to_str()?)?;
        self.path(step)
            .join(manifest::FILE)
            .is_file()
            .then_some(step)
    }

    /// Has `best`, a link beside the checkpoints, lead to that of `step`. It leads to the one before
    /// or to this one, whatever happens meanwhile.
    ///
    /// # Errors
    /// [`CheckpointError::Superseded`] if a newer generation has written here; [`CheckpointError::Io`]
    /// from the disk.
    pub fn name_best(&self, step: Step, generation: Generation) -> Result<(), CheckpointError> {
        let link = self.dir.join(BEST);
        if self.best() == Some(step) {
            return Ok(());
        }
        self.check_newest(generation, &link)?;
        let temporary = Temporary::new(&self.dir, step, generation, BEST);
        self.disk
            .link(Path::new(&folder_name(step)), temporary.path())
            .map_err(|error| CheckpointError::io("link", temporary.path(), error))?;
        if let Err(error) = self.disk.rename(temporary.path(), &link) {
            self.clear(temporary.path());
            return Err(CheckpointError::io("rename to it", &link, error));
        }
        self.sync(&self.dir)
    }

    /// Removes all checkpoints but the newest `keep_last`, those whose step is a multiple of
    /// `keep_every` (0: no such), and those that are `spared`, and says which went. One that is half
    /// removed is not in sight.
    ///
    /// `newest` is the caller's own newest, and `generation` the one that it writes for: what is
    /// newer than that is not the caller's to judge, and stays. `newest` always stays. What another
    /// retention has removed meanwhile is gone, and that is that.
    ///
    /// # Errors
    /// [`CheckpointError::Superseded`] if a newer generation has written here and there is something
    /// to remove; [`CheckpointError::Io`] from the disk.
    pub fn retain(
        &self,
        keep_last: u32,
        keep_every: u64,
        newest: Step,
        spared: &[Step],
        generation: Generation,
    ) -> Result<Vec<Step>, CheckpointError> {
        let mut found = self.list()?;
        found.retain(|(step, _)| *step <= newest);
        found.truncate(found.len().saturating_sub(keep_last.max(1) as usize));
        found.retain(|(step, _)| keep_every == 0 || !step.0.is_multiple_of(keep_every));
        found.retain(|(step, _)| !spared.contains(step));
        // Nothing to remove, nothing to ask.
        if let Some((_, path)) = found.first() {
            self.check_newest(generation, path)?;
        }
        let mut removed = Vec::new();
        for (step, path) in found {
            let temporary = Temporary::new(&self.dir, step, generation, "old");
            if self.take_away(&path, &temporary)? {
                removed.push(step);
            }
        }
        Ok(removed)
    }

    /// What is there of `step`, where the state `computed` is expected.
    fn found(&self, step: Step, computed: &str) -> Result<Found, CheckpointError> {
        let target = self.path(step);
        match target.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(Found::Nothing),
            Err(error) => return Err(CheckpointError::io("look for", &target, error)),
        }
        match read(&target) {
            Ok((manifest, _)) if manifest.digest == computed => Ok(Found::Same(Box::new(manifest))),
            Ok((manifest, _)) => Err(CheckpointError::TwoHistories {
                path: target,
                step,
                stored: manifest.digest,
                computed: computed.to_owned(),
            }),
            Err(
                error @ (CheckpointError::Damaged { .. } | CheckpointError::NoCheckpoint { .. }),
            ) => Ok(Found::Damaged(error)),
            Err(error) => Err(error),
        }
    }

    /// Takes a damaged checkpoint of `step` out of the way.
    fn displace(&self, step: Step, generation: Generation) -> Result<(), CheckpointError> {
        let target = self.path(step);
        self.check_newest(generation, &target)?;
        let temporary = Temporary::new(&self.dir, step, generation, "old");
        match self.disk.rename(&target, temporary.path()) {
            Ok(()) => {}
            // Somebody else did it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(CheckpointError::io("rename", &target, error)),
        }
        // Under this name nobody else changes it. If this writer slept since it found the damage, a
        // newer one may have put a whole checkpoint there.
        if read(temporary.path()).is_ok() && self.disk.rename(temporary.path(), &target).is_ok() {
            return Ok(());
        }
        self.clear(temporary.path());
        Ok(())
    }

    /// An error if a newer generation than this has written here: a writer that is superseded must
    /// leave `path` alone.
    fn check_newest(&self, generation: Generation, path: &Path) -> Result<(), CheckpointError> {
        let half_done = self
            .temporaries()
            .into_iter()
            .map(|(_, owner)| owner.generation);
        let whole = self.folders()?.into_iter().filter_map(|(_, path)| {
            // One that can't be read says nothing.
            Some(read_manifest(&path).ok()?.generation)
        });
        match half_done.chain(whole).max() {
            Some(newer) if newer > generation => Err(CheckpointError::Superseded {
                path: path.to_owned(),
                generation,
                newer,
            }),
            _ => Ok(()),
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
            faults::pass(Point::CheckpointWrite);
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

    /// Takes a folder out of sight, then away; false if it was gone. Once it has a name of this
    /// writer's, whoever was at work in it finds nothing to go on with, and can't publish half of
    /// it.
    fn take_away(&self, path: &Path, temporary: &Temporary) -> Result<bool, CheckpointError> {
        match self.disk.rename(path, temporary.path()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(CheckpointError::io("rename", path, error)),
        }
        self.clear(temporary.path());
        Ok(true)
    }

    /// Temporary folders, and whose they are.
    fn temporaries(&self) -> Vec<(PathBuf, Owner)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let owned = |entry: fs::DirEntry| {
            let owner = Owner::of(entry.file_name().to_str()?)?;
            Some((entry.path(), owner))
        };
        entries.filter_map(owned).collect()
    }

    /// Removes what older generations and this writer's own failures have left, unless a newer
    /// generation is at work. What can't be removed is not in anybody's way.
    fn sweep(&self, generation: Generation) {
        let mut left = self.temporaries();
        left.retain(|(_, owner)| owner.is_leftover(generation));
        let Some((first, _)) = left.first() else {
            return;
        };
        if let Err(error) = self.check_newest(generation, first) {
            tracing::warn!(%error, "temporary folders are not swept");
            return;
        }
        for (path, _) in left {
            let temporary = Temporary::new(&self.dir, Step(0), generation, "old");
            if let Err(error) = self.take_away(&path, &temporary) {
                tracing::warn!(%error, "a temporary folder stays; the next checkpoint will try again");
            }
        }
    }

    /// Removes a temporary folder, as far as it goes; or a temporary link, and not what it leads to.
    fn clear(&self, temporary: &Path) {
        let is_link = fs::symlink_metadata(temporary).is_ok_and(|found| found.is_symlink());
        let cleared = match fs::read_dir(temporary) {
            _ if is_link => self.disk.remove_file(temporary),
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

fn is_missing(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
#[path = "tests/store.rs"]
mod tests;
