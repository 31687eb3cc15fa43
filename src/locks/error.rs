//! What can be wrong with keys, certificates, tokens, and where they are needed.

use super::identity::WrongIdentity;
use crate::proto::UrlError;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why a lock can't be used, or a door not be opened. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A file can't be read.
    #[error("{option} {path}: can't read it: {source}", path = path.display())]
    Read {
        /// Which option named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{option} {path}: {found}; expected {expected}", path = path.display())]
    Content {
        /// Which option named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Certificate and key don't work together.
    #[error(
        "--tls-cert {cert} and --tls-key {key} can't be used: {detail}",
        cert = cert.display(), key = key.display()
    )]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        detail: String,
    },
    /// The certificate is for something else.
    #[error("--tls-cert {path}: {source}", path = path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What it is for, and what it should be for.
        source: WrongIdentity,
    },
    /// Some of the three files are missing.
    #[error("--tls-ca, --tls-cert and --tls-key go together; {0} is missing")]
    Incomplete(&'static str),
    /// What is no coordinator's URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The URL and the keys contradict each other.
    #[error("--coordinator {url}: {}", match is_https {
        true => "https needs keys: --tls-ca, --tls-cert and --tls-key",
        false => "with --tls-ca, --tls-cert and --tls-key it must begin with https://",
    })]
    Scheme {
        /// As typed.
        url: String,
        /// Whether it says https.
        is_https: bool,
    },
    /// Everybody could come in.
    #[error(
        "listening on {address} {purpose} would let everybody in who can reach it: use TLS (--tls-ca, \
         --tls-cert, --tls-key; `gan-coord certs` makes some to try it) or a token (--token-file), or \
         say --insecure if the network keeps strangers out"
    )]
    Open {
        /// The address.
        address: IpAddr,
        /// What for.
        purpose: &'static str,
    },
}
