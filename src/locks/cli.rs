//! What people say of locks.

use super::error::LockError;
use super::identity::{Identity, Part};
use super::{Files, Keys, Locks, Token};
use crate::command::Failure;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

/// Keys and tokens, as options.
#[derive(Clone, Debug, Default, Args)]
pub struct LockArgs {
    /// Certificates of the CAs that sign for this job (PEM). With --tls-cert and --tls-key, every
    /// connection is encrypted, and both ends check that the other has a part in the job.
    #[arg(long, env = "GAN_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// This program's certificate, for a part in the job (PEM); `gan-coord certs` makes some to try it.
    #[arg(long, env = "GAN_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "GAN_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// A file that holds a secret word, which all who talk to the coordinator must know.
    #[arg(long, env = "GAN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Variables that stand for the options.
pub const VARIABLES: [&str; 4] = [
    "GAN_TLS_CA",
    "GAN_TLS_CERT",
    "GAN_TLS_KEY",
    "GAN_TOKEN_FILE",
];

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        Self::wrong(error)
    }
}

impl LockArgs {
    /// Reads the files. The certificate must be for one of these parts: in `job`, if that is known
    /// already, or in one job.
    ///
    /// # Errors
    /// [`LockError`]
    pub fn open(&self, parts: &[Part], job: Option<&str>) -> Result<Locks, LockError> {
        let token = self.token_file.as_deref().map(Token::open).transpose()?;
        let keys = match self.files()? {
            None => None,
            Some(files) => {
                let path = files.cert.clone();
                let keys = Keys::open(files)?;
                check(&keys, parts, job).map_err(|source| LockError::Identity { path, source })?;
                Some(Arc::new(keys))
            }
        };
        Ok(Locks {
            keys,
            token: token.map(Arc::new),
        })
    }

    fn files(&self) -> Result<Option<Files>, LockError> {
        let lacking = |given: bool, option| match given {
            true => Ok(()),
            false => Err(LockError::Incomplete(option)),
        };
        match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(Files {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            })),
            (ca, cert, key) => {
                lacking(ca.is_some(), "--tls-ca")?;
                lacking(cert.is_some(), "--tls-cert")?;
                lacking(key.is_some(), "--tls-key")?;
                Ok(None)
            }
        }
    }

    /// The same for a process that this one starts. It shall not follow [`VARIABLES`] besides.
    pub fn arguments(&self) -> Vec<OsString> {
        [
            ("--tls-ca", &self.tls_ca),
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--token-file", &self.token_file),
        ]
        .into_iter()
        .filter_map(|(option, path)| Some([option.into(), path.clone()?.into_os_string()]))
        .flatten()
        .collect()
    }
}

fn check(
    keys: &Keys,
    parts: &[Part],
    job: Option<&str>,
) -> Result<(), super::identity::WrongIdentity> {
    let own = keys.identities();
    let fits = |part: &Part| match job {
        Some(job) => own.has(&Identity::new(job, *part)),
        None => own.job_as(*part).is_some() && own.job().is_some(),
    };
    if parts.iter().any(fits) {
        return Ok(());
    }
    let of = job.unwrap_or("<one job>");
    let expected: Vec<String> = parts
        .iter()
        .map(|part| Identity::new(of, *part).to_string())
        .collect();
    Err(own.other_than(&expected.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::super::certs::for_tests;
    use super::*;

    #[test]
    fn a_certificate_for_another_part_or_job_is_refused_before_anything_begins() {
        let place = for_tests("mnist");
        let files = place.files(Part::Worker);
        let arguments = LockArgs {
            tls_ca: Some(files.ca),
            tls_cert: Some(files.cert),
            tls_key: Some(files.key),
            token_file: None,
        };
        assert!(arguments.open(&[Part::Worker], None).is_ok());
        assert!(arguments.open(&[Part::Worker], Some("mnist")).is_ok());
        for (part, job, expected) in [
            (Part::Coordinator, None, "<one job>/coordinator"),
            (Part::Worker, Some("other"), "job/other/worker"),
        ] {
            let error = arguments.open(&[part], job).unwrap_err().to_string();
            assert!(error.contains("--tls-cert"), "{error}");
            assert!(error.contains("job/mnist/worker"), "{error}");
            assert!(error.ends_with(expected), "{error}");
        }
        assert_eq!(arguments.arguments().len(), 6);
        let half = LockArgs {
            tls_key: None,
            ..arguments
        };
        let error = half.open(&[Part::Worker], None).unwrap_err().to_string();
        assert!(error.ends_with("--tls-key is missing"), "{error}");
    }
}
