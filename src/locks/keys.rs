//! Keys and certificates, and what TLS makes of them.

use super::error::LockError;
use super::files::{self, Files, Watched};
use super::identity::Identities;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// A process's keys, as its files have them: what is made of them is for one connection, and the next
/// one has what the files hold then. TLS 1.3, and no session is resumed.
pub struct Keys(Watched<Material>);

/// What TLS is configured with.
pub(super) struct Material {
    pub(super) identities: Identities,
    /// The coordinator's end of gRPC, and the others'.
    pub(super) grpc_server: Arc<ServerConfig>,
    pub(super) grpc_client: Arc<ClientConfig>,
    /// Between workers, who are known by their part in the job and not by their hosts' names.
    peer_server: Arc<ServerConfig>,
    peer_client: Arc<ClientConfig>,
}

impl Keys {
    /// Reads the files.
    ///
    /// # Errors
    /// If one can't be read, holds something else, or certificate and key don't belong together.
    pub fn open(files: Files) -> Result<Self, LockError> {
        let paths = vec![files.ca.clone(), files.cert.clone(), files.key.clone()];
        Ok(Self(Watched::open(paths, move || Material::read(&files))?))
    }

    /// Whom this process's certificate is for.
    pub fn identities(&self) -> Identities {
        self.0.current().identities.clone()
    }

    /// For a worker that is called by another one.
    pub fn peer_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.current().peer_server)
    }

    /// For a worker that calls another one.
    pub fn peer_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.current().peer_client)
    }

    pub(super) fn current(&self) -> Arc<Material> {
        self.0.current()
    }
}

/// The files, and nothing that they hold.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys of {}", self.0.names())
    }
}

impl Material {
    fn read(files: &Files) -> Result<Self, LockError> {
        let roots = Arc::new(roots(files)?);
        let cert = files::read("--tls-cert", &files.cert)?;
        let wrong = |option, path: &std::path::Path, found: String, expected| LockError::Content {
            option,
            path: path.to_owned(),
            found,
            expected,
        };
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&cert).collect();
        let chain =
            chain
                .map_err(|error| error.to_string())
                .and_then(|chain| match chain.is_empty() {
                    true => Err("it holds none".to_owned()),
                    false => Ok(chain),
                });
        let chain = chain
            .map_err(|found| wrong("--tls-cert", &files.cert, found, "a certificate in PEM"))?;
        let key = files::read("--tls-key", &files.key)?;
        // The reason might show what it has read.
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
            let found = "it holds no private key".to_owned();
            wrong(
                "--tls-key",
                &files.key,
                found,
                "one in PEM, without a pass phrase",
            )
        })?;
        let pair = |error: Error| LockError::Pair {
            cert: files.cert.clone(),
            key: files.key.clone(),
            detail: error.to_string(),
        };
        let provider = Arc::new(ring::default_provider());
        let callers =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let callers = callers.build().map_err(|error| {
            wrong(
                "--tls-ca",
                &files.ca,
                error.to_string(),
                "a CA's certificate in PEM",
            )
        })?;
        let signed = Arc::new(Signed {
            roots: Arc::clone(&roots),
            algorithms: provider.signature_verification_algorithms,
        });
        if let Err(error) = acceptable(&chain, &*callers, &signed) {
            let path = files.cert.display();
            tracing::warn!("--tls-cert {path}: nobody will accept it by this --tls-ca: {error}");
        }
        let server = |protocol: &[u8]| server(&provider, &callers, &chain, &key, protocol);
        let client = |verifier: Option<Arc<Signed>>, protocol: &[u8]| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])?;
            let builder = match verifier {
                None => builder.with_root_certificates(Arc::clone(&roots)),
                Some(signed) => builder.dangerous().with_custom_certificate_verifier(signed),
            };
            let mut config = builder.with_client_auth_cert(chain.clone(), key.clone_key())?;
            config.alpn_protocols = vec![protocol.to_vec()];
            config.resumption = Resumption::disabled();
            Ok(Arc::new(config))
        };
        Ok(Self {
            identities: Identities::of(&chain[0]),
            grpc_server: server(GRPC).map_err(pair)?,
            grpc_client: client(None, GRPC).map_err(pair)?,
            peer_server: server(PEERS).map_err(pair)?,
            peer_client: client(Some(signed), PEERS).map_err(pair)?,
        })
    }
}

