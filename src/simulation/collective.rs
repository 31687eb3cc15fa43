//! A generation's collectives: who has come to which, and what has got through.
//!
//! A collective needs everybody: when the last one has entered, each rank sends its part to each
//! other one, at slightly different times. A rank is done when it has every part and has sent its
//! own; so when one dies in between, some are done and others are not.

use super::chance::Chance;
use super::job::State;
use super::worker::ProcessId;
use crate::collective::Flags;
use crate::ids::Generation;
use crate::membership::Now;
use std::collections::BTreeMap;

/// A generation, and the life of the coordinator that spoke it: its secret.
pub(super) type GroupId = (Generation, u64);

/// What a rank brings along.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) state: State,
    /// What its replicas add.
    pub(super) gradient: u64,
    pub(super) flags: Flags,
}

/// One collective.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) parts: Vec<Option<Part>>,
    /// When each rank's part is on its way to each other, once all have entered.
    sent_at: Vec<Now>,
    pub(super) done: Vec<bool>,
}

impl Operation {
    fn new(ranks: usize) -> Self {
        Self {
            parts: vec![None; ranks],
            sent_at: Vec::new(),
            done: vec![false; ranks],
        }
    }

    pub(super) fn is_full(&self) -> bool {
        !self.sent_at.is_empty()
    }

    pub(super) fn sent_at(&self, from: usize, to: usize) -> Now {
        self.sent_at[from * self.parts.len() + to]
    }

    /// When this rank is done, if nothing comes in between.
    pub(super) fn done_at(&self, rank: usize) -> Now {
        let others = 0..self.parts.len();
        let times = others.map(|other| self.sent_at(other, rank).max(self.sent_at(rank, other)));
        times.max().unwrap_or_default()
    }

    /// What a rank has not sent yet, it sends now.
    fn resend(&mut self, from: usize, now: Now, chance: &mut Chance) {
        let ranks = self.parts.len();
        if !self.is_full() || self.done[from] {
            return;
        }
        for to in 0..ranks {
            let at = &mut self.sent_at[from * ranks + to];
            *at = (*at).max(now + chance.ms(0, 20));
        }
    }
}

/// What a generation's ranks do together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) processes: Vec<ProcessId>,
    pub(super) joined: Vec<bool>,
    /// When a rank left, or died.
    pub(super) left: Vec<Option<Now>>,
    operations: BTreeMap<u64, Operation>,
    pub(super) spoken_at: Now,
    /// All ranks have agreed on the state to go on from.
    pub(super) agreed: bool,
}

impl Group {
    pub(super) fn new(processes: Vec<ProcessId>, now: Now) -> Self {
        let ranks = processes.len();
        Self {
            processes,
            joined: vec![false; ranks],
            left: vec![None; ranks],
            operations: BTreeMap::new(),
            spoken_at: now,
            agreed: false,
        }
    }

    /// A rank comes to a collective. True if it was the last.
    pub(super) fn enter(
        &mut self,
        number: u64,
        rank: usize,
        part: Part,
        now: Now,
        chance: &mut Chance,
    ) -> bool {
        let ranks = self.processes.len();
        // Whoever comes to this one has left the one before the last behind, and so have all.
        self.operations = self.operations.split_off(&number.saturating_sub(2));
        let found = self.operations.entry(number);
        let operation = found.or_insert_with(|| Operation::new(ranks));
        operation.parts[rank] = Some(part);
        if operation.parts.iter().any(Option::is_none) {
            return false;
        }
        let times = (0..ranks * ranks).map(|pair| {
            let own = pair / ranks == pair % ranks;
            if own { now } else { now + chance.ms(0, 20) }
        });
        operation.sent_at = times.collect();
        true
    }

    pub(super) fn operation(&mut self, number: u64) -> Option<&mut Operation> {
        self.operations.get_mut(&number)
    }

    /// A rank that was stopped goes on with what it was sending.
    pub(super) fn resume(&mut self, rank: usize, now: Now, chance: &mut Chance) {
        for operation in self.operations.values_mut() {
            operation.resend(rank, now, chance);
        }
    }
}
