//! The records of the newest steps. Every worker keeps them, so that whoever leads next can tell
//! the coordinator of steps that the leader of before had not told.

use crate::ids::Step;
use crate::proto::StepRecord;
use std::collections::VecDeque;

/// Steps that are remembered.
const KEPT: usize = 512;

#[derive(Debug, Default)]
pub(super) struct History(VecDeque<StepRecord>);

impl History {
    pub(super) fn push(&mut self, record: StepRecord) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    /// Forgets the steps after this state: training goes on from here.
    pub(super) fn go_on_from(&mut self, step: Step) {
        while self.0.back().is_some_and(|record| record.step > step.0) {
            self.0.pop_back();
        }
    }

    /// The records of the steps after this state, in order.
    pub(super) fn since(&self, step: Step) -> Vec<StepRecord> {
        let first = self.0.partition_point(|record| record.step <= step.0);
        self.0.range(first..).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            ..StepRecord::default()
        }
    }

    fn steps(records: &[StepRecord]) -> Vec<u64> {
        records.iter().map(|record| record.step).collect()
    }

    #[test]
    fn what_was_not_told_is_told_once_and_in_order() {
        let mut history = History::default();
        for step in 1..=600 {
            history.push(record(step));
        }
        assert_eq!(history.since(Step(0)).len(), KEPT);
        assert_eq!(steps(&history.since(Step(597))), [598, 599, 600]);
        assert_eq!(history.since(Step(600)), []);
        assert_eq!(history.since(Step(900)), []);
    }

    #[test]
    fn steps_that_are_done_again_are_remembered_once() {
        let mut history = History::default();
        for step in 1..=8 {
            history.push(record(step));
        }
        history.go_on_from(Step(5));
        history.push(record(6));
        assert_eq!(steps(&history.since(Step(3))), [4, 5, 6]);
    }
}
