//! PURE. The job that a schedule runs, and what its states must be.

use super::chance::{Chance, mix};
use crate::ids::Step;
use crate::membership::{DeviceKind, Now, Rules};
use std::ops::Range;
use std::time::Duration;

/// `State(step)`: `bits` stand for all its parameters and moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) step: Step,
    pub(super) bits: u64,
}

/// A job, small but with everything that the machines look at.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) expected: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) replicas: u32,
    pub(super) total: u64,
    pub(super) epoch: u64,
    /// Steps between two checkpoints; 0 is none but the last.
    pub(super) every: u64,
    /// Steps that are handed out ahead.
    pub(super) ahead: u64,
    /// What a round of replicas takes.
    pub(super) round: Duration,
    pub(super) heartbeat: Duration,
    pub(super) form: Duration,
    pub(super) collective: Duration,
    pub(super) save: Duration,
    /// For the coordinator to be back.
    pub(super) patience: Duration,
}

pub(super) const DATA: &str = "data";
pub(super) const JOB_ID: &str = "job";

impl Job {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        let replicas = chance.from(4, 8) as u32;
        let expected = chance.from(1, 5).min(u64::from(replicas)) as u32;
        let most = if chance.in_thousand(500) {
            expected
        } else {
            replicas
        };
        Self {
            expected,
            min: chance.from(1, u64::from(expected)) as u32,
            max: most,
            replicas,
            total: chance.from(30, 60),
            epoch: chance.from(4, 12),
            every: chance.pick(&[0, 5, 5, 10, 7]).unwrap_or(5),
            ahead: chance.pick(&[4, 15, 1000]).unwrap_or(1000),
            round: chance.ms(80, 400),
            heartbeat: Duration::from_secs(10),
            form: Duration::from_secs(20),
            collective: Duration::from_secs(20),
            save: Duration::from_secs(20),
            patience: Duration::from_secs(120),
        }
    }

    pub(super) fn rules(&self, device: Option<DeviceKind>) -> Rules {
        Rules {
            job_id: JOB_ID.to_owned(),
            expected: self.expected,
            min: self.min,
            max: self.max,
            replicas: self.replicas,
            total_steps: self.total,
            steps_per_epoch: self.epoch,
            data_digest: DATA.to_owned(),
            device,
            join: Duration::from_secs(300),
            heartbeat: self.heartbeat,
            form: self.form,
            pause: 2 * self.collective,
            finish: self.farewell(),
        }
    }

    /// For all workers to finish.
    pub(super) fn farewell(&self) -> Now {
        self.collective + 2 * self.save
    }

    pub(super) fn first(&self) -> State {
        State {
            step: Step(0),
            bits: mix(0x6761_6e67_6c69_6f6e),
        }
    }

    /// What these replicas add to the step from `state`: their batches, seen through the weights.
    pub(super) fn gradient(&self, state: State, replicas: Range<u32>) -> u64 {
        let each = replicas.map(|replica| {
            let batch = mix(state.step.0 << 16 | u64::from(replica));
            mix(state.bits ^ batch)
        });
        each.fold(0, u64::wrapping_add)
    }

    /// What follows from `state` and the sum over all replicas. A replica that is missing, or
    /// there twice, or that started from something else, leads elsewhere.
    pub(super) fn follow(&self, state: State, sum: u64) -> State {
        State {
            step: state.step.next(),
            bits: mix(state.bits ^ mix(sum)),
        }
    }

    /// `State(0)` to the last, as one worker alone would compute them.
    pub(super) fn reference(&self) -> Vec<u64> {
        let mut state = self.first();
        let mut reference = vec![state.bits];
        for _ in 0..self.total {
            state = self.follow(state, self.gradient(state, 0..self.replicas));
            reference.push(state.bits);
        }
        reference
    }
}
