//! The coordinator's door: what connects to its gRPC port, before the server hears of it.
//!
//! Whoever connects has to show within a deadline that they speak TLS, if there are keys, with a
//! certificate for this job, and HTTP/2. Who doesn't, however slow, costs one connection and one line in the log.

use super::dialling::account;
use super::identity::Identities;
use super::{Locks, Rates, WrongIdentity};
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
    // Not even by being slow shall one address take all the places.
    let most = u32::try_from(limits.connections / 2).unwrap_or(u32::MAX);
    let mut knocks = Rates::new(most, 4 * limits.handshake);
    let origin = tokio::time::Instant::now();
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
            if !knocks.take(peer.ip(), origin.elapsed()) {
                tracing::warn!(%peer, "closed a connection: too many come from this address");
                continue;
            }
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

#[cfg(test)]
mod tests {
    use super::super::certs::{TestKeys, for_tests};
    use super::super::identity::Part;
    use super::super::{DialError, Keys, dial};
    use super::*;
    use tokio_stream::StreamExt;

    const PATIENT: Duration = Duration::from_secs(60);
    const BRIEF: Limits = Limits {
        connections: 64,
        handshake: Duration::from_millis(300),
    };

    /// A door, and its address.
    async fn door(
        locks: Locks,
        limits: Limits,
    ) -> (ReceiverStream<io::Result<Connection>>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (receive(listener, locks, "mnist", limits), address)
    }

    fn locks(keys: Arc<Keys>) -> Locks {
        Locks {
            keys: Some(keys),
            ..Locks::default()
        }
    }

    async fn call(address: SocketAddr, bytes: &[u8]) -> usize {
        use tokio::io::AsyncWriteExt;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENT, stream.read_to_end(&mut answer)).await;
        read.unwrap().unwrap_or(0)
    }

    #[tokio::test]
    async fn only_what_speaks_http2_gets_through_and_the_rest_is_shown_out() {
        let (mut connections, address) = door(Locks::default(), BRIEF).await;
        for stranger in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0x16, 3, 1, 2, 0],
            &[0; 100],
            // Half of the preface, and then silence.
            &PREFACE[..12],
            b"",
        ] {
            assert_eq!(call(address, stranger).await, 0, "{stranger:?}");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let said = [&PREFACE[..], b"settings"].concat();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &said)
            .await
            .unwrap();
        let connection = tokio::time::timeout(PATIENT, connections.next()).await;
        let mut connection = connection.unwrap().unwrap().unwrap();
        assert_eq!(
            connection.connect_info().address,
            stream.local_addr().unwrap()
        );
        let mut heard = vec![0; said.len()];
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said, "the preface is there for the server too");
    }

    #[tokio::test]
    async fn one_address_can_not_take_all_the_places() {
        let limits = Limits {
            connections: 16,
            handshake: PATIENT,
        };
        let (mut connections, address) = door(Locks::default(), limits).await;
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // The ninth is closed at once, long before the deadline of the others.
        assert_eq!(call(address, &PREFACE).await, 0);
        drop(connections.next());
        drop(silent);
    }

    async fn dials(place: &TestKeys, part: Part, address: SocketAddr) -> Result<(), DialError> {
        let mine = locks(place.keys(part));
        let endpoint = mine
            .endpoint(&format!("https://localhost:{}", address.port()))
            .unwrap();
        dial(endpoint, &mine, PATIENT).await.map(drop)
    }

    #[tokio::test]
    async fn both_ends_look_at_the_others_certificate() {
        let place = for_tests("mnist");
        let limits = Limits {
            handshake: PATIENT,
            ..BRIEF
        };
        let (mut connections, address) = door(locks(place.keys(Part::Coordinator)), limits).await;
        dials(&place, Part::Worker, address).await.unwrap();
        let connection = tokio::time::timeout(PATIENT, connections.next()).await;
        let caller = connection.unwrap().unwrap().unwrap().connect_info();
        let worker = super::super::Identity::new("mnist", Part::Worker);
        assert!(caller.identities.unwrap().has(&worker));
        let error = dials(&for_tests("mnist"), Part::Worker, address).await;
        let error = crate::command::innermost(&error.unwrap_err());
        assert!(error.contains("UnknownIssuer"), "{error}");
        // A worker in the coordinator's place.
        let (_impostor, address) = door(locks(place.keys(Part::Worker)), limits).await;
        let endpoint = format!("https://127.0.0.1:{}", address.port());
        let mine = locks(place.keys(Part::Worker));
        let error = dial(mine.endpoint(&endpoint).unwrap(), &mine, PATIENT).await;
        assert!(error.is_err(), "and it has not even the host's name");
    }
}
