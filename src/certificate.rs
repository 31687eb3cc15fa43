//! The certificate of a job that is complete: `result.json` in its run directory.
//!
//! It says what was computed (the whole job file, and a digest of what the state depends on), from
//! which data, with which software, on what kind of device, and the digest of each checkpoint that
//! was kept: all that somebody else needs to compute the same bits again and compare. This room
//! writes and reads the file. It knows nothing of libtorch, of who trains, or of the ledger, and
//! it reads no clock.

use crate::config::{ConfigError, Job, Override, Precision, Reduction, StateKeys, parse};
use crate::ids::Step;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Its name in the run directory.
pub const FILE: &str = "result.json";

/// The newest format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// While it is being written.
const TEMPORARY: &str = ".result.json.tmp";

const WRITE: &str = "write";

/// A larger file is no certificate: one with 100,000 checkpoints has a quarter of this.
const MAX_BYTES: u64 = 64 << 20;

/// What can be wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The disk refused an operation.
    #[error("{path}: can't {operation} the job's certificate: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A later version wrote it.
    #[error(
        "{path}: the certificate has format {found}, this program knows up to {FORMAT}; use a newer one",
        path = path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is no certificate, or says what can't be.
    #[error(
        "{path}: no certificate that this program wrote: {detail}; expected the {FILE} of a job that is complete",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The job file in it is no job file.
    #[error("{0}")]
    Job(#[from] ConfigError),
    /// The job can't be written down.
    #[error("the job can't be written as TOML: {0}")]
    Toml(#[from] toml::ser::Error),
}

impl CertificateError {
    /// Whether the file, or its name, is wrong: trying again won't help.
    pub fn is_users(&self) -> bool {
        !matches!(self, CertificateError::Io { operation, .. } if *operation == WRITE)
    }
}

/// What a job has computed, from what, and with what: `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the job.
    pub name: String,
    /// Identity of the run.
    pub job_id: String,
    /// The job file with all defaults and overrides, TOML.
    pub job: String,
    /// SHA-256 of what the state depends on in it: [`job_sha256`].
    pub job_sha256: String,
    /// Identity of the packed data: [`crate::data::Manifest::digest`].
    pub data_sha256: String,
    /// What computed it. Bits may differ with other versions of libtorch.
    pub software: Software,
    /// What it was computed on. Bits may differ on other kinds.
    pub device: Device,
    /// Arithmetic of the networks.
    pub precision: Precision,
    /// How gradients were summed.
    pub reduction: Reduction,
    /// Whether only kernels computed it that give the same bits from run to run.
    #[serde(default = "deterministic")]
    pub deterministic: bool,
    /// Length of the job.
    pub steps: Step,
    /// The checkpoints that were kept, oldest first; the last is of the last step.
    pub checkpoints: Vec<Kept>,
    /// When the job was complete, seconds since 1970 (UTC).
    pub finished_unix_seconds: f64,
}

/// Of certificates from before there was a choice.
fn deterministic() -> bool {
    true
}

/// Versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// This program's.
    pub ganglion: String,
    /// Of the kernels.
    pub libtorch: String,
}

/// A kind of device: two that are equal give the same bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// `cpu` or `cuda`.
    pub kind: String,
    /// The processor's vector instructions, or the GPU's model.
    pub model: String,
}

/// A checkpoint that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Its step.
    pub step: Step,
    /// Where, relative to the certificate.
    pub path: String,
    /// SHA-256 of the training state: [`crate::checkpoint::digest`].
    pub digest: String,
}

/// The SHA-256 of what a job's state depends on, hex.
pub fn job_sha256(keys: &StateKeys) -> String {
    let mut hash = Sha256::new();
    hash.update(b"ganglion job 1\0");
    // Keys are in order, and JSON has one way to write each value.
    for (key, value) in keys {
        hash.update(format!("{key} = {value}\n"));
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}"); // writing to a String can't fail
    }
    text
}

