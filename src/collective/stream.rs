//! A connection between two workers: as it is, or within TLS.
//!
//! One thread reads and others write, at the same time and through the same reference. Within TLS both
//! share the state of the connection, but nobody holds it while waiting for the network: a reader takes
//! bytes from the socket first and decrypts then, a writer encrypts first and puts bytes into the socket
//! then. So two workers that send each other more than the network holds still read.

use super::limit::Limit;
use crate::locks::{Identities, Identity, Keys, Part};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that are taken from the network at once: some records.
const AT_ONCE: usize = 64 << 10;

/// How a worker locks its connections with others.
#[derive(Clone, Debug)]
pub struct Lock(pub Arc<Keys>);

/// A connection with a peer.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// One within TLS.
pub(super) struct Tls {
    socket: TcpStream,
    /// Held for as long as it takes to encrypt or to decrypt what is there.
    connection: Mutex<Connection>,
    /// Bytes from the network that are not decrypted yet. Held by who reads.
    incoming: Mutex<Incoming>,
    /// Encrypted bytes, used again and again. Held by who writes, so that records keep their order.
    outgoing: Mutex<Vec<u8>>,
}

struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// The end of who called.
    ///
    /// # Errors
    /// If the peer speaks no TLS, or its certificate is not that of a worker of this one's job.
    pub(super) fn calling(
        socket: TcpStream,
        lock: Option<&Lock>,
        limit: &Limit,
    ) -> io::Result<Self> {
        let Some(Lock(keys)) = lock else {
            return Ok(Self::Plain(socket));
        };
        // A worker is known by its part in the job, and no name is checked.
        let nobody = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let connection =
            ClientConnection::new(keys.peer_client(), nobody).map_err(io::Error::other)?;
        Tls::greet(socket, connection.into(), keys, limit)
    }

    /// The end of who was called.
    ///
    /// # Errors
    /// As [`calling`](Self::calling).
    pub(super) fn called(
        socket: TcpStream,
        lock: Option<&Lock>,
        limit: &Limit,
    ) -> io::Result<Self> {
        let Some(Lock(keys)) = lock else {
            return Ok(Self::Plain(socket));
        };
        let connection = ServerConnection::new(keys.peer_server()).map_err(io::Error::other)?;
        Tls::greet(socket, connection.into(), keys, limit)
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    pub(super) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket().set_nodelay(nodelay)
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket().set_read_timeout(timeout)
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket().set_write_timeout(timeout)
    }

    /// Ends one or both ways. It waits for nobody when it ends both, not even for a writer.
    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let (Self::Tls(tls), Shutdown::Write) = (self, how) {
            tls.say_goodbye()?;
        }
        self.socket().shutdown(how)
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => (&*socket).read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => (&*socket).write(bytes),
            Stream::Tls(tls) => tls.write(bytes).map(|()| bytes.len()),
        }
    }

    /// What was written is with the operating system.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// Shakes hands, and looks at whom the peer's certificate is for.
    fn greet(
        socket: TcpStream,
        mut connection: Connection,
        keys: &Keys,
        limit: &Limit,
    ) -> io::Result<Stream> {
        let over = || io::Error::from(ErrorKind::TimedOut);
        while connection.is_handshaking() || connection.wants_write() {
            let left = limit.left().ok_or_else(over)?;
            if connection.wants_write() {
                socket.set_write_timeout(Some(left))?;
                connection.write_tls(&mut &socket)?;
                continue;
            }
            socket.set_read_timeout(Some(left))?;
            if connection.read_tls(&mut &socket)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = connection.process_new_packets() {
                // The peer shall learn why, if it is still there.
                let _ = connection.write_tls(&mut &socket);
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("TLS: {error}"),
                ));
            }
        }
        let own = keys.identities();
        let refuse = |error| io::Error::new(ErrorKind::PermissionDenied, error);
        let job = own.job_as(Part::Worker).unwrap_or_default();
        let certificates = connection.peer_certificates().unwrap_or_default();
        let found = certificates.first().map(Identities::of).unwrap_or_default();
        found
            .demand(&Identity::new(&job, Part::Worker))
            .map_err(refuse)?;
        // What is said is encrypted at once, and kept no longer than it takes to send it.
        connection.set_buffer_limit(None);
        Ok(Stream::Tls(Box::new(Self {
            socket,
            connection: Mutex::new(connection),
            incoming: Mutex::new(Incoming {
                bytes: vec![0; AT_ONCE].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            outgoing: Mutex::default(),
        })))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(read) = self.decrypt(&mut incoming, buffer)? {
                return Ok(read);
            }
            let read = (&self.socket).read(&mut incoming.bytes)?;
            if read == 0 {
                return Ok(0);
            }
            (incoming.start, incoming.end) = (0, read);
        }
    }

    /// What is there of the next bytes; nothing until more has come from the network.
    fn decrypt(&self, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = self.connection();
        loop {
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read.map(Some),
            }
            if incoming.start == incoming.end {
                return Ok(None);
            }
            let mut rest = &incoming.bytes[incoming.start..incoming.end];
            incoming.start += connection.read_tls(&mut rest)?;
            connection
                .process_new_packets()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, format!("TLS: {error}")))?;
        }
    }

    /// All of it.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(|connection| connection.writer().write_all(bytes))
    }

    fn say_goodbye(&self) -> io::Result<()> {
        self.send(|connection| {
            connection.send_close_notify();
            Ok(())
        })
    }

    fn send(&self, what: impl FnOnce(&mut Connection) -> io::Result<()>) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.clear();
        let mut connection = self.connection();
        what(&mut connection)?;
        while connection.wants_write() {
            connection.write_tls(&mut *outgoing)?;
        }
        drop(connection);
        (&self.socket).write_all(&outgoing)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::PATIENT;
    use super::*;
    use crate::locks::certs::for_tests;
    use std::net::TcpListener;
    use std::thread;

    fn lock(job: &str, part: Part) -> Lock {
        Lock(for_tests(job).keys(part))
    }

    /// What both ends of a connection come to: who called first.
    fn meet(
        caller: Option<&Lock>,
        called: Option<&Lock>,
        within: Duration,
    ) -> [io::Result<Stream>; 2] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(door.local_addr().unwrap()).unwrap();
        let other = door.accept().unwrap().0;
        thread::scope(|scope| {
            let limit = Limit::start(within);
            let other = scope.spawn(move || Stream::called(other, called, &limit));
            [
                Stream::calling(socket, caller, &limit),
                other.join().unwrap(),
            ]
        })
    }

    #[test]
    fn both_can_send_more_than_the_network_holds_before_either_has_read() {
        let place = for_tests("mnist");
        let keys = || Lock(place.keys(Part::Worker));
        let ends = meet(Some(&keys()), Some(&keys()), PATIENT).map(Result::unwrap);
        let sent: Vec<u8> = (0..32_u32 << 20)
            .map(|i| (i.wrapping_mul(7919) >> 8) as u8)
            .collect();
        let sent = &sent;
        thread::scope(|scope| {
            for end in &ends {
                scope.spawn(move || {
                    let mut end = end;
                    end.write_all(sent).unwrap();
                    end.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let (mut end, mut got) = (end, Vec::new());
                    end.read_to_end(&mut got).unwrap();
                    assert!(got == *sent);
                });
            }
        });
    }

    #[test]
    fn nothing_passes_in_clear() {
        let place = for_tests("mnist");
        let keys = || Lock(place.keys(Part::Worker));
        let [mine, theirs] = meet(Some(&keys()), Some(&keys()), PATIENT).map(Result::unwrap);
        (&mine).write_all(b"gradients, as they are").unwrap();
        let Stream::Tls(theirs) = theirs else {
            panic!("no TLS")
        };
        let mut bytes = [0; 256];
        let read = (&theirs.socket).read(&mut bytes).unwrap();
        assert!(read > 22 && !bytes.windows(9).any(|part| part == b"gradients"));
    }

    #[test]
    fn only_workers_of_the_same_job_and_ca_meet_and_both_say_why_not() {
        let place = for_tests("mnist");
        let mine = Lock(place.keys(Part::Worker));
        let operator = Lock(place.keys(Part::Operator));
        let [calling, called] = meet(Some(&operator), Some(&mine), PATIENT);
        let error = called.unwrap_err().to_string();
        assert!(error.contains("job/mnist/operator, expected"), "{error}");
        drop(calling);
        let [calling, called] = meet(Some(&mine), Some(&operator), PATIENT);
        let error = calling.unwrap_err().to_string();
        assert!(error.contains("job/mnist/operator, expected"), "{error}");
        drop(called);
        for other in [Some(lock("mnist", Part::Worker)), None] {
            let [calling, called] = meet(Some(&mine), other.as_ref(), Duration::from_millis(300));
            assert!(calling.is_err(), "the caller trusts another CA, or TLS");
            drop(called);
            let [_, called] = meet(other.as_ref(), Some(&mine), Duration::from_millis(200));
            assert!(called.is_err());
        }
    }
}
