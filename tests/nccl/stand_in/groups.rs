//! What a thread has called between `ncclGroupStart` and `ncclGroupEnd`, and how a communicator's
//! share of it moves.

use super::communicator::{self, Communicator};
use super::faults::Kind;
use super::mesh::{Ended, Mesh, Transfer};
use super::{Fault, Handle, SUCCESS, refuse};
use std::cell::RefCell;
use std::ffi::c_int;

/// One call. Addresses are numbers, since they go to another thread; whoever called promised that
/// the memory is there until the group is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Send {
        peer: usize,
        from: usize,
        bytes: usize,
    },
    Receive {
        peer: usize,
        to: usize,
        bytes: usize,
    },
    AllGather {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Broadcast {
        root: usize,
        from: usize,
        to: usize,
        bytes: usize,
    },
    AllReduce {
        from: usize,
        to: usize,
        count: usize,
        average: bool,
    },
}

/// A thread's open group.
struct Open {
    depth: usize,
    /// The first refusal; it is the whole group's.
    refused: c_int,
    calls: Vec<(usize, Operation)>,
}

thread_local! {
    static OPEN: RefCell<Open> = const {
        RefCell::new(Open { depth: 0, refused: SUCCESS, calls: Vec::new() })
    };
}

pub(super) fn start() {
    OPEN.with_borrow_mut(|open| open.depth += 1);
}

/// Takes a call into the open group; without one it is a group of its own.
pub(super) fn add(
    handle: Handle,
    operation: impl FnOnce(&Communicator) -> Option<Operation>,
) -> c_int {
    start();
    let name = handle as usize;
    let made = match communicator::find(name) {
        None => Err(refuse(Fault::NoCommunicator)),
        Some(communicator) => communicator
            .ready()
            .and_then(|()| operation(&communicator).ok_or_else(|| refuse(Fault::Argument))),
    };
    let code = OPEN.with_borrow_mut(|open| match made {
        Ok(made) => {
            open.calls.push((name, made));
            SUCCESS
        }
        Err(code) => {
            if open.refused == SUCCESS {
                open.refused = code;
            }
            code
        }
    });
    let ended = end();
    if code == SUCCESS { ended } else { code }
}

/// Ends the group; the outermost one hands each communicator its share.
pub(super) fn end() -> c_int {
    let ended = OPEN.with_borrow_mut(|open| {
        open.depth = open.depth.checked_sub(1)?;
        if open.depth > 0 {
            return Some((SUCCESS, Vec::new()));
        }
        let refused = std::mem::replace(&mut open.refused, SUCCESS);
        Some((refused, std::mem::take(&mut open.calls)))
    });
    let Some((refused, calls)) = ended else {
        return refuse(Fault::NoGroup);
    };
    if refused != SUCCESS {
        return refused;
    }
    let mut shares: Vec<(usize, Vec<Operation>)> = Vec::new();
    for (name, operation) in calls {
        match shares.iter_mut().find(|(of, _)| *of == name) {
            Some((_, share)) => share.push(operation),
            None => shares.push((name, vec![operation])),
        }
    }
    let mut code = SUCCESS;
    for (name, share) in shares {
        let launched = match communicator::find(name) {
            Some(communicator) => communicator.launch(share),
            None => refuse(Fault::NoCommunicator),
        };
        if code == SUCCESS {
            code = launched;
        }
    }
    code
}

/// Whether each send of this rank to itself meets a receipt.
pub(super) fn is_paired(rank: usize, operations: &[Operation]) -> bool {
    let balance = operations.iter().map(|operation| match operation {
        Operation::Send { peer, .. } if *peer == rank => 1,
        Operation::Receive { peer, .. } if *peer == rank => -1,
        _ => 0,
    });
    balance.sum::<i32>() == 0
}

/// One rank's part of a group that runs.
pub(super) struct Running<'a> {
    pub(super) rank: usize,
    pub(super) mesh: &'a Mesh,
    pub(super) stopped: &'a dyn Fn() -> bool,
    /// Move half of it only.
    pub(super) trouble: Option<Kind>,
}