impl Certificate {
    /// Writes `result.json` into `run_dir`. When it returns, all of it is on the disk; if it
    /// fails, what was there before is untouched.
    ///
    /// # Errors
    /// [`CertificateError::Io`], or [`CertificateError::Damaged`] if it would not be one that
    /// [`read`](Self::read) takes.
    pub fn write(&self, run_dir: &Path) -> Result<PathBuf, CertificateError> {
        let path = run_dir.join(FILE);
        self.check(&path)?;
        let failed = |source| CertificateError::Io {
            operation: WRITE,
            path: path.clone(),
            source,
        };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        let temporary = run_dir.join(TEMPORARY);
        let put = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(run_dir)?.sync_all()
        };
        put().map_err(|error| {
            // What is half written is in nobody's way, but it takes room.
            let _ = fs::remove_file(&temporary);
            failed(error)
        })?;
        Ok(path)
    }

    /// Reads a certificate, and checks that it agrees with itself.
    ///
    /// # Errors
    /// [`CertificateError`], which says what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, CertificateError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let failed = |source| CertificateError::Io {
            operation: "read",
            path: path.to_owned(),
            source,
        };
        let damaged = |detail: String| CertificateError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let mut text = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("it has more than {MAX_BYTES} bytes")));
        }
        // The format comes first: a later one may lack what is looked for next.
        let Version { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if format > FORMAT {
            return Err(CertificateError::NewerFormat {
                path: path.to_owned(),
                found: format,
            });
        }
        let certificate: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        certificate.check(path)?;
        Ok(certificate)
    }

    /// The job that it is about.
    ///
    /// # Errors
    /// [`CertificateError::Job`] when it can't be read, or the overrides don't fit it.
    pub fn job(&self, path: &Path, overrides: &[Override]) -> Result<Job, CertificateError> {
        let origin = format!("{}: job", path.display());
        Ok(parse(&self.job, &origin, Path::new("."), overrides)?)
    }

    /// Why nobody can compute these bits again, not even with the same software on the same devices;
    /// nothing for most jobs.
    pub fn irreproducible(&self) -> Option<&'static str> {
        // A CPU's kernels are deterministic anyway, and over TCP, which is all that CPUs have, sums
        // are always exact.
        if self.device.kind == "cpu" {
            return None;
        }
        if !self.deterministic {
            return Some(
                "the job was run with train.deterministic = false, which let libraries choose \
                 kernels by timing them and add in any order, so no two runs of it have the same \
                 bits; what its certificate says of them holds for that one run",
            );
        }
        if self.reduction == Reduction::Fast {
            return Some(
                "the job was run with train.reduction = \"fast\", which adds gradients in an order \
                 that depends on the workers and their machines, so its bits are not those of any \
                 other run; what its certificate says of them holds for that one run",
            );
        }
        None
    }

    /// Whether it agrees with itself.
    fn check(&self, path: &Path) -> Result<(), CertificateError> {
        let require = |holds: bool, detail: &dyn Fn() -> String| {
            if holds {
                return Ok(());
            }
            Err(CertificateError::Damaged {
                path: path.to_owned(),
                detail: detail(),
            })
        };
        require(self.format == FORMAT, &|| format!("format {}", self.format))?;
        let digests = [
            ("job_sha256", &self.job_sha256),
            ("data_sha256", &self.data_sha256),
        ];
        let kept = self.checkpoints.iter();
        for (what, digest) in digests
            .into_iter()
            .chain(kept.map(|kept| ("digest", &kept.digest)))
        {
            let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            require(digest.len() == 64 && digest.bytes().all(is_hex), &|| {
                format!("{what} is {digest:?}, no SHA-256")
            })?;
        }
        let steps = self.checkpoints.iter().map(|kept| kept.step.0);
        let order: Vec<u64> = [0].into_iter().chain(steps).collect();
        if let Some(pair) = order.windows(2).find(|pair| pair[0] >= pair[1]) {
            require(false, &|| {
                format!("a checkpoint of step {} after step {}", pair[1], pair[0])
            })?;
        }
        require(
            order.len() > 1 && order.last() == Some(&self.steps.0),
            &|| format!("no checkpoint of its last step, {}", self.steps),
        )?;
        let job = self.job(path, &[])?;
        let found = job_sha256(&job.state_keys());
        require(found == self.job_sha256, &|| {
            format!(
                "its job is not the one that was run: job_sha256 is {}, but the job's is {found}",
                self.job_sha256
            )
        })?;
        require(job.job.name == self.name, &|| {
            format!("its name is {:?}, its job's {:?}", self.name, job.job.name)
        })?;
        require(job.train.precision == self.precision, &|| {
            format!(
                "its precision is {}, its job's {}",
                self.precision, job.train.precision
            )
        })?;
        require(job.train.reduction == self.reduction, &|| {
            "its reduction is not its job's".to_owned()
        })?;
        require(job.train.deterministic == self.deterministic, &|| {
            format!(
                "its deterministic is {}, its job's {}",
                self.deterministic, job.train.deterministic
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "[job]\nname = \"j\"\n[data]\nuri = \"/d\"\n[train]\nsteps = 8\n";

    fn certificate() -> Certificate {
        let job = parse(JOB, "job", Path::new("/"), &[]).unwrap();
        let kept = |step, digit: &str| Kept {
            step: Step(step),
            path: format!("checkpoints/step-{step:08}"),
            digest: digit.repeat(64),
        };
        Certificate {
            format: FORMAT,
            name: "j".to_owned(),
            job_id: "7".to_owned(),
            job: toml::to_string(&job).unwrap(),
            job_sha256: job_sha256(&job.state_keys()),
            data_sha256: "0".repeat(64),
            software: Software {
                ganglion: "0.1.0".to_owned(),
                libtorch: "2.11.0".to_owned(),
            },
            device: Device {
                kind: "cpu".to_owned(),
                model: "avx2".to_owned(),
            },
            precision: Precision::F32,
            reduction: Reduction::Exact,
            deterministic: true,
            steps: Step(8),
            checkpoints: vec![kept(4, "a"), kept(8, "b")],
            finished_unix_seconds: 1e9 + 0.25,
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "older").unwrap();
        let path = certificate().write(folder.path()).unwrap();
        assert_eq!(Certificate::read(&path).unwrap(), certificate());
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 1, "nothing else is left");
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = certificate().write(folder.path()).unwrap();
        // The temporary file's name is taken by a folder.
        fs::create_dir(folder.path().join(TEMPORARY)).unwrap();
        let other = Certificate {
            job_id: "8".to_owned(),
            ..certificate()
        };
        let failed = other.write(folder.path()).unwrap_err();
        assert!(
            failed.to_string().contains(FILE) && !failed.is_users(),
            "{failed}"
        );
        assert_eq!(Certificate::read(&path).unwrap(), certificate());
    }

    /// The bits that it names hang on it: it must never change.
    #[test]
    fn the_digest_of_a_job_depends_on_all_that_its_state_depends_on_and_nothing_else() {
        let digest = |sets: &[&str]| {
            let overrides: Vec<Override> = sets.iter().map(|set| set.parse().unwrap()).collect();
            let job = parse(JOB, "job", Path::new("/"), &overrides).unwrap();
            job_sha256(&job.state_keys())
        };
        let plain = digest(&[]);
        assert_eq!(digest(&["train.steps=9", "checkpoint.keep_last=7"]), plain);
        assert_ne!(digest(&["train.batch=8"]), plain);
        assert_ne!(digest(&["optimizer.beta1=0.25"]), plain);
        let keys = StateKeys::from([
            ("a.b".to_owned(), 1.5.into()),
            ("a.c".to_owned(), "x".into()),
        ]);
        assert_eq!(
            job_sha256(&keys),
            "e8c0bd891f430588489e9bd7289e4924229bb98f761268f9d4ef607b4dbcd750"
        );
    }

    #[test]
    fn only_what_gpus_did_in_any_order_cannot_be_computed_again() {
        let on = |kind: &str, deterministic, reduction| {
            let device = Device {
                kind: kind.to_owned(),
                ..certificate().device
            };
            let certificate = Certificate {
                device,
                deterministic,
                reduction,
                ..certificate()
            };
            certificate.irreproducible()
        };
        for kind in ["cpu", "cuda"] {
            assert_eq!(on(kind, true, Reduction::Exact), None);
        }
        assert_eq!(on("cpu", false, Reduction::Fast), None);
        let why = on("cuda", false, Reduction::Exact).unwrap();
        assert!(why.contains("train.deterministic = false"), "{why}");
        let why = on("cuda", true, Reduction::Fast).unwrap();
        assert!(why.contains("train.reduction = \"fast\""), "{why}");
    }

    #[test]
    fn a_certificate_that_was_tampered_with_is_refused_and_says_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let good = serde_json::to_string(&certificate()).unwrap();
        let a = "a".repeat(64);
        let many = "[".repeat(100_000);
        let cases: &[(&str, &str, &str)] = &[
            ("\"format\":1", "\"format\":2", "format 2"),
            ("\"format\":1", "\"format\":0", "format 0"),
            ("\"job_id\"", "\"job_ib\"", "job_ib"),
            ("\"steps\":8", "\"steps\":-8", "invalid value"),
            (
                "\"steps\":8,",
                "\"steps\":9,",
                "no checkpoint of its last step, 9",
            ),
            ("\"step\":4", "\"step\":8", "step 8 after step 8"),
            ("\"step\":4", "\"step\":0", "step 0 after step 0"),
            (&a, "aa", "\"aa\", no SHA-256"),
            ("batch = 16", "batch = 8", "job_sha256"),
            ("batch = 16", "batch = 0", "train.batch"),
            ("batch = 16", "butch = 16", "butch"),
            ("\"name\":\"j\"", "\"name\":\"k\"", "\"k\""),
            ("\"f32\"", "\"f31\"", "f31"),
            (
                "\"deterministic\":true",
                "\"deterministic\":false",
                "its deterministic is false",
            ),
            ("{", "", ""),
            ("{", &many, ""),
        ];
        for (from, to, says) in cases {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            fs::write(&path, &text).unwrap();
            let refused = Certificate::read(&path).unwrap_err();
            assert!(refused.is_users());
            let message = refused.to_string();
            assert!(message.contains(FILE), "{message}");
            assert!(message.contains(says), "{message:?} lacks {says:?}");
        }
        let missing = Certificate::read(&folder.path().join("none.json")).unwrap_err();
        assert!(missing.is_users() && missing.to_string().contains("none.json"));
        let folder = Certificate::read(folder.path()).unwrap_err();
        assert!(folder.is_users(), "{folder}");
    }
}
