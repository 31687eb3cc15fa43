//! Who may talk to whom: TLS on both sides' certificates, or a token that all share.
//!
//! A certificate says which part it is for in which job: `spiffe://ganglion/job/mnist/worker`
//! ([`Identity`]). Both ends of every connection check that the other's was signed by the CA, is valid
//! now, and is for the part that it plays here. Certificates and tokens come from files and are taken
//! anew when those change ([`Keys`], [`Token`]); connections that were made live on.
//!
//! `door` receives connections for the gRPC server, `dialling` makes them, `rates` says who knocks
//! too often, `certs` makes certificates for tests. This room knows nothing of jobs but their names,
//! and nothing of what is said once the door is open.

pub mod certs;
pub mod cli;
mod dialling;
mod door;
mod error;
mod files;
mod identity;
mod keys;
mod rates;
mod token;

pub use dialling::{DialError, dial};
pub use door::{Caller, Connection, Limits, receive};
pub use error::LockError;
pub use files::Files;
pub use identity::{Identities, Identity, Part, WrongIdentity};
pub use keys::Keys;
pub use rates::Rates;
pub use token::Token;

use std::net::IpAddr;
use std::sync::Arc;
use tonic::transport::Endpoint;

/// How this process's connections are locked. Clones are the same locks.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    /// For TLS, on all connections.
    pub keys: Option<Arc<Keys>>,
    /// What every request to the coordinator must carry.
    pub token: Option<Arc<Token>>,
}

impl Locks {
    /// The endpoint of a coordinator's URL, whose scheme must say whether there is TLS.
    ///
    /// # Errors
    /// [`LockError::Url`], or [`LockError::Scheme`].
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, LockError> {
        let endpoint = crate::proto::endpoint(url)?;
        let is_https = endpoint.uri().scheme_str() == Some("https");
        if is_https == self.keys.is_some() {
            return Ok(endpoint);
        }
        Err(LockError::Scheme {
            url: url.to_owned(),
            is_https,
        })
    }

    /// `request` with the token, if there is one.
    ///
    /// # Errors
    /// If the token can't be a header, which is checked when it is read.
    pub fn sign<T>(&self, request: T) -> Result<tonic::Request<T>, tonic::Status> {
        let mut request = tonic::Request::new(request);
        if let Some(token) = &self.token {
            let header = token.header().map_err(|error| {
                tonic::Status::unauthenticated(format!("the token can't be sent: {error}"))
            })?;
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }

    /// Whether this process may listen on an address that others can reach. What is doubtful is
    /// logged.
    ///
    /// # Errors
    /// [`LockError::Open`] without any lock, unless that is what was asked for.
    pub fn check_listening(
        &self,
        address: IpAddr,
        purpose: &'static str,
        insecure: bool,
    ) -> Result<(), LockError> {
        if self.keys.is_some() || address.to_canonical().is_loopback() {
            return Ok(());
        }
        if self.token.is_some() {
            tracing::warn!(
                "without TLS, tokens and everything else {purpose} pass {address}'s network in clear"
            );
            return Ok(());
        }
        if insecure {
            tracing::warn!(
                "--insecure: whoever reaches {address} can take part in the job, read it and stop it"
            );
            return Ok(());
        }
        Err(LockError::Open { address, purpose })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_wants_a_lock_or_the_word_insecure() {
        let locks = Locks::default();
        let check = |address: &str, insecure| {
            locks.check_listening(address.parse().unwrap(), "for workers", insecure)
        };
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(check(loopback, false).is_ok(), "{loopback}");
        }
        for open in ["0.0.0.0", "::", "10.1.2.3", "::ffff:10.0.0.1"] {
            let error = check(open, false).unwrap_err().to_string();
            for needle in [open, "--tls-ca", "--token-file", "--insecure"] {
                assert!(error.contains(needle), "{error}");
            }
            assert!(check(open, true).is_ok(), "{open}");
        }
    }

    #[test]
    fn the_scheme_says_whether_there_is_tls() {
        let open = Locks::default();
        assert!(open.endpoint("http://host:1").is_ok());
        let error = open.endpoint("https://host:1").unwrap_err().to_string();
        assert!(error.contains("--tls-ca"), "{error}");
        let locked = Locks {
            keys: Some(certs::for_tests("mnist").keys(Part::Worker)),
            ..Locks::default()
        };
        assert!(locked.endpoint("https://host:1").is_ok());
        let error = locked.endpoint("http://host:1").unwrap_err().to_string();
        assert!(error.contains("https://"), "{error}");
        assert!(locked.endpoint("host:1").is_err());
    }
}
