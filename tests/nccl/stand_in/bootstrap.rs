//! How the ranks of a communicator find each other: whoever made the unique id listens, hears from
//! every rank where that one listens, and tells all; then each connects to those before it.

use super::mesh::{Mesh, READABLE, wait};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

const MAGIC: [u8; 8] = *b"stand-in";
/// What a rank says to whoever made the id: nonce, rank, ranks, port.
const INTRODUCTION: usize = 16 + 4 + 4 + 2;

/// `ncclUniqueId`: where its maker listens, and a nonce.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId([u8; 128]);

/// Why a rank has no mesh.
#[derive(Debug)]
pub(super) enum Unformed {
    Aborted,
    /// Whoever made the id is gone, or a rank is.
    Failed,
}

impl From<io::Error> for Unformed {
    fn from(_: io::Error) -> Self {
        Unformed::Failed
    }
}

impl UniqueId {
    /// A new one, and a thread that waits for the ranks that are given it.
    pub(super) fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut id = Self([0; 128]);
        id.0[..8].copy_from_slice(&MAGIC);
        id.0[8..10].copy_from_slice(&listener.local_addr()?.port().to_be_bytes());
        std::fs::File::open("/dev/urandom")?.read_exact(&mut id.0[10..26])?;
        std::thread::Builder::new()
            .name("stand-in root".to_owned())
            .spawn(move || id.introduce(&listener))?;
        Ok(id)
    }

    fn port(&self) -> u16 {
        u16::from_be_bytes([self.0[8], self.0[9]])
    }

    fn nonce(&self) -> &[u8] {
        &self.0[10..26]
    }

    /// Hears from all ranks and tells each where the others listen. If one never comes, it waits
    /// for ever, as NCCL's does.
    fn introduce(self, listener: &TcpListener) {
        let mut heard: Vec<Option<(TcpStream, u16)>> = Vec::new();
        while heard.is_empty() || heard.iter().any(Option::is_none) {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut said = [0; INTRODUCTION];
            let patience = Some(Duration::from_secs(5));
            let is_heard = stream.set_read_timeout(patience).is_ok()
                && stream.read_exact(&mut said).is_ok()
                && said[..16] == *self.nonce();
            if !is_heard {
                continue;
            }
            let number = |at: usize| said[at..at + 4].iter().fold(0, |n, &b| n << 8 | b as usize);
            let (rank, ranks) = (number(16), number(20));
            let port = u16::from_be_bytes([said[24], said[25]]);
            if heard.is_empty() {
                heard.resize_with(ranks, || None);
            }
            match heard.get_mut(rank) {
                Some(place @ None) if ranks > 0 => *place = Some((stream, port)),
                _ => return, // Two of one rank, or two sizes: all are cut off.
            }
        }
        let ports = heard
            .iter()
            .flatten()
            .flat_map(|(_, port)| port.to_be_bytes());
        let ports: Vec<u8> = ports.collect();
        for (stream, _) in heard.iter_mut().flatten() {
            let _ = stream.write_all(&ports); // Whoever has gone meanwhile is missed by its peers.
        }
    }

    /// Connects one rank to all others, however long they take to come.
    pub(super) fn join(
        &self,
        rank: usize,
        ranks: usize,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Mesh, Unformed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let mut root = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port()))?;
        let mut words = self.nonce().to_vec();
        words.extend((rank as u32).to_be_bytes());
        words.extend((ranks as u32).to_be_bytes());
        words.extend(listener.local_addr()?.port().to_be_bytes());
        root.write_all(&words)?;
        let mut ports = vec![0; 2 * ranks];
        read_all(&mut root, &mut ports, stopped)?;

        let mut links: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
        for (peer, port) in ports.chunks_exact(2).enumerate().take(rank) {
            let port = u16::from_be_bytes([port[0], port[1]]);
            let mut link = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            let mut words = self.nonce().to_vec();
            words.extend((rank as u32).to_be_bytes());
            link.write_all(&words)?;
            links[peer] = Some(link);
        }
        while links[rank + 1..].iter().any(Option::is_none) {
            let mut link = accept(&listener, stopped)?;
            let mut said = [0; 20];
            read_all(&mut link, &mut said, stopped)?;
            let peer = said[16..].iter().fold(0, |n, &b| n << 8 | b as usize);
            if said[..16] == *self.nonce() && (rank + 1..ranks).contains(&peer) {
                links[peer] = Some(link);
            }
        }
        for link in links.iter().flatten() {
            link.set_nodelay(true)?;
            link.set_nonblocking(true)?;
        }
        Ok(Mesh { links })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.0[..8] == MAGIC
    }
}

fn accept(listener: &TcpListener, stopped: &dyn Fn() -> bool) -> Result<TcpStream, Unformed> {
    loop {
        if stopped() {
            return Err(Unformed::Aborted);
        }
        match listener.accept() {
            Ok((link, _)) => {
                link.set_nonblocking(false)?;
                return Ok(link);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&[(listener.as_raw_fd(), READABLE)]);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_all(
    stream: &mut TcpStream,
    mut into: &mut [u8],
    stopped: &dyn Fn() -> bool,
) -> Result<(), Unformed> {
    stream.set_nonblocking(true)?;
    while !into.is_empty() {
        if stopped() {
            return Err(Unformed::Aborted);
        }
        match stream.read(into) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&[(stream.as_raw_fd(), READABLE)]);
            }
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(())
}
