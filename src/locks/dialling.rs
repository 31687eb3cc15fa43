//! Connections to the coordinator.

use super::Locks;
use super::identity::{Identities, Identity, Part, WrongIdentity};
use super::keys::Keys;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is nobody, or none who speaks TLS as wanted.
    #[error("{0}")]
    Io(String),
    /// It is another one.
    #[error("of what answers there, {0}")]
    Identity(WrongIdentity),
    /// The URL names no host.
    #[error("the URL names no host")]
    NoHost,
    /// The certificate of this process is for no job, or for several.
    #[error("--tls-cert: it is for {0}, expected a part in one job")]
    NoJob(Identities),
    /// What tonic says.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

/// Connects to the coordinator; with keys, only to that of the job that this process's certificate is
/// for, under the name that the URL gives it.
///
/// # Errors
/// [`DialError`], also when `within` has passed.
pub async fn dial(
    endpoint: Endpoint,
    locks: &Locks,
    within: Duration,
) -> Result<Channel, DialError> {
    let endpoint = endpoint.connect_timeout(within);
    let Some(keys) = locks.keys.clone() else {
        return Ok(endpoint.connect().await?);
    };
    let connector = tower::service_fn(move |uri: Uri| {
        let keys = Arc::clone(&keys);
        async move { Ok::<_, DialError>(TokioIo::new(connect(&uri, &keys).await?)) }
    });
    let connected = tokio::time::timeout(within, endpoint.connect_with_connector(connector));
    match connected.await {
        Ok(channel) => Ok(channel?),
        Err(_) => Err(DialError::Io(format!("no answer within {within:?}"))),
    }
}

async fn connect(uri: &Uri, keys: &Keys) -> Result<TlsStream<TcpStream>, DialError> {
    let host = uri.host().ok_or(DialError::NoHost)?;
    let host = host.trim_matches(['[', ']']);
    let material = keys.current();
    let job = material
        .identities
        .job()
        .ok_or_else(|| DialError::NoJob(material.identities.clone()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| DialError::Io(format!("{host} is no host's name")))?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await;
    let stream = stream.map_err(|error| DialError::Io(error.to_string()))?;
    // As for any connection: it is only slower without.
    let _ = stream.set_nodelay(true);
    let connector = TlsConnector::from(Arc::clone(&material.grpc_client));
    let stream = connector.connect(name, stream).await;
    let stream = stream.map_err(|error| DialError::Io(account(&error)))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let found = certificates.first().map(Identities::of).unwrap_or_default();
    found
        .demand(&Identity::new(&job, Part::Coordinator))
        .map_err(DialError::Identity)?;
    Ok(stream)
}

/// What went wrong with a TLS handshake, for people.
pub(super) fn account(error: &io::Error) -> String {
    let is_tls = |error: &io::Error| {
        let inner = error.get_ref()?;
        inner.downcast_ref::<rustls::Error>().cloned()
    };
    match is_tls(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "the other side speaks no TLS (it was started without --tls-ca, --tls-cert, --tls-key)"
                .to_owned()
        }
        Some(error) => format!("TLS: {error}"),
        None => error.to_string(),
    }
}
