//! What carries a worker's sums: NCCL between GPUs if every worker can, and TCP if not; between
//! workers on the CPUs of one host, memory that they share.
//!
//! With keys, what goes over TCP is within TLS, and what makes NCCL's communicator is told within it.
//! NCCL's own connections know none.

use crate::collective::{
    Abort, Collective, CollectiveError, Deadlines, Group, Listener, Nccl, Tcp,
};
use crate::config::Job;
use crate::ids::Rank;
use crate::nccl::Library;
use std::sync::Arc;
use tch::Device;

/// In a row, before this worker says that its NCCL is of no use. One may be a peer's death that
/// looks like an error of NCCL's.
const FAILURES: u32 = 3;

/// What a worker tells the others: that it can use NCCL, or not.
const CAN: u64 = 1;
const CAN_NOT: u64 = 0;

/// How this process reaches its peers, in one generation after another.
pub(super) struct Transport {
    device: Device,
    nccl: Usable,
    /// Attempts to use NCCL that have failed here since the last that succeeded.
    failures: u32,
}

/// Whether NCCL can be used here.
enum Usable {
    With(Arc<Library>),
    /// The device has no use for it.
    NotWanted,
    /// The log says why.
    Not,
}

impl Transport {
    /// Loads what the device's transport needs, and logs what is missing.
    pub(super) fn of(device: Device) -> Self {
        let nccl = if is_wanted(device) {
            match Library::load() {
                Ok(library) => {
                    let version = library.version_text();
                    tracing::info!("NCCL {version} in {}", library.path().display());
                    Usable::With(library)
                }
                Err(error) => {
                    tracing::warn!("sums go over TCP, by way of host memory: {error}");
                    Usable::Not
                }
            }
        } else {
            Usable::NotWanted
        };
        Self {
            device,
            nccl,
            failures: 0,
        }
    }

    /// Connects a generation's workers. All use the same transport.
    pub(super) fn connect(
        &mut self,
        listener: &Listener,
        group: &Group,
        job: &Job,
        deadlines: Deadlines,
        abort: &Abort,
    ) -> Result<Box<dyn Collective>, CollectiveError> {
        if matches!(self.nccl, Usable::NotWanted) {
            return in_host_memory(listener, group, job, deadlines, abort);
        }
        let mut tcp = Tcp::connect(listener, group, deadlines, abort)?;
        let word = match self.nccl {
            Usable::With(_) => CAN,
            Usable::NotWanted | Usable::Not => CAN_NOT,
        };
        let words = tcp.gather(word)?;
        let without = (0..).zip(words).filter(|(_, word)| *word != CAN);
        let without: Vec<Rank> = without.map(|(rank, _)| Rank(rank)).collect();
        let library = match &self.nccl {
            Usable::With(library) if without.is_empty() => library,
            _ => {
                let generation = group.generation;
                tracing::warn!(%generation, ?without, "sums go over TCP: not every rank has NCCL");
                return Ok(Box::new(tcp));
            }
        };
        let (device, generation) = (self.device, group.generation);
        let reduction = job.train.reduction;
        match Nccl::form(tcp, group, library, device, reduction, deadlines, abort) {
            Ok(nccl) => {
                self.failures = 0;
                tracing::info!(%generation, "sums go over NCCL");
                if listener.is_locked() {
                    tracing::warn!(
                        "NCCL's own connections are not within TLS: the network must keep strangers from them"
                    );
                }
                Ok(Box::new(nccl))
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// An NCCL that fails whenever it is tried would have the job form generations for ever.
    fn failed(&mut self, error: &CollectiveError) {
        if !matches!(error, CollectiveError::Device { .. }) {
            return;
        }
        self.failures += 1;
        if self.failures >= FAILURES {
            tracing::error!(
                "NCCL has failed {} times in a row and is not tried any more; sums go over TCP, by \
                 way of host memory: {error}",
                self.failures
            );
            self.nccl = Usable::Not;
        }
    }
}

fn in_host_memory(
    listener: &Listener,
    group: &Group,
    job: &Job,
    deadlines: Deadlines,
    abort: &Abort,
) -> Result<Box<dyn Collective>, CollectiveError> {
    let connect = match job.workers.shared_memory {
        true => Tcp::connect_sharing_memory,
        false => Tcp::connect,
    };
    let tcp = connect(listener, group, deadlines, abort)?;
    let (generation, neighbours) = (group.generation, tcp.neighbours());
    if !neighbours.is_empty() {
        let count = neighbours.len();
        tracing::info!(%generation, "sums go through memory shared with {count} workers of this host");
    }
    Ok(Box::new(tcp))
}

/// GPUs want NCCL. Tests have the CPU want it too, for the stand-in that works there.
fn is_wanted(device: Device) -> bool {
    let is_asked_for = || {
        let asked = std::env::var_os("GAN_TRANSPORT");
        cfg!(debug_assertions) && asked.is_some_and(|transport| transport == "nccl")
    };
    device.is_cuda() || is_asked_for()
}
