//! What can go wrong between the workers of a generation.

use super::group::GroupFault;
use crate::ids::{Generation, Rank};
use std::fmt;
use std::io;
use std::time::Duration;

/// Why a collective, or the forming of one, did not complete.
///
/// After any error but [`Vectors`](CollectiveError::Vectors) and
/// [`Holders`](CollectiveError::Holders) the collective is of no more use: its connections are
/// closed, so that the other ranks learn of it, and a new generation is needed.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// The membership contradicts itself.
    #[error("generation {generation} is impossible: {fault}")]
    Group {
        /// The membership.
        generation: Generation,
        /// What is wrong with it.
        #[source]
        fault: GroupFault,
    },
    /// The caller's vectors don't fit the group or each other. Nothing was sent.
    #[error("the vectors to be reduced on rank {rank} don't fit: {fault}")]
    Vectors {
        /// This worker.
        rank: Rank,
        /// What is wrong with them.
        #[source]
        fault: VectorFault,
    },
    /// The caller's list of holders is impossible. Nothing was sent.
    #[error("the list of holders on rank {rank} is impossible: {fault}")]
    Holders {
        /// This worker.
        rank: Rank,
        /// What is wrong with it.
        #[source]
        fault: HolderFault,
    },
    /// The address for incoming connections is not to be had.
    #[error("can't listen on {address}: {source}; choose another address or port")]
    Listen {
        /// The address asked for.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The operating system gave no thread.
    #[error("can't start a thread for {purpose}: {source}")]
    Thread {
        /// What it was for.
        purpose: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Somebody did not answer in time.
    #[error(
        "generation {generation}: waited {} for {missing} to {operation}{}",
        humantime::format_duration(rounded(*waited)),
        detail(last)
    )]
    Deadline {
        /// The membership.
        generation: Generation,
        /// What they had to do.
        operation: Operation,
        /// Who was waited for.
        missing: Peers,
        /// For how long.
        waited: Duration,
        /// How the last attempt to reach them ended; empty if there is nothing to say.
        last: String,
    },
    /// The connection ended: the peer's process died, or it gave up because of another peer.
    #[error(
        "generation {generation}: lost rank {rank} ({address}): {source} \
         (its process ended, or it gave up after losing another rank)"
    )]
    PeerLost {
        /// The membership.
        generation: Generation,
        /// The peer.
        rank: Rank,
        /// Where it was.
        address: String,
        /// What the connection said.
        source: io::Error,
    },
    /// A peer won't have this worker, or this worker won't have the peer.
    #[error("generation {generation}: no connection with rank {rank} ({address}): {refusal}")]
    Refused {
        /// The membership.
        generation: Generation,
        /// The peer.
        rank: Rank,
        /// Where it is.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// This process has seen a newer generation, or has tried this one before.
    #[error(
        "generation {generation} is over: this process joined generation {newest} already, \
         and each attempt needs a newer one"
    )]
    Stale {
        /// The one asked for.
        generation: Generation,
        /// The newest one.
        newest: Generation,
    },
    /// A peer sent something else than the collective expects at this place.
    #[error(
        "generation {generation}: rank {rank} ({address}) sent a frame whose {field} is {found}, \
         but here it must be {expected}: the ranks are not in the same operation"
    )]
    Protocol {
        /// The membership.
        generation: Generation,
        /// The peer.
        rank: Rank,
        /// Where it is.
        address: String,
        /// Which field.
        field: &'static str,
        /// Its value here.
        expected: u64,
        /// Its value there.
        found: u64,
    },
    /// Somebody in this process called it off.
    #[error("generation {generation}: the collective was aborted: {reason}")]
    Aborted {
        /// The membership.
        generation: Generation,
        /// What they said.
        reason: String,
    },
    /// The device, its library or its driver failed, or did not do in time what all ranks had asked
    /// for.
    #[error("generation {generation}: {source}")]
    Device {
        /// The membership.
        generation: Generation,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It failed, and what is in flight on the device can't be stopped: no further collective of
    /// this process can be trusted to work.
    #[error(
        "generation {generation}: {cause}; what is in flight on the device could not be stopped \
         within {}: this process must end and rejoin",
        humantime::format_duration(rounded(*waited))
    )]
    Stuck {
        /// The membership.
        generation: Generation,
        /// The first error.
        cause: String,
        /// How long stopping it was tried.
        waited: Duration,
    },
    /// It failed before.
    #[error("generation {generation}: the collective failed earlier: {cause}")]
    Broken {
        /// The membership.
        generation: Generation,
        /// The first error.
        cause: String,
    },
}

