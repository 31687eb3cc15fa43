//! What lies in files and may change there.

use super::error::LockError;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Where CA, certificate and key are: PEM, a chain in the order in which it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of those who may sign others'.
    pub ca: PathBuf,
    /// This process's certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The longest file that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// Reads a file that a person named.
pub(super) fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, LockError> {
    let failed = |source| LockError::Read {
        option,
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > LONGEST {
        return Err(LockError::Content {
            option,
            path: path.to_owned(),
            found: format!("it has {length} bytes"),
            expected: "a small file",
        });
    }
    fs::read(path).map_err(failed)
}

/// By what a change is seen. A secret that Kubernetes mounts changes by another file in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    file: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let about = fs::metadata(path).ok()?;
        Some(Self {
            modified: about.modified().ok(),
            length: about.len(),
            file: about.ino(),
        })
    }
}

/// What was read from files, read again when they have changed. If what is there then can't be used,
/// for it may be half of a change, what was read before stays, and it is tried again.
pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, LockError> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    stamps: Vec<Option<Stamp>>,
    newest: Arc<T>,
    /// What was logged of a change that can't be used.
    told: Option<String>,
}

impl<T> Watched<T> {
    pub(super) fn open(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, LockError> + Send + Sync + 'static,
    ) -> Result<Self, LockError> {
        // Before the files are read: what changes meanwhile is a change.
        let stamps = stamps(&paths);
        let newest = Arc::new(read()?);
        Ok(Self {
            paths,
            read: Box::new(read),
            state: Mutex::new(State {
                stamps,
                newest,
                told: None,
            }),
        })
    }

    /// As the files have it now.
    pub(super) fn current(&self) -> Arc<T> {
        let stamps = stamps(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stamps != stamps {
            match (self.read)() {
                Ok(new) => {
                    let names = self.names();
                    tracing::info!("{names} changed: new connections use what is there now");
                    state.newest = Arc::new(new);
                    state.stamps = stamps;
                    state.told = None;
                }
                Err(error) => {
                    let why = error.to_string();
                    if state.told.as_ref() != Some(&why) {
                        tracing::warn!("what was there before is used on: {why}");
                        state.told = Some(why);
                    }
                }
            }
        }
        Arc::clone(&state.newest)
    }

    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        names.join(", ")
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_and_a_broken_one_leaves_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let file = path.clone();
        let watched = Watched::open(vec![path.clone()], move || {
            let text = read("--number", &file)?;
            let text = String::from_utf8(text).unwrap();
            text.parse::<u32>().map_err(|error| LockError::Content {
                option: "--number",
                path: file.clone(),
                found: error.to_string(),
                expected: "a number",
            })
        })
        .unwrap();
        assert_eq!(*watched.current(), 1);
        for (text, expected) in [("22", 22), ("", 22), ("half", 22), ("333", 333)] {
            fs::write(&path, text).unwrap();
            assert_eq!(*watched.current(), expected, "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(*watched.current(), 333);
        // As long as the one before, and made at the same moment, for all that a clock can tell.
        fs::write(folder.path().join("other"), "444").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert_eq!(*watched.current(), 444);
    }
}
