//! The coordinator's door: what connects to its gRPC port, before the server hears of it.
//!
//! Whoever connects has to show within a deadline that they speak TLS, if there are keys, with a
//! certificate for this job, and HTTP/2. Who doesn't, however slow, costs one connection and one line in the log.

use super::dialling::account;
use super::identity::Identities;
use super::{Locks, WrongIdentity};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What HTTP/2 begins with.
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections that have shown what they are and wait for the server.
const WAITING: usize = 64;

/// What a door lets in.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more is closed.
    pub connections: usize,
    /// For a connection to show what it is.
    pub handshake: Duration,
}

/// Receives connections for a server, until it takes no more. Clients' certificates must be for a part
/// in `job`.
pub fn receive(
    listener: TcpListener,
    locks: Locks,
    job: &str,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, connections) = mpsc::channel(WAITING);
    let job: Arc<str> = Arc::from(job);
    let places = Arc::new(Semaphore::new(limits.connections));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection; is the limit of open files too low?");
                    // The reason is not gone at once, and this must not become a busy loop.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                let most = limits.connections;
                tracing::warn!(%peer, "closed a connection: there are {most} others");
                continue;
            };
            let (sender, locks, job) = (sender.clone(), locks.clone(), Arc::clone(&job));
            tokio::spawn(async move {
                let greeted = greet(stream, peer, &locks, &job, place);
                match tokio::time::timeout(limits.handshake, greeted).await {
                    // Without a server there is nobody to tell.
                    Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
                    Ok(Err(stranger)) => tracing::warn!(%peer, "closed a connection: {stranger}"),
                    Err(_) => {
                        let handshake = limits.handshake;
                        tracing::warn!(%peer, "closed a connection: it said nothing of use within {handshake:?}");
                    }
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
enum Stranger {
    #[error("it ended: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("{0}")]
    Identity(#[from] WrongIdentity),
    #[error(
        "it speaks TLS, and this coordinator was started without --tls-ca, --tls-cert, --tls-key"
    )]
    UnwantedTls,
    #[error("it does not speak gRPC (HTTP/2)")]
    Garbage,
}

async fn greet(
    stream: TcpStream,
    peer: SocketAddr,
    locks: &Locks,
    job: &str,
    place: OwnedSemaphorePermit,
) -> Result<Connection, Stranger> {
    stream.set_nodelay(true)?;
    let mut caller = Caller {
        address: peer,
        identities: None,
    };
    let mut way = match &locks.keys {
        None => Way::Plain(stream),
        Some(keys) => {
            let acceptor = TlsAcceptor::from(Arc::clone(&keys.current().grpc_server));
            let stream = acceptor.accept(stream).await;
            let stream = stream.map_err(|error| Stranger::Tls(account(&error)))?;
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let identities = certificates.first().map(Identities::of).unwrap_or_default();
            identities.demand_job(job)?;
            caller.identities = Some(Arc::new(identities));
            Way::Tls(Box::new(stream))
        }
    };
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() {
        let read = way.read(&mut said[length..]).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        length += read;
        if said[..length] != PREFACE[..length] {
            let is_tls = said[0] == 0x16 && matches!(way, Way::Plain(_));
            return Err(match is_tls {
                true => Stranger::UnwantedTls,
                false => Stranger::Garbage,
            });
        }
    }
    Ok(Connection {
        way,
        replayed: 0,
        caller,
        _place: place,
    })
}

/// Who is at the other end of a request's connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where.
    pub address: SocketAddr,
    /// Whom the certificate is for; nothing without TLS.
    pub identities: Option<Arc<Identities>>,
}

/// A connection that has shown what it is.
pub struct Connection {
    way: Way,
    /// Bytes of the preface, which was read already, that the server was given.
    replayed: usize,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

enum Way {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if rest.is_empty() {
            return Pin::new(&mut self.way).poll_read(context, buffer);
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.replayed += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Way::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Way::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.way {
            Way::Plain(stream) => stream.is_write_vectored(),
            Way::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Plain(stream) => Pin::new(stream).poll_flush(context),
            Way::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Way::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