/// What a peer was waited for to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To connect, or to be connected to.
    Connect,
    /// To send or take its part of a reduction.
    Reduce,
    /// To reach the barrier.
    Barrier,
    /// To say its word in a gather: the step of the state that it holds.
    Gather,
    /// To send or take its part of a copy.
    Copy,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Connect => "connect",
            Operation::Reduce => "do its part of a reduction",
            Operation::Barrier => "reach the barrier",
            Operation::Gather => "take part in the exchange of steps",
            Operation::Copy => "copy the state",
        })
    }
}

/// Peers and where they are, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers(pub Vec<(Rank, String)>);

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (rank, address)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}rank {rank} ({address})")?;
        }
        Ok(())
    }
}

/// Why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The listener's process has joined a newer generation.
    Stale {
        /// That generation.
        newest: Generation,
    },
    /// The listener's process has not heard of this generation yet.
    NotYet,
    /// The listener is not forming this generation any more: it has formed or was given up.
    Closed,
    /// The caller asked for a rank that is not the listener's, or calls itself a rank that doesn't
    /// call this one.
    NotMember,
    /// The peer doesn't know the generation's secret, or its membership differs.
    Proof,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Stale { newest } => write!(
                f,
                "the peer is in generation {newest} already, and older ones have no effect"
            ),
            Refusal::NotYet => f.write_str("the peer has not heard of this generation yet"),
            Refusal::Closed => f.write_str(
                "the peer is not forming this generation any more: it has formed or was given up",
            ),
            Refusal::NotMember => f.write_str(
                "the ranks don't fit: another worker answers at this address than the membership \
                 says",
            ),
            Refusal::Proof => f.write_str(
                "no proof of membership: the secret or the replicas' ranges differ, \
                 or a stranger answers at this address",
            ),
        }
    }
}

/// Why vectors can't be reduced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VectorFault {
    /// Not one vector a hosted replica.
    #[error("it hosts {hosted} replicas and was given {given} vectors")]
    Count {
        /// Replicas hosted.
        hosted: usize,
        /// Vectors given.
        given: usize,
    },
    /// Nothing is in flight that could be joined.
    #[error("there is no reduction that was started and not joined")]
    NothingStarted,
    /// A tensor that can't be reduced or copied where it lies.
    #[error("vector {index} is {found}, but must be flat, contiguous and f32 on {device}")]
    Unfit {
        /// Which of the hosted vectors; the mean counts as the one after them.
        index: usize,
        /// What it is.
        found: String,
        /// Where the collective works.
        device: String,
    },
    /// A vector of another length than the mean.
    #[error("vector {index} has {found} elements and the mean has {expected}")]
    Length {
        /// Which of the hosted vectors.
        index: usize,
        /// Its length.
        found: usize,
        /// The mean's.
        expected: usize,
    },
}

/// Why a vector can't be copied from such holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HolderFault {
    /// Nobody to copy from.
    #[error("it is empty")]
    Empty,
    /// Not in rising order, or a rank is there twice.
    #[error("rank {second} comes after rank {first}, but ranks must rise")]
    Order {
        /// A rank.
        first: Rank,
        /// The one after it.
        second: Rank,
    },
    /// No such rank.
    #[error("there is no rank {rank} among {world_size} workers")]
    NoSuchRank {
        /// The one that is listed.
        rank: Rank,
        /// How many there are.
        world_size: u32,
    },
}

/// Milliseconds are enough for people.
fn rounded(waited: Duration) -> Duration {
    Duration::from_millis(waited.as_millis().try_into().unwrap_or(u64::MAX))
}

fn detail(last: &str) -> String {
    if last.is_empty() {
        String::new()
    } else {
        format!("; the last attempt: {last}")
    }
}
