//! Reading a checkpoint, which is trusted in nothing.

use super::manifest::{self, unreadable};
use super::state::{self, Snapshot, TensorData, digest};
use super::{CheckpointError, FileInfo, Manifest, read_manifest};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How the files of a state end.
pub(super) const SUFFIX: &str = ".safetensors";

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
