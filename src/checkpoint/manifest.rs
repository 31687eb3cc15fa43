//! The manifest: what a checkpoint holds, and what it came from.

use super::CheckpointError;
use super::state::sha256;
use crate::config::{Data, Model, StateKeys};
use crate::ids::{Epoch, Generation, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The newest format of checkpoints that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The manifest's file name.
pub(super) const FILE: &str = "manifest.json";

/// Stands in for the checksum while it is computed.
const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a checkpoint holds, and what it came from: `manifest.json`. Fields that this version
/// doesn't know are passed over when it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the checkpoint.
    pub format: u32,
    /// Name of the job.
    pub job: String,
    /// Identity of the run.
    pub job_id: String,
    /// The step that the state is after.
    pub step: Step,
    /// The epoch that the step belongs to.
    pub epoch: Epoch,
    /// The generation that wrote it. The state doesn't depend on it.
    pub generation: Generation,
    /// Identity of the training state: [`digest`](super::digest).
    pub digest: String,
    /// Identity of the packed data.
    pub data_digest: String,
    /// Where the data was, and how it was packed. Checkpoints of earlier versions don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// The job's keys that the state depends on.
    pub state_keys: StateKeys,
    /// The shape of the networks, for whoever loads them without the job file.
    pub model: Model,
    /// Whether `generator_ema` is among the files.
    pub ema: bool,
    /// Files of the checkpoint, by name.
    pub files: BTreeMap<String, FileInfo>,
    /// Versions of what computed it, by name. Bits may differ with other versions.
    pub software: BTreeMap<String, String>,
    /// The kind of device that computed it. Bits may differ on other kinds.
    pub device: String,
    /// When it was written, seconds since 1970 (UTC).
    pub created_unix_seconds: f64,
    /// SHA-256 of this manifest's text, with zeros for these 64 digits.
    pub checksum: String,
}

/// How a file is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, hex.
    pub sha256: String,
}

/// What the caller of [`Store::write`](super::Store::write) knows about a state: the fields of
/// [`Manifest`] that can't be computed from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Name of the job.
    pub job: String,
    /// Identity of the run.
    pub job_id: String,
    /// The epoch that the step belongs to.
    pub epoch: Epoch,
    /// The generation that writes it.
    pub generation: Generation,
    /// Identity of the packed data.
    pub data_digest: String,
    /// Where the data is, and how it is packed.
    pub data: Data,
    /// The job's keys that the state depends on: [`crate::config::Job::state_keys`].
    pub state_keys: StateKeys,
    /// The shape of the networks.
    pub model: Model,
    /// Whether the job keeps an average of the generator.
    pub ema: bool,
    /// Versions of what computed it, by name.
    pub software: BTreeMap<String, String>,
    /// The kind of device that computed it.
    pub device: String,
    /// Now, seconds since 1970 (UTC).
    pub created_unix_seconds: f64,
}

impl Manifest {
    /// Bytes of all files, the manifest left out.
    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    pub(super) fn new(
        about: &Description,
        step: Step,
        digest: String,
        files: BTreeMap<String, FileInfo>,
    ) -> Self {
        let about = about.clone();
        Self {
            format: FORMAT,
            job: about.job,
            job_id: about.job_id,
            step,
            epoch: about.epoch,
            generation: about.generation,
            digest,
            data_digest: about.data_digest,
            data: Some(about.data),
            state_keys: about.state_keys,
            model: about.model,
            ema: about.ema,
            files,
            software: about.software,
            device: about.device,
            created_unix_seconds: about.created_unix_seconds,
            checksum: NO_CHECKSUM.to_owned(),
        }
    }

    /// The manifest as text, sealed with its checksum.
    pub(super) fn seal(&self, path: &Path) -> Result<String, CheckpointError> {
        let unsealed = Self {
            checksum: NO_CHECKSUM.to_owned(),
            ..self.clone()
        };
        let text = serde_json::to_string_pretty(&unsealed)
            .map_err(|error| CheckpointError::io("encode", path, error.into()))?;
        Ok(seal(text + "\n"))
    }

    /// A manifest from its text. `path` is for messages.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Seal {
            format: u32,
            #[serde(default)]
            checksum: String,
        }
        // The format comes first: a later one may lack what is looked for next.
        let Seal { format, checksum } = serde_json::from_slice(text)
            .map_err(|error| CheckpointError::damaged(path, error.to_string()))?;
        if format > FORMAT {
            return Err(CheckpointError::NewerFormat {
                path: path.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        if !std::str::from_utf8(text).is_ok_and(|text| is_sealed(text, &checksum)) {
            return Err(CheckpointError::damaged(
                path,
                "its content doesn't agree with its checksum",
            ));
        }
        // What is sealed is as it was written: if it makes no sense here, it isn't damaged.
        let manifest =
            serde_json::from_slice(text).map_err(|error| CheckpointError::OtherVersion {
                path: path.to_owned(),
                detail: error.to_string(),
            })?;
        Ok(manifest)
    }
}

/// Puts the checksum of `text` where its zeros are.
pub(super) fn seal(text: String) -> String {
    let checksum = sha256(text.as_bytes());
    match text.rfind(NO_CHECKSUM) {
        Some(start) => [&text[..start], &checksum, &text[start + checksum.len()..]].concat(),
        None => text,
    }
}

/// Whether `checksum` is that of `text` with zeros in its place.
fn is_sealed(text: &str, checksum: &str) -> bool {
    if checksum.len() != NO_CHECKSUM.len() {
        return false;
    }
    text.rfind(checksum).is_some_and(|start| {
        let rest = &text[start + checksum.len()..];
        sha256([&text[..start], NO_CHECKSUM, rest].concat().as_bytes()) == checksum
    })
}

/// Reads the manifest of the checkpoint in the folder `dir`. Its files are not looked at.
///
/// # Errors
/// [`CheckpointError::NoCheckpoint`] if it is missing, or `dir` is no folder;
/// [`CheckpointError::Damaged`] if it is not what was written;
/// [`CheckpointError::NewerFormat`] or [`CheckpointError::OtherVersion`] if another version wrote
/// it and this one can't read it.
pub fn read_manifest(dir: &Path) -> Result<Manifest, CheckpointError> {
    let path = dir.join(FILE);
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => CheckpointError::NoCheckpoint {
            path: dir.to_owned(),
        },
        _ => unreadable(&path, error),
    })?;
    Manifest::parse(&path, &text)
}

