//! How two workers find out whether they can share memory, over a connection on which each has
//! proved that it belongs here.
//!
//! ```text
//! both   → which host, and whether wanted
//! lower  → an offer: where its memory is to be found, and a number that is written there
//! higher → an answer: whether it was found, and another number that is written there now
//! lower  → whether that was found
//! ```
//!
//! Each side has then read in its own mapping what the other wrote in its: that host names or
//! process numbers look alike, as they do in containers, proves nothing. Where it can't be done the
//! frames go on through the connection.

use super::memory::{self, Memory, Offered};
use super::ring::{self, Reader, Writer};
use super::{AWAKE, Shared};
use crate::collective::limit::Limit;
use crate::collective::socket;
use crate::collective::stream::Stream;
use crate::ids::Rank;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A number that is used once, in words.
type Token = [u64; 4];

/// Where the numbers and the first ring lie in the memory.
const OF_LOWER: usize = 0;
const OF_HIGHER: usize = 8;
const RINGS: usize = 64;

/// A peer, and how many frames may be under way in both directions.
#[derive(Debug)]
pub(in crate::collective) struct Neighbour<'a> {
    pub(in crate::collective) rank: Rank,
    pub(in crate::collective) stream: &'a Stream,
    pub(in crate::collective) to_it: usize,
    pub(in crate::collective) from_it: usize,
}

/// What stands for this host, among processes that may be able to open each other's files: 0 if that
/// can't be said.
pub(in crate::collective) fn host() -> u64 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id");
    let processes = std::fs::read_link("/proc/self/ns/pid");
    let (Ok(boot), Ok(processes)) = (boot, processes) else {
        return 0;
    };
    let mut digest = Sha256::new();
    digest.update(&boot);
    digest.update(processes.as_os_str().as_encoded_bytes());
    let bytes: [u8; 32] = digest.finalize().into();
    u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8])).max(1)
}

/// Links through memory, by rank, with those of the peers that have the same `host` and can. All
/// ranks call this at the same time; `host` is 0 on one that wants none.
///
/// All speak before they listen, so no two wait for each other; and what they say is so short that
/// no connection is too full for it.
///
/// # Errors
/// If the connection with a peer ends, or it doesn't answer in time.
pub(in crate::collective) fn share(
    own: Rank,
    host: u64,
    peers: &[Neighbour<'_>],
    limit: &Limit,
) -> Result<Vec<(Rank, Shared)>, (Rank, io::Error)> {
    for peer in peers {
        peer.tell([host])?;
    }
    let mut near = Vec::new();
    for peer in peers {
        let [theirs] = peer.ask(limit)?;
        if theirs == host && host != 0 {
            near.push(peer);
        }
    }
    let (higher, lower): (Vec<_>, Vec<_>) = near.into_iter().partition(|peer| own < peer.rank);

    let mut offers = Vec::new();
    for peer in higher {
        let offer = Offer::new(peer);
        peer.tell(offer.as_ref().map_or([0; 7], Offer::words))?;
        offers.push((peer, offer));
    }
    let mut answers = Vec::new();
    for peer in lower {
        let found = peer.find(peer.ask(limit)?);
        peer.tell(found.as_ref().map_or([0; 5], |(_, token)| marked(token)))?;
        answers.push((peer, found));
    }

    let mut links = Vec::new();
    for (peer, offer) in offers {
        let answer = peer.ask(limit)?;
        let memory = offer.and_then(|offer| offer.confirm(peer, answer));
        peer.tell([u64::from(memory.is_some())])?;
        links.extend(memory.map(|memory| (peer.rank, peer.link(memory, true))));
    }
    for (peer, found) in answers {
        let [agreed] = peer.ask(limit)?;
        let memory = found.filter(|_| agreed == 1);
        links.extend(memory.map(|(memory, _)| (peer.rank, peer.link(memory, false))));
    }
    Ok(links)
}

/// Memory that was made for one peer.
struct Offer {
    offered: Offered,
    token: Token,
}

impl Offer {
    fn new(peer: &Neighbour<'_>) -> Option<Self> {
        let make = || {
            let offered = memory::create(peer.words())?;
            let token = token()?;
            write(&offered.memory, OF_LOWER, &token);
            Ok(Self { offered, token })
        };
        peer.or_say_why("this worker has no memory to share", make())
    }

    /// Where it is to be found, and what is written there.
    fn words(&self) -> [u64; 7] {
        let [a, b, c, d] = self.token;
        let process = u64::from(std::process::id());
        let descriptor = u64::from(self.offered.descriptor());
        [1, process, descriptor, a, b, c, d]
    }

    /// The memory, if the peer has found it.
    fn confirm(self, peer: &Neighbour<'_>, [found, token @ ..]: [u64; 5]) -> Option<Arc<Memory>> {
        let memory = self.offered.memory;
        let confirmed = match found {
            1 if read(&memory, OF_HIGHER) == token => Ok(Arc::new(memory)),
            1 => Err(io::Error::other("what it wrote there is not here")),
            _ => Err(io::Error::other("it did not find the memory here")),
        };
        peer.or_say_why("the peer can't map this worker's memory", confirmed)
    }
}

impl Neighbour<'_> {
    fn tell<const N: usize>(&self, words: [u64; N]) -> Result<(), (Rank, io::Error)> {
        let mut stream = self.stream;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        stream.write_all(&bytes).map_err(|error| (self.rank, error))
    }

    fn ask<const N: usize>(&self, limit: &Limit) -> Result<[u64; N], (Rank, io::Error)> {
        let mut bytes = vec![0; 8 * N];
        socket::fill(self.stream, &mut bytes, 0, 8 * N, limit)
            .map_err(|error| (self.rank, error))?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(words)
    }

    /// The memory that the peer offers, and what is written there now.
    fn find(
        &self,
        [offered, process, descriptor, token @ ..]: [u64; 7],
    ) -> Option<(Arc<Memory>, Token)> {
        if offered != 1 {
            return self.or_say_why("no memory", Err(io::Error::other("the peer offers none")));
        }
        let find = || {
            let number = |word| u32::try_from(word).map_err(|_| io::ErrorKind::InvalidData);
            let memory = memory::open(number(process)?, number(descriptor)?, self.words())?;
            if read(&memory, OF_LOWER) != token {
                return Err(io::Error::other("it is not the peer's"));
            }
            let token = self::token()?;
            write(&memory, OF_HIGHER, &token);
            Ok((Arc::new(memory), token))
        };
        self.or_say_why("the peer's memory can't be mapped", find())
    }

    fn or_say_why<T>(&self, what: &str, outcome: io::Result<T>) -> Option<T> {
        let rank = self.rank;
        outcome
            .inspect_err(|error| {
                tracing::debug!(%rank, "sums go through the connection: {what}: {error}");
            })
            .ok()
    }

    /// Of the memory for both directions.
    fn words(&self) -> usize {
        RINGS + ring::words(self.to_it) + ring::words(self.from_it)
    }

    /// The lower rank writes to the first ring.
    fn link(&self, memory: Arc<Memory>, is_lower: bool) -> Shared {
        let (to, from) = match is_lower {
            true => (RINGS, RINGS + ring::words(self.to_it)),
            false => (RINGS + ring::words(self.from_it), RINGS),
        };
        Shared {
            writer: Writer::new(Arc::clone(&memory), to, self.to_it),
            reader: Reader::new(memory, from, self.from_it),
            patience: AWAKE,
        }
    }
}