impl Running<'_> {
    /// Moves a group's data: sends and receipts all at once, everything else in the order in which
    /// it was called.
    ///
    /// # Safety
    /// The memory that the operations name is there, and nobody else uses it until this returns.
    pub(super) unsafe fn run(&self, operations: &[Operation]) -> Ended {
        let (mut sends, mut receipts) = (Vec::new(), Vec::new());
        for operation in operations {
            // SAFETY: the caller's promise.
            let ended = unsafe {
                match *operation {
                    Operation::Send { peer, from, bytes } => {
                        sends.push(Transfer {
                            peer,
                            address: from,
                            bytes,
                        });
                        Ended::Done
                    }
                    Operation::Receive { peer, to, bytes } => {
                        receipts.push(Transfer {
                            peer,
                            address: to,
                            bytes,
                        });
                        Ended::Done
                    }
                    Operation::AllGather { from, to, bytes } => self.all_gather(from, to, bytes),
                    Operation::Broadcast {
                        root,
                        from,
                        to,
                        bytes,
                    } => self.broadcast(root, from, to, bytes),
                    Operation::AllReduce {
                        from,
                        to,
                        count,
                        average,
                    } => self.all_reduce(from, to, count, average),
                }
            };
            if ended != Ended::Done {
                return ended;
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.to_itself(&sends, &receipts);
            self.exchange(&sends, &receipts)
        }
    }

    /// # Safety
    /// As [`Mesh::exchange`].
    unsafe fn exchange(&self, sends: &[Transfer], receipts: &[Transfer]) -> Ended {
        if self.trouble != Some(Kind::Partial) {
            // SAFETY: the caller's promise.
            return unsafe { self.mesh.exchange(sends, receipts, self.stopped) };
        }
        let half = |transfer: &Transfer| Transfer {
            bytes: transfer.bytes / 2,
            ..*transfer
        };
        let sends: Vec<Transfer> = sends.iter().map(half).collect();
        let receipts: Vec<Transfer> = receipts.iter().map(half).collect();
        // SAFETY: the caller's promise.
        unsafe { self.mesh.exchange(&sends, &receipts, self.stopped) };
        while !(self.stopped)() {
            super::mesh::wait(&[]);
        }
        Ended::Stopped
    }

    /// # Safety
    /// As [`Mesh::exchange`].
    unsafe fn to_itself(&self, sends: &[Transfer], receipts: &[Transfer]) {
        let own = |all: &[Transfer]| {
            let own = all.iter().filter(|transfer| transfer.peer == self.rank);
            own.copied().collect::<Vec<_>>()
        };
        for (send, receipt) in own(sends).iter().zip(own(receipts)) {
            // SAFETY: the caller's promise.
            unsafe { copy(send.address, receipt.address, send.bytes.min(receipt.bytes)) };
        }
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn all_gather(&self, from: usize, to: usize, bytes: usize) -> Ended {
        let others = || (0..self.mesh.links.len()).filter(|&peer| peer != self.rank);
        let sends = others().map(|peer| Transfer {
            peer,
            address: from,
            bytes,
        });
        let receipts = others().map(|peer| Transfer {
            peer,
            address: to + peer * bytes,
            bytes,
        });
        let (sends, receipts): (Vec<_>, Vec<_>) = (sends.collect(), receipts.collect());
        // SAFETY: the caller's promise.
        unsafe {
            copy(from, to + self.rank * bytes, bytes);
            self.exchange(&sends, &receipts)
        }
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn broadcast(&self, root: usize, from: usize, to: usize, bytes: usize) -> Ended {
        // SAFETY: the caller's promise.
        unsafe {
            if root != self.rank {
                let receipt = Transfer {
                    peer: root,
                    address: to,
                    bytes,
                };
                return self.exchange(&[], &[receipt]);
            }
            copy(from, to, bytes);
            let others = (0..self.mesh.links.len()).filter(|&peer| peer != root);
            let sends = others.map(|peer| Transfer {
                peer,
                address: from,
                bytes,
            });
            self.exchange(&sends.collect::<Vec<_>>(), &[])
        }
    }

    /// In the order of a ring, which begins at another rank for every part of the vector: the bits
    /// depend on how many ranks there are, as NCCL's do.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn all_reduce(&self, from: usize, to: usize, count: usize, average: bool) -> Ended {
        let ranks = self.mesh.links.len();
        // SAFETY: the caller's promise; `to` holds `count` elements of four bytes.
        unsafe { copy(from, to, 4 * count) };
        let after = |steps: usize| (self.rank + steps) % ranks;
        let part = |index: usize| {
            let (begin, end) = (index * count / ranks, (index + 1) * count / ranks);
            (to + 4 * begin, end - begin)
        };
        let mut arrived = vec![0_f32; count.div_ceil(ranks)];
        for step in 0..2 * (ranks - 1) {
            let adds = step < ranks - 1;
            // Adding, part p starts at rank p; what rank r has in the end is part r + 1.
            let base = if adds { ranks } else { 2 * ranks };
            let (sent, length) = part(after(base - step));
            let (received, expected) = part(after(base - step - 1));
            let send = Transfer {
                peer: after(1),
                address: sent,
                bytes: 4 * length,
            };
            let receipt = Transfer {
                peer: after(ranks - 1),
                address: if adds {
                    arrived.as_mut_ptr() as usize
                } else {
                    received
                },
                bytes: 4 * expected,
            };
            // SAFETY: the caller's promise; `arrived` is as long as the longest part.
            match unsafe { self.exchange(&[send], &[receipt]) } {
                Ended::Done => {}
                ended => return ended,
            }
            if adds {
                for (index, &sum) in arrived[..expected].iter().enumerate() {
                    let place = (received + 4 * index) as *mut f32;
                    // SAFETY: the caller's promise; it need not be aligned.
                    unsafe { place.write_unaligned(sum + place.read_unaligned()) };
                }
            }
        }
        if average {
            for index in 0..count {
                let place = (to + 4 * index) as *mut f32;
                // SAFETY: the caller's promise; it need not be aligned.
                unsafe { place.write_unaligned(place.read_unaligned() / ranks as f32) };
            }
        }
        Ended::Done
    }
}

/// # Safety
/// So many bytes may be read at `from` and written at `to`; they may overlap.
unsafe fn copy(from: usize, to: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    }
}