/// The error of a file that can't be read: what is missing, or what the disk gave up on, is
/// damage to the checkpoint; what this user may not read is not.
pub(super) fn unreadable(path: &Path, error: io::Error) -> CheckpointError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => CheckpointError::io("read", path, error),
        io::ErrorKind::NotFound => CheckpointError::damaged(path, "it is missing"),
        _ => CheckpointError::damaged(path, format!("can't be read: {error}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Job, differences};
    use proptest::prelude::*;

    pub(in super::super) fn job(text: &str) -> Job {
        toml::from_str(&format!(
            "[job]\nname = \"tiny\"\n[data]\nuri = \"x\"\n[train]\nsteps = 10\n{text}"
        ))
        .unwrap()
    }

    pub(in super::super) fn about() -> Description {
        let job = job("");
        Description {
            job: "tiny".to_owned(),
            job_id: "0123".to_owned(),
            epoch: Epoch(2),
            generation: Generation(5),
            data_digest: "d".repeat(64),
            state_keys: job.state_keys(),
            data: job.data,
            model: job.model,
            ema: false,
            software: BTreeMap::from([("ganglion".to_owned(), "0.1.0".to_owned())]),
            device: "cpu".to_owned(),
            created_unix_seconds: 1_700_000_000.125,
        }
    }

    fn manifest() -> Manifest {
        let files = BTreeMap::from([(
            "generator.safetensors".to_owned(),
            FileInfo {
                bytes: 12,
                sha256: "a".repeat(64),
            },
        )]);
        Manifest::new(&about(), Step(3), "b".repeat(64), files)
    }

    fn parse(text: &str) -> Result<Manifest, CheckpointError> {
        Manifest::parse(Path::new("manifest.json"), text.as_bytes())
    }

    #[test]
    fn a_sealed_manifest_is_read_back() {
        let text = manifest().seal(Path::new("x")).unwrap();
        let read = parse(&text).unwrap();
        let checksum = read.checksum.clone();
        assert_eq!(
            read,
            Manifest {
                checksum,
                ..manifest()
            }
        );
        assert_eq!(read.seal(Path::new("x")).unwrap(), text, "stable order");
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let text = serde_json::to_string_pretty(&manifest()).unwrap();
        let extended = text.replacen('{', "{\n  \"mascot\": [\"ganglion\"],", 1);
        assert_eq!(parse(&seal(extended)).unwrap().step, Step(3));
    }

    #[test]
    fn a_later_format_is_refused_whatever_else_it_has() {
        let message = parse("{\"format\": 2}").unwrap_err().to_string();
        assert!(
            message.contains("format 2") && message.contains("use the version that wrote it"),
            "{message}"
        );
    }

    #[test]
    fn a_whole_manifest_of_another_version_is_not_called_damaged() {
        let text = serde_json::to_string_pretty(&manifest()).unwrap();
        let extended = text.replacen("\"latent\"", "\"attention\": true, \"latent\"", 1);
        let error = parse(&seal(extended)).unwrap_err();
        assert!(matches!(error, CheckpointError::OtherVersion { .. }));
        assert!(error.to_string().contains("attention"), "{error}");
    }

    #[test]
    fn a_changed_byte_of_a_manifest_is_noticed() {
        let text = manifest().seal(Path::new("x")).unwrap();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let refused = Manifest::parse(Path::new("manifest.json"), &bytes).unwrap_err();
                assert!(refused.to_string().contains("manifest.json"), "{refused}");
            }
        }
    }

    #[test]
    fn a_manifest_cut_short_is_noticed() {
        let text = manifest().seal(Path::new("x")).unwrap();
        for len in 0..text.len() {
            assert!(parse(&text[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_float_of_a_job_differs_from_its_own_checkpoint(rate in 1e-30f64..1e30) {
            let mut job = job("");
            job.optimizer.learning_rate = rate;
            let written = Manifest { state_keys: job.state_keys(), ..manifest() };
            let read = parse(&written.seal(Path::new("x")).unwrap()).unwrap();
            prop_assert_eq!(differences(&read.state_keys, &job.state_keys()), []);
        }
    }
}
