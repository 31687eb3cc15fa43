//! Epochs that were planned, for everybody who asks.

use crate::ids::Epoch;
use crate::plan::{EpochPlan, Plan};
use std::collections::BTreeMap;
use std::ops::Range;

/// Epochs that were planned: each is asked for by every worker.
pub(super) struct Plans {
    pub(super) plan: Plan,
    made: BTreeMap<u64, EpochPlan>,
}

impl Plans {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            made: BTreeMap::new(),
        }
    }

    /// Plans of these epochs, by epoch.
    pub(super) fn of(&mut self, epochs: &Range<u64>) -> impl Iterator<Item = &EpochPlan> {
        // What lies behind is not asked for again.
        self.made = self.made.split_off(&epochs.start.min(self.first()));
        for epoch in epochs.clone() {
            let plan = &self.plan;
            self.made
                .entry(epoch)
                .or_insert_with(|| plan.epoch(Epoch(epoch)));
        }
        self.made.range(epochs.clone()).map(|(_, plan)| plan)
    }

    fn first(&self) -> u64 {
        self.made.keys().next().copied().unwrap_or(0)
    }

    /// Forgets the epochs before this one.
    pub(super) fn forget_before(&mut self, epoch: u64) {
        self.made = self.made.split_off(&epoch);
    }
}
