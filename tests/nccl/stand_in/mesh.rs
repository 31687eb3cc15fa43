//! Sockets between all ranks, and bytes that move through many of them at once.

use std::collections::VecDeque;
use std::ffi::{c_int, c_short, c_ulong};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// How long it takes at most to notice an abort.
const LOOK: Duration = Duration::from_millis(5);

/// `struct pollfd`.
#[repr(C)]
struct Watched {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

pub(super) const READABLE: c_short = 1;
const WRITABLE: c_short = 4;

unsafe extern "C" {
    fn poll(watched: *mut Watched, count: c_ulong, millis: c_int) -> c_int;
}

/// Waits until one of the sockets can be read or written, or for a moment.
pub(super) fn wait(sockets: &[(RawFd, c_short)]) {
    let watch = |&(fd, events): &(RawFd, c_short)| Watched {
        fd,
        events,
        revents: 0,
    };
    let mut watched: Vec<Watched> = sockets.iter().map(watch).collect();
    // SAFETY: as many entries as it is told; whatever it says, the sockets are tried again.
    unsafe {
        poll(
            watched.as_mut_ptr(),
            watched.len() as c_ulong,
            LOOK.as_millis() as c_int,
        )
    };
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// It was aborted; some of the data may have moved.
    Stopped,
    /// A peer is gone.
    Lost,
}

/// A run of bytes that is on its way to or from a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) peer: usize,
    pub(super) address: usize,
    pub(super) bytes: usize,
}

/// One rank's sockets; none leads to itself.
pub(super) struct Mesh {
    pub(super) links: Vec<Option<TcpStream>>,
}

impl Mesh {
    /// Moves all of this, in any order between peers but in the given one with each of them. The
    /// two ends may disagree about lengths: bytes are all that travels.
    ///
    /// # Safety
    /// The memory of `sends` may be read and that of `receipts` written until this returns.
    pub(super) unsafe fn exchange(
        &self,
        sends: &[Transfer],
        receipts: &[Transfer],
        stopped: &dyn Fn() -> bool,
    ) -> Ended {
        let mut out = self.queues(sends);
        let mut into = self.queues(receipts);
        loop {
            if stopped() {
                return Ended::Stopped;
            }
            let mut has_moved = false;
            let mut waiting = Vec::new();
            for (peer, link) in self.links.iter().enumerate() {
                let Some(link) = link else { continue };
                let mut wanted = 0;
                // SAFETY: the caller's promise, for the rest of each run.
                let moved = unsafe { [send(link, &mut out[peer]), receive(link, &mut into[peer])] };
                for (moved, event) in moved.into_iter().zip([WRITABLE, READABLE]) {
                    match moved {
                        Moved::All => {}
                        Moved::Some => has_moved = true,
                        Moved::None => wanted |= event,
                        Moved::Lost => return Ended::Lost,
                    }
                }
                if wanted != 0 {
                    waiting.push((link.as_raw_fd(), wanted));
                }
            }
            if waiting.is_empty() && !has_moved {
                return Ended::Done;
            }
            if !has_moved {
                wait(&waiting);
            }
        }
    }

    fn queues(&self, transfers: &[Transfer]) -> Vec<VecDeque<Transfer>> {
        let mut queues = vec![VecDeque::new(); self.links.len()];
        for transfer in transfers.iter().filter(|transfer| transfer.bytes > 0) {
            queues[transfer.peer].push_back(*transfer);
        }
        queues
    }
}

/// What became of a queue in one attempt.
enum Moved {
    /// There was nothing left in it.
    All,
    Some,
    None,
    Lost,
}

/// # Safety
/// The memory of the queue's transfers may be read.
unsafe fn send(mut link: &TcpStream, queue: &mut VecDeque<Transfer>) -> Moved {
    let Some(next) = queue.front_mut() else {
        return Moved::All;
    };
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(next.address as *const u8, next.bytes) };
    let moved = link.write(bytes);
    advance(moved, queue)
}

/// # Safety
/// The memory of the queue's transfers may be written, and nobody else uses it.
unsafe fn receive(mut link: &TcpStream, queue: &mut VecDeque<Transfer>) -> Moved {
    let Some(next) = queue.front_mut() else {
        return Moved::All;
    };
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(next.address as *mut u8, next.bytes) };
    let moved = link.read(bytes);
    advance(moved, queue)
}

fn advance(moved: std::io::Result<usize>, queue: &mut VecDeque<Transfer>) -> Moved {
    match (moved, queue.front_mut()) {
        (Ok(0), _) => Moved::Lost,
        (Ok(count), Some(next)) => {
            next.address += count;
            next.bytes -= count;
            if next.bytes == 0 {
                queue.pop_front();
            }
            Moved::Some
        }
        (Ok(_), None) => Moved::All,
        (Err(error), _) if error.kind() == ErrorKind::WouldBlock => Moved::None,
        (Err(error), _) if error.kind() == ErrorKind::Interrupted => Moved::Some,
        (Err(_), _) => Moved::Lost,
    }
}
