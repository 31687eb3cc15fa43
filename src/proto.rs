//! The wire, as `proto/ganglion/v1` defines it.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "most of it is generated"
)]

use tonic::transport::Endpoint;

tonic::include_proto!("ganglion.v1");

/// The compiled descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/ganglion.v1.descriptors.bin"));

/// Without the secret, so that no log shows it.
impl std::fmt::Debug for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("generation", &self.generation)
            .field("rank", &self.rank)
            .field("checkpoint", &self.checkpoint)
            .field("total_steps", &self.total_steps)
            .finish_non_exhaustive()
    }
}

/// What is no coordinator's URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--coordinator {url}: expected a URL like http://coordinator:50051, or https:// with keys")]
pub struct UrlError {
    /// As typed.
    pub url: String,
}

/// The coordinator's end of the wire.
///
/// # Errors
/// [`UrlError`], if it is no URL, names no host, or another scheme than http and https.
pub fn endpoint(url: &str) -> Result<Endpoint, UrlError> {
    let wrong = || UrlError {
        url: url.to_owned(),
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| wrong())?;
    let uri = endpoint.uri();
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_known && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(endpoint)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::{Assignment, endpoint};

    #[test]
    fn an_assignment_does_not_show_its_secret() {
        let assignment = Assignment {
            secret: vec![0xab; 32],
            ..Assignment::default()
        };
        let shown = format!("{assignment:?}");
        assert!(
            !shown.contains("171") && !shown.contains("secret"),
            "{shown}"
        );
    }

    #[test]
    fn only_a_url_of_a_host_is_taken() {
        assert!(endpoint("http://127.0.0.1:50051").is_ok());
        assert!(endpoint("https://coordinator:50051").is_ok());
        for wrong in [
            "",
            "localhost",
            "127.0.0.1:50051",
            "ftp://host:1",
            "https://",
            "http://",
            "a b",
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong:?}");
        }
    }
}
