//! What ranks tell each other about collectives whose numbers travel elsewhere: between devices.
//!
//! A rank that begins one says so to all others at once and hears them later, in the same order. So
//! ranks that are not in the same operation find out, and one that is missing has a name, whatever
//! happens where the numbers are.

use super::copying::{check, checksum};
use super::{Exact, Links};
use crate::collective::error::{CollectiveError, Operation};
use crate::collective::tree;
use crate::collective::wire::{Kind, Label};
use crate::config::Reduction;
use crate::ids::Rank;
use std::ops::Range;

/// What was announced, and is to be heard from all others.
#[derive(Clone, Copy, Debug)]
pub(in crate::collective) struct Announcement {
    operation: Operation,
    label: Label,
}

impl<L: Links> Exact<L> {
    /// Tells all that a reduction of so many elements begins here. Waits for nobody.
    pub(in crate::collective) fn announce_reduction(
        &mut self,
        reduction: Reduction,
        elements: usize,
    ) -> Result<Announcement, CollectiveError> {
        let node = u32::from(reduction == Reduction::Fast);
        self.announce(Operation::Reduce, Kind::Reducing, node, elements)
    }

    /// Tells all that a copy from these holders begins here. Waits for nobody.
    pub(in crate::collective) fn announce_copy(
        &mut self,
        holders: &[Rank],
        elements: usize,
    ) -> Result<Announcement, CollectiveError> {
        check(holders, self.world_size).map_err(|fault| CollectiveError::Holders {
            rank: self.rank,
            fault,
        })?;
        let node = checksum(holders);
        self.announce(Operation::Copy, Kind::CopyingOnDevice, node, elements)
    }

    fn announce(
        &mut self,
        operation: Operation,
        kind: Kind,
        node: u32,
        elements: usize,
    ) -> Result<Announcement, CollectiveError> {
        self.run(operation, |exact| {
            let label = exact.label(kind, 0, node, elements);
            if exact.world_size > 1 {
                exact.links.send_all(label, &[])?;
            }
            Ok(Announcement { operation, label })
        })
    }

    /// Waits until every other rank has announced the same.
    pub(in crate::collective) fn hear(
        &mut self,
        announcement: Announcement,
    ) -> Result<(), CollectiveError> {
        let Announcement { operation, label } = announcement;
        self.attempt(operation, |exact| {
            exact
                .peers()
                .try_for_each(|peer| exact.links.receive(peer, label, &mut []))
        })
    }

    /// Tells all that nothing more will come from here, and nothing is missing. What can't be sent
    /// is not needed either.
    pub(in crate::collective) fn say_goodbye(&mut self) {
        if self.broken.is_none() && self.world_size > 1 {
            self.sequence += 1;
            let label = self.label(Kind::Goodbye, 0, 0, 0);
            let _ = self.links.send_all(label, &[]);
        }
    }

    /// From now on every call is an error, and the peers are cut off, so that they learn of it.
    pub(in crate::collective) fn break_off(&mut self, cause: &CollectiveError) {
        if self.broken.is_none() {
            self.broken = Some(cause.to_string());
        }
        self.links.cut();
    }

    /// An error once it is broken.
    pub(in crate::collective) fn whole(&self) -> Result<(), CollectiveError> {
        match &self.broken {
            None => Ok(()),
            Some(cause) => Err(CollectiveError::Broken {
                generation: self.generation,
                cause: cause.clone(),
            }),
        }
    }

    /// The same rank of the same group over other links, which take over these.
    pub(in crate::collective) fn over<M: Links>(
        self,
        take_over: impl FnOnce(L) -> Result<M, CollectiveError>,
    ) -> Result<Exact<M>, CollectiveError> {
        Ok(Exact {
            links: take_over(self.links)?,
            generation: self.generation,
            rank: self.rank,
            world_size: self.world_size,
            replicas: self.replicas,
            hosted: self.hosted,
            parts: self.parts,
            own: self.own,
            finish: self.finish,
            slots: self.slots,
            outgoing: self.outgoing,
            sequence: self.sequence,
            sent: self.sent,
            broken: self.broken,
        })
    }

    /// Every subtree, with its rank, in the order of the replicas.
    pub(in crate::collective) fn parts(&self) -> &[(Rank, Range<u32>)] {
        &self.parts
    }

    /// How the tree is finished, in indices of [`parts`](Exact::parts).
    pub(in crate::collective) fn finishing(&self) -> &[(usize, usize)] {
        &self.finish
    }

    /// The replicas that this rank hosts.
    pub(in crate::collective) fn hosted(&self) -> Range<u32> {
        self.hosted.clone()
    }

    /// R.
    pub(in crate::collective) fn replicas(&self) -> u32 {
        self.replicas
    }

    /// The part of a vector that this rank or another finishes.
    pub(in crate::collective) fn slice(&self, length: usize, rank: Rank) -> Range<usize> {
        tree::slice(length, self.world_size, rank.0)
    }
}
