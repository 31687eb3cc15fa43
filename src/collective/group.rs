//! One generation, as its workers must agree on it before they can reduce.

use crate::ids::{Generation, Rank};
use std::fmt;
use std::ops::Range;

/// The members of one generation, seen by one of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Group {
    /// Which membership this is.
    pub generation: Generation,
    /// This worker's place in it.
    pub rank: Rank,
    /// Every worker by rank, this one among them.
    pub peers: Vec<GroupPeer>,
    /// R, the replicas of the job.
    pub replicas: u32,
    /// What members know and strangers don't. It is never sent.
    pub secret: [u8; 32],
}

/// One worker of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPeer {
    /// `host:port` of its [`Listener`](super::Listener).
    pub address: String,
    /// The replicas that it hosts.
    pub replicas: Range<u32>,
}

/// Why a group is impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupFault {
    /// There is nobody in it.
    #[error("it has no workers")]
    Empty,
    /// There is no such rank.
    #[error("this worker's rank is {rank}, but there are only {workers} workers")]
    Rank {
        /// The rank given.
        rank: Rank,
        /// How many there are.
        workers: usize,
    },
    /// A worker hosts nothing, or not what follows the worker before it.
    #[error(
        "rank {rank} hosts replicas {}..{}, but the next to be hosted is {expected}: \
         the workers' ranges must follow each other, and none may be empty",
        found.start,
        found.end
    )]
    Range {
        /// The worker.
        rank: Rank,
        /// Its range.
        found: Range<u32>,
        /// Where it had to start.
        expected: u32,
    },
    /// The last range doesn't end at R.
    #[error("replicas {hosted}..{replicas} have no host")]
    Unhosted {
        /// How many replicas have a host.
        hosted: u32,
        /// R.
        replicas: u32,
    },
}

impl Group {
    /// Refuses a group whose ranges don't partition `0..replicas` in rank order.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), GroupFault> {
        let ranges: Vec<_> = self
            .peers
            .iter()
            .map(|peer| peer.replicas.clone())
            .collect();
        check_ranges(&ranges, self.replicas)?;
        if self.rank.0 as usize >= self.peers.len() {
            return Err(GroupFault::Rank {
                rank: self.rank,
                workers: self.peers.len(),
            });
        }
        Ok(())
    }
}

/// Refuses ranges that don't partition `0..replicas` in order.
pub(super) fn check_ranges(ranges: &[Range<u32>], replicas: u32) -> Result<(), GroupFault> {
    if ranges.is_empty() {
        return Err(GroupFault::Empty);
    }
    let mut next = 0;
    for (rank, range) in ranges.iter().enumerate() {
        if range.start != next || range.end <= range.start {
            return Err(GroupFault::Range {
                rank: Rank(rank as u32),
                found: range.clone(),
                expected: next,
            });
        }
        next = range.end;
    }
    if next != replicas {
        return Err(GroupFault::Unhosted {
            hosted: next,
            replicas,
        });
    }
    Ok(())
}

/// Without the secret, so that no log shows it.
impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("generation", &self.generation)
            .field("rank", &self.rank)
            .field("peers", &self.peers)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(ranges: &[Range<u32>], rank: u32, replicas: u32) -> Group {
        Group {
            generation: Generation(1),
            rank: Rank(rank),
            peers: ranges
                .iter()
                .map(|range| GroupPeer {
                    address: "127.0.0.1:1".to_owned(),
                    replicas: range.clone(),
                })
                .collect(),
            replicas,
            secret: [0xab; 32],
        }
    }

    #[test]
    fn every_replica_has_exactly_one_host() {
        assert_eq!(group(&[0..3, 3..4], 1, 4).check(), Ok(()));
        assert_eq!(group(&[], 0, 4).check(), Err(GroupFault::Empty));
        for broken in [[0..2, 3..4], [0..3, 2..4], [1..3, 3..4], [0..4, 4..4]] {
            let fault = group(&broken, 0, 4).check();
            assert!(matches!(fault, Err(GroupFault::Range { .. })), "{fault:?}");
        }
        let fault = group(&[0..2, 2..3], 0, 4).check().unwrap_err();
        assert_eq!(fault.to_string(), "replicas 3..4 have no host");
        let fault = group(&[0..2, 2..4], 2, 4).check();
        assert!(matches!(fault, Err(GroupFault::Rank { .. })), "{fault:?}");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let shown = format!("{:?}", group(&[0..4, 4..5], 0, 5));
        assert!(
            !shown.contains("171") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
