//! How the workers of a generation add up what their replicas computed, exactly.
//!
//! A [`Collective`] turns one vector a replica into their mean, and the bits of the mean don't
//! depend on how many workers there are nor on which replicas each hosts: [`tree`] fixes the order
//! of the additions. [`InProcess`] and [`Tcp`] follow it in host memory, the latter between workers
//! of one host through memory that they share, and `Nccl` on GPUs; all pass the same conformance
//! suite, [`Tcp`] with its connections within TLS besides. It also finds out who holds what, and
//! copies it to who doesn't. This room knows nothing of networks, optimizers or the coordinator: it is
//! given a [`Group`] and vectors.

#![deny(unsafe_code)]

mod abort;
#[cfg(test)]
mod conformance;
mod error;
mod exact;
mod flags;
mod forming;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod group;
mod handshake;
mod in_process;
mod limit;
mod listener;
#[cfg(feature = "torch")]
mod nccl;
mod shared;
mod socket;
mod stream;
mod tcp;
pub mod tree;
mod wire;

pub use abort::Abort;
pub use error::{CollectiveError, HolderFault, Operation, Peers, Refusal, VectorFault};
pub use flags::Flags;
pub use group::{Group, GroupFault, GroupPeer};
pub use in_process::InProcess;
pub use listener::Listener;
#[cfg(feature = "torch")]
pub use nccl::Nccl;
pub use stream::Lock;
pub use tcp::{Deadlines, Tcp};

use crate::ids::Rank;

/// One rank's part in the sums of its generation.
///
/// All ranks call the same methods in the same order with vectors of the same length. A rank that
/// does something else, dies, or doesn't come in time is an error on the others, which says who it
/// was; no call waits for ever. After an error the collective is of no more use (but see
/// [`CollectiveError::Vectors`] and [`CollectiveError::Holders`]).
pub trait Collective: Send {
    /// This worker's place in the generation.
    fn rank(&self) -> Rank;

    /// How many workers the generation has.
    fn world_size(&self) -> u32;

    /// Writes the mean over all replicas of the job to `mean`.
    ///
    /// The sum follows the canonical [`tree`]; then it is divided by R in single precision, and
    /// every NaN becomes [`f32::NAN`]. So the bits are a function of the replicas' vectors alone.
    ///
    /// # Shapes
    /// `hosted[i]` is the vector of the i-th replica that this worker hosts, n elements, the same
    /// n on all workers and in `mean`. What `hosted` holds afterwards is unspecified.
    ///
    /// # Errors
    /// If a peer is lost, late or out of step, or the collective was aborted; `mean` is then
    /// incomplete and must not be used.
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError>;

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// As [`reduce_mean`](Collective::reduce_mean).
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// Every rank's `word`, by rank, on all ranks.
    ///
    /// # Errors
    /// As [`reduce_mean`](Collective::reduce_mean).
    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError>;

    /// Copies `vector` from the `holders` to all other ranks, to the bit: NaNs and zeros keep
    /// theirs.
    ///
    /// By contract it is the same on all holders. Each sends its share to every rank that needs it,
    /// so what the holders can send adds up.
    ///
    /// The deadline of a collective runs anew for each 64 KiB of every share: a copy may take as
    /// long as it takes while it makes progress, and a rank that makes none is noticed as soon as
    /// in a reduction.
    ///
    /// # Shapes
    /// The same length and the same holders, in rising order, on all ranks.
    ///
    /// # Errors
    /// [`CollectiveError::Holders`] for an impossible list, before anything is sent; otherwise as
    /// [`reduce_mean`](Collective::reduce_mean), and `vector` is then incomplete on a rank that is
    /// no holder. Holders' vectors are never written.
    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError>;

    /// Bytes that this worker has sent to its peers in reductions so far. Framing is not counted,
    /// and neither are copies: this is the price of a step.
    fn sent_bytes(&self) -> u64;

    /// The same sums for vectors that lie where the networks compute, if this collective can do
    /// them without the way through host memory.
    #[cfg(feature = "torch")]
    fn on_device(&mut self) -> Option<&mut dyn OnDevice> {
        None
    }
}

/// Reductions of vectors that lie on a device, beside what the device computes.
///
/// Nothing here waits for the device but [`settle`](OnDevice::settle): reductions are queued on a
/// stream of their own, ordered by events after what makes the vectors, and before what reads the
/// means. So a mean may be *queued* to be used before it is known to be good: what is computed from
/// it must not become the state until `settle` has said so.
///
/// All ranks start the same reductions in the same order.
#[cfg(feature = "torch")]
pub trait OnDevice {
    /// Queues a reduction after all that the calling thread's current stream has been given so far,
    /// and returns at once. The mean is that of [`Collective::reduce_mean`], to the bit.
    ///
    /// # Shapes
    /// `hosted[i]` is the vector of the i-th hosted replica, `mean` where the mean goes: flat,
    /// contiguous, `f32`, of one length, on this collective's device. What `hosted` holds
    /// afterwards is unspecified. Both must live until [`settle`](OnDevice::settle).
    ///
    /// # Errors
    /// [`CollectiveError::Vectors`] if they don't fit; if the collective was aborted or has failed.
    fn start(&mut self, hosted: &[tch::Tensor], mean: &tch::Tensor) -> Result<(), CollectiveError>;

    /// Has what the calling thread's current stream is given from now on wait for the oldest
    /// reduction that was started and not joined yet. The host does not wait.
    ///
    /// # Errors
    /// If there is none; if the collective was aborted or has failed.
    fn join(&mut self) -> Result<(), CollectiveError>;

    /// Waits until all reductions that were started are over. Only then are their means good.
    ///
    /// # Errors
    /// If a peer is lost or late, or the collective was aborted, before the last of them was over
    /// or since: the means may then hold anything.
    fn settle(&mut self) -> Result<(), CollectiveError>;

    /// Copies `vector` from the `holders` to all other ranks, from device to device, as
    /// [`Collective::copy`] does through host memory. It waits for what was started before, and
    /// returns when it is done: what reads or writes `vector` afterwards may be queued at once, and
    /// what the calling thread's current stream was given before comes first.
    ///
    /// The deadline of a collective runs anew for each 16 MiB of every share.
    ///
    /// # Shapes
    /// Flat, contiguous, `f32`, on this collective's device, of the same length on all ranks.
    ///
    /// # Errors
    /// As [`Collective::copy`], and [`CollectiveError::Vectors`] if the vector doesn't fit.
    /// Holders' vectors are never written.
    fn copy(&mut self, holders: &[Rank], vector: &tch::Tensor) -> Result<(), CollectiveError>;
}