/// What is spoken within: HTTP/2, and between workers what `collective` defines.
const GRPC: &[u8] = b"h2";
const PEERS: &[u8] = b"ganglion-collective";

fn server(
    provider: &Arc<CryptoProvider>,
    callers: &Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(callers))
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn roots(files: &Files) -> Result<RootCertStore, LockError> {
    let wrong = |found: String| LockError::Content {
        option: "--tls-ca",
        path: files.ca.clone(),
        found,
        expected: "certificates of CAs in PEM",
    };
    let text = files::read("--tls-ca", &files.ca)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let added = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(added).map_err(|error| wrong(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(wrong("it holds none".to_owned())),
        false => Ok(roots),
    }
}

/// Whether others with the same CA would accept this certificate, of a caller or of one who is called.
fn acceptable(
    chain: &[CertificateDer<'_>],
    callers: &dyn ClientCertVerifier,
    called: &Signed,
) -> Result<(), Error> {
    let now = UnixTime::now();
    match callers.verify_client_cert(&chain[0], &chain[1..], now) {
        Ok(_) => Ok(()),
        Err(error) => called.check(&chain[0], &chain[1..], now).map_err(|_| error),
    }
}

/// Accepts whatever the CA has signed. Whom it is for is for the caller to check.
#[derive(Debug)]
struct Signed {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Signed {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            between,
            now,
            algorithms,
        )
    }
}

impl ServerCertVerifier for Signed {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate, between, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::certs::{self, for_tests};
    use super::super::identity::{Identity, Part};
    use super::*;
    use std::fs;

    #[test]
    fn keys_are_read_and_say_whom_they_are_for() {
        let place = for_tests("mnist");
        let keys = Keys::open(place.files(Part::Worker)).unwrap();
        let worker = Identity::new("mnist", Part::Worker);
        assert_eq!(keys.identities(), Identities::from_iter([worker]));
        let shown = format!("{keys:?}");
        assert!(
            shown.contains("worker") && !shown.contains("BEGIN"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_option_and_shows_no_key() {
        let place = for_tests("mnist");
        let good = place.files(Part::Worker);
        let secret = fs::read_to_string(&good.key).unwrap();
        let refused = |change: &dyn Fn(&mut Files)| {
            let mut files = good.clone();
            change(&mut files);
            let error = Keys::open(files).unwrap_err().to_string();
            for line in secret.lines() {
                assert!(!error.contains(line), "{error}");
            }
            error
        };
        let missing = refused(&|files| files.ca = "/nowhere/ca.pem".into());
        assert!(missing.contains("--tls-ca /nowhere/ca.pem"), "{missing}");
        let none = refused(&|files| files.ca = good.key.clone());
        assert!(
            none.contains("--tls-ca") && none.contains("holds none"),
            "{none}"
        );
        let no_cert = refused(&|files| files.cert = good.key.clone());
        assert!(no_cert.contains("--tls-cert"), "{no_cert}");
        let no_key = refused(&|files| files.key = good.cert.clone());
        assert!(no_key.contains("no private key"), "{no_key}");
        let other = refused(&|files| files.key = place.files(Part::Operator).key);
        assert!(other.contains("--tls-key"), "{other}");
    }

    #[test]
    fn a_new_certificate_is_taken_once_its_key_is_there_too() {
        let place = for_tests("mnist");
        let files = place.files(Part::Worker);
        let keys = Keys::open(files.clone()).unwrap();
        let before = keys.peer_server();
        assert!(Arc::ptr_eq(&before, &keys.peer_server()), "nothing changed");
        let other = for_tests("other");
        let new = other.files(Part::Worker);
        certs::replace(&new.cert, &files.cert);
        assert!(Arc::ptr_eq(&before, &keys.peer_server()), "half a change");
        certs::replace(&new.key, &files.key);
        assert!(!Arc::ptr_eq(&before, &keys.peer_server()));
        assert_eq!(keys.identities().job().as_deref(), Some("other"));
    }
}