fn marked([a, b, c, d]: &Token) -> [u64; 5] {
    [1, *a, *b, *c, *d]
}

fn token() -> io::Result<Token> {
    let mut token = [0; 4];
    for word in &mut token {
        *word = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(token)
}

fn write(memory: &Memory, place: usize, token: &Token) {
    for (word, value) in memory.words()[place..].iter().zip(token) {
        word.store(*value, Ordering::SeqCst);
    }
}

fn read(memory: &Memory, place: usize) -> Token {
    let words = &memory.words()[place..];
    std::array::from_fn(|index| words[index].load(Ordering::SeqCst))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::collective::conformance::PATIENT;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    /// What both ends of a connection come to.
    fn meet(hosts: [u64; 2], slots: [usize; 2]) -> [usize; 2] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let calling = Stream::Plain(TcpStream::connect(door.local_addr().unwrap()).unwrap());
        let called = Stream::Plain(door.accept().unwrap().0);
        let end = |own: usize, stream: &Stream| {
            let peer = Neighbour {
                rank: Rank(1 - own as u32),
                stream,
                to_it: slots[0],
                from_it: slots[own],
            };
            share(
                Rank(own as u32),
                hosts[own],
                &[peer],
                &Limit::start(PATIENT),
            )
            .unwrap()
            .len()
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| end(1, &called));
            [end(0, &calling), other.join().unwrap()]
        })
    }

    #[test]
    fn neighbours_share_and_others_do_not() {
        let here = host();
        assert_ne!(here, 0);
        assert_eq!(meet([here, here], [4, 4]), [1, 1]);
        assert_eq!(meet([here, here + 1], [4, 4]), [0, 0]);
        assert_eq!(meet([0, here], [4, 4]), [0, 0]);
        assert_eq!(meet([0, 0], [4, 4]), [0, 0]);
    }

    /// As when process numbers are another container's: the one looks where the other's memory is
    /// not, or is another.
    #[test]
    fn memory_that_is_not_the_same_is_not_shared() {
        let here = host();
        assert_eq!(meet([here, here], [4, 5]), [0, 0]);
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(door.local_addr().unwrap()).unwrap();
        let stream = Stream::Plain(stream);
        let peer = Neighbour {
            rank: Rank(0),
            stream: &stream,
            to_it: 4,
            from_it: 4,
        };
        let offer = Offer::new(&peer).unwrap();
        let mut words = offer.words();
        assert!(peer.find(words).is_some());
        words[3] ^= 1;
        assert!(
            peer.find(words).is_none(),
            "another number is written there"
        );
        words[1] = u64::from(u32::MAX);
        assert!(peer.find(words).is_none(), "no such process");
        words[1] = u64::MAX;
        assert!(peer.find(words).is_none());
        // The peer says that it has found memory, and wrote into another.
        assert!(offer.confirm(&peer, [1, 5, 5, 5, 5]).is_none());
    }
}
