//! A CA for tests and trials, and what it signs: `gan-coord certs`.
//!
//! On a cluster others do this (cert-manager, in `deploy/kubernetes/overlays/mtls`); nothing else in
//! this program depends on who it was.

use super::identity::{Identity, Part};
use crate::command::{Failure, print};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// What coordinators are called where nobody says otherwise.
const HOSTS: [&str; 4] = ["localhost", "127.0.0.1", "::1", "gan-coord"];

/// Clocks differ: what is made now was valid a little earlier.
const SKEW: Duration = Duration::from_secs(3600);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// From when on.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// A CA that lives in memory: who has it can sign as long as this process lives, and nobody after.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one, of a name that no other one has: who is shown a certificate of another one shall see
    /// that.
    ///
    /// # Errors
    /// What the library says; keys are made by the system's randomness.
    pub fn new(name: &str, valid: Validity) -> Result<Self, rcgen::Error> {
        let number = getrandom::u64().map_err(|_| rcgen::Error::RingUnspecified)?;
        let mut params = params(&format!("{name} {number:016x}"), valid);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Its own certificate, PEM.
    pub fn cert(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these parts, which a server shows under `hosts`: names or addresses.
    ///
    /// # Errors
    /// If a host is neither.
    pub fn issue(
        &self,
        identities: &[Identity],
        hosts: &[String],
        valid: Validity,
    ) -> Result<Issued, rcgen::Error> {
        let parts: Vec<&str> = identities.iter().map(|of| of.part.as_str()).collect();
        let mut params = params(&parts.join("+"), valid);
        for identity in identities {
            let uri = identity.to_string().as_str().try_into()?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        Ok(Issued {
            cert: params.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn params(name: &str, valid: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("ganglion {name}"));
    params.not_before = OffsetDateTime::from(valid.from);
    params.not_after = OffsetDateTime::from(valid.until);
    params
}

/// `gan-coord certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// Where they go; the folder is made if it isn't there.
    folder: PathBuf,
    /// The name of the job that they are for, as in the job file.
    #[arg(long, value_name = "NAME")]
    job: String,
    /// A name or an address under which the coordinator is reached, besides localhost and gan-coord.
    /// May be repeated.
    #[arg(long, value_name = "NAME")]
    coordinator_host: Vec<String>,
    /// How long they are valid.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// Write over what is there.
    #[arg(long)]
    force: bool,
}

/// Files besides the CA's, and whom they are for. The last one is for a whole job on one machine.
const PARTS: [(&str, &[Part]); 4] = [
    ("coordinator", &[Part::Coordinator]),
    ("worker", &[Part::Worker]),
    ("operator", &[Part::Operator]),
    ("local", &Part::ALL),
];

impl CertsArgs {
    /// Makes them, and says what it has written.
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.job.is_empty() || !self.job.chars().all(plain) {
            return Err(Failure::wrong(format!(
                "--job {:?}: expected a job's name: letters, digits, '.', '_' or '-'",
                self.job
            )));
        }
        let place = self.folder.display();
        let written = self.files();
        if !self.force
            && let Some(there) = written.iter().find(|path| path.exists())
        {
            return Err(Failure::wrong(format!(
                "{} is there already; name another folder, or say --force to replace what is there",
                there.display()
            )));
        }
        fs::create_dir_all(&self.folder)
            .map_err(|error| Failure::wrong(format!("{place}: can't make it: {error}")))?;
        make(&self.folder, &self.job, &self.coordinator_host, self.days)?;
        print(&format!(
            "made in {place}, for job {:?}, valid for {} days:\n  \
             ca.pem                          whom all trust; its key was thrown away\n  \
             coordinator.pem -key.pem        gan-coord serve\n  \
             worker.pem      -key.pem        gan-worker train\n  \
             operator.pem    -key.pem        gan-coord status, stop\n  \
             local.pem       -key.pem        gan-coord run, which is all of these\n\
             Give each program --tls-ca ca.pem and --tls-cert, --tls-key of its part.\n",
            self.job, self.days
        ))
    }

    fn files(&self) -> Vec<PathBuf> {
        let parts = PARTS
            .iter()
            .flat_map(|(name, _)| [format!("{name}.pem"), format!("{name}-key.pem")]);
        let names = std::iter::once("ca.pem".to_owned()).chain(parts);
        names.map(|name| self.folder.join(name)).collect()
    }
}

/// Makes a CA and one certificate for each part.
fn make(folder: &Path, job: &str, hosts: &[String], days: u16) -> Result<(), Failure> {
    let failed = |error: rcgen::Error| {
        Failure::wrong(format!("--coordinator-host {}: {error}", hosts.join(", ")))
    };
    let valid = from_now(Duration::from_secs(86_400 * u64::from(days)));
    let ca = Authority::new("test CA", valid).map_err(failed)?;
    write(&folder.join("ca.pem"), &ca.cert(), 0o644)?;
    let hosts: Vec<String> = HOSTS
        .into_iter()
        .map(str::to_owned)
        .chain(hosts.iter().cloned())
        .collect();
    for (name, parts) in PARTS {
        let identities: Vec<_> = parts.iter().map(|part| Identity::new(job, *part)).collect();
        let serves = parts.contains(&Part::Coordinator);
        let issued = ca.issue(&identities, if serves { &hosts } else { &[] }, valid);
        let issued = issued.map_err(failed)?;
        write(&folder.join(format!("{name}-key.pem")), &issued.key, 0o600)?;
        write(&folder.join(format!("{name}.pem")), &issued.cert, 0o644)?;
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates are valid by the world's clock"
)]
fn from_now(length: Duration) -> Validity {
    let now = SystemTime::now();
    Validity {
        from: now - SKEW,
        until: now + length,
    }
}

/// Writes a file whole or not at all, and never with other rights than these.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let failed = |error| Failure::failed(format!("{}: can't write it: {error}", path.display()));
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    // What an earlier attempt left may have other rights.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(&new);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed)
}

/// Keys in a folder of their own.
#[cfg(test)]
pub(crate) struct TestKeys(tempfile::TempDir);

#[cfg(test)]
pub(crate) fn for_tests(job: &str) -> TestKeys {
    let folder = tempfile::tempdir().unwrap();
    if make(folder.path(), job, &[], 1).is_err() {
        panic!("no keys in {}", folder.path().display());
    }
    TestKeys(folder)
}

#[cfg(test)]
impl TestKeys {
    pub(crate) fn files(&self, part: Part) -> super::Files {
        let name = |name: &str| self.0.path().join(name);
        super::Files {
            ca: name("ca.pem"),
            cert: name(&format!("{}.pem", part.as_str())),
            key: name(&format!("{}-key.pem", part.as_str())),
        }
    }

    pub(crate) fn keys(&self, part: Part) -> std::sync::Arc<super::Keys> {
        std::sync::Arc::new(super::Keys::open(self.files(part)).unwrap())
    }
}

/// As a rotation does it: another file in the place of the one that is there.
#[cfg(test)]
pub(crate) fn replace(from: &Path, to: &Path) {
    let new = to.with_extension("rotated");
    fs::copy(from, &new).unwrap();
    fs::rename(&new, to).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn args(folder: &Path) -> CertsArgs {
        CertsArgs {
            folder: folder.to_owned(),
            job: "mnist".to_owned(),
            coordinator_host: vec!["coord.example".to_owned(), "10.0.0.7".to_owned()],
            days: 2,
            force: false,
        }
    }

    #[test]
    fn what_is_there_is_kept_and_keys_are_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        assert!(args.run().is_ok());
        let read = || {
            args.files()
                .iter()
                .map(|path| fs::read(path).unwrap())
                .collect::<Vec<_>>()
        };
        let before = read();
        for path in args.files() {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let is_key = path.to_str().unwrap().contains("-key");
            assert_eq!(mode & 0o077 == 0, is_key, "{} {mode:o}", path.display());
        }
        assert!(args.run().is_err());
        assert_eq!(read(), before);
        let forced = CertsArgs {
            force: true,
            ..args
        };
        assert!(forced.run().is_ok());
        assert_ne!(fs::read(folder.path().join("ca.pem")).unwrap(), before[0]);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            9,
            "nothing half made"
        );
    }

    #[test]
    fn a_name_that_no_job_has_and_a_host_that_can_not_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for job in ["", "a/b", "ü"] {
            let wrong = CertsArgs {
                job: job.to_owned(),
                ..args(folder.path())
            };
            assert!(wrong.run().is_err(), "{job:?}");
        }
        let wrong = CertsArgs {
            coordinator_host: vec!["hö st".to_owned()],
            ..args(folder.path())
        };
        assert!(wrong.run().is_err());
    }
}
